"""`speechgraft write-mels`: what the model writes for each recording, in its place, for the vocoder to learn from."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_recognizers import RATE, noise
from tiny_voices import save_synthesizer, save_voice

from speechgraft import (
    TextToSpectrogramCollator,
    TextToSpectrogramModel,
    TextToSpectrogramProcessor,
    extract_log_mel,
    load_audio,
)
from speechgraft.modeling.hifigan_training import check_fits
from speechgraft.modeling.spectrogram_writing import row_generators
from speechgraft.scripts.cli import main

LENGTHS = {"a.wav": 3200, "more/b.wav": 4999, "c.flac": 5121}  # samples


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_synthesizer(tmp_path_factory.mktemp("voice") / "model", reduction_factor=3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audio") / "clips"
    (folder / "more").mkdir(parents=True)
    for seed, (name, samples) in enumerate(LENGTHS.items()):
        soundfile.write(folder / name, noise(1.0, seed)[:samples], RATE)
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *((name, "hello " + name[0]) for name in LENGTHS)])
    return folder


def write(*words: object) -> int:
    return main(["write-mels", *map(str, words)])


def test_each_recording_has_a_spectrogram_of_its_own_length_where_the_vocoder_looks_for_it(model, clips, tmp_path):
    assert write("--model", model, "--data", clips, "--output", tmp_path / "mels") == 0
    names = {str(path.relative_to(tmp_path / "mels")) for path in (tmp_path / "mels").rglob("*.npy")}
    assert names == {"a.npy", "more/b.npy", "c.npy"}
    settings = TextToSpectrogramProcessor.from_pretrained(model).mel_settings
    for name, samples in LENGTHS.items():
        mel = torch.from_numpy(np.load((tmp_path / "mels" / name).with_suffix(".npy")))
        assert check_fits(torch.from_numpy(load_audio(clips / name)), mel, settings) == len(mel) == 1 + samples // 256
        assert mel.dtype == torch.float32


def test_what_is_written_is_the_models_reading_of_the_recordings_frames_whatever_the_batch(model, clips, tmp_path):
    for size in 1, 3:
        words = ["--model", model, "--data", clips, "--output", tmp_path / f"by-{size}", "--batch-size", size]
        assert write(*words, "--seed", 7) == 0
    speaker = TextToSpectrogramModel.from_pretrained(model)
    processor = TextToSpectrogramProcessor.from_pretrained(model)
    collator = TextToSpectrogramCollator(processor, config=speaker.config)
    seeds = row_generators(torch.Generator().manual_seed(7), len(LENGTHS))
    for name, seed in zip(LENGTHS, seeds, strict=True):
        recorded = extract_log_mel(clips / name, processor.feature_extractor)
        batch = collator([{"text": "hello " + name[0], "labels": recorded}])
        with torch.no_grad():
            led = speaker(**batch, generator=[seed]).spectrogram[0, : len(recorded)].numpy()
        for size in 1, 3:
            written = np.load((tmp_path / f"by-{size}" / name).with_suffix(".npy"))
            np.testing.assert_allclose(written, led, atol=1e-4)


def test_recordings_that_cannot_be_used_are_told_and_the_others_done(model, clips, tmp_path, capsys):
    rows = [("path", "text"), (clips / "a.wav", "hello"), (clips / "none.wav", "hello"), (clips / "c.flac", "")]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert write("--model", model, "--data", tmp_path / "list.csv", "--output", tmp_path / "mels") == 1
    err = capsys.readouterr().err
    assert f"skipped: {clips / 'none.wav'}: no such file" in err and "c.flac: empty transcript ''" in err
    assert "1 spectrograms written" in err and "2 recordings skipped" in err
    assert [path.name for path in (tmp_path / "mels").iterdir()] == ["a.npy"]


def test_a_model_of_many_voices_needs_one(clips, tmp_path, capsys):
    model = save_synthesizer(tmp_path / "model", speaker_embedding_dim=6)
    words = ["--model", model, "--data", clips, "--output", tmp_path / "mels"]
    assert write(*words) == 2
    assert "many voices and stores none: give --speaker or --speaker-column" in capsys.readouterr().err
    assert write(*words, "--speaker", save_voice(tmp_path / "voice.npy")) == 0
    (tmp_path / "file").write_text("")
    assert write(*words[:-1], tmp_path / "file") == 2
    assert "file: a file, not a folder" in capsys.readouterr().err
