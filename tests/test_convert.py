"""`speechgraft convert`: both layouts give the same logits, and what has no place in the other is refused."""

from pathlib import Path

import pytest
import torch
from tiny_models import save_encoder
from tiny_recognizers import noise, save_native, save_recognizer
from transformers import AutoFeatureExtractor, AutoTokenizer, SpeechEncoderDecoderModel

from speechgraft.modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
from speechgraft.processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor
from speechgraft.scripts.cli import main


def convert(*words: object) -> int:
    return main(["convert", *map(str, words)])


def logits(model) -> torch.Tensor:
    inputs = {"input_values": torch.from_numpy(noise(0.5))[None], "decoder_input_ids": torch.tensor([[2, 7, 8]])}
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("width", [12, 16])
def test_native_to_ours_and_back_keeps_every_logit(width, tmp_path, capsys):
    native = save_native(tmp_path / "native", width)
    assert convert(native, tmp_path / "ours") == 0
    assert convert(tmp_path / "ours", tmp_path / "back") == 0
    expected = logits(SpeechEncoderDecoderModel.from_pretrained(native))
    assert torch.equal(logits(SpeechSeq2SeqModel.from_pretrained(tmp_path / "ours")), expected)
    assert torch.equal(logits(SpeechEncoderDecoderModel.from_pretrained(tmp_path / "back")), expected)
    err = capsys.readouterr().err
    assert f"{native} (native) written to {tmp_path / 'ours'} (speechgraft: SpeechSeq2SeqModel)" in err
    assert err.count("check: reloaded; the logits are equal bit for bit") == 2
    assert ("projection: 16 to 12" if width == 12 else "projection: none") in err


def test_the_processor_goes_along_in_the_form_that_each_side_loads(tmp_path):
    native = save_native(tmp_path / "native")
    assert convert(native, tmp_path / "ours") == 0
    assert convert(tmp_path / "ours", tmp_path / "back") == 0
    assert SpeechSeq2SeqProcessor.from_pretrained(tmp_path / "ours").label_ids("hello world")
    AutoFeatureExtractor.from_pretrained(tmp_path / "back")
    assert AutoTokenizer.from_pretrained(tmp_path / "back").vocab == AutoTokenizer.from_pretrained(native).vocab
    assert not (tmp_path / "back" / "processor_config.json").exists()


def test_a_model_without_a_processor_is_converted_and_that_is_said(tmp_path, capsys):
    assert convert(save_native(tmp_path / "native", with_processor=False), tmp_path / "ours") == 0
    err = capsys.readouterr().err
    assert "processor: none lies with the model" in err and "bit for bit" in err


def test_a_whisper_checkpoint_becomes_ours(tmp_path, capsys):
    save_encoder(tmp_path / "whisper", "whisper")
    assert convert(tmp_path / "whisper", tmp_path / "ours") == 0
    assert "check: left out, as it needs the processor" in capsys.readouterr().err
    assert SpeechSeq2SeqModel.from_pretrained(tmp_path / "ours").config.newly_initialized == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ctc_weight": 0.3}, "SpeechEncoderDecoderModel has no place for a CTC head"),
        ({"adapter_layers": 1}, "SpeechEncoderDecoderModel has no place for an adapter"),
        ({"encoder": "whisper"}, "SpeechEncoderDecoderModel has no place for a whisper encoder"),
    ],
)
def test_what_has_no_place_in_the_native_class_is_refused_with_the_reason(fields, reason, tmp_path, capsys):
    model = save_recognizer(tmp_path / "model", **fields)
    assert convert(model, tmp_path / "native") == 2
    assert f"{model}: {reason}" in capsys.readouterr().err
    assert not (tmp_path / "native").exists()


def test_mistakes_are_one_line_with_status_2(tmp_path, capsys):
    native = save_native(tmp_path / "native")
    mistakes = {
        (tmp_path / "none", tmp_path / "out"): "no such model folder",
        (native, native): "exists already; name a new folder",
        (native, tmp_path / "out", "--to", "native"): "has the native layout already",
    }
    for words, message in mistakes.items():
        assert convert(*words) == 2
        err = capsys.readouterr().err
        assert message in err and str(words[0]) in err and "Traceback" not in err
    assert not Path(tmp_path / "out").exists()
