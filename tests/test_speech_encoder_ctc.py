"""CTC models: native checkpoints as they are, and what natively goes wrong in training, batches and pipelines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_models import ENCODERS, MELS, VOCABULARY, WHISPER, audio, encoder_config, labels, randomize, save_encoder
from tiny_training import arguments

from speechgraft import SpeechEncoderCollator, SpeechEncoderForCTC, SpeechEncoderForCTCConfig, publish_pretrained
from speechgraft.modeling.sequence_losses import logger as loss_logger

RATE = 16_000
TASK = "automatic-speech-recognition"
NATIVE = sorted(name for name, (_, model_class) in ENCODERS.items() if model_class.__name__.endswith("ForCTC"))
LEAKING = ("wav2vec2-conformer", "data2vec-audio")  # natively, padding changes their output
CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmno"]


def tiny_ctc(encoder: str = "wav2vec2-layer", seed: int = 0, scale: float = 5.0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    config = SpeechEncoderForCTCConfig(
        encoder=encoder_config(encoder), **{"vocab_size": VOCABULARY, "final_dropout": 0.0, **fields}
    )
    return randomize(SpeechEncoderForCTC(config), scale).eval()


def tiny_processor(folder: Path) -> hf.Wav2Vec2Processor:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({character: place for place, character in enumerate(CHARACTERS)}))
    tokenizer = hf.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    return hf.Wav2Vec2Processor(hf.Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer)


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * RATE)).astype(np.float32)


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    model.config.encoder.attention_dropout = 0.0
    return model


# Native checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NATIVE)
def test_a_native_checkpoint_gives_the_same_logits_and_goes_back(name, tmp_path):
    native = save_encoder(tmp_path / "native", name)
    model = SpeechEncoderForCTC.from_pretrained(tmp_path / "native")
    assert model.config.vocab_size == VOCABULARY and model.config.pad_token_id == native.config.pad_token_id
    inputs = audio(name, 9600, 6400)
    with torch.no_grad():
        expected, output = native(**inputs).logits, model(**inputs)
        if name in LEAKING:
            inputs = {key: value[:1] for key, value in inputs.items()}
            expected, output = native(**inputs).logits, model(**inputs)
        torch.testing.assert_close(output.logits[output.attention_mask], expected[output.attention_mask])
        model.to_native().save_pretrained(tmp_path / "back")
        back = type(native).from_pretrained(tmp_path / "back")
        torch.testing.assert_close(back(**inputs).logits, expected, rtol=0, atol=0)
        model.save_pretrained(tmp_path / "ours")
        again = hf.AutoModelForCTC.from_pretrained(tmp_path / "ours")
        assert type(again) is SpeechEncoderForCTC
        assert torch.equal(again(**inputs).logits, output.logits)


def test_settings_given_on_loading_a_native_folder_are_heard(tmp_path):
    save_encoder(tmp_path, "wav2vec2-layer")
    model = SpeechEncoderForCTC.from_pretrained(tmp_path, mask_time_prob=0.3, final_dropout=0.4, dtype=torch.bfloat16)
    assert model.config.mask_time_prob == 0.3 and model.dropout.p == 0.4
    assert model.dtype == torch.bfloat16 == model.ctc_head.weight.dtype


def test_an_encoder_without_a_head_is_not_given_a_random_one_silently(tmp_path):
    hf.Wav2Vec2Model(encoder_config("wav2vec2")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_encoder_pretrained"):
        SpeechEncoderForCTC.from_pretrained(tmp_path)


def test_a_family_without_a_native_ctc_class_is_told(tmp_path):
    save_encoder(tmp_path, "whisper")
    with pytest.raises(ValueError, match="no class for whisper"):
        SpeechEncoderForCTC.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no class for whisper"):
        tiny_ctc("whisper").to_native()
    with pytest.raises(ValueError, match="an adapter"):
        tiny_ctc(adapter_layers=1).to_native()


# Warm start ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hubert-layer", "wav2vec2-bert", "whisper", "speech_to_text", "moonshine", "parakeet"]
)
def test_any_speech_checkpoint_gives_its_encoder_and_the_head_is_new(name, tmp_path):
    native = save_encoder(tmp_path / "native", name)
    model = SpeechEncoderForCTC.from_encoder_pretrained(tmp_path / "native", vocab_size=7)
    source = {key: value for key, value in native.state_dict().items() if "decoder" not in key}
    taken = dict(model.encoder.backbone.named_parameters())
    for key, value in taken.items():
        assert any(source_key.endswith(key) and torch.equal(value, source[source_key]) for source_key in source), key
    assert model.config.newly_initialized == ["ctc_head"] and not model.training
    output = model(**audio(name, 9600))
    assert output.logits.shape[-1] == 7
    model.save_pretrained(tmp_path / "ours")
    again = SpeechEncoderForCTC.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(**audio(name, 9600)).logits, output.logits)
    assert again.config.newly_initialized == ["ctc_head"]


def test_the_tokenizer_settles_size_and_blank(tmp_path):
    save_encoder(tmp_path / "native", "wavlm")
    tokenizer = tiny_processor(tmp_path / "processor").tokenizer
    tokenizer.add_tokens(["ä"])
    model = SpeechEncoderForCTC.from_encoder_pretrained(
        tmp_path / "native", tokenizer=tokenizer, adapter_layers=1, encoder_hidden_dropout=0.3
    )
    assert model.config.vocab_size == len(CHARACTERS) + 1 and model.config.pad_token_id == 0
    assert model.config.newly_initialized == ["ctc_head", "encoder.adapter"]
    assert model.config.encoder.hidden_dropout == 0.3


def test_what_would_be_ignored_or_random_is_refused(tmp_path):
    native = save_encoder(tmp_path, "wav2vec2")
    with pytest.raises(ValueError, match="vocab_size"):
        SpeechEncoderForCTC.from_encoder_pretrained(tmp_path)
    with pytest.raises(TypeError, match="vocabsize"):
        SpeechEncoderForCTC.from_encoder_pretrained(tmp_path, vocab_size=5, vocabsize=5)
    state = {key: value for key, value in native.state_dict().items() if "layers.1.attention.k_proj" not in key}
    native.save_pretrained(tmp_path, state_dict=state)
    for load in (SpeechEncoderForCTC.from_pretrained, SpeechEncoderForCTC.from_encoder_pretrained):
        with pytest.raises(ValueError, match="random.*k_proj"):
            load(tmp_path, vocab_size=VOCABULARY)


def test_a_wrong_configuration_says_what_is_wrong():
    with pytest.raises(Exception, match="did you mean 'vocab_size'"):
        SpeechEncoderForCTCConfig(encoder=encoder_config("wav2vec2"), vocab_sise=3)
    with pytest.raises(Exception, match="the blank, is outside"):
        SpeechEncoderForCTCConfig(encoder=encoder_config("wav2vec2"), vocab_size=3, pad_token_id=3)


# Training ------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_native_sum_over_clips():
    model = tiny_ctc(scale=1.0)
    native = model.to_native()
    native.config.ctc_loss_reduction = "sum"
    inputs, targets = audio("wav2vec2", 16_000, 9600), labels(5, 3)
    with torch.no_grad():
        expected = native(**inputs, labels=targets).loss
        torch.testing.assert_close(model(**inputs, labels=targets).loss, expected / 8)
        torch.testing.assert_close(model(**inputs, labels=targets, num_items_in_batch=4).loss, expected / 4)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Natively 4 clips one by one and at once give different losses and gradients."""

    def run(batch_size: int) -> tuple[float, float]:
        model = without_dropout(tiny_ctc(scale=1.0, apply_spec_augment=False))
        options = arguments(
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            max_steps=1,
        )
        collator = SpeechEncoderCollator(processor, model.config)
        trainer = hf.Trainer(model, options, train_dataset=rows, data_collator=collator)
        trainer.train()
        return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]

    processor = tiny_processor(tmp_path / "processor")
    rows = cast(Any, [{"audio": noise(0.3 + 0.1 * i, i), "text": "abc defg"[: 2 + 2 * i]} for i in range(4)])
    whole = run(4)
    np.testing.assert_allclose(run(2), whole, rtol=1e-4)
    np.testing.assert_allclose(run(1), whole, rtol=1e-4)


def test_clips_without_a_transcript_or_too_short_for_it_count_nothing(caplog):
    model = tiny_ctc(scale=1.0)
    inputs, targets = audio("wav2vec2", 9600, 1600, 9600), labels(4, 19, 1)
    targets[2] = -100
    loss_logger.warning_once.cache_clear()  # pyright: ignore[reportFunctionMemberAccess]
    loss = model(**inputs, labels=targets, num_items_in_batch=1).loss
    alone = model(**audio("wav2vec2", 9600), labels=targets[:1, :4], num_items_in_batch=1).loss
    torch.testing.assert_close(loss, alone)
    assert "no alignment" in caplog.text and "without a transcript" in caplog.text
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert float(model(**inputs, labels=torch.full((3, 2), -100)).loss) == 0


def test_labels_padded_with_the_blank_are_refused_instead_of_learned():
    model = tiny_ctc()
    for wrong, message in ((0, "pad labels with -100"), (VOCABULARY, "outside the vocabulary")):
        with pytest.raises(ValueError, match=message):
            model(**audio("wav2vec2", 9600), labels=torch.tensor([[5, wrong]]))


def test_no_trainable_parameter_waits_for_a_gradient():
    for fields in ({}, {"mask_time_prob": 0.3}, {"adapter_layers": 1}):
        model = tiny_ctc(**fields).train()
        model.gradient_checkpointing_enable()
        model(**audio("wav2vec2", 9600, 6400), labels=labels(3, 2)).loss.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_freezing_leaves_the_head_trainable():
    model = tiny_ctc(adapter_layers=1)
    model.freeze_feature_encoder()
    assert not any(p.requires_grad for p in model.encoder.backbone.feature_extractor.parameters())
    model.freeze_base_model()
    trainable = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad
    }
    assert trainable == {"encoder.adapter", "ctc_head.weight", "ctc_head.bias"}


def test_a_model_learns_to_transcribe(tmp_path):
    """Two clips, two transcripts: loss, gradient, collator and decoding fit together."""
    processor = tiny_processor(tmp_path)
    model = without_dropout(tiny_ctc(scale=1.0, apply_spec_augment=False, vocab_size=len(CHARACTERS))).train()
    texts = ["abc", "ooh"]
    rows = [{"audio": noise(0.3, i), "text": text} for i, text in enumerate(texts)]
    batch = SpeechEncoderCollator(processor, model.config)(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    del batch["labels"]
    for options in ({}, {"num_beams": 4}):
        found = model.eval().decode_ctc(**batch, **options)
        assert [processor.tokenizer.decode(clip[0].token_ids, group_tokens=False) for clip in found] == texts


# Inference -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["wav2vec2-layer", "wav2vec2-conformer", "wav2vec2-bert", "speech_to_text", "parakeet"]
)
def test_padding_in_a_batch_changes_nothing(name):
    model = tiny_ctc(name)
    with torch.no_grad():
        batch = model(**audio(name, 16_000, 9600)).logits
        first = audio(name, 16_000, 9600)
        size = int(first["attention_mask"][1].sum())
        alone = model(**{key: value[1:, :size] for key, value in first.items()}).logits
    frames = alone.shape[1]
    torch.testing.assert_close(batch[1, :frames], alone[0], rtol=1e-4, atol=1e-4)
    assert (batch[1, frames:].argmax(dim=-1) == 0).all(), "padding is silence, for those who read no mask"
    assert model.decode_ctc(**first)[1][0].token_ids == tuple(
        token for token in torch.unique_consecutive(alone[0].argmax(-1)).tolist() if token != 0
    )


def test_a_whisper_encoder_hears_a_window_or_less():
    config = encoder_config("whisper")
    window = audio("whisper", 16_000)
    frames = WHISPER["max_source_positions"]
    assert tiny_ctc("whisper")(**window).logits.shape[1] == frames
    model = tiny_ctc("whisper", fixed_input_window=False)
    assert model(**window).logits.shape[1] == 50 < frames and config.num_mel_bins == MELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recognizer")
    tiny_processor(folder).save_pretrained(folder)
    tiny_ctc(seed=3, scale=8.0).save_pretrained(folder)
    return folder


def test_the_pipeline_knows_it_for_ctc_and_writes_what_the_model_writes(folder):
    recognize = hf.pipeline(TASK, model=str(folder))
    assert recognize.type == "ctc" and type(recognize.model) is SpeechEncoderForCTC
    processor = hf.AutoProcessor.from_pretrained(folder)
    assert type(processor) is hf.Wav2Vec2Processor
    clips = [noise(0.6), noise(0.3, 1), noise(0.5, 2)]
    texts = [cast(Any, recognize(clip.copy()))["text"] for clip in clips]
    for clip, text in zip(clips, texts, strict=True):
        inputs = processor(clip, sampling_rate=RATE, return_tensors="pt")
        ((best,),) = recognize.model.decode_ctc(**inputs)
        assert processor.tokenizer.decode(best.token_ids, group_tokens=False) == text
    assert len(set(texts)) == 3
    assert [one["text"] for one in cast(Any, recognize([c.copy() for c in clips], batch_size=3))] == texts, (
        "natively not"
    )
    words = cast(Any, recognize(clips[0].copy(), return_timestamps="char"))["chunks"]
    assert all(0 <= start < stop <= 0.6 for start, stop in (word["timestamp"] for word in words))


class _Oracle(torch.nn.Module):
    """Says what stands in the audio at each frame: whatever is lost or repeated at a seam, the chunking did."""

    def __init__(self, model: Any, samples_to_frame: int):
        super().__init__()
        self.model, self.samples_to_frame = model, samples_to_frame

    def forward(self, input_values: torch.Tensor, **kwargs: Any) -> Any:
        tokens = input_values[:, :: self.samples_to_frame].round().long().clamp(0, VOCABULARY - 1)
        return type("Output", (), {"logits": torch.nn.functional.one_hot(tokens, VOCABULARY).float()})


def test_chunks_of_long_audio_join_without_loss_or_repeat(folder, monkeypatch):
    recognize = hf.pipeline(TASK, model=str(folder))
    recognize.feature_extractor.do_normalize = False
    ratio = recognize.model.config.inputs_to_logits_ratio
    oracle = _Oracle(recognize.model, ratio)
    monkeypatch.setattr(type(recognize.model), "forward", lambda self, *a, **k: oracle.forward(*a, **k))
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, size=200)
    clip = np.repeat(tokens, ratio).astype(np.float32)
    whole = cast(Any, recognize(clip.copy()))["text"]
    assert len(whole) > 150
    assert cast(Any, recognize(clip.copy(), chunk_length_s=0.9, stride_length_s=0.2))["text"] == whole


FRAME_SAMPLES = {
    "wav2vec2": 320,
    "whisper": 320,
    "wav2vec2-bert": 320,
    "speech_to_text": 640,
    "moonshine": 384,
    "parakeet": 1280,
}


@pytest.mark.parametrize("name", FRAME_SAMPLES)
def test_pipelines_learn_how_long_a_frame_is_for_mel_encoders_too(name):
    """Natively the ratio of mel encoders counts feature frames: chunked audio then loses almost all its text."""
    model = tiny_ctc(name, **({"fixed_input_window": False} if name == "whisper" else {}))
    ratio, stacked = FRAME_SAMPLES[name], 2 if name == "wav2vec2-bert" else 1
    assert model.config.inputs_to_logits_ratio == ratio
    frames = [model(**audio(name, samples // stacked)).logits.shape[1] for samples in (9600, 19_200)]
    assert abs((frames[1] - frames[0]) * ratio - 9600) <= ratio


def test_published_code_stands_alone(folder, tmp_path):
    model = SpeechEncoderForCTC.from_pretrained(folder)
    publish_pretrained(model, tmp_path, hf.AutoProcessor.from_pretrained(folder))
    inputs = audio("wav2vec2", 6400)
    torch.save((inputs, model(**inputs).logits), tmp_path / "expected.pt")
    code = f"""
import sys; sys.modules["speechgraft"] = None
import torch
from transformers import AutoModelForCTC, pipeline
model = AutoModelForCTC.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
inputs, expected = torch.load({str(tmp_path / "expected.pt")!r})
assert torch.equal(model(**inputs).logits, expected)
recognize = pipeline("automatic-speech-recognition", {str(tmp_path)!r}, trust_remote_code=True)
assert recognize.type == "ctc" and recognize(inputs["input_values"][0].numpy())["text"]
"""
    assert "with a CTC head" in (tmp_path / "README.md").read_text()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# The collator --------------------------------------------------------------------------------------------------------


def test_the_collator_gives_each_clip_what_it_would_have_alone(tmp_path):
    processor, config = tiny_processor(tmp_path), tiny_ctc().config
    collator = SpeechEncoderCollator(processor, config)
    rows = [{"audio": noise(0.3), "text": "abc"}, {"audio": noise(0.2, 1), "labels": [7]}]
    batch = collator(rows)
    assert batch["labels"].tolist() == [[5, 6, 7], [7, -100, -100]]
    alone = collator(rows[1:])
    assert torch.equal(batch["input_values"][1, :3200], alone["input_values"][0])
    assert batch["attention_mask"].sum(dim=-1).tolist() == [4800, 3200]
    assert "labels" not in collator([{"audio": noise(0.2)}])


def test_the_collator_names_the_row_that_is_wrong(tmp_path):
    processor, config = tiny_processor(tmp_path), tiny_ctc().config
    collator = SpeechEncoderCollator(processor, config)
    good = {"audio": noise(0.2), "text": "a"}
    for bad, message in (
        ({"audio": noise(0.2), "text": ""}, "row 1 .*empty transcript"),
        ({"audio": noise(0.2)}, "row 1 .*no label"),
        ({"text": "a"}, "row 1 .*remove_unused_columns"),
        ({"audio": np.zeros(0, np.float32), "text": "a"}, "row 1 "),
    ):
        with pytest.raises(ValueError, match=message):
            collator([good, bad])
    config.pad_token_id = 3
    with pytest.raises(ValueError, match="blank"):
        SpeechEncoderCollator(processor, config)
