"""Numbers, money, times and abbreviations of languages other than English as they are spoken.

German, French and Spanish have tables of their own; any other language of num2words gets numbers in words and nothing
else. Inflection is guessed only where a wrong guess is still understood.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .spoken_numbers import SpokenNumbers

Match = re.Match[str]
Forms = tuple[str, str, str, str]  # of a currency: one, many, one hundredth, many hundredths


@dataclass(frozen=True)
class LanguageRules:
    """How one language writes what is read out.

    Args:
        language: a code of num2words.
        decimal_mark: between a whole number and its fraction.
        group_mark: between thousands.
        point: what the decimal mark is called; num2words' word by default.
        minus, percent, to: words for "-" before a number, "%" and "-" between two numbers.
        currencies: symbol or code to the forms of the unit and of its hundredth ("" where it has none).
        joint: between unit and hundredth: "drei Euro und zwanzig Cent".
        one: the number 1 before a noun: "ein Euro", not "eins Euro".
        clock: between hour and minutes, and behind a full hour.
        ordinals: pattern of ordinal numbers with the digits as its first group; None where there is no safe one.
        oblique: pattern of the words after which ordinals end in -n: "am ersten Mai".
        symbols: characters and their names.
        abbreviations: as written, and as spoken.
    """

    language: str
    decimal_mark: str = ","
    group_mark: str = "."
    point: str = ""
    minus: str = ""
    percent: str = ""
    to: str = ""
    currencies: Mapping[str, Forms] = field(default_factory=dict)
    joint: str = ""
    one: str = ""
    clock: str = ""
    ordinals: str | None = None
    oblique: str = ""
    symbols: Mapping[str, str] = field(default_factory=dict)
    abbreviations: Mapping[str, str] = field(default_factory=dict)


GERMAN = LanguageRules(
    "de",
    minus="minus",
    percent="Prozent",
    to="bis",
    currencies={
        "€": ("Euro", "Euro", "Cent", "Cent"),
        "EUR": ("Euro", "Euro", "Cent", "Cent"),
        "$": ("Dollar", "Dollar", "Cent", "Cent"),
        "£": ("Pfund", "Pfund", "Penny", "Pence"),
        "CHF": ("Franken", "Franken", "Rappen", "Rappen"),
        "¥": ("Yen", "Yen", "", ""),
    },
    joint="und",
    one="ein",
    clock="Uhr",
    ordinals=r"(?<![\d.,])(\d{1,2})\.(?=\s(?:Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November"
    r"|Dezember|Jahrhundert|Stock|Mal|Klasse|Platz)\b)",
    oblique=r"\b(?:am|vom|zum|beim|im|dem|den|des|ab|bis|seit)\s$",
    symbols={"&": "und", "+": "plus", "@": "at", "=": "gleich", "×": "mal", "°C": "Grad Celsius", "°": "Grad"},
    abbreviations={
        "z. B.": "zum Beispiel",
        "z.B.": "zum Beispiel",
        "d. h.": "das heißt",
        "d.h.": "das heißt",
        "u. a.": "unter anderem",
        "usw.": "und so weiter",
        "bzw.": "beziehungsweise",
        "ca.": "circa",
        "Dr.": "Doktor",
        "Prof.": "Professor",
        "Nr.": "Nummer",
        "Hr.": "Herr",
        "Fr.": "Frau",
        "St.": "Sankt",
        "Str.": "Straße",
    },
)
FRENCH = LanguageRules(
    "fr",
    minus="moins",
    percent="pour cent",
    to="à",
    currencies={
        "€": ("euro", "euros", "centime", "centimes"),
        "EUR": ("euro", "euros", "centime", "centimes"),
        "$": ("dollar", "dollars", "cent", "cents"),
        "£": ("livre", "livres", "penny", "pence"),
        "CHF": ("franc", "francs", "centime", "centimes"),
        "¥": ("yen", "yens", "", ""),
    },
    joint="et",
    clock="heures",
    ordinals=r"(?<![\d.,])(\d+)(?:er|ère|ème|eme|e)s?\b",
    symbols={"&": "et", "+": "plus", "@": "arobase", "=": "égale", "×": "fois", "°C": "degrés", "°": "degrés"},
    abbreviations={
        "M.": "Monsieur",
        "Mme": "Madame",
        "Mlle": "Mademoiselle",
        "Dr": "Docteur",
        "p. ex.": "par exemple",
        "c.-à-d.": "c'est-à-dire",
        "etc.": "et cetera",
        "n°": "numéro",
        "1h": "une heure",
        "1re": "première",
        "1ère": "première",
        "St": "Saint",
        "Ste": "Sainte",
    },
)
SPANISH = LanguageRules(
    "es",
    point="coma",
    minus="menos",
    percent="por ciento",
    to="a",
    currencies={
        "€": ("euro", "euros", "céntimo", "céntimos"),
        "EUR": ("euro", "euros", "céntimo", "céntimos"),
        "$": ("dólar", "dólares", "centavo", "centavos"),
        "£": ("libra", "libras", "penique", "peniques"),
        "¥": ("yen", "yenes", "", ""),
    },
    joint="con",
    one="un",
    ordinals=r"(?<![\d.,])(\d+)\.?º",
    symbols={"&": "y", "+": "más", "@": "arroba", "=": "igual a", "×": "por", "°C": "grados", "°": "grados"},
    abbreviations={
        "Sr.": "señor",
        "Sra.": "señora",
        "Srta.": "señorita",
        "Dr.": "doctor",
        "Dra.": "doctora",
        "p. ej.": "por ejemplo",
        "etc.": "etcétera",
        "n.º": "número",
        "núm.": "número",
        "Ud.": "usted",
        "Uds.": "ustedes",
        "EE. UU.": "Estados Unidos",
    },
)
LANGUAGE_RULES = {rules.language: rules for rules in (GERMAN, FRENCH, SPANISH)}


class LanguageReader:
    """A function from text to text that reads numbers and what goes with them out, by the rules of one language.

    Args:
        rules: of the language.

    Raises:
        ValueError: num2words does not have the language.
    """

    def __init__(self, rules: LanguageRules) -> None:
        self.rules = rules
        self.say = SpokenNumbers(rules.language, rules.point)
        whole = rf"\d{{1,3}}(?:{re.escape(rules.group_mark)}\d{{3}})+(?!\d)|\d+"
        self.amount = rf"(?:{whole})(?:{re.escape(rules.decimal_mark)}\d+)?"
        self.patterns = self._patterns()

    def __call__(self, text: str) -> str:
        for pattern, replacement in self.patterns:
            text = pattern.sub(replacement, text)
        return text

    def _patterns(self) -> list[tuple[re.Pattern[str], str | Callable[[Match], str]]]:
        rules, amount = self.rules, self.amount
        written: list[tuple[str, str | Callable[[Match], str]]] = []
        if rules.abbreviations:
            known = _alternatives(rules.abbreviations)
            written.append((rf"(?<![\w.])(?:{known})(?!\w)", lambda match: rules.abbreviations[match[0]]))
        if rules.ordinals:
            written.append((rules.ordinals, self._ordinal))
        if rules.clock:
            written.append((rf"\b([01]?\d|2[0-4])(?::|\s?h\s?)([0-5]\d)(?:\s?{rules.clock}\b)?(?!:?\d)", self._clock))
        written.append((r"(?<![\w.,-])\+?\d+(?:[-/]\d+){2,}(?![\w-])", self._digit_groups))
        if rules.to:
            written.append((r"(?<=\d)\s?-\s?(?=\d)", f" {rules.to} "))
        if rules.minus:
            written.append((r"(?<![^\s(])-(?=\d)", f"{rules.minus} "))
        if rules.currencies:
            symbols = _alternatives(rules.currencies)
            written.append((rf"(?<!\w)({amount})\s?({symbols})(?!\w)", lambda m: self._money(m[1], m[2])))
            written.append((rf"(?<!\w)({symbols})\s?({amount})", lambda m: self._money(m[2], m[1])))
        if rules.percent:
            written.append((r"(?<=\d)\s?%", f" {rules.percent}"))
        written.append((r"(?<=[^\W\d_])(?=\d)", " "))
        written.append((amount, lambda match: f"{self._number(match[0])} "))
        if rules.symbols:
            written.append((_alternatives(rules.symbols), lambda match: f" {rules.symbols[match[0]]} "))
        return [(re.compile(pattern), replacement) for pattern, replacement in written]

    def _number(self, literal: str) -> str:
        whole, _, fraction = literal.partition(self.rules.decimal_mark)
        digits = whole.replace(self.rules.group_mark, "")
        return self.say.number(digits, fraction, grouped=digits != whole)

    def _ordinal(self, match: Match) -> str:
        oblique = self.rules.oblique and re.search(self.rules.oblique, match.string[: match.start()], re.IGNORECASE)
        return self.say.ordinal(match[1]) + ("n" if oblique else "")

    def _counted(self, literal: str, one: str, many: str) -> str:
        """A number and what is counted."""
        return (
            f"{self.rules.one or self._number(literal)} {one}" if literal == "1" else f"{self._number(literal)} {many}"
        )

    def _money(self, literal: str, symbol: str) -> str:
        one, many, one_cent, many_cents = self.rules.currencies[symbol]
        whole, _, fraction = literal.partition(self.rules.decimal_mark)
        has_cents = bool(fraction.strip("0"))
        if has_cents and (len(fraction) > 2 or not one_cent):
            return f"{self._number(literal)} {many}"
        parts = [] if has_cents and not whole.strip("0") else [self._counted(whole, one, many)]
        if has_cents:
            parts.append(self._counted(fraction.ljust(2, "0").lstrip("0"), one_cent, many_cents))
        return f" {self.rules.joint} ".join(parts)

    def _clock(self, match: Match) -> str:
        hour, minutes = int(match[1]), int(match[2])
        spoken = f"{self.rules.one or self.say.cardinal('1') if hour == 1 else self.say.cardinal(str(hour))}"
        return f"{spoken} {self.rules.clock}" + (f" {self.say.cardinal(str(minutes))}" if minutes else "")

    def _digit_groups(self, match: Match) -> str:
        return ", ".join(map(self.say.digits, re.findall(r"\d+", match[0])))


def _alternatives(words: Mapping[str, object]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
