"""Audio files to waveforms: any format soundfile reads, any sampling rate, always one channel of float32.

Everything that can be wrong with a recording (no such file, nothing in it, broken, NaN samples, an absurd sampling
rate) raises `AudioError` with one line that names the file and the value, so that a batch job can report it and go
on. Decoding is soundfile's and resampling is soxr's; both are imported when the first file is read, so that code
which only handles arrays needs neither.
"""

import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

DEFAULT_SAMPLING_RATE = 16_000  # Hz
MAX_MISSING_SAMPLES = 4 * 1152  # four MP3 frames: how much encoders and decoders disagree about the end
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 768_000  # Hz; outside of this a header is broken, not unusual


class AudioError(ValueError):
    """A recording that cannot be used. The message is one line naming the recording and what is wrong with it."""


def load_audio(source: Any, sampling_rate: int = DEFAULT_SAMPLING_RATE, *, name: str | None = None) -> np.ndarray:
    """Read one recording as a mono waveform at the wanted sampling rate.

    Args:
        source: a path, the bytes of a file, an open binary file, a torchcodec `AudioDecoder`, a dict as `datasets`
            makes them (`{"array", "sampling_rate"}` or `{"path", "bytes"}`), or a waveform (array, tensor or list of
            numbers) that already has the wanted sampling rate. Arrays are `[samples]` or have one short axis for the
            channels.
        sampling_rate: of the result, in Hz.
        name: what to call the recording in errors, where the source itself does not say.

    Returns:
        float32 `[samples]`. Integers are scaled to [-1, 1] and channels are averaged; floats keep their scale.

    Raises:
        AudioError: missing, empty, unreadable, NaN or infinite samples, or a nonsensical sampling rate.
    """
    name = name or source_name(source)
    _check_sampling_rate(sampling_rate, name)
    waveform, native_rate = _load_native(source, name)
    if native_rate is not None and native_rate != sampling_rate:
        waveform = _resample(waveform, native_rate, sampling_rate)
    return waveform


def decoded_duration_s(source: Any, sampling_rate: int = DEFAULT_SAMPLING_RATE) -> float:
    """Duration in seconds of a recording that was decoded and checked as `load_audio` would, but not resampled.

    Args:
        source: as for `load_audio`.
        sampling_rate: in Hz, of waveforms that do not say.
    """
    waveform, native_rate = _load_native(source, source_name(source))
    return len(waveform) / (native_rate or sampling_rate)


def source_name(source: Any) -> str:
    """How errors call a recording: its path where there is one, else what kind of object it is."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Mapping):
        return str(source.get("path") or "<audio without a path>")
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    return str(getattr(source, "name", None) or f"<{type(source).__name__}>")


def as_list_of_recordings(audio: Any) -> list[Any]:
    """One recording or several as a list; numbers are one waveform, an array of two axes is a batch `[B, samples]`.

    Raises:
        ValueError: an empty list.
    """
    if isinstance(audio, list | tuple):
        if not audio:
            raise ValueError("audio: an empty list")
        return [audio] if isinstance(audio[0], Number) else list(audio)
    if getattr(audio, "ndim", 1) > 1:
        return list(audio)
    return [audio]


def is_bare_waveform(recording: Any) -> bool:
    """Whether a recording is only its samples, without a sampling rate."""
    is_file = isinstance(recording, str | os.PathLike | bytes | Mapping) or hasattr(recording, "read")
    return not is_file and not hasattr(recording, "get_all_samples")


def audio_duration_s(source: Any) -> float:
    """Duration in seconds of a file (path, bytes, open file or `{"path", "bytes"}`) from its header, without
    decoding it.

    Raises:
        AudioError: missing or unreadable.
    """
    name = source_name(source)
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    info = _with_soundfile(lambda soundfile, file: soundfile.info(file), source, name)
    _check_sampling_rate(info.samplerate, name)
    return info.frames / info.samplerate


def iter_audio_blocks(
    path: str | os.PathLike, block_s: float = 30.0, sampling_rate: int = DEFAULT_SAMPLING_RATE
) -> Iterator[np.ndarray]:
    """Read a long recording piece by piece: the blocks, concatenated, are `load_audio` of the whole.

    Args:
        path: an audio file.
        block_s: seconds of the file decoded at a time; memory use is proportional to it.
        sampling_rate: of the blocks, in Hz.

    Yields:
        float32 `[samples]` blocks, mono. Their lengths vary around `block_s` where the file is resampled.

    Raises:
        AudioError: as `load_audio`; NaN samples are found when their block is reached.
    """
    name = source_name(path)
    _check_sampling_rate(sampling_rate, name)
    with _with_soundfile(lambda soundfile, file: soundfile.SoundFile(file), path, name) as file:
        native_rate = file.samplerate
        _check_sampling_rate(native_rate, name)
        if file.frames == 0:
            raise AudioError(f"{name}: empty audio (0 samples)")
        blocks = (_as_mono_float32(block, name) for block in _raw_blocks(file, round(block_s * native_rate), name))
        yield from blocks if native_rate == sampling_rate else _resample_blocks(blocks, native_rate, sampling_rate)


def find_audio_files(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """The audio files among files and folders.

    Folders are searched with everything below them, in sorted order, for every file extension that soundfile reads;
    files that are named explicitly are taken as they are. A file that is reached twice is listed once.

    Raises:
        AudioError: a path that does not exist, or a folder without any audio file.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in audio_extensions() and p.is_file())
            if not inside:
                raise AudioError(f"{path}: no audio files in this folder")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            raise AudioError(f"{path}: no such file or folder")
    return list(found)


def audio_extensions() -> frozenset[str]:
    """File extensions that soundfile reads, lower case with the dot. RAW is left out: it has no header to read."""
    formats = {f".{name.lower()}" for name in _import_soundfile().available_formats() if name != "RAW"}
    return frozenset(formats | {".aif", ".aifc", ".oga", ".opus", ".wave"})


def _load_native(source: Any, name: str) -> tuple[np.ndarray, int | None]:
    """The checked mono waveform at the rate it was recorded with."""
    samples, native_rate = _read(source, name)
    if native_rate is not None:
        _check_sampling_rate(native_rate, name)
    return _as_mono_float32(samples, name), native_rate


def _read(source: Any, name: str) -> tuple[Any, int | None]:
    """Samples and their sampling rate, which is None where the source does not say."""
    if isinstance(source, Mapping):
        if source.get("array") is not None:
            return source["array"], source.get("sampling_rate")
        source = source.get("bytes") or source.get("path")
        if source is None:
            raise AudioError(f"{name}: an audio dict needs 'array', 'bytes' or 'path'")
    if hasattr(source, "get_all_samples"):
        return _read_decoder(source, name)
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(source, "read"):
        return _read_file(source, name)
    return source, None


def _read_decoder(decoder: Any, name: str) -> tuple[np.ndarray, int]:
    try:
        samples = decoder.get_all_samples()
    except Exception as error:  # torchcodec raises whatever FFmpeg met
        raise AudioError(f"{name}: cannot be decoded ({_one_line(error)})") from error
    return samples.data.numpy(), samples.sample_rate


def _read_file(source: Any, name: str) -> tuple[np.ndarray, int]:
    samples, native_rate, n_declared = _with_soundfile(_decode_all, source, name)
    if len(samples) < n_declared - MAX_MISSING_SAMPLES:
        raise AudioError(f"{name}: ends after {len(samples)} of {n_declared} samples")
    return samples, native_rate


def _decode_all(soundfile: Any, source: Any) -> tuple[np.ndarray, int, int]:
    with soundfile.SoundFile(source) as file:
        n_declared = file.frames
        return file.read(dtype="float32"), file.samplerate, n_declared


def _with_soundfile(action: Any, source: str | os.PathLike | bytes | BinaryIO, name: str) -> Any:
    """Run `action(soundfile, file)`, with whatever soundfile raises turned into one line."""
    soundfile = _import_soundfile()
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise AudioError(f"{name}: empty file (0 bytes)")
        source = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        source = _check_path(Path(source))
    try:
        return action(soundfile, source)
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise AudioError(f"{name}: cannot be decoded ({_one_line(error)})") from error


def _check_path(path: Path) -> str:
    if not path.exists():
        raise AudioError(f"{path}: no such file")
    if path.is_dir():
        raise AudioError(f"{path}: a folder, not an audio file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes)")
    return str(path)


def _import_soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("Reading audio files needs soundfile: pip install soundfile") from error
    return soundfile


def _raw_blocks(file: Any, block_samples: int, name: str) -> Iterator[np.ndarray]:
    while file.tell() < file.frames:
        try:
            block = file.read(block_samples, dtype="float32")
        except RuntimeError as error:
            raise AudioError(f"{name}: cannot be decoded ({_one_line(error)})") from error
        if not len(block):
            if file.tell() < file.frames - MAX_MISSING_SAMPLES:
                raise AudioError(f"{name}: ends after {file.tell()} of {file.frames} samples")
            return
        yield block


def _as_mono_float32(samples: Any, name: str) -> np.ndarray:
    if hasattr(samples, "detach"):  # a torch tensor, which numpy does not take with gradients or in bfloat16
        samples = samples.detach().cpu()
        samples = samples.float() if samples.is_floating_point() else samples
    try:
        waveform = np.asarray(samples)
    except ValueError as error:
        raise AudioError(f"{name}: not a waveform ({_one_line(error)})") from error
    if waveform.dtype.kind not in "iuf":
        raise AudioError(f"{name}: samples must be numbers, got {waveform.dtype}")
    if waveform.size == 0:
        raise AudioError(f"{name}: empty audio (0 samples)")
    if waveform.dtype.kind in "iu" and waveform.dtype.itemsize > 4:
        raise AudioError(f"{name}: full scale of {waveform.dtype} samples is unknown: use int16, int32 or float32")
    waveform = _average_channels(_scaled(waveform), name)
    finite = np.isfinite(waveform)
    if not finite.all():
        raise AudioError(f"{name}: {np.count_nonzero(~finite)} of {len(waveform)} samples are NaN or infinite")
    return np.ascontiguousarray(waveform)


def _scaled(waveform: np.ndarray) -> np.ndarray:
    """Integers to float32 in [-1, 1]; floats are only cast."""
    if waveform.dtype.kind == "f":
        return waveform.astype(np.float32, copy=False)
    if waveform.dtype.kind == "u":  # unsigned PCM is centred on half its range
        half = (np.iinfo(waveform.dtype).max + 1) // 2
        return ((waveform.astype(np.float64) - half) / half).astype(np.float32)
    return (waveform / -float(np.iinfo(waveform.dtype).min)).astype(np.float32)


def _average_channels(waveform: np.ndarray, name: str) -> np.ndarray:
    if waveform.ndim == 1:
        return waveform
    if waveform.ndim != 2:
        raise AudioError(f"{name}: a waveform has 1 axis, or 2 with channels; got shape {waveform.shape}")
    # soundfile puts channels last and torchcodec first; no recording has more channels than samples
    return waveform.mean(axis=0 if waveform.shape[0] < waveform.shape[1] else 1, dtype=np.float32)


def _check_sampling_rate(sampling_rate: Any, name: str) -> None:
    is_number = isinstance(sampling_rate, int | np.integer) or (
        isinstance(sampling_rate, float) and math.isfinite(sampling_rate) and sampling_rate == int(sampling_rate)
    )
    if not is_number or not MIN_SAMPLING_RATE <= sampling_rate <= MAX_SAMPLING_RATE:
        raise AudioError(
            f"{name}: sampling rate {sampling_rate!r} is not a whole number of Hz"
            f" from {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE}"
        )


def _import_soxr() -> Any:
    try:
        import soxr
    except ImportError as error:
        raise ImportError("Resampling audio needs soxr: pip install soxr") from error
    return soxr


def _resample(waveform: np.ndarray, native_rate: int, sampling_rate: int) -> np.ndarray:
    resampled = _import_soxr().resample(waveform, native_rate, sampling_rate)
    # a clip of one or two samples can be resampled to none at all
    return resampled if len(resampled) else waveform[:1]


def _resample_blocks(blocks: Iterable[np.ndarray], native_rate: int, sampling_rate: int) -> Iterator[np.ndarray]:
    resampler = _import_soxr().ResampleStream(native_rate, sampling_rate, num_channels=1, dtype="float32")
    for block in blocks:
        if len(resampled := resampler.resample_chunk(block)):
            yield resampled
    yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _one_line(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)  # soundfile's str() repeats the file, or is empty
    return " ".join(text.split()) or type(error).__name__
