"""Text is read as a person would read it, nothing is dropped without a word, and no input is too strange."""

import random
import time

import pytest
from num2words import num2words
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoTokenizer, BertTokenizer

from speechgraft.processing.text_front_end import (
    fit_to_vocabulary,
    get_text_normalizer,
    normalize_for_speech,
    normalizer_languages,
    register_text_normalizer,
    split_sentences,
    train_character_tokenizer,
    unknown_characters,
    unknown_words,
)

FORTY_DIGITS = "1234567890" * 4
ENGLISH = {
    # numbers
    "0 apples": "zero apples",
    "3.14159": "three point one four one five nine",
    ".5": "point five",
    "1,234,567": "one million two hundred and thirty four thousand five hundred and sixty seven",
    "1000000": "one million",
    "007": "zero zero seven",
    FORTY_DIGITS: " ".join(["one two three four five six seven eight nine zero"] * 4),
    "-5 and (-3)": "minus five and (minus three)",
    "1st, 2nd, 3rd, 21st": "first, second, third, twenty first",
    "the 1,000th": "the one thousandth",
    "1/2 and 3/4": "one half and three quarters",
    "2 1/2 hours": "two and a half hours",
    "1½ cups": "one and a half cups",
    "7/8": "seven eighths",
    "24/7": "twenty four seven",
    "10/10": "ten out of ten",
    "pages 5-10": "pages five to ten",
    "5–10 days": "five to ten days",
    "10k users": "ten thousand users",
    "1e-5": "one times ten to the power of minus five",
    "Python 3.11.2": "Python three point eleven point two",
    "MP3, B2B, COVID-19": "MP three, B two B, COVID-nineteen",
    "5G": "five G",
    # years, dates, times
    "1984 was a year": "nineteen eighty four was a year",
    "1984 pages": "one thousand nine hundred and eighty four pages",
    "in 2024": "in twenty twenty four",
    "2005": "two thousand and five",
    "1066 apples": "one thousand and sixty six apples",
    "in 1066": "in ten sixty six",
    "the 1990s and '80s": "the nineteen nineties and eighties",
    "1914-1918": "nineteen fourteen to nineteen eighteen",
    "44 BC": "forty four B C",
    "2024-01-31": "January thirty first, twenty twenty four",
    "1/31/2024": "January thirty first, twenty twenty four",
    "31.01.2024": "January thirty first, twenty twenty four",
    "Jan. 5, 2024": "January fifth, twenty twenty four",
    "5 May": "the fifth of May",
    "on 12/25": "on December twenty fifth",
    "3:45 pm": "three forty five P M",
    "10:00": "ten o'clock",
    "10:05 a.m.": "ten oh five A M.",
    "15:30": "fifteen thirty",
    "00:00": "midnight",
    "10 a.m.-5 p.m.": "ten A M to five P M.",
    "at 5 p.m. He left.": "at five P M. He left.",
    # money
    "$0.50": "fifty cents",
    "$3.20": "three dollars and twenty cents",
    "$1": "one dollar",
    "$0": "zero dollars",
    "$1,234.56": "one thousand two hundred and thirty four dollars and fifty six cents",
    "-$5": "minus five dollars",
    "$5-10": "five to ten dollars",
    "$1.5 million": "one point five million dollars",
    "$3.999": "three point nine nine nine dollars",
    "£1.01": "one pound and one penny",
    "5 €": "five euros",
    "50¢": "fifty cents",
    "20 USD": "twenty U S dollars",
    "¥500": "five hundred yen",
    "$20/month": "twenty dollars per month",
    # measures and symbols
    "5%": "five percent",
    "3.5-4%": "three point five to four percent",
    "5 km, 1 km": "five kilometers, one kilometer",
    "100 km/h": "one hundred kilometers per hour",
    "20°C": "twenty degrees Celsius",
    "90°": "ninety degrees",
    "6'2\"": "six foot two",
    'a 65" screen, "Buy 5"': 'a sixty five inch screen, "Buy five"',
    "1/2 tsp. and 2 1/2 km": "one half teaspoon and two and a half kilometers",
    "30 min. of rest, 2 tsp. salt": "thirty minutes of rest, two teaspoons salt",
    "7.9B at 221B Baker St.": "seven point nine billion at two hundred and twenty one B Baker Street.",
    "3 x 4": "three by four",
    "2+2=4": "two plus two equals four",
    "5 - 3 = 2": "five minus three equals two",
    "x² + y²": "x squared plus y squared",
    "me & you": "me and you",
    "AT&T": "AT and T",
    "#5 and #tag": "number five and hashtag tag",
    "@user": "at user",
    "and/or": "and or",
    "**bold** `code`": "bold code",
    # names of things
    "Mr. and Mrs. Smith": "Mister and Missus Smith",
    "Dr. No lives on Elm Dr.": "Doctor No lives on Elm Drive.",
    "St. John St. in St. Louis": "Saint John Street in Saint Louis",
    "e.g. this, i.e. that": "for example this, that is that",
    "cats, dogs, etc.": "cats, dogs, et cetera.",
    "No. 5, pp. 3-4": "number five, pages three to four",
    "the U.S. Government": "the U S Government",
    "J. R. R. Tolkien": "J R R Tolkien",
    "Chapter IV": "Chapter four",
    "World War II": "World War two",
    "Henry VIII": "Henry the eighth",
    "Charles I think": "Charles I think",
    # telephone numbers and addresses
    "555-1234": "five five five, one two three four",
    "(555) 123-4567": "five five five, one two three, four five six seven",
    "+1 555 123 4567": "plus one, five five five, one two three, four five six seven",
    "john.doe@example.com": "john dot doe at example dot com",
    "see https://example.com/a_b.": "see example dot com slash a underscore b.",
    "www.python.org": "www dot python dot org",
    # characters
    "“Yes” — he said…": '"Yes", he said...',
    "don’t": "don't",
    "ﬁne １２": "fine twelve",
    "naïve café": "naïve café",
    "π ≈ 3.14": "pi is approximately three point one four",
    "Hello,\n  world !": "Hello, world!",
    "C++, C# and .NET": "C plus plus, C sharp and .NET",
    "nothing to do here": "nothing to do here",
}


@pytest.mark.parametrize("written", ENGLISH)
def test_english_is_read_as_a_person_would(written):
    assert normalize_for_speech(written) == ENGLISH[written]


@pytest.mark.parametrize("written", ENGLISH)
def test_what_is_already_spoken_stays(written):
    assert normalize_for_speech(ENGLISH[written]) == ENGLISH[written]


def test_numbers_agree_with_num2words():
    for n in [*range(0, 1100, 7), 12_345, 999_999_999]:
        words = num2words(n).replace(",", "").replace("-", " ")
        assert normalize_for_speech(f"{n:,} of them") == f"{words} of them"


@pytest.mark.parametrize(
    ("language", "written", "spoken"),
    [
        ("de", "3,20 € und 0,50 €", "drei Euro und zwanzig Cent und fünfzig Cent"),
        ("de", "1 € oder 1 Euro", "ein Euro oder eins Euro"),
        (
            "de",
            "1.234 Leute, 3,14, 5 %",
            "eintausendzweihundertvierunddreißig Leute, drei Komma eins vier, fünf Prozent",
        ),
        ("de", "am 1. Januar um 15:30 Uhr", "am ersten Januar um fünfzehn Uhr dreißig"),
        (
            "de",
            "-5 °C, 5-10 Tage, z. B. Nr. 7",
            "minus fünf Grad Celsius, fünf bis zehn Tage, zum Beispiel Nummer sieben",
        ),
        ("fr", "3,20 € et 0,50 €", "trois euros et vingt centimes et cinquante centimes"),
        ("fr", "le 1er mai à 15h30", "le premier mai à quinze heures trente"),
        ("fr", "5 %, -3,5 & 1 €", "cinq pour cent, moins trois virgule cinq et un euro"),
        ("es", "3,20 € y 1 €", "tres euros con veinte céntimos y un euro"),
        ("es", "el 1º, 5 %, 3,14", "el primero, cinco por ciento, tres coma uno cuatro"),
        ("it", "21 e 3,14", "ventuno e tre virgola uno quattro"),
        ("pt_BR", "21", "vinte e um"),
        ("pt-BR", "21", "vinte e um"),
        ("ru", "21", "двадцать один"),
        ("ja", "3.5", "三 五"),
    ],
)
def test_other_languages_have_their_own_numbers(language, written, spoken):
    assert normalize_for_speech(written, language) == spoken


def test_every_language_of_num2words_reads_digits():
    for language in normalizer_languages():
        spoken = normalize_for_speech(f"12 3,5 {FORTY_DIGITS}", language)
        assert spoken and not any(c.isdigit() and c.isascii() for c in spoken), language


def test_a_language_can_be_added_and_replaced():
    from speechgraft.processing import text_front_end

    with pytest.raises(ValueError, match="no text normalizer for the language 'xx'.*register_text_normalizer"):
        normalize_for_speech("hi", "xx")
    with pytest.raises(TypeError, match="a function from text to text"):
        register_text_normalizer("xx", "no")
    try:
        register_text_normalizer("xx", str.upper)
        register_text_normalizer("en", str.title)
        assert normalize_for_speech("hi", "xx") == "HI" and "xx" in normalizer_languages()
        assert get_text_normalizer("en") is str.title
    finally:
        text_front_end._registered.clear()
    assert normalize_for_speech("2 cats") == "two cats"


@pytest.mark.parametrize(
    ("text", "spoken", "names"),
    [
        ("hi 😀 there", "hi there", ["GRINNING FACE"]),
        ("yes да", "yes", ["CYRILLIC SMALL LETTER DE", "CYRILLIC SMALL LETTER A"]),
        ("日本", "", ["CJK UNIFIED IDEOGRAPH-65E5"]),
        ("x\x07y", "x y", ["U+0007"]),
    ],
)
def test_what_cannot_be_read_aloud_is_named(text, spoken, names, monkeypatch):
    said = []
    monkeypatch.setattr("speechgraft.processing.text_front_end.logger.warning_once", said.append)
    assert normalize_for_speech(text) == spoken
    assert len(said) == 1 and all(name in said[0] for name in names)


@pytest.mark.parametrize("text", ["", "  ", "?!...", "😀😀", "—", "'", "™"])
def test_nothing_to_say_is_no_crash(text):
    assert not any(c.isalnum() for c in normalize_for_speech(text))


def test_no_text_is_too_strange_or_too_slow():
    rng = random.Random(0)
    pieces = [*ENGLISH, *"0123456789.,:;-+/$€%'\"()@#&°²½ \n\tabcIVX\u0301\u200d😀да—…", "St.", "U.S.", "10^", "1,000"]
    start = time.perf_counter()
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        spoken = normalize_for_speech(text)
        assert not any(c.isdigit() for c in spoken), text
        assert "".join(split_sentences(text)) == text
    for unit in [
        "9",
        "1,",
        "1-",
        "a.",
        "+1 ",
        "C",
        "a-",
        ".",
        "a@",
        " ",
        "\n",
        "1/",
        "$1",
        "Mr. ",
        "U.S. ",
        "—",
        "1990s ",
    ]:
        text = (unit * 10_000)[:10_000]
        normalize_for_speech(text)
        split_sentences(text, 200)
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    "sentences",
    [
        ["One. ", "Two! ", "Three? ", "Four"],
        ["Dr. Smith met Mr. Jones on Elm St. near St. Louis. ", "They left."],
        ["It is 3.14 or $2.50. ", "Right?"],
        ["J. R. R. Tolkien wrote it. ", "I read it."],
        ["He lives in the U.S. ", "He likes it."],
        ["The U.S. Government acted. ", "Then it stopped."],
        ["At 5 p.m. ", "He left."],
        ['"Really?" he asked. ', '"Yes!" ', "She left."],
        ["Well... maybe. ", "Wait... ", "What?"],
        ["No. 5 is alive. ", "I said no. ", "She came."],
        ["(This is one.) ", "And two."],
        ["A headline\n\n", "And a text over\ntwo lines."],
        ["Cats, dogs, etc. are fine. ", "Cats, dogs, etc. ", "The end."],
        ["Use e.g. Python. ", "It was I. ", "Then he came."],
        ["今日は。", "元気？", "はい"],
        ["Just one"],
        [],
    ],
)
def test_sentences_end_where_they_end_and_no_character_is_lost(sentences):
    assert split_sentences("".join(sentences)) == sentences


def test_long_sentences_are_cut_at_clauses_then_spaces_then_anywhere():
    text = "This is a rather long sentence, with a clause, and more words that go on; and on without end. Short."
    pieces = split_sentences(text, 30)
    assert pieces == [
        "This is a rather long ",
        "sentence, with a clause, ",
        "and more words that go on; ",
        "and on without end. ",
        "Short.",
    ]
    assert split_sentences("a" * 25 + " b", 10) == ["a" * 10, "a" * 10, "a" * 5 + " b"]
    with pytest.raises(ValueError, match="max_characters must be at least 1, got 0"):
        split_sentences("a", 0)


def test_every_piece_fits_and_together_they_are_the_text():
    rng = random.Random(1)
    words = [
        "a",
        "word",
        "sentence,",
        "then;",
        "Dr.",
        "end.",
        "why?",
        "extraordinarily",
        "3.14",
        "\n\n",
        "- ",
        "(so)",
        "  ",
    ]
    for limit in (1, 7, 20, 100):
        for _ in range(100):
            text = " ".join(rng.choices(words, k=rng.randint(0, 60)))
            pieces = split_sentences(text, limit)
            assert "".join(pieces) == text
            assert all(len(piece.strip()) <= limit for piece in pieces)
            assert all(piece.strip() for piece in pieces) or not text.strip()


def test_ten_thousand_characters_come_out_whole():
    text = "The year 1984 had 366 days, e.g. 5 May, and cost $3.20 a day. " * 160
    start = time.perf_counter()
    pieces = split_sentences(normalize_for_speech(text), 200)
    assert time.perf_counter() - start < 2
    assert len(pieces) == 160 and len({piece.strip() for piece in pieces}) == 1


def test_a_character_tokenizer_spells_ends_and_survives_being_saved(tmp_path):
    corpus = ["Hello world, it's fine.", "Ärger über 2"]
    tokenizer = train_character_tokenizer(corpus)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for one in (tokenizer, loaded):
        for text in [*corpus, "hello  world"]:
            ids = one(text).input_ids
            assert ids[-1] == one.eos_token_id and 1 not in ids
            assert one.decode(ids, skip_special_tokens=True) == " ".join(text.lower().split())
        assert len(one) == 3 + len(set("".join(corpus).lower()))
        batch = one(["hello", "it"], padding=True)
        assert batch["input_ids"][1][3:] == [0, 0, 0] and batch["attention_mask"][1] == [1, 1, 1, 0, 0, 0]
        assert set(batch) == {"input_ids", "attention_mask"}
        assert one("e\u0308").input_ids == one("ë").input_ids  # composed before it is looked up


def test_a_character_tokenizer_can_keep_case_and_drop_the_rare():
    tokenizer = train_character_tokenizer(["AAb", "Ab"], lowercase=False, min_count=2, extra_characters="z")
    assert set(tokenizer.get_vocab()) == {"<pad>", "<unk>", "</s>", " ", "A", "b", "z"}
    with pytest.raises(ValueError, match="the texts are empty"):
        train_character_tokenizer(["", "\n"])


def test_characters_without_a_token_are_reported_in_order():
    tokenizer = train_character_tokenizer(["hello world"])
    assert unknown_characters("hello world", tokenizer) == []
    assert unknown_characters("héllo 😀 zorro?", tokenizer) == ["é", "😀", "z", "?"]
    bert = tiny_tokenizer("bert")
    assert unknown_words("hello zebra world", bert) == ["zebra"]
    assert unknown_characters("ж", tiny_tokenizer("gpt2")) == []  # has no unknown token


def test_wordpiece_knows_letters_but_not_emoji(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc", *(f"##{c}" for c in "abc")]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert unknown_characters("Ab cab 😀ж", tokenizer) == ["😀", "ж"]


def test_similar_characters_stand_in_for_missing_ones():
    tokenizer = train_character_tokenizer(["hello world ss"])
    assert fit_to_vocabulary("Héllo-wörld ß", tokenizer) == ("Hello world ss", [])
    assert fit_to_vocabulary("hello 😀 z", tokenizer) == ("hello", ["😀", "z"])
    upper = train_character_tokenizer(["HELLO"], lowercase=False)
    assert fit_to_vocabulary("hello", upper) == ("HELLO", [])
