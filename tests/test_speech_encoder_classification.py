"""Classifiers of clips and frames: native checkpoints as they are, and what natively goes wrong in training."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_models import ENCODERS, audio, encoder_config, randomize
from tiny_training import arguments

from speechgraft import (
    SpeechEncoderCollator,
    SpeechEncoderForAudioClassification,
    SpeechEncoderForAudioClassificationConfig,
    SpeechEncoderForAudioFrameClassification,
    SpeechEncoderForAudioFrameClassificationConfig,
    publish_pretrained,
)

RATE = 16_000
LABELS = ["down", "up", "silence"]
CLIPS, FRAMES = SpeechEncoderForAudioClassification, SpeechEncoderForAudioFrameClassification
AUTO = {CLIPS: hf.AutoModelForAudioClassification, FRAMES: hf.AutoModelForAudioFrameClassification}
NATIVE = [
    (CLIPS, name)
    for name in ("wav2vec2", "wav2vec2-layer", "wav2vec2-bert", "hubert-layer", "wavlm", "sew", "whisper", "unispeech")
] + [(FRAMES, name) for name in ("wav2vec2-layer", "wav2vec2-bert", "wavlm", "unispeech-sat")]


def save_native(folder: Path, model_class: Any, name: str, **fields: Any) -> Any:
    config = ENCODERS[name][0]()
    config.id2label, config.label2id = dict(enumerate(LABELS)), {label: i for i, label in enumerate(LABELS)}
    config.classifier_proj_size = 6
    for field, value in fields.items():
        setattr(config, field, value)
    native = randomize(model_class.native_classes[type(config)](config)).eval()
    if config.use_weighted_layer_sum:
        torch.nn.init.normal_(native.layer_weights)
    native.save_pretrained(folder)
    return native


def tiny_classifier(
    model_class: Any = CLIPS, encoder: str = "wav2vec2-layer", scale: float = 5.0, **fields: Any
) -> Any:
    torch.manual_seed(0)
    config_class = {
        CLIPS: SpeechEncoderForAudioClassificationConfig,
        FRAMES: SpeechEncoderForAudioFrameClassificationConfig,
    }
    names = {} if "num_labels" in fields else {"id2label": dict(enumerate(LABELS))}
    config = config_class[model_class](encoder=encoder_config(encoder), **names, **fields)
    return randomize(model_class(config), scale).eval()


def real_logits(output: Any) -> torch.Tensor:
    mask = getattr(output, "attention_mask", None)
    return output.logits if mask is None else output.logits[mask]


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * RATE)).astype(np.float32)


# Native checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_class", "name"), NATIVE)
@pytest.mark.parametrize("mixes", [False, True])
def test_a_native_checkpoint_gives_the_same_logits_and_goes_back(model_class, name, mixes, tmp_path):
    if mixes and name == "sew":
        pytest.skip("natively its layers and its mask differ in length")
    native = save_native(tmp_path / "native", model_class, name, use_weighted_layer_sum=mixes)
    model = model_class.from_pretrained(tmp_path / "native")
    assert model.config.id2label == dict(enumerate(LABELS)) and model.config.use_weighted_layer_sum == mixes
    inputs = audio(name, 9600, 6400)
    heard = {key: value for key, value in inputs.items() if name != "whisper" or key != "attention_mask"}
    with torch.no_grad():
        expected, output = native(**heard), model(**inputs)
        wanted = expected.logits
        if model_class is FRAMES:
            wanted = wanted[output.attention_mask]
        torch.testing.assert_close(real_logits(output), wanted, rtol=1e-5, atol=1e-5)
        model.to_native().save_pretrained(tmp_path / "back")
        back = type(native).from_pretrained(tmp_path / "back")
        assert back.config.id2label == dict(enumerate(LABELS))
        torch.testing.assert_close(back(**heard).logits, expected.logits, rtol=0, atol=0)
        model.save_pretrained(tmp_path / "ours")
        again = AUTO[model_class].from_pretrained(tmp_path / "ours")
        assert type(again) is model_class
        assert torch.equal(again(**inputs).logits, output.logits)


def test_a_head_of_another_kind_or_none_is_not_replaced_by_a_random_one(tmp_path):
    save_native(tmp_path / "clips", CLIPS, "wav2vec2")
    hf.Wav2Vec2Model(encoder_config("wav2vec2")).save_pretrained(tmp_path / "encoder")
    for model_class in (CLIPS, FRAMES):
        with pytest.raises(ValueError, match="from_encoder_pretrained"):
            model_class.from_pretrained(tmp_path / "encoder")
    with pytest.raises(Exception, match="mismatch"):
        FRAMES.from_pretrained(tmp_path / "clips")


def test_what_native_classes_lack_is_not_exported():
    with pytest.raises(ValueError, match="attentive pooling"):
        tiny_classifier(pooling="attentive").to_native()
    with pytest.raises(ValueError, match="no class for hubert"):
        tiny_classifier(FRAMES, "hubert").to_native()


# Warm start ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [CLIPS, FRAMES])
@pytest.mark.parametrize("name", ["hubert-layer", "parakeet", "moonshine"])
def test_any_speech_checkpoint_gives_its_encoder_and_the_head_is_new(model_class, name, tmp_path):
    make, native_class = ENCODERS[name]
    native_class(make()).save_pretrained(tmp_path)
    options = {"pooling": "attentive"} if model_class is CLIPS else {"use_weighted_layer_sum": True}
    model = model_class.from_encoder_pretrained(tmp_path, labels=LABELS, **options)
    head = ["classifier", "pooling_scores", "projector"] if model_class is CLIPS else ["classifier", "layer_weights"]
    assert model.config.newly_initialized == head
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert model(**audio(name, 9600, 6400)).logits.shape[-1] == 3
    if model_class is FRAMES:
        torch.testing.assert_close(model.layer_weights.detach(), torch.full((3,), 1 / 3))


def test_a_head_that_nobody_described_is_refused(tmp_path):
    hf.Wav2Vec2Model(encoder_config("wav2vec2")).save_pretrained(tmp_path)
    for given, message in (({}, "labels="), ({"labels": ["a", "a"]}, "more than once")):
        with pytest.raises(ValueError, match=message):
            CLIPS.from_encoder_pretrained(tmp_path, **given)
    with pytest.raises(Exception, match="before an adapter"):
        CLIPS.from_encoder_pretrained(tmp_path, num_labels=3, use_weighted_layer_sum=True, adapter_layers=1)


# Inference -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, {"pooling": "attentive"}, {"use_weighted_layer_sum": True}, {"adapter_layers": 1}]
)
def test_padding_in_a_batch_changes_nothing(fields):
    for model_class in (CLIPS, FRAMES):
        if model_class is FRAMES and "pooling" in fields:
            continue
        model = tiny_classifier(model_class, **fields)
        inputs = audio("wav2vec2", 16_000, 9600)
        with torch.no_grad():
            batch = model(**inputs).logits[1]
            alone = model(inputs["input_values"][1:, :9600]).logits[0]
        torch.testing.assert_close(batch[: len(alone)], alone, rtol=1e-4, atol=1e-4)


def test_attentive_pooling_learns_which_frames_count():
    model = tiny_classifier(pooling="attentive")
    frames = torch.zeros(1, 4, 256)
    frames[0, 2] = 1.0
    with torch.no_grad():
        model.pooling_scores.weight.fill_(1.0)
        pooled = model._pool(frames, torch.tensor([[True, True, True, False]]))
    assert pooled.min() > 0.99


def test_the_pipeline_names_the_class(tmp_path):
    model = tiny_classifier()
    publish_pretrained(model, tmp_path, metrics={"accuracy": 0.9})
    card = (tmp_path / "README.md").read_text()
    assert "a classifier of 3 classes" in card and 'pipeline("audio-classification"' in card and "| 0.9 |" in card
    extractor = hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    extractor.save_pretrained(tmp_path)
    classify = hf.pipeline("audio-classification", model=str(tmp_path))
    assert type(classify.model) is CLIPS
    clip = noise(0.4)
    found = cast(Any, classify(clip.copy()))
    probabilities = model(**extractor(clip, sampling_rate=RATE, return_tensors="pt")).logits[0].softmax(-1)
    assert {one["label"] for one in found} == set(LABELS)
    for one in found:
        assert one["score"] == pytest.approx(float(probabilities[LABELS.index(one["label"])]), abs=1e-5)


# Training ------------------------------------------------------------------------------------------------------------


def test_losses_are_means_over_all_clips_of_the_step():
    cross_entropy, inputs = torch.nn.functional.cross_entropy, audio("wav2vec2", 9600, 6400, 8000)
    model, targets = tiny_classifier(), torch.tensor([2, -100, 1])
    output = model(**inputs, labels=targets)
    torch.testing.assert_close(output.loss, cross_entropy(output.logits, targets))
    part = model(**inputs, labels=targets, num_items_in_batch=8).loss
    torch.testing.assert_close(part, output.loss * 2 / 8)
    assert float(model(**inputs, labels=torch.full((3,), -100)).loss) == 0
    several = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, several)
    torch.testing.assert_close(model(**inputs, labels=several).loss, expected)
    regression = tiny_classifier(num_labels=1)
    numbers = torch.tensor([0.5, -1.0, 2.0])
    expected = torch.nn.functional.mse_loss(regression(**inputs).logits[:, 0], numbers)
    torch.testing.assert_close(regression(**inputs, labels=numbers).loss, expected)


def test_frames_of_padding_are_not_learned():
    model, inputs = tiny_classifier(FRAMES), audio("wav2vec2", 9600, 6400)
    output = model(**inputs)
    targets = torch.randint(0, 3, output.logits.shape[:2])
    loss = model(**inputs, labels=targets).loss
    real = output.attention_mask
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(output.logits[real], targets[real]))
    one_hot = torch.nn.functional.one_hot(targets, 3)
    torch.testing.assert_close(model(**inputs, labels=one_hot).loss, loss)
    alone = {name: value[:1] for name, value in inputs.items()}
    native = model.to_native()
    torch.testing.assert_close(native(**alone, labels=one_hot[:1]).loss, model(**alone, labels=one_hot[:1]).loss)
    model.config.problem_type = "multi_label_classification"
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits[real], one_hot[real].float())
    torch.testing.assert_close(model(**inputs, labels=one_hot).loss, expected)


def test_labels_of_another_number_of_frames_are_told():
    with pytest.raises(ValueError, match=r"labels of 7 frames, but the encoder makes 29 .* 320 samples"):
        tiny_classifier(FRAMES)(**audio("wav2vec2", 9600), labels=torch.zeros(1, 7, dtype=torch.long))


def test_trainer_trains_and_accumulates_as_one_batch(tmp_path):
    extractor = hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    rows = cast(Any, [{"audio": noise(0.2 + 0.1 * i, i), "label": LABELS[i % 3]} for i in range(4)])

    def run(batch_size: int) -> tuple[float, float]:
        model = tiny_classifier(scale=1.0, apply_spec_augment=False)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for module in model.modules():
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)
        options = arguments(
            tmp_path,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=2,
            gradient_accumulation_steps=4 // batch_size,
            max_steps=1,
        )
        collator = SpeechEncoderCollator(extractor, model.config)
        trainer = hf.Trainer(model, options, train_dataset=rows, eval_dataset=rows, data_collator=collator)
        trainer.train()
        predicted = trainer.predict(rows)
        assert cast(Any, predicted.predictions).shape == (4, 3) and "test_loss" in (predicted.metrics or {})
        return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]

    np.testing.assert_allclose(run(1), run(4), rtol=1e-4)


def test_the_collator_knows_classes_by_name_and_pads_those_of_frames():
    model = tiny_classifier()
    collator = SpeechEncoderCollator(hf.Wav2Vec2FeatureExtractor(return_attention_mask=True), model.config)
    clips = [noise(0.2), noise(0.3, 1)]
    assert collator([{"audio": clip, "label": "silence"} for clip in clips])["labels"].tolist() == [2, 2]
    with pytest.raises(ValueError, match="'left' is none of"):
        collator([{"audio": clips[0], "label": "left"}])
    rows = [{"audio": clip, "labels": [0] * n} for clip, n in zip(clips, (2, 3), strict=True)]
    assert collator(rows)["labels"].tolist() == [[0, 0, -100], [0, 0, 0]]
    rows = [{"audio": clip, "labels": [[0, 1]] * n} for clip, n in zip(clips, (2, 3), strict=True)]
    assert collator(rows)["labels"].shape == (2, 3, 2)
    assert collator(rows)["labels"][0, 2].tolist() == [-100, -100]
