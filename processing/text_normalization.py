"""Making transcripts comparable before they are counted: a normaliser is any function from text to text.

Word error rates of different systems compare only under the same normaliser; report it with the number.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping

Normalizer = Callable[[str], str]

_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc\uff07", "''''")
_NOT_INSIDE_A_WORD = re.compile(r"(?<!\w)'|'(?!\w)")


def identity_normalizer(text: str) -> str:
    """The text as it is."""
    return text


def basic_normalizer(text: str) -> str:
    """For any language: Unicode NFKC, lower case, no punctuation but apostrophes inside words, single spaces.

    Hyphens and the like separate words ("twenty-one" is two), invisible characters go, accents stay.
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(_APOSTROPHES)
    text = "".join(map(_letter_or_space, text))
    return " ".join(_NOT_INSIDE_A_WORD.sub(" ", text).split())


def _letter_or_space(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf":  # soft hyphens, joiners: part of a word
        return ""
    return " " if category[0] in "PSZC" and character != "'" else character


def english_normalizer(spelling: Mapping[str, str] | None = None) -> Normalizer:
    """Whisper's normaliser for English: contractions and numbers to one form, no fillers, no bracketed remarks.

    Args:
        spelling: British to American words, such as the `normalizer.json` of a Whisper checkpoint; none by default, as
            Transformers ships none.

    Source: Radford et al. 2022, appendix C, as Transformers implements it.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer(dict(spelling or {}))


def get_normalizer(normalizer: str | Normalizer | None) -> Normalizer:
    """A normaliser by name ("none", "basic", "english"), or the function itself; None is "basic"."""
    if callable(normalizer):
        return normalizer
    named = {"none": lambda: identity_normalizer, "basic": lambda: basic_normalizer, "english": english_normalizer}
    name = normalizer or "basic"
    if name not in named:
        raise ValueError(f"normalizer is one of {', '.join(named)} or a function, not {normalizer!r}")
    return named[name]()
