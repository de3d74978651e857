"""What English abbreviations, symbols, units and currencies are called, and the patterns that find them."""

import re

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
MONTHS = tuple(_MONTHS.split("|"))
MONTH = r"(Jan(?:uary|\.)?|Feb(?:ruary|\.)?|Mar(?:ch|\.)?|Apr(?:il|\.)?|May|June?\.?|July?\.?|Aug(?:ust|\.)?" + (
    r"|Sept?(?:ember|\.)?|Oct(?:ober|\.)?|Nov(?:ember|\.)?|Dec(?:ember|\.)?)"
)

# symbol or code: one, many, one hundredth, many hundredths
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "US$": ("U S dollar", "U S dollars", "cent", "cents"),
    "A$": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "C$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
    "₩": ("won", "won", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "₺": ("lira", "lira", "", ""),
    "₪": ("shekel", "shekels", "", ""),
    "₦": ("naira", "naira", "", ""),
    "₱": ("peso", "pesos", "", ""),
    "฿": ("baht", "baht", "", ""),
    "₫": ("dong", "dong", "", ""),
    "₿": ("bitcoin", "bitcoins", "", ""),
    "¢": ("cent", "cents", "", ""),
    "CHF": ("Swiss franc", "Swiss francs", "", ""),
}
CURRENCIES.update({"USD": CURRENCIES["US$"], "AUD": CURRENCIES["A$"], "CAD": CURRENCIES["C$"]})
CURRENCIES.update({"GBP": CURRENCIES["£"], "EUR": CURRENCIES["€"], "JPY": CURRENCIES["¥"], "INR": CURRENCIES["₹"]})
CURRENCY = "|".join(re.escape(symbol) for symbol in sorted(CURRENCIES, key=len, reverse=True))
MAGNITUDES = {"k": "thousand", "K": "thousand", "m": "million", "mn": "million", "M": "million"}
MAGNITUDES.update({"b": "billion", "bn": "billion", "B": "billion", "tn": "trillion", "T": "trillion"})
MAGNITUDES.update({word: word for word in ("hundred", "thousand", "million", "billion", "trillion")})

UNITS = {
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "m/s": ("meter per second", "meters per second"),
    "mph": ("mile per hour", "miles per hour"),
    "km²": ("square kilometer", "square kilometers"),
    "m²": ("square meter", "square meters"),
    "m³": ("cubic meter", "cubic meters"),
    "cm³": ("cubic centimeter", "cubic centimeters"),
    "sq ft": ("square foot", "square feet"),
    "km": ("kilometer", "kilometers"),
    "m": ("meter", "meters"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "μm": ("micrometer", "micrometers"),
    "nm": ("nanometer", "nanometers"),
    "mi": ("mile", "miles"),
    "yd": ("yard", "yards"),
    "ft": ("foot", "feet"),
    "kg": ("kilogram", "kilograms"),
    "g": ("gram", "grams"),
    "mg": ("milligram", "milligrams"),
    "μg": ("microgram", "micrograms"),
    "lb": ("pound", "pounds"),
    "lbs": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "tsp": ("teaspoon", "teaspoons"),
    "tbsp": ("tablespoon", "tablespoons"),
    "ml": ("milliliter", "milliliters"),
    "mL": ("milliliter", "milliliters"),
    "l": ("liter", "liters"),
    "L": ("liter", "liters"),
    "kWh": ("kilowatt hour", "kilowatt hours"),
    "kW": ("kilowatt", "kilowatts"),
    "MW": ("megawatt", "megawatts"),
    "W": ("watt", "watts"),
    "V": ("volt", "volts"),
    "mAh": ("milliamp hour", "milliamp hours"),
    "Hz": ("hertz", "hertz"),
    "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"),
    "GHz": ("gigahertz", "gigahertz"),
    "dB": ("decibel", "decibels"),
    "kB": ("kilobyte", "kilobytes"),
    "KB": ("kilobyte", "kilobytes"),
    "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"),
    "Mbps": ("megabit per second", "megabits per second"),
    "Gbps": ("gigabit per second", "gigabits per second"),
    "kcal": ("kilocalorie", "kilocalories"),
    "hp": ("horsepower", "horsepower"),
    "rpm": ("revolution per minute", "revolutions per minute"),
    "fps": ("frame per second", "frames per second"),
    "ms": ("millisecond", "milliseconds"),
    "s": ("second", "seconds"),
    "sec": ("second", "seconds"),
    "secs": ("second", "seconds"),
    "min": ("minute", "minutes"),
    "mins": ("minute", "minutes"),
    "h": ("hour", "hours"),
    "hr": ("hour", "hours"),
    "hrs": ("hour", "hours"),
    "°C": ("degree Celsius", "degrees Celsius"),
    "°F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "°": ("degree", "degrees"),
}
UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))

TITLES = {"Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Dr": "Doctor"}  # British spelling has them without a dot
ABBREVIATIONS = {
    "Mr.": "Mister",
    "Mrs.": "Missus",
    "Ms.": "Miz",
    "Messrs.": "Messers",
    "Prof.": "Professor",
    "Rev.": "Reverend",
    "Hon.": "Honorable",
    "Gov.": "Governor",
    "Sen.": "Senator",
    "Rep.": "Representative",
    "Pres.": "President",
    "Gen.": "General",
    "Col.": "Colonel",
    "Maj.": "Major",
    "Capt.": "Captain",
    "Cpt.": "Captain",
    "Lt.": "Lieutenant",
    "Sgt.": "Sergeant",
    "Cmdr.": "Commander",
    "Adm.": "Admiral",
    "Fr.": "Father",
    "Mt.": "Mount",
    "Ft.": "Fort",
    "e.g.": "for example",
    "i.e.": "that is",
    "vs.": "versus",
    "cf.": "compare",
    "viz.": "namely",
    "approx.": "approximately",
    "ca.": "circa",
    "est.": "established",
    "incl.": "including",
    "esp.": "especially",
    "misc.": "miscellaneous",
    "para.": "paragraph",
    "dept.": "department",
    "Dept.": "Department",
    "Univ.": "University",
    "Mon.": "Monday",
    "Tue.": "Tuesday",
    "Tues.": "Tuesday",
    "Wed.": "Wednesday",
    "Thu.": "Thursday",
    "Thur.": "Thursday",
    "Thurs.": "Thursday",
    "Fri.": "Friday",
    "Ph.D.": "P H D",
}
# Those that often close a sentence, whose dot then ends it too.
CLOSING_ABBREVIATIONS = {
    "etc.": "et cetera",
    "et al.": "and others",
    "Inc.": "Incorporated",
    "Ltd.": "Limited",
    "Corp.": "Corporation",
    "Co.": "Company",
    "Bros.": "Brothers",
    "Jr.": "Junior",
    "Sr.": "Senior",
    "Esq.": "Esquire",
    "Ave.": "Avenue",
    "Blvd.": "Boulevard",
    "Rd.": "Road",
    "Ln.": "Lane",
    "Hwy.": "Highway",
    "Pkwy.": "Parkway",
    "Apt.": "Apartment",
}
# Before a number only: "no." and "fig." are words, "p." is a letter.
COUNTED = {"no": "number", "nos": "numbers", "vol": "volume", "fig": "figure", "figs": "figures", "ch": "chapter"}
COUNTED.update({"p": "page", "pp": "pages", "sec": "section", "eq": "equation", "art": "article", "ext": "extension"})
# A capitalised one of these after an abbreviation's dot begins a sentence; other capitals may be names.
_SENTENCE_STARTERS = (
    "The|A|An|He|She|It|They|We|I|You|This|That|These|Those|There|Then|But|And|Or|So|If|When|While|After|"
    "Before|In|On|At|For|To|His|Her|Its|Their|Our|My|Your|What|Who|How|Why|Where|Yes|No|Not|Now|Here|Some|Many|"
    "Most|All|One|As|By|With|From|However|Later|Today|Please|Is|Are|Was|Were|Do|Does|Did|Let"
)
SENTENCE_STARTERS = frozenset(_SENTENCE_STARTERS.split("|"))

ROMAN_HEADS = "Chapter|Part|Volume|Vol|Book|Act|Scene|Section|Article|Appendix|Title|Phase|Type|Class|Stage|Level|War"
ROMAN_NAMES = (
    "King|Queen|Pope|Henry|Louis|Charles|George|Edward|Elizabeth|James|William|Richard|Philip|Frederick|Alexander"
    "|Nicholas|Catherine|Peter|Paul|John|Pius|Benedict|Leo|Gregory|Napoleon|Francis|Ferdinand|Ramesses|Rameses|Otto"
)
ROMAN = r"(?=[IVXLC])(C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))"

SPECIAL_RATIOS = {"24/7": "twenty four seven", "9/11": "nine eleven", "50/50": "fifty fifty", "7/11": "seven eleven"}
DENOMINATORS = {*range(2, 21), 30, 32, 40, 50, 60, 64, 100, 1000}

YEAR_BEFORE = re.compile(
    r"\b(?:in|since|by|from|until|till|of|year|years|circa|after|before|during|around|early|late|mid|and|to|or"
    rf"|spring|summer|autumn|fall|winter|{'|'.join(MONTHS)}),?\s$",
    re.IGNORECASE,
)
_NOT_A_PLURAL = "was|is|has|does|as|this|its|his|us|thus|always|perhaps|plus|unless|across|less"
NOT_A_PLURAL = frozenset(_NOT_A_PLURAL.split("|"))

SYMBOLS = {
    "&": "and",
    "@": "at",
    "%": "percent",
    "‰": "per mille",
    "+": "plus",
    "=": "equals",
    "≠": "is not equal to",
    "≈": "is approximately",
    "<": "less than",
    ">": "greater than",
    "≤": "is at most",
    "≥": "is at least",
    "±": "plus or minus",
    "×": "times",
    "÷": "divided by",
    "√": "square root of",
    "∞": "infinity",
    "^": "to the power of",
    "²": "squared",
    "³": "cubed",
    "°": "degrees",
    "#": "number",
    "§": "section",
    "¶": "paragraph",
    "©": "copyright",
    "$": "dollars",
    "€": "euros",
    "£": "pounds",
    "¥": "yen",
    "¢": "cents",
    "₹": "rupees",
    "π": "pi",
    "μ": "mu",
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "Δ": "delta",
    "ε": "epsilon",
    "θ": "theta",
    "λ": "lambda",
    "σ": "sigma",
    "τ": "tau",
    "φ": "phi",
    "ω": "omega",
    "Ω": "omega",
}
FORMATTING = "*_~`|\\•™®"  # marks that nobody reads out

ADDRESS_SYMBOLS = {
    ".": "dot",
    "/": "slash",
    "-": "dash",
    "_": "underscore",
    "@": "at",
    ":": "colon",
    "?": "question mark",
    "=": "equals",
    "&": "and",
    "#": "hash",
    "%": "percent",
    "+": "plus",
    "~": "tilde",
}
TOP_LEVEL = "com|org|net|edu|gov|info|io|ai|co|uk|de|fr|es|it|eu|us|ca|au|jp|ch|nl|dev|app|tv|me"
