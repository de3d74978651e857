"""Speech from text with espeak-ng, offline: for demonstrations, tests and timing references.

The synthesiser is the C library of the PyPI package `espeakng-loader`, called through ctypes. It sounds robotic, but
it is quick (hundreds of times faster than real time), has many voices, and tells when each word starts.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INSTALL_HINT = 'pip install "speechgraft[quickstart]"'
DEFAULT_SAMPLING_RATE = 16_000  # Hz, what speech encoders read
DEFAULT_WORDS_PER_MINUTE = 175
DEFAULT_PITCH = 50  # of 0 to 99

# espeak-ng/speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARACTERS_UTF8 = 1
_PARAMETER_RATE = 1
_PARAMETER_PITCH = 3
_EVENT_LIST_TERMINATED, _EVENT_WORD, _EVENT_SENTENCE, _EVENT_END = 0, 1, 2, 5
_LONGEST_DATA_PATH = 159  # bytes: espeak-ng keeps the path in a buffer of 160 and silently cuts what is longer


class EspeakError(RuntimeError):
    """espeak-ng cannot be loaded, does not know a voice, or failed to speak."""


class EspeakNotInstalledError(EspeakError, ImportError):
    """The optional package that brings espeak-ng is not installed."""


@dataclass(frozen=True)
class EspeakVoice:
    """A speaker: a language or accent, optionally with a variant, spoken at a pace and pitch.

    Args:
        name: an espeak-ng voice such as `en` (British) or `en-us`, or with a variant after a plus sign, `en-us+f3`.
        words_per_minute: pace, 80 to 450.
        pitch: 0 to 99; 50 is the variant's own.
    """

    name: str
    words_per_minute: int = DEFAULT_WORDS_PER_MINUTE
    pitch: int = DEFAULT_PITCH


@dataclass(frozen=True)
class SpokenWord:
    """A word and when it is spoken. `end_s` is where the next word or the end of the clause begins.

    espeak-ng speaks some pairs as one ("on the", "of a"): `text` then holds both.
    """

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class SpokenUtterance:
    """What was said, by whom, and how it sounds.

    Attributes:
        text: the text as given.
        voice: the speaker.
        audio: float32 [samples], mono, within -1 to 1.
        sampling_rate: of `audio`, in Hz.
        words: the words in order, with their times.
    """

    text: str
    voice: EspeakVoice
    audio: np.ndarray
    sampling_rate: int
    words: tuple[SpokenWord, ...]

    @property
    def duration_s(self) -> float:
        return len(self.audio) / self.sampling_rate


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # in characters, from 1
        ("length", ctypes.c_int),  # in characters
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_SynthesisCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class _Boundary:
    """An event that starts a word, or ends the one before it."""

    sample: int
    text_start: int = 0  # in characters
    starts_word: bool = False


class EspeakSynthesizer:
    """One espeak-ng engine.

    Each object loads a private copy of the library, because espeak-ng keeps its state in C globals: the phase of its
    oscillators and its random numbers run on from one utterance to the next. With a private copy the first utterance
    always starts from the same state, so the same list of texts and voices gives the same samples, bit for bit, and
    two objects do not disturb each other. One object must not be used from two threads at once.

    Use it as a context manager, or call `close()`: it owns a temporary folder.

    Args:
        sampling_rate: of the audio to return, in Hz.

    Raises:
        EspeakNotInstalledError: `espeakng-loader` is missing.
        EspeakError: the library does not load or finds no voice data.
    """

    def __init__(self, sampling_rate: int = DEFAULT_SAMPLING_RATE) -> None:
        library_path, data_path = _installed_espeak()
        self.sampling_rate = sampling_rate
        self._folder = tempfile.TemporaryDirectory(prefix="speechgraft-espeak-", ignore_cleanup_errors=True)
        self._data_path = _short_enough(data_path, Path(self._folder.name))
        self._library: Any = _load_copy(library_path, Path(self._folder.name))
        self._chunks: list[np.ndarray] = []
        self._boundaries: list[_Boundary] = []
        # espeak-ng holds only the address: the wrapper must live as long as the engine.
        self._callback = _SynthesisCallback(self._receive)
        self.native_sampling_rate = self._initialize()

    def _initialize(self) -> int:
        """Starts the engine; returns its sampling rate in Hz."""
        # An encoded path: the library takes bytes in the encoding of the file system.
        rate = self._library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, 0, str(self._data_path).encode(), _INITIALIZE_DONT_EXIT
        )
        if rate <= 0:
            raise EspeakError(f"espeak-ng found no voice data in {self._data_path}")
        self._library.espeak_SetSynthCallback(self._callback)
        return rate

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        """Takes one block of int16 samples and its events; 0 tells espeak-ng to go on."""
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            event = events[index]
            if event.type == _EVENT_WORD:
                self._boundaries.append(_Boundary(event.sample, event.text_position - 1, starts_word=True))
            elif event.type in (_EVENT_SENTENCE, _EVENT_END):
                self._boundaries.append(_Boundary(event.sample))
            index += 1
        return 0

    def speak(self, text: str, voice: EspeakVoice | str = "en-us") -> SpokenUtterance:
        """Speaks one text.

        Args:
            text: any text; digits and abbreviations are read out.
            voice: a speaker, or an espeak-ng voice name at the default pace and pitch.

        Raises:
            EspeakError: an unknown voice or variant, a text that is silent, or a failure inside espeak-ng.
        """
        voice = EspeakVoice(voice) if isinstance(voice, str) else voice
        self._choose(voice)
        self._chunks, self._boundaries = [], []
        encoded = text.encode()
        status = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _CHARACTERS_UTF8, None, None)
        if status != 0:
            raise EspeakError(f"espeak-ng failed with status {status} on {text!r}")
        if not self._chunks or not any(boundary.starts_word for boundary in self._boundaries):
            raise EspeakError(f"nothing to speak in {text!r}")
        native = np.concatenate(self._chunks)
        words = _words(text, self._boundaries, self.native_sampling_rate)
        return SpokenUtterance(text, voice, self._resample(native), self.sampling_rate, words)

    def _choose(self, voice: EspeakVoice) -> None:
        _, _, variant = voice.name.partition("+")
        # An unknown variant is no error to espeak-ng: it speaks with the plain voice.
        if variant and not (self._data_path / "voices" / "!v" / variant).is_file():
            raise EspeakError(f"espeak-ng has no voice variant {variant!r} (asked for {voice.name!r})")
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise EspeakError(f"espeak-ng has no voice {voice.name!r}")
        for parameter, value in ((_PARAMETER_RATE, voice.words_per_minute), (_PARAMETER_PITCH, voice.pitch)):
            self._library.espeak_SetParameter(parameter, value, 0)

    def _resample(self, samples: np.ndarray) -> np.ndarray:
        """int16 [samples at the native rate] to float32 [samples at `sampling_rate`]."""
        import soxr  # here, because loading this module should cost nothing

        audio = samples.astype(np.float32) / 32_768
        if self.sampling_rate != self.native_sampling_rate:
            audio = soxr.resample(audio, self.native_sampling_rate, self.sampling_rate)
        # Resampling overshoots at full scale.
        return np.clip(audio, -1.0, 1.0).astype(np.float32, copy=False)

    def variants(self) -> list[str]:
        """The names that may follow the plus sign of a voice, sorted."""
        return sorted(path.name for path in (self._data_path / "voices" / "!v").iterdir() if path.is_file())

    def close(self) -> None:
        """Frees the engine's memory and its temporary folder; the object cannot speak afterwards."""
        if self._library is not None:
            self._library.espeak_Terminate()
            self._library = None
        self._folder.cleanup()

    def __enter__(self) -> EspeakSynthesizer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def speak_all(
    texts: Sequence[str],
    voices: Sequence[EspeakVoice],
    sampling_rate: int = DEFAULT_SAMPLING_RATE,
    description: str | None = None,
) -> list[SpokenUtterance]:
    """Speaks `texts[i]` with `voices[i]`; the result depends on these alone.

    Args:
        texts: what to say.
        voices: who says it, one for each text.
        sampling_rate: of the audio, in Hz.
        description: the title of a progress bar; None shows none.

    Raises:
        ValueError: not as many voices as texts.
        EspeakError: as `EspeakSynthesizer` and its `speak`.
    """
    if len(texts) != len(voices):
        raise ValueError(f"{len(texts)} texts but {len(voices)} voices")
    with EspeakSynthesizer(sampling_rate) as synthesizer:
        pairs = _with_progress(list(zip(texts, voices, strict=True)), description)
        return [synthesizer.speak(text, voice) for text, voice in pairs]


def _with_progress(pairs: list[tuple[str, EspeakVoice]], description: str | None) -> Iterable[tuple[str, EspeakVoice]]:
    if description is None:
        return pairs
    from tqdm import tqdm

    return tqdm(pairs, desc=description, unit="clip", dynamic_ncols=True)


def _words(text: str, boundaries: list[_Boundary], sampling_rate: int) -> tuple[SpokenWord, ...]:
    """Pairs each start of a word with the boundary that follows it, and with the text up to the next word.

    Several spoken words can come from one written word ("250"): they are put together.
    """
    spoken = [
        (_start_of_written_word(text, boundary.text_start), boundary.sample, following.sample)
        for boundary, following in zip(boundaries, boundaries[1:], strict=False)
        if boundary.starts_word
    ]
    text_starts = sorted({text_start for text_start, _, _ in spoken})
    words = []
    for text_start, text_end in zip(text_starts, [*text_starts[1:], len(text)], strict=False):
        samples = [(first, last) for start, first, last in spoken if start == text_start]
        spelling = text[text_start:text_end].strip()
        words.append(SpokenWord(spelling, samples[0][0] / sampling_rate, samples[-1][1] / sampling_rate))
    return tuple(words)


def _start_of_written_word(text: str, position: int) -> int:
    while position > 0 and not text[position - 1].isspace():
        position -= 1
    return position


def require_espeak() -> None:
    """Check before a long run that it will be able to speak.

    Raises:
        EspeakNotInstalledError: `espeakng-loader` is missing.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise EspeakNotInstalledError(f"speaking needs espeak-ng, which is not installed: {INSTALL_HINT}")


def _installed_espeak() -> tuple[Path, Path]:
    """Where the library and its voice data are."""
    require_espeak()
    import espeakng_loader

    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


def _short_enough(data_path: Path, folder: Path) -> Path:
    """`data_path`, or a copy inside `folder` where the path is longer than espeak-ng can hold."""
    if len(str(data_path).encode()) <= _LONGEST_DATA_PATH:
        return data_path
    return Path(shutil.copytree(data_path, folder / "espeak-ng-data"))


def _load_copy(library_path: Path, folder: Path) -> ctypes.CDLL:
    """Loads the library from a copy in `folder`: a second load of the same file would share its globals."""
    try:
        return ctypes.CDLL(str(shutil.copy(library_path, folder)))
    except OSError as error:
        raise EspeakError(f"espeak-ng does not load from {library_path}: {error}") from error
