"""Recordings to the log-mel spectrograms that a text-to-speech model learns, as SpeechT5's extractor computes them.

One object holds the settings, and everything else is made from it or checked against it: the extractor, the model's
configuration and the vocoder must mean the same by a frame, or the model learns what the vocoder cannot say.
"""

from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from math import ceil
from typing import Any, ClassVar

import numpy as np
from transformers import AutoFeatureExtractor, SpeechT5FeatureExtractor
from transformers.audio_utils import mel_filter_bank, optimal_fft_length, window_function

from ..configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from ..configuration.published_code import PublishesItsCode
from .audio_files import load_audio, source_name

MILLISECONDS = 1000  # in a second: SpeechT5's extractor counts hop and window in them


@dataclass(frozen=True)
class MelSettings:
    """What a frame of a log-mel spectrogram is; the defaults are SpeechT5's.

    Args:
        sampling_rate: in Hz.
        n_fft: samples of a Fourier transform.
        win_length: samples of the Hann window in its middle.
        hop_length: samples from one frame to the next.
        fmin, fmax: of the mel filters, in Hz.
        num_mel_bins: how many filters.
        mel_floor: magnitudes are raised to this before the logarithm to base 10.

    Raises:
        ValueError: settings that contradict each other.
    """

    sampling_rate: int = 16_000
    n_fft: int = 1024
    win_length: int = 1024
    hop_length: int = 256
    fmin: float = 80
    fmax: float = 7600
    num_mel_bins: int = 80
    mel_floor: float = 1e-10

    def __post_init__(self) -> None:
        for name in ("sampling_rate", "n_fft", "win_length", "hop_length", "num_mel_bins"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} exceeds n_fft {self.n_fft}")
        if not 0 <= self.fmin < self.fmax <= self.sampling_rate / 2:
            raise ValueError(
                f"fmin {self.fmin} and fmax {self.fmax} Hz must lie in this order between 0 and half of "
                f"sampling_rate {self.sampling_rate}"
            )
        if self.mel_floor <= 0:
            raise ValueError(f"mel_floor must be above 0, got {self.mel_floor}")

    @classmethod
    def from_config(cls, config: Any) -> "MelSettings":
        """Those of a `TextToSpectrogramConfig`, or of anything with fields of these names."""
        return cls(**{one.name: getattr(config, one.name) for one in fields(cls)})

    @classmethod
    def from_feature_extractor(cls, extractor: SpeechT5FeatureExtractor) -> "MelSettings":
        """Those that a feature extractor computes with, in samples."""
        return cls(
            sampling_rate=extractor.sampling_rate,
            n_fft=extractor.n_fft,
            win_length=extractor.sample_size,
            hop_length=extractor.sample_stride,
            fmin=extractor.fmin,
            fmax=extractor.fmax,
            num_mel_bins=extractor.num_mel_bins,
            mel_floor=extractor.mel_floor,
        )

    def feature_extractor(self) -> SpeechT5FeatureExtractor:
        """A feature extractor with these settings.

        Returns:
            SpeechT5's own where it can express them, for people without this package; it knows whole milliseconds and
            transforms of the next power of two. Otherwise a `LogMelFeatureExtractor`.
        """
        settings = asdict(self)
        n_fft = settings.pop("n_fft")
        for name in ("win_length", "hop_length"):
            settings[name] = settings[name] * MILLISECONDS / self.sampling_rate
        if not self._is_native(n_fft):
            return LogMelFeatureExtractor(**settings, n_fft=n_fft)
        settings.update(win_length=round(settings["win_length"]), hop_length=round(settings["hop_length"]))
        return SpeechT5FeatureExtractor(**settings)

    def _is_native(self, n_fft: int) -> bool:
        whole = all(length * MILLISECONDS % self.sampling_rate == 0 for length in (self.win_length, self.hop_length))
        return whole and n_fft == optimal_fft_length(self.win_length)

    def n_frames(self, n_samples: int) -> int:
        """Frames of a recording: they are centred, from the first sample on."""
        return 1 + n_samples // self.hop_length

    def duration_s(self, n_frames: int) -> float:
        """Seconds that frames last."""
        return n_frames * self.hop_length / self.sampling_rate


class LogMelFeatureExtractor(PublishesItsCode, SpeechT5FeatureExtractor):
    """SpeechT5's feature extractor for windows and hops of any number of samples and transforms of any length.

    Args:
        sampling_rate: in Hz.
        hop_length: in milliseconds, as in the base class, but with fractions, and rounded to the nearest sample.
        win_length: likewise.
        n_fft: samples of a Fourier transform; the next power of two of the window by default.
        **kwargs: for the base class.
    """

    published_as: ClassVar[tuple[str, ...]] = ("AutoFeatureExtractor",)
    published_in: ClassVar[str] = "preprocessor_config.json"

    def __init__(
        self,
        sampling_rate: int = 16_000,
        hop_length: float = 16,
        win_length: float = 64,
        n_fft: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            sampling_rate=sampling_rate, hop_length=ceil(hop_length), win_length=ceil(win_length), **kwargs
        )
        self.hop_length, self.win_length = hop_length, win_length
        self.sample_stride = round(hop_length * sampling_rate / MILLISECONDS)
        self.sample_size = round(win_length * sampling_rate / MILLISECONDS)
        self.n_fft = n_fft or optimal_fft_length(self.sample_size)
        self.n_freqs = self.n_fft // 2 + 1
        self.window = window_function(window_length=self.sample_size, name=self.win_function, periodic=True)
        self.mel_filters = mel_filter_bank(
            num_frequency_bins=self.n_freqs,
            num_mel_filters=self.num_mel_bins,
            min_frequency=self.fmin,
            max_frequency=self.fmax,
            sampling_rate=self.sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "n_fft": self.n_fft}


def extract_log_mel(
    audio: Any, settings: MelSettings | SpeechT5FeatureExtractor | None = None, name: str | None = None
) -> np.ndarray:
    """One recording as a log-mel spectrogram.

    Args:
        audio: anything `load_audio` takes: a path, a dict of `datasets`, or a waveform `[samples]` of the settings'
            sampling rate. Integers are scaled to [-1, 1]; other sampling rates are resampled where they are known.
        settings: of the spectrogram, or a feature extractor that has them; SpeechT5's by default.
        name: what to call the recording in errors.

    Returns:
        float32 `[T, M]`: the base-10 logarithm of mel magnitudes.

    Raises:
        AudioError: missing, empty or broken audio, or NaN samples.
    """
    extractor = settings if isinstance(settings, SpeechT5FeatureExtractor) else _extractor(settings or MelSettings())
    waveform = load_audio(audio, extractor.sampling_rate, name=name or source_name(audio))
    features = extractor(audio_target=[waveform], sampling_rate=extractor.sampling_rate)
    return np.asarray(features["input_values"][0], dtype=np.float32)


@lru_cache(maxsize=8)
def _extractor(settings: MelSettings) -> SpeechT5FeatureExtractor:
    """Its filters take longer to make than to use."""
    return settings.feature_extractor()


def check_mel_agreement(config: Any, feature_extractor: SpeechT5FeatureExtractor) -> None:
    """Raise unless a model and its feature extractor mean the same by a frame.

    Args:
        config: a `TextToSpectrogramConfig`.
        feature_extractor: of the processor.

    Raises:
        ValueError: they differ; every setting is named with its values.
    """
    ours = asdict(MelSettings.from_config(config))
    its = asdict(MelSettings.from_feature_extractor(feature_extractor))
    problems = [
        f"{name}: config {value}, feature extractor {its[name]}" for name, value in ours.items() if value != its[name]
    ]
    if problems:
        raise ValueError(f"mel settings that must be the same differ: {'; '.join(problems)}")


AutoFeatureExtractor.register(TextToSpectrogramConfig, LogMelFeatureExtractor, exist_ok=True)
