"""The pipeline for long recordings gives what `transcribe()` gives, in the form of Transformers' own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny_recognizers import RATE, noise, save_recognizer
from transformers import pipeline

from speechgraft import SpeechRecognitionPipeline, SpeechSeq2SeqModel, SpeechSeq2SeqProcessor

TASK = "automatic-speech-recognition"
SETTINGS: dict[str, Any] = {
    "max_chunk_s": 1.0,
    "min_chunk_s": 0.5,
    "overlap_s": 0.3,
    "max_new_tokens": 6,
    "temperatures": (0.0,),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(save_recognizer(tmp_path_factory.mktemp("recognizer") / "model"))


@pytest.fixture(scope="module")
def recognize(folder) -> Any:
    return pipeline(TASK, model=folder, pipeline_class=SpeechRecognitionPipeline)


@pytest.fixture(scope="module")
def transcribe(folder) -> Any:
    model, processor = SpeechSeq2SeqModel.from_pretrained(folder), SpeechSeq2SeqProcessor.from_pretrained(folder)
    return lambda audio, **options: model.transcribe(audio, processor, **SETTINGS, **options)


def test_files_waveforms_and_bytes_give_what_the_model_gives(recognize, transcribe, tmp_path):
    waveform = noise(2.5)
    soundfile.write(tmp_path / "a.wav", waveform, RATE, subtype="FLOAT")
    text = transcribe(waveform, timestamps=None).text
    assert text
    for audio in (
        str(tmp_path / "a.wav"),
        (tmp_path / "a.wav").read_bytes(),
        waveform,
        {"raw": waveform, "sampling_rate": RATE},
        {"array": waveform, "sampling_rate": RATE},
    ):
        assert recognize(audio, **SETTINGS)["text"] == text
    faster = {"raw": np.repeat(waveform, 2), "sampling_rate": 2 * RATE}
    assert recognize(faster, **SETTINGS)["text"]


@pytest.mark.parametrize(("asked", "unit"), [(True, "segment"), ("word", "word"), ("char", "char")])
def test_chunks_have_the_times_and_confidences_of_the_model(asked, unit, recognize, transcribe):
    waveform = noise(1.7, 3)
    known = transcribe(waveform, timestamps=unit)
    found = recognize(waveform, return_timestamps=asked, **SETTINGS)
    items: Any = known.segments if unit == "segment" else known.words
    if unit == "char":
        items = [character for word in items for character in word.characters]
    assert items and found["confidence"] == pytest.approx(known.confidence)
    assert found["chunks"] == [
        {"text": one.text, "timestamp": (one.start_s, one.end_s), "confidence": one.confidence} for one in items
    ]


def test_lists_and_n_best_lists(recognize, transcribe):
    waveforms = [noise(0.6, 1), noise(2.2, 2)]
    found = recognize(waveforms, num_return_sequences=2, num_beams=2, batch_size=4, **SETTINGS)
    for one, waveform in zip(found, waveforms, strict=True):
        known = transcribe(waveform, n_best=2, num_beams=2, timestamps=None)
        assert [hypothesis["text"] for hypothesis in one["nbest"]] == [each.text for each in known.hypotheses]
        assert one["text"] == one["nbest"][0]["text"] and "chunks" not in one


def test_mistakes_are_told(recognize, tmp_path: Path):
    with pytest.raises(ValueError, match="return_timestamps is True"):
        recognize(noise(0.5), return_timestamps="letter")
    with pytest.raises(TypeError, match="transcribe.. has no beams"):
        recognize(noise(0.5), beams=3)
    with pytest.raises(ValueError, match="no such file"):
        recognize(str(tmp_path / "none.wav"))
