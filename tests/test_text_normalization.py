"""Transcripts that say the same compare as the same."""

import pickle

import pytest

from speechgraft.processing.text_normalization import basic_normalizer, english_normalizer, get_normalizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  two\twords \n", "two words"),
        ("Don\u2019t 'quote' me", "don't quote me"),
        ("rock 'n' roll, dogs' tails", "rock n roll dogs tails"),
        ("twenty-one \u2014 or so\u2026", "twenty one or so"),
        ("\uff28\uff25\uff2c\uff2c\uff2f \ufb01sh", "hello fish"),  # full width and ligature
        ("caf\u0065\u0301", "caf\u00e9"),  # composed
        ("soft\u00adhyphen", "softhyphen"),
        ("100 % of \u00a35", "100 of 5"),
        ("\u00dcber \u041f\u0440\u0438\u0432\u0435\u0442", "\u00fcber \u043f\u0440\u0438\u0432\u0435\u0442"),
        (
            "\u0915\u094d\u0937\u0924\u094d\u0930",
            "\u0915\u094d\u0937\u0924\u094d\u0930",
        ),  # vowel signs are letters here
        ("...", ""),
        ("", ""),
    ],
)
def test_basic_keeps_words_and_drops_their_dress(text, expected):
    assert basic_normalizer(text) == expected
    assert basic_normalizer(expected) == expected


def test_english_writes_numbers_and_contractions_one_way():
    normalize = english_normalizer()
    assert normalize("Um, twenty-one pounds [laughs]") == normalize("\u00a321")
    assert normalize("I won't") == normalize("I will not")
    assert english_normalizer({"colour": "color"})("Colour") == "color"


def test_normalizers_are_chosen_by_name_or_given():
    assert get_normalizer(None)("A.") == get_normalizer("basic")("A.") == "a"
    assert get_normalizer("none")("A.") == "A."
    assert get_normalizer("english")("It's") == "it is"
    assert get_normalizer(str.upper)("a") == "A"
    with pytest.raises(ValueError, match="one of none, basic, english or a function, not 'latin'"):
        get_normalizer("latin")


def test_normalizers_travel_to_worker_processes():
    for name in ("none", "basic", "english"):
        assert pickle.loads(pickle.dumps(get_normalizer(name)))("a") == "a"
