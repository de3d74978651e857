"""From written text to what a speech model reads: normalisation, sentences, and a vocabulary of characters.

A normaliser is any function from text to text that leaves words as they are spoken. English, German, French and
Spanish have one, every other language of num2words gets its numbers read, and `register_text_normalizer` adds or
replaces one. Characters that nobody can read aloud are left out and named in a warning, never silently.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from num2words import CONVERTER_CLASSES
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from .spoken_english import speak_english
from .spoken_english_tables import ABBREVIATIONS, CLOSING_ABBREVIATIONS, COUNTED, SENTENCE_STARTERS
from .spoken_languages import LANGUAGE_RULES, LanguageReader, LanguageRules

logger = logging.get_logger(__name__)

TextNormalizer = Callable[[str], str]

PUNCTUATION = frozenset(".,;:!?'\"()[]-¿¡")  # what may stay in a text that is to be spoken
POINT_DECIMALS = frozenset({"en_IN", "en_NG", "ja", "ko", "he", "th", "kn", "te", "bn"})  # others write 3,14
_SAME_CHARACTER = {
    **dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2014\u2015\u2e3a", " \u2014 "),
    **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff\ufe0e\ufe0f", ""),  # invisible
    "\u2116": "No.",
    "\u00b5": "\u03bc",  # micro sign
    "\u2044": "/",
}
_UNSPOKEN_MARKS = str.maketrans(dict.fromkeys("`*_~|\\/•·{}", " ") | dict.fromkeys("™®", ""))
_CHARACTERS = str.maketrans(_SAME_CHARACTER)
_KEPT_BY_FOLDING = frozenset("²³°ºª½¼¾™®©‰…")  # compatibility characters with a meaning that NFKC would take away
_VULGAR_FRACTION = re.compile(r"(\d?)([\u00bc-\u00be\u2150-\u215e])")
_GROUPING_SPACE = re.compile(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))")

_registered: dict[str, TextNormalizer] = {}


def register_text_normalizer(language: str, normalizer: TextNormalizer) -> None:
    """Make a function the normaliser of a language, in place of the one that it may have.

    Args:
        language: its code, such as "en" or "pt_BR"; what processors are told.
        normalizer: from text as it is written to text as it is spoken.
    """
    if not callable(normalizer):
        raise TypeError(f"a text normalizer is a function from text to text, not {type(normalizer).__name__}")
    _registered[language] = normalizer


def normalizer_languages() -> list[str]:
    """Codes of the languages that have a normaliser."""
    return sorted({*_registered, *CONVERTER_CLASSES})


def get_text_normalizer(language: str) -> TextNormalizer:
    """The normaliser of a language: the registered one, else the one that comes with this package.

    Raises:
        ValueError: there is none.
    """
    for code in (language, language.replace("-", "_"), re.split("[-_]", language)[0]):
        if code in _registered:
            return _registered[code]
        if code in CONVERTER_CLASSES:
            return _own_normalizer(code)
    raise ValueError(
        f"no text normalizer for the language {language!r}: there are {', '.join(normalizer_languages())}."
        " Add one with register_text_normalizer(), or switch normalization off"
    )


def normalize_for_speech(text: str, language: str = "en") -> str:
    """Text as it is written to text as it is spoken: "$3.20" to "three dollars and twenty cents".

    Args:
        text: of any length.
        language: its code.

    Returns:
        One line of words and punctuation; empty where nothing in the text can be spoken.

    Raises:
        ValueError: the language has no normaliser.
    """
    return get_text_normalizer(language)(text)


@cache
def _own_normalizer(code: str) -> TextNormalizer:
    if code == "en":
        return lambda text: _spoken(text, speak_english, only_latin=True)
    marks = (".", ",") if code in POINT_DECIMALS else (",", ".")
    read = LanguageReader(LANGUAGE_RULES.get(code) or LanguageRules(code, *marks))
    return lambda text: _spoken(text, read, only_latin=code in LANGUAGE_RULES)


def _spoken(text: str, read: TextNormalizer, only_latin: bool) -> str:
    text = read(plain_characters(text)).replace("…", "...").translate(_UNSPOKEN_MARKS)
    left_out = sorted({c for c in text if not _is_speakable(c, only_latin)})
    if left_out:
        logger.warning_once(f"Left out of the text, as they cannot be read aloud: {character_names(left_out)}")
        text = "".join(" " if c in left_out else c for c in text)
    return _tidy(text)


def plain_characters(text: str) -> str:
    """One form for characters that have several: typographic quotes and dashes, ligatures, full-width letters,
    composed accents; invisible characters go.
    """
    text = _GROUPING_SPACE.sub("", text)
    text = _VULGAR_FRACTION.sub(_written_out_fraction, text).translate(_CHARACTERS)
    folded = (c if c in _KEPT_BY_FOLDING else unicodedata.normalize("NFKC", c) for c in text)
    return unicodedata.normalize("NFC", "".join(folded))


def _written_out_fraction(match: re.Match[str]) -> str:
    over_under = unicodedata.normalize("NFKC", match[2]).replace("\u2044", "/")
    return f"{match[1]} {over_under}" if match[1] else over_under


def _is_speakable(character: str, only_latin: bool) -> bool:
    if character.isspace() or character in PUNCTUATION or character == "\u2014":
        return True
    kind = unicodedata.category(character)[0]
    if not only_latin:
        return kind in "LMNP"
    return kind == "L" and unicodedata.name(character, "").startswith("LATIN")


def _tidy(text: str) -> str:
    """Single spaces, dashes as pauses, no space before punctuation and one behind a comma."""
    text = re.sub(r"(?:\u2014 )+", "\u2014 ", " ".join(text.split()) + " ")
    text = re.sub(r"^\u2014 | \u2014 (?=[.,;:!?]|$)", "", text)
    text = re.sub(r",? \u2014 ", ", ", text).strip()
    text = re.sub(r" +([,;:.!?])(?![.\w])", r"\1", text)
    text = re.sub(r"([,;])(?=[^\W\d_])", r"\1 ", text)
    return re.sub(r"([(\[]) +| +([)\]])", r"\1\2", text)


def character_names(characters: Iterable[str]) -> str:
    """Characters and their Unicode names, for messages: "'😀' (GRINNING FACE)"."""
    return ", ".join(f"{c!r} ({unicodedata.name(c, f'U+{ord(c):04X}')})" for c in characters)


_NEVER_LAST = {word.rstrip(".").lower() for word in ABBREVIATIONS}
_SELDOM_LAST = {word.rstrip(".").lower() for word in CLOSING_ABBREVIATIONS} | {"st", "dr"}
_SELDOM_LAST |= {"jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"}
_END = re.compile(  # full stops of East Asia need no space
    r"(?:(?<![.!?…])[.!?…]++[\"'\u2019\u201d\u00bb)\]]*+(?=\s)|[。！？]+[」』）]*)\s*"
    r"|[ \t]*\n[ \t]*\n\s*"
)
_BLANK_LINE = re.compile(r"\n\s*\n")
_CLAUSE = re.compile(r"[,;:\u2014][\"'\u2019\u201d)\]]*\s+|\s-+\s+|\s(?=\()|[、，；：]")


def split_sentences(text: str, max_characters: int | None = None) -> list[str]:
    """Cut a text into sentences, without losing a character: the pieces, concatenated, are the text.

    Sentences end at full stops, question and exclamation marks and at blank lines; dots of abbreviations, initials and
    decimals do not end them.

    Args:
        text: of any length, before or after normalisation.
        max_characters: cut longer sentences, at the last clause mark that fits, else at the last space, else anywhere.
            White space at the ends does not count.

    Returns:
        The pieces, with the white space that follows them; none for an empty text. Those of white space alone are
        joined to their neighbours.

    Raises:
        ValueError: `max_characters` is not positive.
    """
    if max_characters is not None and max_characters < 1:
        raise ValueError(f"max_characters must be at least 1, got {max_characters}")
    pieces, start = [], 0
    for match in _END.finditer(text):
        if _is_sentence_end(text, start, match) and text[start : match.end()].strip():
            pieces.append(text[start : match.end()])
            start = match.end()
    if start < len(text):
        pieces.append(text[start:])
    if len(pieces) > 1 and not pieces[-1].strip():
        pieces[-2:] = [pieces[-2] + pieces[-1]]
    if max_characters is None:
        return pieces
    return [part for piece in pieces for part in _cut(piece, max_characters)]


def _is_sentence_end(text: str, start: int, match: re.Match[str]) -> bool:
    mark = match[0].strip()
    if not mark or mark[0] in "。！？" or _BLANK_LINE.search(match[0]):
        return True
    following = re.match(r"[\"'\u2018\u201c(\[\u00ab]*(\w*)", text[match.end() : match.end() + 40])
    next_word = following[1] if following else ""
    if next_word[:1].islower():
        return False  # as in: "Really?" he asked
    if mark[0] != "." or mark.startswith(".."):
        return True
    last = re.search(r"[\w.]*$", text[max(start, match.start() - 40) : match.start()])
    word = last[0] if last else ""
    if word.lower() in COUNTED:  # No. 5
        return not next_word[:1].isdigit()
    if re.fullmatch(r"[A-Z]|(?:\w\.)+\w", word) or word.lower() in _SELDOM_LAST:  # an initial, U.S, etc
        return not next_word or next_word in SENTENCE_STARTERS
    return word.lower() not in _NEVER_LAST


def _cut(piece: str, max_characters: int) -> list[str]:
    parts = []
    while len(piece.strip()) > max_characters:
        lead = len(piece) - len(piece.lstrip())
        window = piece[: lead + max_characters + 1]
        at = _last_cut(window, lead, max_characters)
        parts.append(piece[:at])
        piece = piece[at:]
    if piece.strip() or not parts:
        parts.append(piece)
    else:
        parts[-1] += piece
    return parts


def _last_cut(window: str, lead: int, max_characters: int) -> int:
    """Where to cut: behind the last clause mark of the later three quarters, else the last space, else at the end."""
    clauses = [m.end() for m in _CLAUSE.finditer(window) if len(window[: m.end()].strip()) <= max_characters]
    if clauses and clauses[-1] - lead >= max_characters / 4:
        return clauses[-1]
    spaces = [m.end() for m in re.finditer(r"\s+", window) if m.start() > lead]
    return spaces[-1] if spaces else lead + max_characters


def train_character_tokenizer(
    texts: Iterable[str],
    lowercase: bool = True,
    min_count: int = 1,
    extra_characters: str = "",
    pad_token: str = "<pad>",
    unk_token: str = "<unk>",
    eos_token: str = "</s>",
) -> PreTrainedTokenizerFast:
    """Make a tokenizer of the characters of a corpus.

    Every character is a token, the end token is appended, and decoding gives the text back. `save_pretrained` and
    `AutoTokenizer.from_pretrained` keep it.

    Args:
        texts: as the model will see them: normalised, where the processor normalises.
        lowercase: whether "A" and "a" are one token, as they sound the same.
        min_count: leave out characters that occur less often.
        extra_characters: to have in any case.
        pad_token, unk_token, eos_token: names of the special tokens, whose ids are 0, 1 and 2.

    Raises:
        ValueError: there are no characters.
    """
    counts = Counter(extra_characters * min_count)
    for text in texts:
        counts.update(unicodedata.normalize("NFC", text.lower() if lowercase else text))
    characters = sorted(c for c, count in counts.items() if count >= min_count and (c == " " or not c.isspace()))
    if not characters:
        raise ValueError("no characters to make a tokenizer of: the texts are empty")
    special = [pad_token, unk_token, eos_token]
    vocabulary = {token: index for index, token in enumerate([*special, *dict.fromkeys([" ", *characters])])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk_token))
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " ")]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Lowercase()] if lowercase else steps)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"$A {eos_token}", special_tokens=[(eos_token, vocabulary[eos_token])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad_token,
        unk_token=unk_token,
        eos_token=eos_token,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def unknown_characters(text: str, tokenizer: Any) -> list[str]:
    """The characters of a text that a tokenizer has no token for, each once, in the order of their appearance.

    Args:
        text: as the tokenizer would get it.
        tokenizer: any of Transformers'; one without an unknown token knows everything.
    """
    if not _has_unknown(text, tokenizer):
        return []
    return [c for c in dict.fromkeys(text) if not c.isspace() and _has_unknown(c, tokenizer)]


def unknown_words(text: str, tokenizer: Any) -> list[str]:
    """The words of a text, each once, that a tokenizer has no tokens for although it may know their characters."""
    if not _has_unknown(text, tokenizer):
        return []
    return [word for word in dict.fromkeys(text.split()) if _has_unknown(word, tokenizer)]


def _has_unknown(text: str, tokenizer: Any) -> bool:
    if tokenizer.unk_token_id is None:
        return False
    return tokenizer.unk_token_id in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def fit_to_vocabulary(text: str, tokenizer: Any) -> tuple[str, list[str]]:
    """Replace the characters that a tokenizer does not have by what sounds the same, and leave the others out.

    Upper and lower case stand in for each other, a letter for its accented form, a space for a dash or slash.

    Returns:
        The text in characters that the tokenizer knows, and the characters that were left out.
    """
    unknown = unknown_characters(text, tokenizer)
    if not unknown:
        return text, []
    replaced = {character: _stand_in(character, tokenizer) for character in unknown}
    fitted = "".join(replaced.get(c, c) or "" for c in text)
    return " ".join(fitted.split()), [c for c in unknown if replaced[c] is None]


def _stand_in(character: str, tokenizer: Any) -> str | None:
    if character in "-/\u2013\u2014_":
        return " "
    base = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    candidates = (character.lower(), character.casefold(), character.upper(), base, base.lower(), base.upper())
    for candidate in candidates:
        if candidate.strip() and not unknown_characters(candidate, tokenizer):
            return candidate
    return None
