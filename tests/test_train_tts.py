"""`speechgraft train-tts`: a voice from any beginning, clips read once, mistakes told before hours are lost."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_recognizers import RATE, noise, save_bad_clips, save_clips
from tiny_voices import (
    TINY,
    save_native_synthesizer,
    save_synthesizer,
    save_text_encoder,
    save_vocoder,
    save_voice,
)
from transformers import AutoModelForTextToSpectrogram, AutoProcessor, pipeline

from speechgraft.processing.spectrogram_datasets import trim_silence
from speechgraft.scripts.cli import main
from speechgraft.scripts.train_tts import build, parse

QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "--logging_steps", "1", "--seed", "0"]
NEW = ["--set", *TINY]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return save_clips(tmp_path_factory.mktemp("audio") / "clips", 5)


def train(output: Path, *words: object) -> int:
    return main(["train-tts", "--output_dir", str(output), *QUICK, *map(str, words)])


def told(capsys) -> str:
    """The one line in which a mistake is told."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("speechgraft train-tts: ")]
    return line


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def logged(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_a_new_voice_is_trained_evaluated_heard_and_loaded_by_the_pipeline(clips, tmp_path, capsys):
    output = tmp_path / "voice"
    assert train(output, "--train", clips, "--validation", clips, *NEW, "--eval_strategy", "steps") == 0
    assert f"model saved to {output}, validation loss" in capsys.readouterr().err
    parts = {"l1_loss", "postnet_l1_loss", "stop_loss", "guided_attention_loss"}
    history = logged(output)
    step = next(entry for entry in history if "loss" in entry)
    assert parts <= set(step) and step["loss"] == pytest.approx(sum(step[name] for name in parts), rel=1e-3)
    found = json.loads((output / "eval_results.json").read_text())
    assert found["eval_loss"] == pytest.approx(sum(found[f"eval_{name}"] for name in parts), rel=1e-4)
    assert any("eval_focus_rate" in entry for entry in history)
    speak = pipeline("text-to-speech", str(output))
    assert np.isfinite(speak("hello world", forward_params={"max_new_tokens": 20})["audio"]).all()
    samples, rate = soundfile.read(output / "samples" / "step-000002.wav")
    assert rate == RATE and len(samples) > 0
    pytest.importorskip("matplotlib")
    for picture in (output / "loss.png", output / "samples" / "step-000002.png"):
        assert picture.stat().st_size > 1000


def test_a_new_model_spells_with_the_characters_of_the_normalised_texts(clips, tmp_path):
    with (clips / "metadata.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    model, processor = build(parse(["--output_dir", str(tmp_path), *NEW])[0], [*texts, "3 cats"])
    assert set("three cats") <= set(processor.tokenizer.get_vocab()) and "3" not in processor.tokenizer.get_vocab()
    assert model.config.vocab_size == len(processor.tokenizer)
    as_it_is = ["--no_normalize", "--language", "de"]
    raw = build(parse(["--output_dir", str(tmp_path), *NEW, *as_it_is])[0], [*texts, "3 cats"])[1]
    assert "3" in raw.tokenizer.get_vocab() and (raw.normalize, raw.language) == (False, "de")


def test_sizes_are_options_and_single_fields_win(tmp_path):
    words = ["--output_dir", str(tmp_path), "--size", "tiny", "--set", "decoder_layers=1", "reduction_factor=3"]
    config = build(parse(words)[0], ["a"])[0].config
    assert (config.hidden_size, config.encoder_layers) == (128, 2)
    assert (config.decoder_layers, config.reduction_factor, config.speaker_embedding_dim) == (1, 3, 0)


def test_an_interrupted_run_goes_on_to_the_same_weights(clips, tmp_path, capsys):
    options = ["--train", clips, *NEW, "--max_steps", "4", "--save_steps", "2"]
    assert train(tmp_path / "whole", *options) == 0
    assert train(tmp_path / "cut", *options, "--max_steps", "2", "--lr_scheduler_type", "constant") == 0
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        os.replace(tmp_path / "whole" / "checkpoint-2" / name, tmp_path / "cut" / "checkpoint-2" / name)
    capsys.readouterr()
    assert train(tmp_path / "cut", *options) == 0
    assert f"going on from {tmp_path / 'cut' / 'checkpoint-2'}" in capsys.readouterr().err
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert max(float((whole[name] - resumed[name]).abs().max()) for name in whole) < 1e-6


def test_trained_and_native_models_and_text_encoders_are_gone_on_with(clips, tmp_path):
    own = save_synthesizer(tmp_path / "own")
    native = save_native_synthesizer(tmp_path / "native")
    for source in own, native:
        output = tmp_path / f"{source.name}-more"
        changed = ["--set", "speech_decoder_prenet_dropout=0.7"]
        assert train(output, "--model", source, "--train", clips, "--learning_rate", "1e-2", *changed) == 0
        assert (output / "samples" / "step-000002.wav").is_file(), "the changed model speaks"
        assert AutoProcessor.from_pretrained(output).tokenizer.get_vocab().keys() >= set("hello")
    assert any(not torch.equal(weights(own)[name], value) for name, value in weights(tmp_path / "own-more").items())
    bert = save_text_encoder(tmp_path / "bert")
    sizes = [size for size in TINY if not size.startswith(("encoder_", "hidden_size"))]
    frozen = ["--freeze", "encoder"]
    assert train(tmp_path / "on-bert", "--encoder", bert, "--train", clips, "--set", *sizes, *frozen) == 0
    model = AutoModelForTextToSpectrogram.from_pretrained(tmp_path / "on-bert")
    assert model.config.encoder.model_type == "bert"
    before = load_file(bert / "model.safetensors")
    after = weights(tmp_path / "on-bert")
    assert all(
        torch.equal(after[f"encoder.backbone.{name}"], value) for name, value in before.items() if "pooler" not in name
    )


def test_the_vocoder_is_stored_in_the_model(clips, tmp_path, capsys):
    vocoder = save_vocoder(tmp_path / "vocoder")
    assert train(tmp_path / "voice", "--train", clips, *NEW, "--vocoder", vocoder) == 0
    assert AutoModelForTextToSpectrogram.from_pretrained(tmp_path / "voice").vocoder is not None
    other = save_vocoder(tmp_path / "other", sampling_rate=22_050)
    assert train(tmp_path / "not", "--train", clips, *NEW, "--vocoder", other) == 2
    assert "sampling_rate is 16000 in the model and 22050 in the vocoder" in told(capsys)


def test_clips_that_cannot_be_used_are_left_out_and_told(tmp_path, capsys, caplog):
    folder = save_clips(tmp_path / "clips", 3)
    lines = [f"{path.name},hello" for path in save_bad_clips(tmp_path / "bad").values()]
    for path in (tmp_path / "bad").iterdir():
        path.rename(folder / path.name)
    for name in ("untold", "marks", "long"):
        soundfile.write(folder / f"{name}.wav", noise(0.3), RATE)
    with (folder / "metadata.csv").open("a") as file:
        file.write("\n".join([*lines, "untold.wav,", "marks.wav,...!", f"long.wav,{'a ' * 60}"]) + "\n")
    assert train(tmp_path / "voice", "--train", folder, *NEW, "--set", *TINY, "max_text_positions=40") == 0
    messages = "\n".join(record.message for record in caplog.records)
    for message in (
        *("0 bytes", "0 samples", "cannot be decoded", "NaN", "3600.00 s", "no such file"),
        *("empty transcript", "nothing to say", "120 tokens, the limit is 40"),
    ):
        assert message in messages
    assert "left out 9 of 12 clips" in messages
    (folder / "metadata.csv").write_text("file_name,text\nnan.wav,hello\n")
    assert train(tmp_path / "none", "--train", folder, *NEW) == 2
    assert f"{folder}: no clip can be used" in told(capsys)


def test_spectrograms_are_computed_once_and_found_again(clips, tmp_path, monkeypatch):
    import speechgraft.processing.spectrogram_datasets as reading
    from speechgraft import extract_log_mel as extract

    counted: list[int] = []
    monkeypatch.setattr(reading, "extract_log_mel", lambda *a, **k: counted.append(1) or extract(*a, **k))
    kept = ["--mel_cache", tmp_path / "mels"]
    many = ["--num_train_epochs", "2", "--max_steps", "-1"]
    assert train(tmp_path / "in-memory", "--train", clips, *NEW, *many) == 0
    assert len(counted) == 5
    assert train(tmp_path / "in-file", "--train", clips, *NEW, *many, *kept) == 0
    assert len(counted) == 10
    assert train(tmp_path / "again", "--train", clips, *NEW, *many, *kept) == 0
    assert len(counted) == 10
    same = weights(tmp_path / "in-memory")
    for other in ("in-file", "again"):
        assert all(torch.equal(value, same[name]) for name, value in weights(tmp_path / other).items())
    soundfile.write(clips / "clip0.wav", noise(0.4, 9), RATE)
    assert train(tmp_path / "changed", "--train", clips, *NEW, *many, *kept) == 0
    assert len(counted) == 15


def test_silence_goes_but_for_a_margin_and_soft_sounds_stay():
    hiss, speech = 1e-4 * noise(0.5, 1), 0.1 * noise(0.3, 2)
    whole = np.concatenate([hiss, speech, hiss[:4000], 0.01 * speech[:1600], hiss])
    kept = trim_silence(whole, RATE, 45)
    assert len(kept) == 4800 + 4000 + 1600 + 2 * 800 and np.array_equal(kept, whole[8000 - 800 :][: len(kept)])
    assert len(trim_silence(whole, RATE, 30)) == 4800 + 2 * 800, "what is 40 dB softer is silence then"
    assert np.array_equal(trim_silence(speech, RATE, 40), speech)
    assert len(trim_silence(np.zeros(100, np.float32), RATE, 40)) == 100
    with pytest.raises(ValueError, match="above 0 dB, got 0"):
        trim_silence(speech, RATE, 0)


def test_clips_are_trained_on_without_their_silence_where_asked_and_kept_apart(tmp_path, monkeypatch):
    from speechgraft.modeling.trainer_text_to_spectrogram import TextToSpectrogramTrainer

    (tmp_path / "clips").mkdir()
    sound = np.concatenate([np.zeros(RATE // 2), noise(0.32), np.zeros(RATE // 2)]).astype(np.float32)
    soundfile.write(tmp_path / "clips" / "a.wav", sound, RATE)
    (tmp_path / "clips" / "metadata.csv").write_text("file_name,text\na.wav,hello\n")
    frames: list[int] = []
    step = TextToSpectrogramTrainer.compute_loss
    monkeypatch.setattr(
        TextToSpectrogramTrainer,
        "compute_loss",
        lambda self, model, inputs, *a, **k: (
            frames.append(inputs["labels"].shape[1]) or step(self, model, inputs, *a, **k)
        ),
    )
    for name, words in {"whole": [], "cut": ["--trim_silence_db", 40]}.items():
        cache = ["--mel_cache", tmp_path / "mels"]
        assert train(tmp_path / name, "--train", tmp_path / "clips", *NEW, *cache, *words, "--max_steps", 1) == 0
    assert frames == [2 * (-(-(1 + len(sound) // 256) // 2)), 2 * (-(-(1 + round(0.42 * RATE) // 256) // 2))]


def test_clips_of_similar_length_come_together(clips, tmp_path, monkeypatch):
    from speechgraft.modeling import speech_trainer

    seen = []
    grouped = speech_trainer.ShuffledLengthGroups.__init__
    monkeypatch.setattr(
        speech_trainer.ShuffledLengthGroups,
        "__init__",
        lambda self, sampler: seen.append(sampler.lengths) or grouped(self, sampler),
    )
    assert train(tmp_path / "voice", "--train", clips, *NEW, "--train_sampling_strategy", "group_by_length") == 0
    frames = [1 + (RATE * 3 // 10 + index * RATE // 10) // 256 for index in range(5)]
    assert sorted(seen[0])[-1] == frames[-1] and len(seen[0]) == 5


def test_speakers_come_from_a_column_or_a_file_and_leave_a_default_voice(clips, tmp_path, capsys):
    with (clips / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for index in range(len(rows)):
        save_voice(clips / f"voice{index}.npy", seed=index)
    manifest = clips / "voices.csv"
    lines = [f"{row['file_name']},{row['text']},voice{index}.npy" for index, row in enumerate(rows)]
    manifest.write_text("\n".join(["file_name,text,voice", *lines]) + "\n")
    column = ["--speaker_column", "voice"]
    assert train(tmp_path / "many", "--train", manifest, "--validation", manifest, *column, *NEW) == 0
    model = AutoModelForTextToSpectrogram.from_pretrained(tmp_path / "many")
    assert model.config.speaker_embedding_dim == 6 and model.default_speaker_embedding.abs().sum() > 0
    one = ["--speaker", clips / "voice0.npy"]
    assert train(tmp_path / "one", "--model", tmp_path / "many", "--train", clips, *one) == 0
    voice = torch.from_numpy(np.load(clips / "voice0.npy"))
    stored = AutoModelForTextToSpectrogram.from_pretrained(tmp_path / "one").default_speaker_embedding
    torch.testing.assert_close(stored, voice / voice.norm())
    wide = save_voice(tmp_path / "wide.npy", 9)
    assert train(tmp_path / "not", "--model", tmp_path / "many", "--train", clips, "--speaker", wide) == 2
    assert "the speaker embeddings have 9 values, but the model has speaker embeddings of 6 values" in told(capsys)


def test_streamed_data_train_without_being_counted_first(clips, tmp_path):
    model = save_synthesizer(tmp_path / "model")
    assert train(tmp_path / "voice", "--model", model, "--train", clips, "--streaming") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--train: name an audio folder"),
        (["--train", "b", "--model", "a", "--encoder", "c"], "--model brings its own architecture: leave --encoder"),
        (["--train", "b", "--size", "huge"], "huge"),
        (["--train", "b", "--eval_strategy", "steps"], "--eval_strategy steps needs --validation"),
        (["--train", "b", "--streaming"], "--streaming needs --tokenizer"),
        (["--train", "b", "--trim_silence_db", "-3"], "--trim_silence_db must be above 0, got -3"),
        (
            ["--train", "b", "--model", "a", "--streaming", "--max_steps", "1", "--trim_silence_db", "40"],
            "--trim_silence_db reads all clips before training: leave --streaming out",
        ),
        (["--train", "b", "--freeze", "decoder"], "--freeze decoder: the part that can be frozen is encoder"),
        (["--train", "b", "--speaker", "c", "--speaker_column", "d"], "give --speaker, one voice of all clips, or"),
        (["--train", "{clips}", "--speaker", "{tmp}/none.npy"], "{tmp}/none.npy: no such file"),
        (
            ["--train", "{clips}", "--speaker_column", "voix"],
            "no column voix of speaker embeddings in {clips}: there are",
        ),
        (
            ["--train", "{clips}", "--set", "hidden_sise=4"],
            "--set hidden_sise: no field of TextToSpectrogramConfig; did",
        ),
        (["--train", "{clips}", "--set", "hidden_size=15"], "hidden_size 15 is no multiple of"),
        (["--train", "{clips}", "--language", "tlh"], "no text normalizer for the language 'tlh'"),
        (["--train", "{clips}", "--vocoder", "{tmp}/none"], "{tmp}/none: no such model folder"),
        (["--train", "{clips}", "--tokenizer", "{tmp}"], "tokenizer of {tmp}"),
        (["--train", "{clips}", "--encoder", "{tmp}/none"], "{tmp}/none: no such model folder"),
        (["--train", "{tmp}/none"], "{tmp}/none: no such file or folder"),
        (["--train", "{clips}", "--model", "{bert}"], "{bert}: holds a bert model; this command runs models of the"),
    ],
)
def test_a_usage_mistake_is_one_line_with_status_2(words, message, clips, tmp_path, capsys):
    places = {"tmp": tmp_path, "clips": clips, "bert": tmp_path / "bert"}
    if any("{bert}" in word for word in words):
        save_text_encoder(tmp_path / "bert")
    words = [
        "--output_dir",
        str(tmp_path / "out"),
        "--max_steps",
        "1",
        "--use_cpu",
        *(w.format(**places) for w in words),
    ]
    assert main(["train-tts", *words]) == 2
    assert message.format(**places) in told(capsys)
