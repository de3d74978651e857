"""Training data of text to speech, read once: token ids and log-mel spectrograms, in memory or in a file.

Spectrograms take longer to compute than a small model to learn from, and they are the same in every epoch.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .audio_files import AudioError, load_audio, source_name
from .mel_spectrograms import extract_log_mel
from .processing_text_to_spectrogram import TextToSpectrogramProcessor
from .speech_datasets import UnusableClips

logger = logging.getLogger(__name__)

SILENCE_WINDOW_S = 0.01  # over which loudness is measured
KEPT_SILENCE_S = 0.05  # before and behind speech: soft beginnings and fading ends are part of it


@dataclass
class SpectrogramClips(Dataset):
    """Clips ready for `TextToSpectrogramCollator`.

    Attributes:
        texts: as they were written.
        input_ids: token ids of each.
        spectrograms: log-mel, float32 [T, M] of each.
        speakers: an embedding [V] of each, or None.
    """

    texts: list[str] = field(default_factory=list)
    input_ids: list[list[int]] = field(default_factory=list)
    spectrograms: list[np.ndarray] = field(default_factory=list)
    speakers: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {"input_ids": self.input_ids[index], "labels": self.spectrograms[index]}
        return row if self.speakers is None else {**row, "speaker_embeddings": self.speakers[index]}

    @property
    def lengths(self) -> list[int]:
        """Frames of each clip, by which batches are put together."""
        return list(map(len, self.spectrograms))


@dataclass(frozen=True)
class ClipLimits:
    """Which clips can be trained on.

    Args:
        min_duration_s, max_duration_s: of the recording, in seconds.
        max_tokens: of the text.
        max_frames: of the spectrogram.
    """

    min_duration_s: float = 0.0
    max_duration_s: float | None = None
    max_tokens: int | None = None
    max_frames: int | None = None


def trim_silence(waveform: np.ndarray, sampling_rate: int, threshold_db: float) -> np.ndarray:
    """Cut silence off at both ends, all but 50 ms of it.

    Args:
        waveform: float32 [samples].
        sampling_rate: in Hz.
        threshold_db: what is quieter than the loudest 10 ms by more than this is silence.

    Returns:
        A part of the waveform; all of it where everything is equally loud.

    Raises:
        ValueError: the threshold is not above 0.
    """
    if not threshold_db > 0:
        raise ValueError(f"the threshold of silence must be above 0 dB, got {threshold_db:g}")
    window = max(1, round(SILENCE_WINDOW_S * sampling_rate))
    padded = np.pad(waveform.astype(np.float64), (0, -len(waveform) % window))
    energy = (padded.reshape(-1, window) ** 2).mean(axis=1)
    loud = np.flatnonzero(energy >= energy.max(initial=0.0) * 10 ** (-threshold_db / 10))
    if not len(loud):
        return waveform
    kept = round(KEPT_SILENCE_S * sampling_rate)
    return waveform[max(0, loud[0] * window - kept) : (loud[-1] + 1) * window + kept]


class _Unusable(ValueError):
    """Why a clip is left out: the kind of fault, and one line."""


def read_spectrogram_clips(
    dataset: Any,
    processor: TextToSpectrogramProcessor,
    limits: ClipLimits | None = None,
    speaker_of: Callable[[Mapping[str, Any]], np.ndarray] | None = None,
    cache: str | os.PathLike | None = None,
    progress: bool = True,
    trim_silence_db: float | None = None,
) -> tuple[SpectrogramClips, UnusableClips]:
    """Read every clip of a data set, and say which cannot be trained on and why.

    Args:
        dataset: rows with `audio` and `text`, such as `load_speech_dataset` gives.
        processor: of the model.
        limits: which clips to leave out.
        speaker_of: the speaker embedding of a row; a `ValueError` leaves the clip out.
        cache: folder that keeps the spectrograms: they are read from there as they are needed, and found again by the
            next run on the same recordings with the same settings. None keeps them in memory.
        progress: show a progress bar.
        trim_silence_db: cut silence off at the ends of each clip, see `trim_silence`; None leaves it.

    Returns:
        The clips, and the report. Each row left out is logged as a warning, then the summary.
    """
    from tqdm.auto import tqdm

    limits, report = limits or ClipLimits(), UnusableClips()
    clips = SpectrogramClips(speakers=None if speaker_of is None else [])
    store = _Store.open(cache, dataset, processor, trim_silence_db)
    for index, row in enumerate(tqdm(dataset, desc="reading clips", unit="clip", disable=None if progress else True)):
        report.checked += 1
        try:
            ids = _token_ids(row, processor, limits)
            speaker = None if speaker_of is None else _speaker(row, speaker_of)
            clips.spectrograms.append(_spectrogram(row, index, processor, limits, store, trim_silence_db))
        except _Unusable as error:
            reason, detail = error.args
            report.clips.append(
                {"index": index, "audio": source_name(row["audio"]), "reason": reason, "detail": detail}
            )
            logger.warning("left out clip %d: %s", index, detail)
            continue
        clips.texts.append(row["text"])
        clips.input_ids.append(ids)
        if clips.speakers is not None and speaker is not None:
            clips.speakers.append(speaker)
    store.close(clips)
    logger.log(logging.WARNING if report.clips else logging.INFO, report.summary())
    return clips, report


def _token_ids(row: Mapping[str, Any], processor: TextToSpectrogramProcessor, limits: ClipLimits) -> list[int]:
    name, text = source_name(row["audio"]), row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise _Unusable("empty transcript", f"{name}: empty transcript {text!r}")
    try:
        ids = processor.token_ids(text)
    except ValueError as error:
        raise _Unusable("unusable transcript", f"{name}: {error}") from error
    if limits.max_tokens is not None and len(ids) > limits.max_tokens:
        raise _Unusable("transcript too long", f"{name}: {len(ids)} tokens, the limit is {limits.max_tokens}")
    return ids


def _speaker(row: Mapping[str, Any], speaker_of: Callable[[Mapping[str, Any]], np.ndarray]) -> np.ndarray:
    try:
        return speaker_of(row)
    except ValueError as error:
        raise _Unusable("unusable speaker", f"{source_name(row['audio'])}: {error}") from error


def _spectrogram(
    row: Mapping[str, Any],
    index: int,
    processor: TextToSpectrogramProcessor,
    limits: ClipLimits,
    store: "_Store",
    trim_silence_db: float | None,
) -> np.ndarray:
    name, told = source_name(row["audio"]), row.get("duration")
    if isinstance(told, int | float):  # a header tells the length of an hour before the hour is decoded
        _check_duration(name, told, limits)
    spectrogram = store.held(index)
    if spectrogram is None:
        try:
            spectrogram = extract_log_mel(
                _trimmed(row["audio"], processor, trim_silence_db), processor.feature_extractor
            )
        except AudioError as error:
            raise _Unusable("unusable audio", str(error)) from error
    if not isinstance(told, int | float):
        _check_duration(name, processor.mel_settings.duration_s(len(spectrogram) - 1), limits)
    if limits.max_frames is not None and len(spectrogram) > limits.max_frames:
        raise _Unusable(
            "audio too long", f"{name}: {len(spectrogram)} frames, the model has positions for {limits.max_frames}"
        )
    return store.keep(index, spectrogram)


def _trimmed(audio: Any, processor: TextToSpectrogramProcessor, trim_silence_db: float | None) -> Any:
    if trim_silence_db is None:
        return audio
    rate = processor.sampling_rate
    return trim_silence(load_audio(audio, rate, name=source_name(audio)), rate, trim_silence_db)


def _check_duration(name: str, duration_s: float, limits: ClipLimits) -> None:
    if duration_s < limits.min_duration_s:
        raise _Unusable("audio too short", f"{name}: {duration_s:.2f} s, the minimum is {limits.min_duration_s:g} s")
    if limits.max_duration_s is not None and duration_s > limits.max_duration_s:
        raise _Unusable("audio too long", f"{name}: {duration_s:.2f} s, the limit is {limits.max_duration_s:g} s")


class _Store:
    """Where spectrograms are kept: this one, in memory, just hands them back."""

    @staticmethod
    def open(
        folder: str | os.PathLike | None,
        dataset: Any,
        processor: TextToSpectrogramProcessor,
        trim_silence_db: float | None = None,
    ) -> "_Store":
        """The store of a folder, or of memory where there is none."""
        if folder is None:
            return _Store()
        return _FileStore(Path(folder), dataset, asdict(processor.mel_settings), trim_silence_db)

    def held(self, index: int) -> np.ndarray | None:
        """What an earlier run kept of a row."""
        return None

    def keep(self, index: int, spectrogram: np.ndarray) -> np.ndarray:
        """Keep the spectrogram of a row."""
        return spectrogram

    def close(self, clips: SpectrogramClips) -> None:
        """All rows were read; the clips get what is kept of them."""


class _FileStore(_Store):
    """All spectrograms behind each other in one file, which is mapped into memory, and an index of their places."""

    def __init__(self, folder: Path, dataset: Any, settings: dict[str, Any], trim_silence_db: float | None):
        folder.mkdir(parents=True, exist_ok=True)
        facts = [settings, *(_fingerprint(row["audio"]) for row in dataset)]
        facts += [] if trim_silence_db is None else [trim_silence_db]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self.bins = settings["num_mel_bins"]
        self.data, self.index = folder / f"spectrograms-{key}.f32", folder / f"spectrograms-{key}.json"
        self.part = folder / f"spectrograms-{key}.{os.getpid()}"  # renamed when it is complete
        self.places: dict[str, list[int]] = {}  # row: first frame, frames
        self.frames, self.mapped, self.file = 0, None, None
        if self.index.is_file() and self.data.is_file():
            self.places, self.mapped = json.loads(self.index.read_text(encoding="utf-8")), self._map()
        else:
            self.file = self.part.open("wb")

    def _map(self) -> np.ndarray:
        return np.memmap(self.data, dtype=np.float32, mode="r").reshape(-1, self.bins)

    def held(self, index: int) -> np.ndarray | None:
        if self.mapped is None or str(index) not in self.places:
            return None
        start, frames = self.places[str(index)]
        return self.mapped[start : start + frames]

    def keep(self, index: int, spectrogram: np.ndarray) -> np.ndarray:
        if self.file is None:
            return spectrogram
        self.file.write(spectrogram.tobytes())
        self.places[str(index)] = [self.frames, len(spectrogram)]
        self.frames += len(spectrogram)
        return spectrogram[:0]  # until the file is complete

    def close(self, clips: SpectrogramClips) -> None:
        if self.file is None:
            return
        self.file.close()
        if not self.places:
            self.part.unlink()
            return
        os.replace(self.part, self.data)
        self.part.write_text(json.dumps(self.places), encoding="utf-8")
        os.replace(self.part, self.index)
        self.mapped = self._map()
        clips.spectrograms = [self.mapped[start : start + frames] for start, frames in self.places.values()]


def _fingerprint(audio: Any) -> Sequence[Any]:
    """What tells whether a recording is still the same."""
    if isinstance(audio, Mapping):
        audio = audio.get("bytes") or audio.get("path")
    if isinstance(audio, bytes):
        return [hashlib.sha256(audio).hexdigest()]
    if isinstance(audio, str | os.PathLike) and os.path.exists(audio):
        found = os.stat(audio)
        return [os.path.abspath(audio), found.st_size, found.st_mtime_ns]
    return [source_name(audio)]
