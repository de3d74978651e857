"""Numbers as they are spoken, in any language of num2words.

num2words knows the words. What it leaves open is settled here: commas and hyphens inside a number, which are pauses or
unknown characters to a speech model, become spaces; decimals are read digit by digit in every language; and digits
that are too many to be a quantity are read one by one.
"""

from dataclasses import dataclass
from functools import lru_cache

from num2words import CONVERTER_CLASSES, num2words

MAX_CARDINAL_DIGITS = 9  # an unbroken longer string of digits is a telephone or account number, unless it is round
MAX_GROUPED_DIGITS = 18  # with thousands separators it is a quantity; beyond this nobody knows the words


@dataclass(frozen=True)
class SpokenNumbers:
    """Numbers written in digits to words.

    Args:
        language: a code of num2words, such as "en" or "pt_BR".
        point: what the decimal mark is called; num2words' word by default.

    Raises:
        ValueError: num2words has no such language.
    """

    language: str = "en"
    point: str = ""

    def __post_init__(self) -> None:
        if self.language not in CONVERTER_CLASSES:
            known = ", ".join(sorted(CONVERTER_CLASSES))
            raise ValueError(f"num2words has no language {self.language!r}, only: {known}")
        if not self.point:
            object.__setattr__(self, "point", _point_word(self.language))

    def cardinal(self, digits: str) -> str:
        """A whole number: "1234" to "one thousand two hundred and thirty four"."""
        return _words(digits, self.language, "cardinal") if _is_sayable(digits) else self.digits(digits)

    def ordinal(self, digits: str) -> str:
        """A place in an order: "21" to "twenty first"."""
        return _words(digits, self.language, "ordinal") if _is_sayable(digits) else self.digits(digits)

    def year(self, digits: str) -> str:
        """A year: "1984" to "nineteen eighty four"."""
        return _words(digits, self.language, "year") if len(digits) <= 4 else self.cardinal(digits)

    def digits(self, digits: str) -> str:
        """Digits one by one: "007" to "zero zero seven"."""
        return " ".join(_words(digit, self.language, "cardinal") for digit in digits)

    def whole(self, digits: str) -> str:
        """Digits as they are most likely meant: a quantity, or a code that is read digit by digit."""
        is_round = len(digits.rstrip("0")) <= 3
        is_code = len(digits) > MAX_CARDINAL_DIGITS and not is_round
        has_leading_zero = len(digits) > 1 and digits[0] == "0"
        return self.digits(digits) if is_code or has_leading_zero else self.cardinal(digits)

    def number(self, whole: str, fraction: str = "", grouped: bool = False) -> str:
        """A number from the digits before and after its decimal mark; `grouped` if it had thousands separators."""
        spoken = (self.cardinal if grouped else self.whole)(whole) if whole else ""
        return " ".join(f"{spoken} {self.point} {self.digits(fraction)}".split()) if fraction else spoken


def _point_word(language: str) -> str:
    """What stands between the digits of 0.5; nothing where num2words does not say it."""
    words = num2words(0.5, lang=language).split()
    return words[1] if len(words) == 3 else ""


def _is_sayable(digits: str) -> bool:
    return len(digits) <= MAX_GROUPED_DIGITS


@lru_cache(maxsize=4096)
def _words(digits: str, language: str, kind: str) -> str:
    try:
        words = num2words(int(digits), lang=language, to=kind)
    except (OverflowError, NotImplementedError, KeyError, IndexError, TypeError):
        if kind != "cardinal":  # some languages have no ordinals or years, or none so large
            return _words(digits, language, "cardinal")
        if len(digits) == 1:
            raise
        return " ".join(_words(digit, language, "cardinal") for digit in digits)
    return " ".join(words.replace(",", " ").replace("-", " ").split())
