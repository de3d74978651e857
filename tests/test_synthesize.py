"""`speechgraft synthesize`: any text to sound, files, folders, streams; what cannot be said is told, never noise."""

import csv
import io
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tiny_voices import save_native_synthesizer, save_synthesizer, save_vocoder, save_voice

from speechgraft import TextToSpectrogramModel, TextToSpectrogramProcessor
from speechgraft.scripts.cli import main

RATE = 16_000
SHORT = ["--max-duration-s", "0.3", "--stop-threshold", "1"]  # of each sentence, which is cut off there
SOUND = ("wav", "flac", "ogg")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_synthesizer(tmp_path_factory.mktemp("voice") / "model"))


@pytest.fixture(scope="module")
def stopping(tmp_path_factory) -> str:
    """A model that stops after one step of two frames."""
    folder = save_synthesizer(tmp_path_factory.mktemp("stopping") / "model")
    found = TextToSpectrogramModel.from_pretrained(folder)
    torch.nn.init.constant_(found.decoder.stop_head.bias, 9.0)
    found.save_pretrained(folder)
    return str(folder)


def synthesize(*words: object) -> int:
    return main(["synthesize", *map(str, words)])


def lines(capsys) -> list[str]:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()


def told(capsys) -> str:
    """The one line in which a mistake is told."""
    (line,) = [line for line in lines(capsys) if line.startswith("speechgraft synthesize: ")]
    return line


def give(monkeypatch, text: str | bytes) -> None:
    """Standard input."""
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def take(monkeypatch) -> io.BytesIO:
    """Standard output, as a pipe."""
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe, isatty=lambda: False, flush=lambda: None))
    return pipe


def pcm(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<i2")


@pytest.mark.parametrize("kind", SOUND)
def test_a_text_becomes_a_sound_file_of_the_kind_that_its_name_says(kind, stopping, tmp_path, capsys):
    path = tmp_path / f"hello.{kind}"
    assert synthesize("Hello, world!", "--model", stopping, "--output", path) == 0
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.format.lower()) == (RATE, 1, kind)
    assert info.frames == 2 * 256
    assert any(f"0.03 s of speech in {path}" in line for line in lines(capsys))


def test_the_sound_is_what_the_model_says_of_this_text_with_this_seed(model, tmp_path):
    path = tmp_path / "hello.wav"
    assert synthesize("Hello there.", "--model", model, "--output", path, *SHORT, "--seed", 3) == 1
    loaded, processor = (
        TextToSpectrogramModel.from_pretrained(model),
        TextToSpectrogramProcessor.from_pretrained(model),
    )
    settings = {"max_new_tokens": int(0.3 * RATE / 256), "stop_threshold": 1.0}
    spoken = loaded.synthesize("Hello there.", processor, generator=torch.Generator().manual_seed(3), **settings)
    expected = np.round(spoken.waveform.clamp(-1, 1).numpy() * 32_767)
    np.testing.assert_allclose(pcm_of(path), expected, atol=2)
    assert synthesize("Hello there.", "--model", model, "--output", tmp_path / "other.wav", *SHORT, "--seed", 4) == 1
    assert not np.array_equal(pcm_of(path), pcm_of(tmp_path / "other.wav"))


def pcm_of(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


def test_lines_become_clips_of_a_folder_each_as_it_would_be_alone(model, tmp_path, monkeypatch, capsys):
    text = "hello\n\n  \nThe cat sat on the mat. It slept.\n😀\na\n"
    give(monkeypatch, text)
    folder = tmp_path / "clips"
    assert synthesize("-", "--model", model, "--output", folder, "--format", "flac", *SHORT, "--batch-size", 3) == 1
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file_name"] for row in rows] == ["00001.flac", "00002.flac", "00004.flac"]
    assert [row["text"] for row in rows] == ["hello", "The cat sat on the mat. It slept.", "a"]
    told_lines = lines(capsys)
    assert any("skipped: text 3: nothing to say in the text '😀'" in line for line in told_lines)
    for row in rows:
        alone = tmp_path / "alone.flac"
        assert synthesize(row["text"], "--model", model, "--output", alone, *SHORT) == 1
        np.testing.assert_allclose(pcm_of(alone), pcm_of(folder / row["file_name"]), atol=3)
        assert float(row["duration"]) == pytest.approx(soundfile.info(alone).duration, abs=1e-3)


def test_a_text_file_is_spoken_as_a_whole_or_line_by_line(stopping, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\ufeffOne sentence\nover two lines. Another.\n\nA title\n\nThe end.\n", encoding="utf-8")
    assert synthesize("--file", text, "--model", stopping, "--output", tmp_path / "a.wav", "--pause-s", 0) == 0
    assert soundfile.info(tmp_path / "a.wav").frames == 4 * 512
    assert synthesize("--file", text, "--model", stopping, "--output", tmp_path / "clips") == 0
    assert len(list((tmp_path / "clips").glob("*.wav"))) == 4


def test_ten_thousand_characters_are_spoken_sentence_by_sentence(stopping, tmp_path):
    text = "The cat sat on the mat, and then it slept. " * 232
    assert synthesize(text, "--model", stopping, "--output", tmp_path / "long.wav", "--pause-s", 0) == 0
    assert soundfile.info(tmp_path / "long.wav").frames >= 232 * 512
    assert synthesize("a" * 10_000, "--model", stopping, "--output", tmp_path / "word.wav", "--pause-s", 0) == 0
    assert soundfile.info(tmp_path / "word.wav").frames == 257 * 512  # 39 of its characters and an end token fit


@pytest.mark.parametrize("text", ["", "  \n", "...!?", "😀🎉", "Привет, мир", "你好"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_text_with_nothing_to_say_is_one_line_and_no_sound(text, stream, stopping, tmp_path, monkeypatch, capsys):
    path, pipe = tmp_path / "none.wav", take(monkeypatch) if stream else None
    where = ["--stream"] if stream else ["--output", path]
    assert synthesize(text, "--model", stopping, *where) == 2
    assert "nothing to say in the text" in told(capsys)
    assert not path.exists() and (pipe is None or pipe.getvalue() == b"")


def test_what_cannot_be_said_is_named_and_the_rest_is_said(stopping, tmp_path, caplog):
    assert synthesize("I ❤️ cats 😀.", "--model", stopping, "--output", tmp_path / "a.wav") == 0
    messages = " ".join(record.message for record in caplog.records)
    assert "GRINNING FACE" in messages or "😀" in messages


def test_a_stream_is_the_file_as_it_comes(model, tmp_path, monkeypatch, capsys):
    text = "Hello world. The cat sat."
    assert synthesize(text, "--model", model, "--output", tmp_path / "whole.wav", *SHORT) == 1
    pipe = take(monkeypatch)
    assert synthesize(text, "--model", model, "--stream", *SHORT) == 1
    assert sum("cut off" in line for line in lines(capsys)) == 4
    data = pipe.getvalue()
    assert data[:4] == b"RIFF" and struct.unpack_from("<I", data, 24) == (RATE,)
    np.testing.assert_allclose(pcm(data[44:]), pcm_of(tmp_path / "whole.wav"), atol=3)
    samples, rate = soundfile.read(io.BytesIO(data))
    assert rate == RATE and len(samples) == len(pcm(data[44:]))
    pipe = take(monkeypatch)
    assert synthesize(text, "--model", model, "--stream", "--stream-format", "raw", *SHORT) == 1
    assert pipe.getvalue() == data[44:]


def test_lines_are_streamed_one_after_the_other_past_those_that_cannot_be_said(stopping, monkeypatch, capsys):
    give(monkeypatch, "!!\nhello\n\nПривет\nworld\n")
    pipe = take(monkeypatch)
    assert synthesize("-", "--model", stopping, "--stream", "--stream-format", "raw", "--pause-s", "0.5") == 1
    assert len(pcm(pipe.getvalue())) == 2 * 512 + RATE // 2
    found = [line for line in lines(capsys) if line.startswith("skipped: ")]
    assert [line.split(":")[1] for line in found] == [" text 1", " text 3"]


def test_a_player_that_has_heard_enough_ends_the_stream_quietly(stopping, tmp_path):
    code = "import sys\nfrom speechgraft.scripts.cli import main\nsys.exit(main(sys.argv[1:]))"
    words = ["synthesize", "hello. " * 2000, "--model", stopping, "--stream"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(100)[:4] == b"RIFF"
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_voices_speeds_windows_and_vocoders_are_heard(tmp_path):
    model = save_synthesizer(tmp_path / "model", speaker_embedding_dim=6)
    vocoder = save_vocoder(tmp_path / "vocoder", seed=1)
    one, other = save_voice(tmp_path / "one.npy"), tmp_path / "other.pt"
    torch.save(torch.randn(1, 6), other)
    heard = {}
    for name, words in {
        "plain": [],
        "one": ["--speaker", one],
        "other": ["--speaker", other],
        "vocoder": ["--vocoder", vocoder],
        "window": ["--attention-window", 2],
    }.items():
        path = tmp_path / f"{name}.wav"
        assert synthesize("hello", "--model", model, "--output", path, *SHORT, *words) == 1
        heard[name] = pcm_of(path)
    assert len({sound.tobytes() for sound in heard.values()}) == len(heard)
    path = tmp_path / "slow.wav"
    assert synthesize("hello", "--model", model, "--output", path, *SHORT, "--speed", 0.5) == 1
    assert abs(len(pcm_of(path)) - len(heard["plain"])) <= 512  # the limit is of seconds that are heard


def test_words_are_told_with_their_times(model, tmp_path):
    words = ["Hello world. A cat.", "--model", model, "--output", tmp_path / "a.wav", "--timings", tmp_path / "t.csv"]
    assert synthesize(*words, *SHORT) == 1
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["word"] for row in rows] == ["hello", "world", "a", "cat"]
    times = [float(row[name]) for row in rows for name in ("start_s", "end_s")]
    assert times == sorted(times) and times[-1] <= soundfile.info(tmp_path / "a.wav").duration + 1e-3
    assert times[4] >= soundfile.info(tmp_path / "a.wav").duration / 2  # behind the pause


def test_folders_of_the_native_class_speak(tmp_path, capsys):
    native = save_native_synthesizer(tmp_path / "native")
    assert synthesize("hello", "--model", native, "--output", tmp_path / "a.wav", *SHORT) == 1
    bare = save_native_synthesizer(tmp_path / "bare", with_tokenizer=False)
    assert synthesize("hello", "--model", bare, "--output", tmp_path / "a.wav") == 2
    assert f"{bare}: no processor in this folder" in told(capsys)
    words = ["--model", bare, "--processor", native, "--output", tmp_path / "a.wav"]
    assert synthesize("hello", *words, *SHORT) == 1


def test_a_model_of_many_voices_that_is_given_none_says_what_to_give(tmp_path, capsys):
    model, voice = save_synthesizer(tmp_path / "model", speaker_embedding_dim=6), save_voice(tmp_path / "voice.npy")
    message = "the model has many voices and was given none: give --speaker, an embedding of 6 values"
    for output in ("clips", "a.wav"):
        assert synthesize("hello", "world", "--model", model, "--output", tmp_path / output, *SHORT) == 1
        assert "\n".join(lines(capsys)).count(message) == 1
    assert synthesize("hello", "--model", model, "--output", tmp_path / "a.wav", "--speaker", voice, *SHORT) == 1
    assert message not in "\n".join(lines(capsys))


@pytest.fixture(scope="module")
def voices(tmp_path_factory) -> dict[str, Path]:
    """A model that wants a voice, and files that are none."""
    folder = tmp_path_factory.mktemp("voices")
    save_synthesizer(folder / "many", speaker_embedding_dim=6)
    np.save(folder / "nan.npy", np.array([1, np.nan, 2, 3, 4, 5]))
    save_voice(folder / "wide.npy", 512)
    np.save(folder / "zero.npy", np.zeros(6))
    np.save(folder / "two.npy", np.ones((2, 6)))
    np.save(folder / "words.npy", np.array(["a", "b"]))
    torch.save({"voice": torch.ones(6)}, folder / "dict.pt")
    (folder / "broken.npy").write_bytes(b"no numbers")
    (folder / "voice.txt").write_text("1 2 3 4 5 6")
    return {"voices": folder, "many": folder / "many"}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("nan.npy", "1 of 6 values are NaN or infinite"),
        ("wide.npy", "512 values, but the model's speaker embeddings have 6"),
        ("zero.npy", "all 6 values are zero"),
        ("two.npy", "one vector is expected, got an array of shape [2, 6]"),
        ("words.npy", "not a vector of numbers"),
        ("dict.pt", "not a vector of numbers"),
        ("broken.npy", "cannot be read"),
        ("voice.txt", "a speaker embedding is a .npy or .pt file"),
        ("missing.npy", "no such file"),
    ],
)
def test_a_speaker_that_cannot_be_used_is_one_line(file, message, voices, tmp_path, capsys):
    path = voices["voices"] / file
    words = ["hello", "--model", voices["many"], "--output", tmp_path / "a.wav", "--speaker", path]
    assert synthesize(*words) == 2
    line = told(capsys)
    assert message in line and str(path) in line and not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "{tmp}/a.wav"], "give a TEXT, --file FILE, or - for standard input"),
        (["hello"], "give --output PATH, or --stream"),
        (["hello", "--output", "{tmp}/a.wav", "--stream"], "give --output PATH, or --stream"),
        (["hello", "--output", "{tmp}/a.mp4"], "a.mp4: a sound file ends in .wav, .flac, .ogg, a folder in none"),
        (["hello", "--output", "{tmp}/no/a.wav"], "--output {tmp}/no/a.wav: no such folder {tmp}/no"),
        (["hello", "--output", "{tmp}/folder.wav"], "{tmp}/folder.wav: a folder with the ending of a sound file"),
        (["hello", "--output", "{tmp}/file"], "{tmp}/file: a file, not a folder"),
        (["hello", "--output", "{tmp}/b", "--timings", "{tmp}/t.csv"], "--timings is for one sound file"),
        (["hello", "--stream", "--timings", "{tmp}/t.csv"], "--timings: times are known at the end"),
        (["--file", "{tmp}/none.txt", "--output", "{tmp}/a.wav"], "--file {tmp}/none.txt: "),
        (["--file", "{tmp}/latin1.txt", "--output", "{tmp}/a.wav"], "latin1.txt: not UTF-8 text"),
        (["--file", "{tmp}/empty.txt", "--output", "{tmp}/b"], "nothing to say: there is no text"),
        (["hello", "--output", "{tmp}/a.wav", "--speed", "9"], "speed lies between 0.25 and 4.0"),
        (["hello", "--output", "{tmp}/a.wav", "--pause-s", "-1"], "--pause-s must not be negative, got -1"),
        (["hello", "--output", "{tmp}/a.wav", "--vocoder", "{tmp}/none"], "{tmp}/none: no such model folder"),
        (["hello", "--output", "{tmp}/a.wav", "--vocoder", "{model}"], "{model}"),
        (
            ["hello", "--output", "{tmp}/a.wav", "--speaker", "{tmp}/a.npy"],
            "the model has one voice: leave the option",
        ),
    ],
)
def test_a_usage_mistake_is_one_line_with_status_2(words, message, model, tmp_path, capsys):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "latin1.txt").write_bytes("Grüße".encode("latin-1"))
    places = {"tmp": tmp_path, "model": model}
    assert synthesize(*(word.format(**places) for word in words), "--model", model) == 2
    assert message.format(**places) in told(capsys)


def test_other_models_and_missing_vocoders_are_told(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    (tmp_path / "empty").mkdir()
    for folder, message in {"none": "no such model folder", "empty": "no config.json in this folder"}.items():
        assert synthesize("a", "--model", tmp_path / folder, "--output", tmp_path / "a.wav") == 2
        assert message in told(capsys)
    model = save_synthesizer(tmp_path / "model")
    loaded = TextToSpectrogramModel.from_pretrained(model)
    loaded.set_vocoder(save_vocoder(tmp_path / "vocoder"))
    loaded.save_pretrained(model)
    weights = load_file(model / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("vocoder.")}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    assert synthesize("a", "--model", model, "--output", tmp_path / "a.wav") == 2
    assert "does not hold the vocoder that its configuration asks for" in told(capsys)
