"""Whatever people record comes in as mono float32 at the wanted rate, or as one line that tells what is wrong."""

import io
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from speechgraft.processing.audio_files import (
    AudioError,
    audio_duration_s,
    decoded_duration_s,
    find_audio_files,
    iter_audio_blocks,
    load_audio,
)

RATE = 16_000


def tone(duration_s: float = 0.5, frequency: float = 440.0, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def loudest_frequency(waveform: np.ndarray, rate: int = RATE) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum)) * rate / len(waveform)


def write(path: Path, waveform: np.ndarray, rate: int = RATE, **kwargs: Any) -> Path:
    soundfile.write(path, waveform, rate, **kwargs)
    return path


def test_pcm16_files_are_read_to_the_bit(tmp_path):
    samples = np.array([0, 1, -1, 16384, 32767, -32768], dtype=np.int16)
    waveform = load_audio(write(tmp_path / "a.wav", samples, subtype="PCM_16"))
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, samples / 32768)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "opus"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_every_format_and_rate_keeps_pitch_level_and_duration(tmp_path, suffix, rate):
    kwargs = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    path = write(tmp_path / f"a.{suffix}", tone(rate=rate), rate, **kwargs)
    waveform = load_audio(path)
    assert abs(len(waveform) / RATE - 0.5) < 0.08  # mp3 pads its frames
    assert abs(loudest_frequency(waveform) - 440) < 3
    assert abs(waveform.std() - 0.5 / math.sqrt(2)) < 0.05


def test_resampling_is_soxr_at_the_ratio_of_the_two_rates(tmp_path):
    waveform = np.random.default_rng(0).normal(0, 0.1, 44_100).astype(np.float32)
    path = write(tmp_path / "a.wav", waveform, 44_100, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(path), soxr.resample(waveform, 44_100, RATE))


def test_stereo_is_averaged_not_cut_to_one_side(tmp_path):
    left, right = tone(frequency=300), tone(frequency=700)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(load_audio(path), (left + right) / 2, atol=1e-7)


def test_one_recording_in_every_shape_a_dataset_gives_it_is_the_same_waveform(tmp_path):
    waveform = tone()
    path = write(tmp_path / "a.wav", waveform, subtype="FLOAT")
    content = path.read_bytes()
    decoder = SimpleNamespace(  # as torchcodec's AudioDecoder: channels first, a tensor
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(waveform)[None], sample_rate=RATE)
    )
    sources = [
        str(path),
        content,
        io.BytesIO(content),
        {"array": waveform, "sampling_rate": RATE},
        {"path": "elsewhere.wav", "bytes": content},
        {"path": str(path), "bytes": None},
        decoder,
        waveform,
        waveform.astype(np.float64),
        waveform.tolist(),
        torch.from_numpy(waveform).requires_grad_(),
        waveform[:, None],
    ]
    for source in sources:
        np.testing.assert_array_equal(load_audio(source), waveform)


def test_arrays_with_their_own_rate_are_resampled():
    waveform = tone(rate=8_000)
    loaded = load_audio({"array": waveform, "sampling_rate": 8_000})
    np.testing.assert_array_equal(loaded, soxr.resample(waveform, 8_000, RATE))


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [("int16", -32768, -1.0), ("int32", 2**30, 0.5), ("uint8", 128, 0.0), ("uint8", 0, -1.0), ("float64", 1.5, 1.5)],
)
def test_integers_are_scaled_to_one(dtype, value, expected):
    assert load_audio(np.full(4, value, dtype=dtype)).tolist() == [expected] * 4


@pytest.mark.parametrize("n_samples", [1, 2, 10, 160])
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_the_shortest_clips_are_audio_too(tmp_path, n_samples, rate):
    path = write(tmp_path / "a.wav", np.full(n_samples, 0.25, dtype=np.float32), rate)
    waveform = load_audio(path)
    assert len(waveform) == max(1, round(n_samples * RATE / rate)) or n_samples * RATE % rate
    assert len(waveform) >= 1 and np.isfinite(waveform).all()


def broken_files(folder: Path) -> dict[str, str]:
    """Path to what its error must mention."""
    flac, mp3 = write(folder / "whole.flac", tone()), write(folder / "whole.mp3", tone(4.0))
    (folder / "text.wav").write_text("I am not audio\n")
    (folder / "cut.flac").write_bytes(flac.read_bytes()[:400])
    (folder / "cut.mp3").write_bytes(mp3.read_bytes()[: mp3.stat().st_size // 3])
    (folder / "nothing.wav").write_bytes(b"")
    write(folder / "no_samples.wav", np.zeros(0, dtype=np.float32))
    nan = tone()
    nan[100:103] = [np.nan, np.inf, -np.inf]
    write(folder / "nan.wav", nan, subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    return {
        "absent.wav": "no such file",
        "text.wav": "cannot be decoded",
        "cut.flac": "cannot be decoded",
        "cut.mp3": "ends after",
        "nothing.wav": "0 bytes",
        "no_samples.wav": "0 samples",
        "nan.wav": "3 of 8000 samples",
        "folder.wav": "folder",
    }


def test_unusable_files_say_in_one_line_which_and_why(tmp_path):
    for name, reason in broken_files(tmp_path).items():
        path = tmp_path / name
        for source in (path, {"path": str(path), "bytes": None}):
            with pytest.raises(AudioError) as caught:
                load_audio(source)
            assert str(path) in str(caught.value) and reason in str(caught.value)
            assert "\n" not in str(caught.value)
        with pytest.raises(AudioError, match=reason):
            for _ in iter_audio_blocks(path):
                pass


@pytest.mark.parametrize("rate", [0, -16_000, 12, 10**9, 16_000.5, float("nan"), None, "16000"])
def test_a_nonsensical_rate_is_named(rate):
    with pytest.raises(AudioError, match="sampling rate"):
        load_audio(tone(), rate)
    if rate is not None:
        with pytest.raises(AudioError, match=r"clip\.wav.*sampling rate"):
            load_audio({"path": "clip.wav", "array": tone(), "sampling_rate": rate})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "0 bytes"),
        ([], "0 samples"),
        (np.zeros((2, 3, 4), dtype=np.float32), r"shape \(2, 3, 4\)"),
        ([[1.0, 2.0], [3.0]], "not a waveform"),
        (np.zeros(4, dtype=np.int64), "full scale"),  # silence after scaling by 2**63, whatever it held
        (np.array(["a"]), "must be numbers"),
        ({"sampling_rate": RATE}, "'array', 'bytes' or 'path'"),
    ],
)
def test_things_that_are_no_waveform_are_refused(source, reason):
    with pytest.raises(AudioError, match=reason):
        load_audio(source)


def test_a_decoder_that_fails_is_an_audio_error():
    def fail():
        raise RuntimeError("Could not open\ninput file")

    with pytest.raises(AudioError, match="Could not open input file"):
        load_audio(SimpleNamespace(get_all_samples=fail))


@pytest.mark.parametrize("rate", [RATE, 8_000, 44_100])
@pytest.mark.parametrize("block_s", [0.1, 0.37, 60.0])
def test_blocks_of_a_long_recording_are_the_recording(tmp_path, rate, block_s):
    stereo = np.random.default_rng(0).normal(0, 0.1, (round(2.3 * rate), 2)).astype(np.float32)
    path = write(tmp_path / "a.wav", stereo, rate, subtype="FLOAT")
    blocks = list(iter_audio_blocks(path, block_s))
    whole = load_audio(path)
    assert block_s > 3 or max(map(len, blocks)) < 2 * block_s * RATE
    assert sum(map(len, blocks)) == len(whole)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


def test_durations_come_from_the_header(tmp_path):
    path = write(tmp_path / "a.flac", tone(1.25, rate=8_000), 8_000)
    for source in (path, path.read_bytes(), {"path": str(path), "bytes": None}):
        assert audio_duration_s(source) == decoded_duration_s(source) == 1.25
    with pytest.raises(AudioError, match="no such file"):
        audio_duration_s(tmp_path / "absent.wav")


def test_folders_are_searched_in_order_for_every_readable_format(tmp_path):
    for name in ("b.wav", "a.FLAC", "deep/er/c.ogg", "d.mp3", "e.opus", "notes.txt", "metadata.csv", "raw.raw"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = [path.relative_to(tmp_path).as_posix() for path in find_audio_files(tmp_path)]
    assert names == ["a.FLAC", "b.wav", "d.mp3", "deep/er/c.ogg", "e.opus"]
    assert find_audio_files([tmp_path / "notes.txt", tmp_path, tmp_path / "b.wav"])[0].name == "notes.txt"
    assert len(find_audio_files([tmp_path, tmp_path / "b.wav"])) == 5


def test_searching_nowhere_is_an_error(tmp_path):
    with pytest.raises(AudioError, match="no such file or folder"):
        find_audio_files([tmp_path / "absent"])
    with pytest.raises(AudioError, match="no audio files"):
        find_audio_files(tmp_path)


def test_recordings_of_the_development_set_are_read(recordings, tmp_path):
    paths = find_audio_files(recordings / "validation")
    assert {path.suffix for path in paths} >= {".flac"}
    for path in (paths[0], paths[-1]):
        waveform = load_audio(path)
        assert abs(len(waveform) / RATE - audio_duration_s(path)) < 0.01
        shutil.copy(path, tmp_path / "copy")
        np.testing.assert_array_equal(load_audio((tmp_path / "copy").read_bytes()), waveform)
