"""`speechgraft evaluate-tts`: what it measures is true, what it writes is used by others, and mistakes are told."""

import csv
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import save_encoder
from tiny_recognizers import RATE, noise, save_clips, save_recognizer
from tiny_tokenizers import tiny_tokenizer
from tiny_voices import save_synthesizer, save_voice
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from speechgraft import SpeechSeq2SeqModel, SpeechSeq2SeqProcessor, load_speech_dataset
from speechgraft.scripts.cli import main

SHORT = ["--max-duration-s", "0.4", "--stop-threshold", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_synthesizer(tmp_path_factory.mktemp("voice") / "model"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return save_clips(tmp_path_factory.mktemp("audio") / "clips", 3)


@pytest.fixture(scope="module")
def spoken(model, clips, tmp_path_factory) -> Path:
    """Everything that an evaluation writes."""
    folder = tmp_path_factory.mktemp("out") / "evaluated"
    words = ["--model", model, "--data", str(clips), "--output-dir", str(folder), "--pictures", "2"]
    assert main(["evaluate-tts", *words, *SHORT]) == 0
    return folder


def evaluate(*words: object) -> int:
    return main(["evaluate-tts", *map(str, words)])


def told(capsys) -> str:
    """The one line in which a mistake is told."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("speechgraft evaluate-tts: ")]
    return line


def test_the_speech_is_an_audio_folder_that_other_commands_read(spoken, model, clips):
    with (spoken / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    originals = load_speech_dataset(clips)
    assert [row["text"] for row in rows] == originals["text"]
    assert load_speech_dataset(spoken)["text"] == originals["text"]
    for row in rows:
        info = soundfile.info(spoken / row["file_name"])
        assert info.samplerate == RATE and float(row["duration"]) == pytest.approx(info.duration, abs=1e-3)


def test_results_hold_every_measure_of_every_utterance(spoken, clips):
    document = json.loads((spoken / "results.json").read_text())
    results, utterances = document["results"], document["utterances"]
    assert results["utterances"] == len(utterances) == 3 and document["skipped"] == []
    for name in ("mel_cepstral_distortion", "duration_ratio", "focus_rate", "tokens_attended", "voicing_error"):
        values = [row[name] for row in utterances]
        assert results[name] == pytest.approx(np.mean(values)) and np.isfinite(values).all()
    assert results["cut_off"] == 1.0 and all(row["cut_off"] for row in utterances)
    for index, row in enumerate(utterances):
        seconds = soundfile.info(clips / f"clip{index}.wav").duration
        assert row["duration_ratio"] == pytest.approx(row["duration_s"] / seconds, rel=1e-6)
        assert 0 < row["focus_rate"] <= 1 and 0 < row["tokens_attended"] <= 1


def test_pictures_show_recording_speech_and_alignment(spoken):
    pytest.importorskip("matplotlib")
    assert sorted(path.name for path in (spoken / "pictures").iterdir()) == ["00001.png", "00002.png"]
    assert all(path.stat().st_size > 5000 for path in (spoken / "pictures").iterdir())


def test_a_model_that_says_what_was_recorded_has_no_distortion(model, spoken, tmp_path, capsys):
    words = ["--model", model, "--data", spoken, "--output-dir", tmp_path / "again", *SHORT]
    assert evaluate(*words) == 0
    results = json.loads((tmp_path / "again" / "results.json").read_text())["results"]
    assert results["mel_cepstral_distortion"] < 0.2  # 16 bits a sample
    assert results["duration_ratio"] == pytest.approx(1) and results["too_short"] == results["too_long"] == 0
    out = capsys.readouterr().out
    assert "mel-cepstral distortion" in out and "cut off before the end" in out


def test_melody_can_be_left_out_and_is_not_measured_then(model, clips, tmp_path, monkeypatch, capsys):
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "librosa" else find_spec(name, *a)
    )
    words = ["--model", model, "--data", clips, *SHORT, "--output-dir", tmp_path / "out", "--pictures", "0"]
    assert evaluate(*words) == 2
    assert "melody needs librosa" in told(capsys)
    assert evaluate(*words, "--no-f0") == 0
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "log_f0_rmse" not in document["results"] and document["utterances"][0]["log_f0_rmse"] is None
    assert not (tmp_path / "out" / "pictures").exists()


def save_spelling_recognizer(folder: Path) -> Path:
    """A random wav2vec 2.0 that spells, as Transformers' own."""
    save_encoder(folder, "wav2vec2-layer")
    letters = {letter: i for i, letter in enumerate(["<pad>", "<unk>", "|", *"abcdefghijklmnopq"])}
    vocabulary = folder / "letters.json"
    vocabulary.write_text(json.dumps(letters))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(vocabulary), pad_token="<pad>", unk_token="<unk>", bos_token=None, eos_token=None
    )
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC.from_pretrained(folder, vocab_size=len(letters), pad_token_id=0)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["own", "native"])
def test_a_recogniser_hears_the_speech_and_the_recordings(kind, model, clips, tmp_path, capsys):
    folder = tmp_path / "recogniser"
    save = save_recognizer if kind == "own" else save_spelling_recognizer
    words = ["--model", model, "--data", clips, *SHORT, "--no-f0", "--asr-model", save(folder)]
    assert evaluate(*words, "--output-dir", tmp_path / "out") == 0
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    results = document["results"]
    assert {"wer", "cer", "wer_of_recording", "cer_of_recording"} <= set(results)
    assert "word error rate" in capsys.readouterr().out
    heard = [row["heard_of_recording"] for row in document["utterances"]]
    assert all(isinstance(text, str) for text in heard)
    if kind == "own":
        processor, network = SpeechSeq2SeqProcessor.from_pretrained(folder), SpeechSeq2SeqModel.from_pretrained(folder)
        inputs = [processor(audio=str(clip), return_tensors="pt") for clip in sorted(clips.glob("*.wav"))]
        tokens = [network.eval().generate(**one)[0] for one in inputs]
        assert heard == [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def test_opinions_are_predicted_where_the_package_is_there(model, clips, tmp_path, monkeypatch, capsys):
    words = ["--model", model, "--data", clips, *SHORT, "--no-f0", "--mos", "--output-dir", tmp_path / "out"]
    find_spec = __import__("importlib.util").util.find_spec
    present = {"distillmos": False, "torchaudio": False}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: present[name] or None if name in present else find_spec(name, *a)
    )
    assert evaluate(*words) == 2
    assert "pip install --no-deps distillmos" in told(capsys)
    present["distillmos"] = True
    stand_in = ModuleType("distillmos")
    stand_in.ConvTransformerSQAModel = Opinion
    monkeypatch.setitem(sys.modules, "distillmos", stand_in)
    assert evaluate(*words) == 0
    assert "torchaudio" not in sys.modules
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert results["mos"] == pytest.approx(3, abs=0.5) and results["mos_of_recording"] == pytest.approx(3, abs=0.5)


class Opinion(torch.nn.Module):
    """In place of the real one, which is no dependency."""

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        assert waveforms.dim() == 2 and waveforms.dtype == torch.float32 and waveforms.shape[1] >= RATE // 2
        return 3 + waveforms.mean(dim=1)


def test_every_clip_is_spoken_with_its_own_voice(clips, tmp_path):
    model = save_synthesizer(tmp_path / "model", speaker_embedding_dim=6)
    voices = [save_voice(tmp_path / f"voice{index}.npy", seed=index) for index in range(2)]
    lines = [f"{clips / 'clip0.wav'},hello world,{voice}" for voice in (*voices, tmp_path / "none.npy")]
    (tmp_path / "voices.csv").write_text("\n".join(["path,text,voice", *lines]) + "\n")
    words = ["--model", model, "--data", tmp_path / "voices.csv", "--no-f0", *SHORT, "--output-dir", tmp_path / "out"]
    assert evaluate(*words, "--speaker-column", "voice") == 1
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    first, second = (soundfile.read(tmp_path / "out" / row["clip"])[0] for row in document["utterances"])
    assert not np.array_equal(first, second)
    (line,) = document["skipped"]
    assert "none.npy: no such file" in line


def test_what_cannot_be_used_is_told_and_does_not_count(model, tmp_path, capsys):
    folder = save_clips(tmp_path / "clips", 2)
    soundfile.write(folder / "a.wav", noise(0.3), RATE)
    with (folder / "metadata.csv").open("a") as file:
        file.write("missing.wav,hello\na.wav,...!\na.wav,\n")
    words = ["--model", model, "--data", folder, "--no-f0", *SHORT, "--output-dir", tmp_path / "out"]
    assert evaluate(*words) == 1
    err = capsys.readouterr().err
    for message in (
        "missing.wav: no such file",
        "a.wav: nothing to say in the text '...!'",
        "a.wav: empty transcript",
    ):
        assert f"skipped: {folder}/{message}" in err
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["results"]["utterances"] == 2 and len(document["skipped"]) == 3
    (folder / "metadata.csv").write_text("file_name,text\na.wav,!!\n")
    assert evaluate(*words) == 2
    assert f"{folder}: none of the recordings can be used" in told(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "{tmp}/none"], "{tmp}/none: no such file or folder"),
        (["--data", "{clips}", "--output-dir", "{tmp}/no/out"], "--output-dir {tmp}/no/out: no such folder {tmp}/no"),
        (["--data", "{clips}", "--output-dir", "{clips}/clip0.wav"], "clip0.wav: a file, not a folder"),
        (["--data", "{clips}", "--asr-model", "{tmp}/none"], "{tmp}/none: no such model folder"),
        (["--data", "{clips}", "--asr-model", "{model}"], "{model}"),
        (["--data", "{clips}", "--speaker", "a", "--speaker-column", "b"], "give --speaker, one voice of all, or"),
        (["--data", "{clips}", "--speaker-column", "voice"], "no column voice of speaker embeddings in {clips}"),
        (["--data", "{clips}", "--speed", "0.1"], "speed lies between"),
    ],
)
def test_a_usage_mistake_is_one_line_with_status_2(words, message, model, clips, tmp_path, capsys):
    places = {"tmp": tmp_path, "model": model, "clips": clips}
    assert evaluate(*(word.format(**places) for word in words), "--model", model) == 2
    assert message.format(**places) in told(capsys)


def test_a_language_is_for_recognisers_of_many(model, clips, tmp_path, capsys):
    recognizer = save_recognizer(tmp_path / "recogniser")
    words = ["--model", model, "--data", clips, "--asr-model", recognizer, "--asr-language", "en"]
    assert evaluate(*words) == 2
    assert "--asr-language" in told(capsys)
    assert tiny_tokenizer("bert")  # what it writes with knows one language
