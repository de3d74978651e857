"""Phrases as a tokenizer may write them: which token ids a recogniser would have to say, and where a word goes on."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from tokenizers.decoders import ByteLevel

# Scripts that put no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Kana, Han.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)

# In which tokenizers say where words begin (byte-level BPE, SentencePiece), go on (WordPiece, @@) or end.
WORD_MARKS = ("Ġ", "▁", "##", "</w>", "@@")


@dataclass(frozen=True, eq=False)
class WordJoints:
    """Between which tokens a word goes on: where the first joins to its right and the second to its left.

    Args:
        left: boolean [V], whether the token goes on with a word that is open before it.
        right: boolean [V], whether the token leaves its word open.
    """

    left: np.ndarray
    right: np.ndarray

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> "WordJoints":
        """Read off the tokens how their tokenizer marks the beginnings, insides or ends of words.

        Words are of letters and digits: an apostrophe, a hyphen and a special token end them. Scripts without
        spaces have no words here; nor are characters that are spread over several tokens looked at.
        """
        special = set(tokenizer.all_special_ids)
        texts = ["" if index in special else text for index, text in enumerate(_texts_of_tokens(tokenizer))]
        return cls(
            np.array([_in_words(text[:1]) for text in texts]), np.array([_in_words(text[-1:]) for text in texts])
        )


class HotWords(list[list[int]]):
    """Token ids of phrases that count as whole words alone, for `generate(hot_words=…)`.

    Args:
        phrases: token ids of each.
        joints: between which tokens a word goes on.
    """

    def __init__(self, phrases: Iterable[list[int]] = (), joints: WordJoints | None = None):
        super().__init__(phrases)
        self.joints = joints


class WeightedHotWords(dict[tuple[int, ...], float]):
    """The same with a weight for each phrase.

    Args:
        phrases: token ids of each, and its weight.
        joints: between which tokens a word goes on.
    """

    def __init__(self, phrases: Mapping[tuple[int, ...], float], joints: WordJoints | None = None):
        super().__init__(phrases)
        self.joints = joints


@overload
def hot_word_ids(tokenizer: Any, phrases: Mapping[str, float]) -> WeightedHotWords: ...
@overload
def hot_word_ids(tokenizer: Any, phrases: Iterable[str]) -> HotWords: ...
def hot_word_ids(tokenizer: Any, phrases: Iterable[str] | Mapping[str, float]) -> HotWords | WeightedHotWords:
    """Token ids of phrases, for `generate(hot_words=…)`, in every way in which a transcript may have them.

    These are: as given, in lower and upper case, and with the first letter of the phrase or of each word in upper
    case; each at the beginning of a text and behind a space, where the tokenizer tells those apart. They count as
    whole words: "cat" gains nothing in "category".

    Args:
        tokenizer: of the decoder.
        phrases: words or phrases, or a mapping from these to the weight of each.

    Returns:
        Lists of token ids without special tokens, none of them twice; for a mapping, the ids as tuples with their
        weights, the larger one where two phrases are written alike. Either knows, as `joints`, where words go on.

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
    joints = WordJoints.of_tokenizer(tokenizer)
    if isinstance(phrases, Mapping):
        return WeightedHotWords(found, joints)
    return HotWords([list(token_ids) for token_ids in found], joints)


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


def _texts_of_tokens(tokenizer: Any) -> list[str]:
    """What each token stands for, with a space where a word begins before it or ends behind it."""
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    seen = Counter(mark for token in tokens for mark in WORD_MARKS if _is_marked(token, mark))
    mark = max(seen, key=lambda mark: seen[mark], default=None)
    if mark == "Ġ":
        decoder = ByteLevel()
        return [decoder.decode([token]) for token in tokens]
    if mark == "▁":
        return [token.replace("▁", " ") for token in tokens]
    if mark == "##":
        return [token.removeprefix("##") if _is_marked(token, "##") else f" {token}" for token in tokens]
    if mark == "</w>":
        return [f"{token.removesuffix('</w>')} " if _is_marked(token, "</w>") else token for token in tokens]
    if mark == "@@":
        return [token.removesuffix("@@") if _is_marked(token, "@@") else f"{token} " for token in tokens]
    return [f" {token}" for token in tokens] if _puts_spaces(tokenizer, tokens) else tokens


def _is_marked(token: str, mark: str) -> bool:
    """Whether a token has a tokenizer's mark of words, and is not a text that looks alike."""
    bare = token.removesuffix(mark) if mark in ("</w>", "@@") else token.removeprefix(mark)
    return token != bare and (bare != "" or mark in "Ġ▁") and not (mark == "##" and bare.startswith("#"))


def _puts_spaces(tokenizer: Any, tokens: list[str]) -> bool:
    """Whether every token is a word, of a tokenizer that marks none."""
    special = set(tokenizer.all_special_ids)
    spelt = [index for index, token in enumerate(tokens) if index not in special and token.isalnum()][:2]
    return len(spelt) == 2 and " " in tokenizer.decode(spelt).strip()


def _in_words(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "LMN" and not UNSPACED.match(character)


__all__ = ["HotWords", "WeightedHotWords", "WordJoints", "hot_word_ids"]
