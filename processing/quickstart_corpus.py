"""The corpus that `speechgraft quickstart` speaks to itself: a small grammar, and speakers kept apart.

Sentences and speakers of the held-out part never occur in training, so that its word error rate tells whether a model
has learnt to hear words, and not which clip it has seen before.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .espeak_speech import EspeakVoice, SpokenUtterance, speak_all

# Few words, and none that sounds like another: a few thousand short clips must be enough to learn all of them from.
_PERSONS = ("my sister", "our teacher", "a young doctor", "the captain", "the farmer", "my uncle", "an old singer")
_DEEDS = ("bought", "painted", "carried", "sold", "counted", "borrowed", "forgot")
_NUMBERS = ("two", "five", "six", "seven", "eleven", "twenty", "many")
_QUALITIES = ("red", "green", "yellow", "heavy", "wooden", "beautiful")
_THINGS = ("apples", "boxes", "horses", "candles", "lemons", "windows", "umbrellas", "bicycles")
_PLACES = (
    "in the kitchen", "near the river", "behind the station", "under the bridge", "on the mountain",
    "outside the hospital",
)  # fmt: skip
_TIMES = ("on monday", "last night", "this morning", "before lunch", "in january", "at midnight")

_SLOTS = {
    "person": _PERSONS,
    "deed": _DEEDS,
    "number": _NUMBERS,
    "quality": _QUALITIES,
    "things": _THINGS,
    "place": _PLACES,
    "time": _TIMES,
}
_PATTERNS = (
    "{person} {deed} {number} {quality} {things}",
    "{person} {deed} {number} {things} {place}",
    "{person} {deed} the {quality} {things} {time}",
    "{time} {person} {deed} {number} {things}",
    "there were {number} {quality} {things} {place}",
    "did {person} see the {things} {place} {time}",
)

# Of espeak-ng's variants, the plain ones and some named ones that move none of the first three formants, which make
# the vowels, by more than half. Those of the held-out part are not relatives of the others either (belinda's are).
_TRAINING_ACCENTS = ("en-us", "en", "en-gb-scotland")
_TRAINING_VARIANTS = ("f1", "f2", "f5", "m1", "m2", "m4", "m5", "m7", "m8", "Alex", "Annie", "rob", "shelby", "steph")
_HELD_OUT_ACCENTS = ("en-us", "en", "en-gb-x-rp")
_HELD_OUT_VARIANTS = ("f3", "f4", "m3", "m6", "belinda", "Gene", "grandma", "paul")
_PACES = (150, 200)  # words per minute, from and to
_PITCHES = (35, 65)

TRAINING_SPEAKERS = tuple(f"{accent}+{variant}" for accent in _TRAINING_ACCENTS for variant in _TRAINING_VARIANTS)
HELD_OUT_SPEAKERS = tuple(f"{accent}+{variant}" for accent in _HELD_OUT_ACCENTS for variant in _HELD_OUT_VARIANTS)


@dataclass(frozen=True)
class QuickstartSentences:
    """Three lists of sentences without a sentence in common, nor one twice in a list.

    Attributes:
        train: to be spoken by the training speakers.
        held_out: to be spoken by the held-out speakers.
        text_only: more text, to pretrain a language model.
    """

    train: list[str]
    held_out: list[str]
    text_only: list[str]


def quickstart_vocabulary() -> set[str]:
    """Every word that the grammar can produce."""
    filled = [pattern.format(**dict.fromkeys(_SLOTS, "")) for pattern in _PATTERNS]
    return {word for phrase in (*filled, *(p for slot in _SLOTS.values() for p in slot)) for word in phrase.split()}


def draw_sentences(train: int, held_out: int, text_only: int = 0, seed: int = 0) -> QuickstartSentences:
    """Draws different sentences from the grammar.

    Args:
        train, held_out, text_only: how many of each.
        seed: the same seed draws the same sentences.
    """
    generator = random.Random(seed)
    drawn: dict[str, None] = {}  # a set that keeps its order
    while len(drawn) < train + held_out + text_only:
        drawn[_sentence(generator)] = None
    sentences = list(drawn)
    # Held out first: a longer training list then leaves the test as it was.
    return QuickstartSentences(
        held_out=sentences[:held_out],
        train=sentences[held_out : held_out + train],
        text_only=sentences[held_out + train :],
    )


def _sentence(generator: random.Random) -> str:
    pattern = generator.choice(_PATTERNS)
    return pattern.format(**{slot: generator.choice(phrases) for slot, phrases in _SLOTS.items()})


def draw_voices(speakers: tuple[str, ...], count: int, seed: int = 0) -> list[EspeakVoice]:
    """`count` voices: the speakers in turn, each time at another pace and pitch."""
    generator = random.Random(seed)
    return [
        EspeakVoice(speakers[index % len(speakers)], generator.randint(*_PACES), generator.randint(*_PITCHES))
        for index in range(count)
    ]


def speak_training_clips(sentences: list[str], seed: int = 0, description: str | None = None) -> list[SpokenUtterance]:
    """`sentences` in the voices of the training speakers; with a progress bar where `description` titles it."""
    return speak_all(sentences, draw_voices(TRAINING_SPEAKERS, len(sentences), seed), description=description)


def speak_held_out_clips(sentences: list[str], seed: int = 0, description: str | None = None) -> list[SpokenUtterance]:
    """`sentences` in the voices of the held-out speakers; with a progress bar where `description` titles it."""
    return speak_all(sentences, draw_voices(HELD_OUT_SPEAKERS, len(sentences), seed), description=description)
