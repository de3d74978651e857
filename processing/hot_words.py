"""Phrases as a tokenizer may write them: which token ids a recogniser would have to say."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload


@overload
def hot_word_ids(tokenizer: Any, phrases: Mapping[str, float]) -> dict[tuple[int, ...], float]: ...
@overload
def hot_word_ids(tokenizer: Any, phrases: Iterable[str]) -> list[list[int]]: ...
def hot_word_ids(
    tokenizer: Any, phrases: Iterable[str] | Mapping[str, float]
) -> list[list[int]] | dict[tuple[int, ...], float]:
    """Token ids of phrases, for `generate(hot_words=…)`, in every way in which a transcript may have them.

    These are: as given, in lower and upper case, and with the first letter of the phrase or of each word in upper
    case; each at the beginning of a text and behind a space, where the tokenizer tells those apart.

    Args:
        tokenizer: of the decoder.
        phrases: words or phrases, or a mapping from these to the weight of each.

    Returns:
        Lists of token ids without special tokens, none of them twice; for a mapping, the ids as tuples with their
        weights, the larger one where two phrases are written alike.

    Raises:
        ValueError: there is no phrase, one is empty, or the tokenizer has no tokens for it.
        TypeError: a single string was given instead of several.
    """
    if isinstance(phrases, str):
        raise TypeError(f"give a list of phrases, not one string: [{phrases!r}]")
    weights = dict(phrases) if isinstance(phrases, Mapping) else dict.fromkeys(phrases, 0.0)
    if not weights:
        raise ValueError("there are no phrases: give at least one")
    found: dict[tuple[int, ...], float] = {}
    for phrase, weight in weights.items():
        for token_ids in _ways_to_write(tokenizer, phrase):
            found[token_ids] = max(weight, found.get(token_ids, weight))
    return found if isinstance(phrases, Mapping) else [list(token_ids) for token_ids in found]


def _ways_to_write(tokenizer: Any, phrase: str) -> list[tuple[int, ...]]:
    phrase = " ".join(phrase.split())
    if not phrase:
        raise ValueError("a phrase is empty")
    unknown = tokenizer.unk_token_id
    ways = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _spellings(phrase)]
    known = [way for way in dict.fromkeys(ways) if way and unknown not in way]
    if not known:
        raise ValueError(f"{type(tokenizer).__name__} has no tokens for the phrase {phrase!r}")
    return known


def _spellings(phrase: str) -> Iterator[str]:
    capitalized = " ".join(word[:1].upper() + word[1:] for word in phrase.split())
    cases = [phrase, phrase.lower(), phrase.upper(), phrase[:1].upper() + phrase[1:], phrase.capitalize(), capitalized]
    for case in dict.fromkeys(cases):
        yield f" {case}"
        yield case


__all__ = ["hot_word_ids"]
