"""English text as it is spoken: numbers, dates, times, money, units, abbreviations, addresses and symbols in words.

The rules are a table of patterns, applied from the most specific to the least; what one has read out contains no
digits any more, so the next cannot misread it. Words and punctuation that are not mentioned here stay as they are.
"""

import re
from collections.abc import Callable, Iterable

from .spoken_english_tables import (
    ABBREVIATIONS,
    ADDRESS_SYMBOLS,
    CLOSING_ABBREVIATIONS,
    COUNTED,
    CURRENCIES,
    CURRENCY,
    DENOMINATORS,
    FORMATTING,
    MAGNITUDES,
    MONTH,
    MONTHS,
    NOT_A_PLURAL,
    ROMAN,
    ROMAN_HEADS,
    ROMAN_NAMES,
    SENTENCE_STARTERS,
    SPECIAL_RATIOS,
    SYMBOLS,
    TITLES,
    TOP_LEVEL,
    UNIT,
    UNITS,
    YEAR_BEFORE,
)
from .spoken_numbers import SpokenNumbers

Match = re.Match[str]
Rule = tuple[re.Pattern[str], str | Callable[[Match], str]]

SAY = SpokenNumbers("en")

# A number as it is written, its whole part and its fraction; "1,00,000" is how India groups.
NUMBER = r"(?:\d{1,3}(?:,\d{2,3})*+(?<=,\d{3})(?!\d)|\d++)(?:\.\d++)?|(?<![\w.])\.\d++"
AMOUNT = rf"(?:{NUMBER})"


def speak_english(text: str) -> str:
    """Read everything in a text out that is not yet written as it is spoken.

    Args:
        text: of any length. Typographic quotes and dashes should have become plain ones.

    Returns:
        The text without digits, known abbreviations and symbols; letters keep their case, and unknown characters stay.
    """
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text


def _number(literal: str) -> str:
    """A number as written, with or without thousands separators and fraction, to words."""
    whole, _, fraction = literal.partition(".")
    return SAY.number(whole.replace(",", ""), fraction, grouped="," in whole)


def _ends_sentence(match: Match) -> bool:
    """Whether a sentence ends behind a match that ends in a dot."""
    rest = match.string[match.end() :]
    following = re.match(r"[\"')\]]*\s+[\"'(\[]*([A-Za-z]+)", rest)
    return not re.match(r"[\"')\]]*\s*\S", rest) or bool(following and following[1] in SENTENCE_STARTERS)


def _address(match: Match) -> str:
    """A web or mail address: its parts and what stands between them."""
    address = re.sub(r"^[a-z]+://", "", match[0])
    stop = re.search(r"[.,;:!?)]*$", address)
    trailing = stop[0] if stop else ""
    address = address[: len(address) - len(trailing)].rstrip("/")
    spoken = re.sub(r"[^A-Za-z0-9]", lambda one: f" {ADDRESS_SYMBOLS.get(one[0], one[0])} ", address)
    return spoken.strip() + trailing


def _abbreviation(match: Match) -> str:
    return ABBREVIATIONS[match[0]] + ("" if match.string[match.end() :].strip() else ".")


def _closing_abbreviation(match: Match) -> str:
    return CLOSING_ABBREVIATIONS[match[0]] + ("." if _ends_sentence(match) else "")


def _initialism(match: Match) -> str:
    """Letters with dots apart: "U.S." to "U S"."""
    return " ".join(match[0].replace(".", "").upper()) + ("." if _ends_sentence(match) else "")


def _initial(match: Match) -> str:
    return match[0] if match[2] in SENTENCE_STARTERS else match[1]


def _street_or_saint(match: Match) -> str:
    """As in "St. John St." to "Saint John Street"; likewise Dr. for Doctor and Drive."""
    before, what = match.string[: match.start()], match[1]
    following = re.match(r"\s+([A-Z][a-z]*)", match.string[match.end() :])
    names_follow = bool(following and following[1] not in SENTENCE_STARTERS)
    if names_follow or not re.search(r"[A-Z]\w*\s$|\d\w*\s$", before):
        return {"St": "Saint", "Dr": "Doctor"}[what]
    return {"St": "Street", "Dr": "Drive"}[what] + ("." if _ends_sentence(match) else "")


def _roman_value(numeral: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in numeral]
    return sum(-v if any(v < w for w in values[i + 1 : i + 2]) else v for i, v in enumerate(values))


def _roman_cardinal(match: Match) -> str:
    return f"{match[1]} {SAY.cardinal(str(_roman_value(match[2])))}"


def _roman_ordinal(match: Match) -> str:
    if len(match[2]) < 2:  # "Charles I think" is no king
        return match[0]
    return f"{match[1]} the {SAY.ordinal(str(_roman_value(match[2])))}"


def _phone(match: Match) -> str:
    """Digits one by one, with a pause where there was a separator."""
    groups = re.findall(r"\d+", match[0])
    if len(groups) == 2 and groups[1].endswith("00"):  # "500-1000" is a range
        return match[0]
    return ("plus " if match[0].startswith("+") else "") + ", ".join(map(SAY.digits, groups))


def _spoken_date(year: str, month: int, day: int) -> str:
    return f"{MONTHS[month - 1]} {SAY.ordinal(str(day))}, {SAY.year(year)}"


def _iso_date(match: Match) -> str:
    return _spoken_date(match[1], int(match[2]), int(match[3])) + (" " if match[4] else "")


def _numeric_date(match: Match) -> str:
    """Month first, as Americans write it, unless that is no month or the parts are separated by dots."""
    first, second, year = int(match[1]), int(match[3]), match[4]
    month, day = (second, first) if match[2] == "." or first > 12 else (first, second)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match[0]
    if len(year) == 2:
        year = ("20" if int(year) < 70 else "19") + year
    return _spoken_date(year, month, day)


def _slashed_day(match: Match) -> str:
    return f"{match[1]} {MONTHS[int(match[2]) - 1]} {SAY.ordinal(match[3])}"


def _month_name(written: str) -> str:
    return next(month for month in MONTHS if month.startswith(written.rstrip(".")[:3]))


def _comma_year(comma: str | None, year: str | None) -> str:
    return f"{comma or ''} {SAY.year(year)}" if year else ""


def _month_day(match: Match) -> str:
    """A day or days of a month: "Jan. 5-7, 2024" to "January fifth to seventh, twenty twenty four"."""
    month, day, last_day, comma, year = match.groups()
    if not 1 <= int(day) <= 31:
        return match[0]
    until = f" to {SAY.ordinal(last_day)}" if last_day else ""
    return f"{_month_name(month)} {SAY.ordinal(day)}{until}{_comma_year(comma, year)}"


def _day_month(match: Match) -> str:
    """The same the other way round: "5 January" to "the fifth of January"."""
    day, month, comma, year = match.groups()
    if not 1 <= int(day) <= 31:
        return match[0]
    return f"the {SAY.ordinal(day)} of {_month_name(month)}{_comma_year(comma, year)}"


def _month_year(match: Match) -> str:
    return f"{_month_name(match[1])}{_comma_year(match[2], match[3])}"


def _plural(words: str) -> str:
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith(("x", "s", "ch")) else "s")


def _decade(match: Match) -> str:
    digits = match[1]
    return _plural(SAY.year(digits) if len(digits) == 4 else SAY.cardinal(digits))


def _clock(match: Match) -> str:
    hour, minutes, seconds, half = int(match[1]), int(match[2]), int(match[3] or 0), match[4] or match[5]
    spoken = SAY.cardinal(str(hour))
    if minutes:
        spoken += f"{' oh' if minutes < 10 else ''} {SAY.cardinal(str(minutes))}"
    elif not half and not seconds:
        spoken = "midnight" if hour in (0, 24) else spoken + (" o'clock" if hour <= 12 else " hundred")
    if seconds:
        spoken += f" and {SAY.cardinal(str(seconds))} second{'' if seconds == 1 else 's'}"
    if half:
        spoken += f" {half.upper()} M"
    return spoken + ("." if match[5] and _ends_sentence(match) else "")


def _hour(match: Match) -> str:
    stop = "." if match[3] and _ends_sentence(match) else ""
    return f"{SAY.cardinal(str(int(match[1])))} {(match[2] or match[3]).upper()} M{stop}"


def _money(amount: str, magnitude: str | None, currency: str) -> str:
    """An amount of a currency in words: units and hundredths where both are whole."""
    one, many, one_cent, many_cents = CURRENCIES[currency]
    if magnitude:
        return f"{_number(amount)} {MAGNITUDES[magnitude]} {many}"
    whole, _, fraction = amount.partition(".")
    has_cents, is_nothing = bool(fraction.strip("0")), not whole.strip("0")
    if has_cents and (len(fraction) > 2 or not one_cent):
        return f"{_number(amount)} {many}"
    parts = [] if has_cents and is_nothing else [f"{_number(whole)} {_form(whole, one, many)}"]
    if has_cents:
        cents = fraction.ljust(2, "0").lstrip("0")
        parts.append(f"{SAY.cardinal(cents)} {_form(cents, one_cent, many_cents)}")
    return " and ".join(parts)


def _form(literal: str, one: str, many: str) -> str:
    return one if literal == "1" else many


def _currency_first(match: Match) -> str:
    minus, symbol, minus_within, amount, last_amount, magnitude = match.groups()
    spoken = _money(last_amount or amount, magnitude, symbol)
    if last_amount:
        spoken = f"{_number(amount)} to {spoken}"
    return f"minus {spoken}" if minus or minus_within else spoken


def _currency_last(match: Match) -> str:
    return _money(match[1], match[2], match[3])


def _measure(match: Match) -> str:
    return f"{_number(match[1])} {UNITS[match[2]][match[1] != '1']}"


def _fraction_of_measure(match: Match) -> str:
    whole, fraction, unit = match[1] or "", match[2], match[3]
    return f"{whole}{fraction} {UNITS[unit][bool(whole)]}"


def _inches(match: Match) -> str:
    """A quotation mark behind a number, unless it closes a quotation."""
    previous = match.string.rfind('"', 0, match.start())
    opened = previous == 0 or (previous > 0 and match.string[previous - 1] in " (")
    return match[0] if opened else " inch"


def _magnitude(match: Match) -> str:
    return f"{_number(match[1])} {MAGNITUDES[match[2]]}"


def _ordinal(match: Match) -> str:
    return SAY.ordinal(match[1].replace(",", ""))


def _fraction_words(over: str, under: str) -> str:
    """Parts of a whole: "3/4" to "three quarters"."""
    names = {"2": ("half", "halves"), "4": ("quarter", "quarters")}
    name, names_many = names.get(under) or (SAY.ordinal(under), _plural(SAY.ordinal(under)))
    return f"{SAY.cardinal(over)} {name if over == '1' else names_many}"


def _mixed_fraction(match: Match) -> str:
    whole, over, under = match.groups()
    if int(under[:5]) not in DENOMINATORS or int(over[:5]) >= int(under[:5]):
        return match[0]
    words = _fraction_words(over, under)
    return f"{_number(whole)} and {words.replace('one ', 'a ', 1) if over == '1' and under in '24' else words}"


def _fraction(match: Match) -> str:
    over, under = match.groups()
    if match[0] in SPECIAL_RATIOS:
        return SPECIAL_RATIOS[match[0]]
    if over == under:
        return f"{SAY.whole(over)} out of {SAY.whole(under)}"
    if len(under) > 4 or int(under) not in DENOMINATORS or len(over) > 4:
        return f"{SAY.whole(over)} over {SAY.whole(under)}"
    return _fraction_words(over, under)


def _scientific(match: Match) -> str:
    base, minus, exponent = match[1], match[2] == "-", match[3]
    return f"{_number(base)} times ten to the power of {'minus ' if minus else ''}{SAY.cardinal(exponent)}"


def _version(match: Match) -> str:
    return f" {SAY.point} ".join(SAY.whole(part) for part in match[0].split("."))


def _digit_groups(match: Match) -> str:
    return ", ".join(SAY.digits(group) for group in match[0].split("-"))


def _year(match: Match) -> str:
    """Four digits are a year, unless something plural is counted: "1984 pages"."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    counted = re.match(r"\s([a-z]+s)\b", after)
    is_quantity = match[0] < "1100" or (counted and counted[1] not in NOT_A_PLURAL)
    return SAY.cardinal(match[0]) if is_quantity and not YEAR_BEFORE.search(before[-20:]) else SAY.year(match[0])


def _era_year(match: Match) -> str:
    return f"{SAY.year(match[1])} {' '.join(match[2].replace('.', ''))}"


def _plural_number(match: Match) -> str:
    return _plural(SAY.whole(match[1]))


def _alternatives(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _rule(pattern: str, replacement: str | Callable[[Match], str], flags: int = 0) -> Rule:
    return re.compile(pattern, flags), replacement


_ADDRESSES = [
    _rule(r"\b(?:https?|ftp)://[^\s<>\"]+|\bwww\.[^\s<>\"]+", _address),
    _rule(r"(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]+)++\b", _address),
    _rule(rf"(?<![\w.@-])(?:[A-Za-z][\w-]*\.)+(?:{TOP_LEVEL})\b(?:/[^\s<>\"]*)?(?![\w@])", _address),
    _rule(r"(?<![\w@])@(?=\w)", "at "),
    _rule(r"(?<![\w#])#(?=[A-Za-z])", "hashtag "),
]
_ABBREVIATED = [
    _rule(rf"(?<![\w.])(?:{_alternatives(ABBREVIATIONS)})(?=[\s,;:)\"'-]|$)", _abbreviation),
    _rule(r"\bSat\.(?=,)", "Saturday"),  # at the end of a sentence it is a verb
    _rule(r"\bSun\.(?=,)", "Sunday"),
    _rule(r"\b(St|Dr)\.(?!\w)", _street_or_saint),
    _rule(rf"\b({_alternatives(TITLES)})(?=\s[A-Z])", lambda match: TITLES[match[1]]),
    _rule(rf"(?<![\w.])(?:{_alternatives(CLOSING_ABBREVIATIONS)})(?!\w)", _closing_abbreviation),
    _rule(rf"\b({_alternatives(COUNTED)})\.\s?(?=\d)", lambda match: f"{COUNTED[match[1].lower()]} ", re.IGNORECASE),
    _rule(rf"\b({ROMAN_HEADS})\s{ROMAN}\b", _roman_cardinal),
    _rule(rf"\b({ROMAN_NAMES})\s{ROMAN}\b", _roman_ordinal),
]
_NUMERIC_DATES = [
    _rule(r"(?<![\d-])(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(?:(T)(?=\d\d:)|(?![\d-]))", _iso_date),
    _rule(r"(?<![\d/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4})(?![\d/-])", _numeric_date),
    _rule(r"(?<![\d/.-])(\d{1,2})(/)(\d{1,2})/(\d{2})(?![\d/])", _numeric_date),
]
_DAYS_BEFORE = r"\b([Oo]n|[Bb]y|[Uu]ntil|[Bb]efore|[Aa]fter|[Ss]ince)"
_PHONES = [
    _rule(r"(?<!\w)\+\d{1,3}(?:[ .-]?\(?\d{1,5}\)?){2,6}(?!\w)", _phone),
    _rule(r"(?<![\w.-])(?:\(\d{2,5}\) ?|\d{3}[ .-])\d{3,4}[ .-]\d{3,4}(?![\w-])", _phone),
    _rule(r"(?<![\w$€£.-])\d{3}-\d{4}(?![\w-])", _phone),
    _rule(r"(?<![\w.-])\d+(?:-\d+){2,}(?![\w-])", _digit_groups),
]
_DATES_AND_TIMES = [
    _rule(
        rf"\b{MONTH}\s+(\d{{1,2}})(?:st|nd|rd|th)?(?:\s?-\s?(\d{{1,2}})(?:st|nd|rd|th)?)?\b(?![:.,]\d|\s?%)"
        r"(?:(,?)\s+(\d{4})\b)?",
        _month_day,
    ),
    _rule(
        rf"(?<![\d:.,$€£])(?:\b[Tt]he\s+)?\b(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?{MONTH}(?![\w])"
        r"(?:(,?)\s+(\d{4})\b)?",
        _day_month,
    ),
    _rule(rf"\b{MONTH}(,?)\s+(\d{{4}})\b", _month_year),
    _rule(rf"{_DAYS_BEFORE}\s(1[0-2]|0?[1-9])/(3[01]|[12]\d|0?[1-9])(?![\d/])", _slashed_day),
    _rule(r"(?<![\w.,])'?(\d{3}0|[2-9]0)'?s\b", _decade),
    _rule(
        r"(?<![\d:.])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?:\s?(?:([AaPp])[Mm]\b|([AaPp])\.\s?[Mm]\.))?(?![\d:])",
        _clock,
    ),
    _rule(r"\b(1[0-2]|0?[1-9])\s?(?:([AaPp])[Mm]\b|([AaPp])\.\s?[Mm]\.)", _hour),
    _rule(r"(?<=\d):(?=\d)", " to "),
]
_RANGES_AND_SIGNS = [
    _rule(r"(?<=\d) - (?=\d[\d.,]* ?=)", " minus "),
    _rule(r"(?<=\d) ?\* ?(?=\d)", " times "),
    _rule(r"(?<=[\d%])\s?-\s?(?=[$€£]?\d)", " to "),
    _rule(r"(?:(?<=^)|(?<=[\s(=\"]))-(?=[$€£]?\.?\d)", "minus "),
]
_UNIT_END = r"(?![\w°])(?:\.(?=\s[a-z]|[,;)]))?"
_QUANTITIES = [
    _rule(
        rf"(?<![A-Za-z])(-)?({CURRENCY})\s?(-)?({AMOUNT})(?:\sto\s({AMOUNT}))?(?:\s?({_alternatives(MAGNITUDES)})\b)?",
        _currency_first,
    ),
    _rule(rf"(?<!\w)({AMOUNT})(?:\s?({_alternatives(MAGNITUDES)}))?\s?({CURRENCY})(?!\w)", _currency_last),
    _rule(r"(?<=\d)'(\d{1,2})\"", r" foot \1"),
    _rule(r"(?<=\d)\s?[x×]\s?(?=\d)", " by "),
    _rule(r"(?<![\w.,])(\d+)s\b", _plural_number),
    _rule(rf"(?<![\w/])(\d+ )?(\d+/\d+)\s?({UNIT}){_UNIT_END}", _fraction_of_measure),
    _rule(rf"(?<![\w/])({AMOUNT})\s?({UNIT}){_UNIT_END}", _measure),
    _rule(r"(?<=\d)\"(?=[\s,.]|$)", _inches),
    _rule(r"(?<=\w)/(hour|day|week|month|year|person|night|second|minute|kg|lb)\b", r" per \1"),
    _rule(rf"(?<!\w)({AMOUNT})(k|bn|[MB])\b(?!\s[A-Z])", _magnitude),
]
_OTHER_NUMBERS = [
    _rule(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+|\d+)(?:st|nd|rd|th)\b", _ordinal, re.IGNORECASE),
    _rule(r"(?<![\d/.,])(\d+)\s+(\d+)/(\d+)(?![\d/])", _mixed_fraction),
    _rule(r"(?<![\d/.])(\d+)/(\d+)(?![\d/])", _fraction),
    _rule(rf"(?<!\w)({AMOUNT})[eE]([+-]?)(\d+)\b", _scientific),
    _rule(r"(?<![\w.])[vV]?(?=\d+(?:\.\d+){2})", ""),
    _rule(r"(?<![\d.])\d+(?:\.\d+){2,}(?!\d)", _version),
    _rule(r"(?<![\w.,])'(?=\d\d\b)", ""),
    _rule(r"\b(\d{1,4})\s?(BCE?|AD|CE|B\.C\.|A\.D\.)(?!\w)", _era_year),
    _rule(r"\bAD\s(\d{1,4})\b", lambda match: f"A D {SAY.year(match[1])}"),
    _rule(r"(?<![\d.,])(?:1\d|20)\d\d(?!\w|[.,]\d|-\d)", _year),
    _rule(r"(?<=\b[AP] M)\s?-\s?(?=[a-z])", " to "),
    _rule(r"(?<=[A-Za-z])(?=\d)", " "),
    _rule(rf"(?:{NUMBER})(?P<letter>(?=[A-Za-z(]))?", lambda m: _number(m[0]) + (" " if m["letter"] == "" else "")),
]
_SYMBOLS = [
    _rule(r"\b([CF])#(?!\w)", r"\1 sharp"),
    _rule(rf"[{re.escape(FORMATTING)}]+", " "),
    _rule(r"[<>]=", lambda match: f" is at {'most' if match[0][0] == '<' else 'least'} "),
    _rule(r"[!=]=+|=+[<>]?", " equals "),
    _rule(f"[{re.escape(''.join(SYMBOLS))}]", lambda match: f" {SYMBOLS[match[0]]} "),
    _rule(r"(?<=\w)/(?=\w)", " "),
]
_DOTTED_LETTERS = [
    _rule(r"\b(?:[A-Za-z]\.){2,}", _initialism),
    _rule(r"\b([A-Z])\.(?=\s+([A-Z][a-z]*))", _initial),
]
RULES: list[Rule] = [
    *_ADDRESSES,
    *_ABBREVIATED,
    *_NUMERIC_DATES,
    *_PHONES,
    *_DATES_AND_TIMES,
    *_RANGES_AND_SIGNS,
    *_QUANTITIES,
    *_OTHER_NUMBERS,
    *_DOTTED_LETTERS,
    *_SYMBOLS,
]
