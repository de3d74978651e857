"""The stock pipeline for speech recognition, and the Auto classes that it looks through, take our folders."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lively_models import lively
from tiny_models import encoder_config
from tiny_recognizers import noise, save_native, save_recognizer
from tiny_tokenizers import tiny_tokenizer
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    Wav2Vec2FeatureExtractor,
    pipeline,
)
from transformers.models.auto import modeling_auto
from transformers.pipelines import automatic_speech_recognition

from speechgraft import SpeechSeq2SeqModel, SpeechSeq2SeqProcessor

RATE = 16_000
TASK = "automatic-speech-recognition"
PIPELINE_DEFAULTS = {"num_beams": 5, "max_new_tokens": 256}  # of Transformers
CLIPS = ((0.6, 200), (0.3, 500), (0.5, 1500))  # duration in seconds, pitch in Hz
KINDS: dict[str, dict[str, Any]] = {
    "waveform": {},
    "whisper": {"encoder": "whisper"},
    "whisper without its window": {"encoder": "whisper", "fixed_input_window": False},
    "ctc and adapter": {"ctc_weight": 0.3, "adapter_layers": 1},
}


def save_lively(folder: Path, encoder: str = "wav2vec2-layer", **fields: Any) -> Path:
    """As `save_recognizer`, with a model that hears a difference between the clips of these tests."""
    processor = SpeechSeq2SeqProcessor.from_pretrained(save_recognizer(folder, encoder, **fields))
    config = encoder_config(encoder, **({"max_source_positions": 50} if encoder == "whisper" else {}))
    for seed in range(50):
        model = lively(config, "bert", volume=6, seed=seed, **fields)
        inputs = [processor(tone(*clip), sampling_rate=RATE, return_tensors="pt") for clip in CLIPS]
        tokens = [model.generate(**clip, num_beams=2, max_new_tokens=6)[0] for clip in inputs]
        texts = {processor.decode(row, skip_special_tokens=True) for row in tokens}
        if len(texts) == len(CLIPS):
            break
    else:
        pytest.fail("no seed gives a model that tells the clips apart")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory) -> Path:
    return save_lively(tmp_path_factory.mktemp("recognizer"), **KINDS[request.param])


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory) -> Path:
    return save_lively(tmp_path_factory.mktemp("recognizer"))


def tone(duration_s: float, pitch_hz: float) -> np.ndarray:
    """A sine with overtones, float32 [samples]."""
    phase = 2 * np.pi * pitch_hz * np.arange(round(duration_s * RATE)) / RATE
    return (0.1 * np.sin(phase) + 0.1 * np.sin(3 * phase + 1)).astype(np.float32)


def raw(waveform: Any) -> dict[str, Any]:
    return {"raw": waveform, "sampling_rate": RATE}


def transcribe(folder: Path, waveform: Any, **options: Any) -> str:
    """By hand: the processor, the model, the tokenizer."""
    model = SpeechSeq2SeqModel.from_pretrained(folder)
    processor = SpeechSeq2SeqProcessor.from_pretrained(folder)
    tokens = model.generate(**processor(waveform, sampling_rate=RATE, return_tensors="pt"), **options)
    return processor.batch_decode(tokens, skip_special_tokens=True)[0]


def test_the_pipeline_writes_what_the_model_writes(folder):
    recognize = pipeline(TASK, model=str(folder))
    assert recognize.type == "seq2seq" and type(recognize.model) is SpeechSeq2SeqModel
    clips, wanted = [tone(*clip) for clip in CLIPS], {"num_beams": 2, "max_new_tokens": 6}
    texts = [cast(Any, recognize(raw(clip), generate_kwargs=wanted))["text"] for clip in clips]
    assert texts == [transcribe(folder, clip, **wanted) for clip in clips]
    assert len(set(texts)) == len(clips)
    assert cast(Any, recognize(raw(clips[0])))["text"] == transcribe(folder, clips[0], **PIPELINE_DEFAULTS)


def test_batches_of_the_pipeline_give_each_clip_its_own_text(folder):
    recognize = pipeline(TASK, model=str(folder))
    clips = [raw(tone(*clip)) for clip in CLIPS]
    options: dict[str, Any] = {"generate_kwargs": {"num_beams": 2, "max_new_tokens": 6}}
    alone = [cast(Any, recognize(dict(clip), **options))["text"] for clip in clips]
    together = recognize([dict(clip) for clip in clips], batch_size=3, **options)
    assert [one["text"] for one in cast(Any, together)] == alone


def test_settings_of_the_checkpoint_come_before_those_of_the_pipeline(plain_folder, tmp_path):
    model = SpeechSeq2SeqModel.from_pretrained(plain_folder)
    model.generation_config.num_beams, model.generation_config.max_new_tokens = 2, 3
    model.save_pretrained(tmp_path)
    SpeechSeq2SeqProcessor.from_pretrained(plain_folder).save_pretrained(tmp_path)
    recognize = pipeline(TASK, model=str(tmp_path))
    text = cast(Any, recognize(raw(tone(0.6, 200))))["text"]
    assert text == transcribe(plain_folder, tone(0.6, 200), num_beams=2, max_new_tokens=3)


def test_the_pipeline_takes_ready_objects(plain_folder):
    model = SpeechSeq2SeqModel.from_pretrained(plain_folder)
    processor = SpeechSeq2SeqProcessor.from_pretrained(plain_folder)
    recognize = pipeline(
        TASK, model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    text = cast(Any, recognize(raw(tone(0.6, 200))))["text"]
    assert text == transcribe(plain_folder, tone(0.6, 200), **PIPELINE_DEFAULTS)


def test_the_pipeline_runs_in_half_precision(plain_folder):
    recognize = pipeline(TASK, model=str(plain_folder), dtype=torch.bfloat16)
    assert recognize.model.dtype == torch.bfloat16
    assert isinstance(cast(Any, recognize(raw(tone(0.6, 200))))["text"], str)


def test_without_the_name_in_its_table_the_pipeline_takes_the_model_for_ctc(plain_folder, monkeypatch):
    """The fault of every class outside Transformers: registering with the Auto classes is not enough."""
    names = dict(modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES)
    del names["speech_seq2seq"]
    monkeypatch.setattr(automatic_speech_recognition, "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", names)
    recognize = pipeline(TASK, model=str(plain_folder))
    assert recognize.type == "ctc"
    with pytest.raises(Exception, match=r"logits|decoder_input_ids|labels"):
        recognize(raw(tone(0.6, 200)))


def test_auto_classes_find_each_part_of_a_folder(folder):
    assert type(AutoModel.from_pretrained(folder)) is SpeechSeq2SeqModel
    assert type(AutoModelForSpeechSeq2Seq.from_pretrained(folder)) is SpeechSeq2SeqModel
    assert type(AutoProcessor.from_pretrained(folder)) is SpeechSeq2SeqProcessor
    own = SpeechSeq2SeqProcessor.from_pretrained(folder)
    assert AutoFeatureExtractor.from_pretrained(folder).to_dict() == own.feature_extractor.to_dict()
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == own.tokenizer.get_vocab()


def test_no_ctc_model_is_made_of_a_folder(folder):
    """The pipeline tries that class first: it would load, with a random head."""
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForCTC.from_pretrained(folder)


def test_the_processor_keeps_its_settings(tmp_path):
    model = SpeechSeq2SeqModel.from_pretrained(
        save_recognizer(tmp_path / "model", "whisper", fixed_input_window=False, decoder_prompt_token_ids=[7, 8])
    )
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert processor.fixed_input_window is False and processor.decoder_prompt_token_ids == [7, 8]
    assert processor(text="hello")["labels"][:2] == model.config.decoder_prompt_token_ids
    assert processor(noise(0.3), sampling_rate=RATE)["input_features"].shape[-1] == 30


def test_a_feature_extractor_and_a_tokenizer_saved_apart_make_a_processor(plain_folder, tmp_path):
    """Natively AutoProcessor then returns the tokenizer alone, and audio cannot be prepared."""
    SpeechSeq2SeqModel.from_pretrained(plain_folder).save_pretrained(tmp_path / "ours")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "ours")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(processor) is SpeechSeq2SeqProcessor
    expected = SpeechSeq2SeqProcessor.from_pretrained(plain_folder)
    for one in (processor, expected):
        assert one(text="hello world")["labels"] == [8, 9, 3]
        assert one(noise(0.3), sampling_rate=RATE)["attention_mask"].sum() == 4800
    native = AutoProcessor.from_pretrained(save_native(tmp_path / "native"))
    assert not hasattr(native, "feature_extractor")


FRESH = """
import json, sys

first, second, folder, clip = sys.argv[1:]
__import__(first), __import__(second)
import numpy
from transformers import AutoProcessor, pipeline

recognize = pipeline("automatic-speech-recognition", model=folder)
clip = numpy.load(clip)
text = recognize({"raw": clip, "sampling_rate": 16_000})["text"]
print(json.dumps([type(AutoProcessor.from_pretrained(folder)).__name__, text]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", [("speechgraft", "transformers"), ("transformers.pipelines", "speechgraft")])
def test_importing_the_package_is_all_that_the_pipeline_needs(order, plain_folder, tmp_path):
    """In a fresh process, before or after Transformers has read its tables."""
    np.save(tmp_path / "clip.npy", tone(0.6, 200))
    command = [sys.executable, "-c", FRESH, *order, str(plain_folder), str(tmp_path / "clip.npy")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    name, text = json.loads(done.stdout.splitlines()[-1])
    assert name == "SpeechSeq2SeqProcessor"
    assert text == transcribe(plain_folder, tone(0.6, 200), **PIPELINE_DEFAULTS)
