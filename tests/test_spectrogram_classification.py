"""Classifiers of spectrograms: native checkpoints as they are, other lengths and channels, what is no spectrogram."""

import subprocess
import sys
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers as hf
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny_models import randomize
from tiny_training import arguments

from speechgraft import (
    SpectrogramClassificationConfig,
    SpectrogramClassificationModel,
    SpeechEncoderCollator,
    lora_config,
    publish_pretrained,
)

RATE = 16_000
MELS, FRAMES = 16, 40  # of the tiny spectrograms
LABELS = ["dog", "rain", "siren"]
AST: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "patch_size": 4,
    "frequency_stride": 3,
    "time_stride": 3,
    "max_length": FRAMES,
    "num_mel_bins": MELS,
}
RESNET: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 12],
    "depths": [1, 2],
    "layer_type": "basic",
}
KINDS = ["ast", "resnet", "resnet-1"]


def network_config(kind: str, **fields: Any) -> Any:
    if kind == "ast":
        return hf.ASTConfig(**AST | fields)
    return hf.ResNetConfig(**RESNET | {"num_channels": 1 if kind == "resnet-1" else 3} | fields)


def lively(model_class: Any, config: Any) -> Any:
    """A model with random weights, and batch statistics that differ from those of a new network."""
    torch.manual_seed(0)
    model = randomize(model_class(config))
    for name, value in model.named_parameters():
        if name.endswith(("position_embeddings", "cls_token", "distillation_token")):
            torch.nn.init.normal_(value)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(cast(torch.Tensor, module.running_mean), std=0.2)
            torch.nn.init.uniform_(cast(torch.Tensor, module.running_var), 0.5, 2.0)
    return model.eval()


def native_model(kind: str, labels: list[str] = LABELS, **fields: Any) -> Any:
    config = network_config(kind, **fields)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    native_class = hf.ASTForAudioClassification if kind == "ast" else hf.ResNetForImageClassification
    return lively(native_class, config)


def tiny_classifier(kind: str = "ast", network: dict[str, Any] | None = None, **fields: Any) -> Any:
    names = {} if "num_labels" in fields else {"id2label": dict(enumerate(LABELS))}
    config = SpectrogramClassificationConfig(
        encoder=network_config(kind, **network or {}), num_mel_bins=MELS, **names, **fields
    )
    return lively(SpectrogramClassificationModel, config)


def spectrograms(rows: int = 2, frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, frames, MELS, generator=torch.Generator().manual_seed(seed))


def as_native_input(kind: str, spectrogram: torch.Tensor) -> torch.Tensor:
    """For a ResNet an image, written independently: mel bins are rows, frames are columns, all channels are equal."""
    if kind == "ast":
        return spectrogram
    image = torch.stack([clip.T for clip in spectrogram])[:, None]
    return torch.cat([image] * (1 if kind == "resnet-1" else 3), dim=1)


def extractor(**fields: Any) -> Any:
    return hf.ASTFeatureExtractor(**{"num_mel_bins": MELS, "max_length": FRAMES} | fields)


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * RATE)).astype(np.float32)


# Native checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_native_checkpoint_gives_the_same_logits_and_goes_back(kind, tmp_path):
    native = native_model(kind)
    native.save_pretrained(tmp_path / "native")
    options = {} if kind == "ast" else {"num_mel_bins": MELS}
    model = SpectrogramClassificationModel.from_pretrained(tmp_path / "native", **options)
    assert model.config.id2label == dict(enumerate(LABELS)) and model.config.num_mel_bins == MELS
    assert not model.config.newly_initialized and not model.training
    inputs = spectrograms()
    with torch.no_grad():
        expected = native(as_native_input(kind, inputs)).logits
        assert torch.equal(model(inputs).logits, expected)
        assert len({tuple(row) for row in expected.tolist()}) == 2
        model.to_native().save_pretrained(tmp_path / "back")
        back = type(native).from_pretrained(tmp_path / "back")
        assert back.config.id2label == dict(enumerate(LABELS))
        assert torch.equal(back(as_native_input(kind, inputs)).logits, expected)
        model.save_pretrained(tmp_path / "ours")
        for auto in (hf.AutoModelForAudioClassification, hf.AutoModel):
            again = auto.from_pretrained(tmp_path / "ours")
            assert type(again) is SpectrogramClassificationModel
            assert torch.equal(again(inputs).logits, expected)


def test_checkpoints_of_the_hub_which_bear_older_names_load_too(tmp_path):
    native = native_model("ast")
    native.save_pretrained(tmp_path)
    renames = {
        ".layers.": ".encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    weights = {}
    for name, value in native.state_dict().items():
        for new, old in renames.items():
            name = name.replace(new, old)
        weights[name] = value
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    inputs = spectrograms()
    for model in (
        SpectrogramClassificationModel.from_pretrained(tmp_path),
        SpectrogramClassificationModel.from_encoder_pretrained(tmp_path, labels=LABELS),
    ):
        native.classifier.layernorm, native.classifier.dense = model.head_norm, model.classifier
        torch.testing.assert_close(model(inputs).logits, native(inputs).logits, rtol=0, atol=0)


def test_a_network_without_a_classifier_is_not_given_a_random_one_by_loading(tmp_path):
    lively(hf.ASTModel, network_config("ast")).save_pretrained(tmp_path / "network")
    with pytest.raises(ValueError, match="from_encoder_pretrained"):
        SpectrogramClassificationModel.from_pretrained(tmp_path / "network")


# Warm start ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_network_is_taken_over_whole_and_only_the_head_is_new(kind, tmp_path):
    native = native_model(kind, labels=["other", "classes"])
    native.save_pretrained(tmp_path / "native")
    head = ["classifier", "head_norm"] if kind == "ast" else ["classifier"]
    model = SpectrogramClassificationModel.from_encoder_pretrained(
        tmp_path / "native", labels=LABELS, **({} if kind == "ast" else {"num_mel_bins": MELS})
    )
    assert model.config.newly_initialized == head and model.config.label2id == {n: i for i, n in enumerate(LABELS)}
    inputs = spectrograms()
    with torch.no_grad():
        expected = native.base_model(as_native_input(kind, inputs)).pooler_output.flatten(1)
        pooled, _ = model.encoder(inputs)
    assert torch.equal(pooled, expected) and model(inputs).logits.shape == (2, 3)
    ready = SpectrogramClassificationModel.from_encoder_pretrained(
        native.base_model, num_labels=2, **({} if kind == "ast" else {"num_mel_bins": MELS})
    )
    assert torch.equal(ready.encoder(inputs)[0], expected)
    model.save_pretrained(tmp_path / "ours")
    again = SpectrogramClassificationModel.from_encoder_pretrained(
        tmp_path / "ours", num_labels=4, **({} if kind == "ast" else {"num_mel_bins": MELS})
    )
    assert torch.equal(again.encoder(inputs)[0], expected) and again(inputs).logits.shape == (2, 4)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [("ast", "embeddings.position_embeddings"), ("resnet", "embedder.embedder.normalization.running_var")],
)
def test_a_damaged_checkpoint_is_not_filled_up_with_random_weights(kind, lost, tmp_path):
    native_model(kind).base_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"would be random: {lost}"):
        SpectrogramClassificationModel.from_encoder_pretrained(tmp_path, labels=LABELS)


def test_what_is_asked_of_the_wrong_network_is_told(tmp_path):
    native_model("resnet").save_pretrained(tmp_path / "resnet")
    vit = hf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    hf.ViTModel(vit).save_pretrained(tmp_path / "vit")
    build = SpectrogramClassificationModel.from_encoder_pretrained
    for error, given, message in (
        (ValueError, {"encoder": tmp_path / "vit", "num_labels": 2}, "vit networks .* audio-spectrogram-.*, resnet"),
        (ValueError, {"encoder": tmp_path / "resnet"}, "labels="),
        (TypeError, {"encoder": tmp_path / "resnet", "num_labels": 2, "encoder_max_length": 9}, "max_length"),
        (TypeError, {"encoder": tmp_path / "resnet", "num_labels": 2, "pooling": "mean"}, "pooling"),
    ):
        with pytest.raises(error, match=message):
            build(**cast(Any, given))
    with pytest.raises(ValueError, match="any length already"):
        tiny_classifier("resnet").resize_window(9)
    with pytest.raises(ValueError, match="hold one patch of 4 x 4"):
        tiny_classifier().resize_window(3)
    with pytest.raises(Exception, match="num_mel_bins=8, but the encoder reads 16"):
        SpectrogramClassificationConfig(encoder=network_config("ast"), num_mel_bins=8)
    with pytest.raises(ValueError, match="adapter_layers"):
        SpectrogramClassificationConfig(encoder=network_config("ast"), adapter_layers=1)


# Other lengths and channels ------------------------------------------------------------------------------------------


def resized_by_hand(row: np.ndarray, wanted: int) -> np.ndarray:
    """One axis of position embeddings [old, D]: the middle, or for more places each between its two neighbours."""
    old = len(row)
    if wanted <= old:
        start = old // 2 - wanted // 2
        return row[start : start + wanted]
    places = np.clip((np.arange(wanted) + 0.5) * old / wanted - 0.5, 0, old - 1)  # centres of the new patches
    return np.stack([np.interp(places, np.arange(old), column) for column in row.T], axis=1)


@pytest.mark.parametrize(
    "fields", [{"max_length": 22}, {"max_length": 70}, {"num_mel_bins": 10}, {"num_mel_bins": 31, "max_length": 19}]
)
def test_positions_of_another_window_lie_where_the_ast_paper_puts_them(fields, tmp_path):
    native = native_model("ast")
    native.save_pretrained(tmp_path)
    model = SpectrogramClassificationModel.from_encoder_pretrained(
        tmp_path, labels=LABELS, **{f"encoder_{name}": value for name, value in fields.items()}
    )
    old = native.base_model.embeddings.position_embeddings[0].detach().double().numpy()
    bins, frames = fields.get("num_mel_bins", MELS), fields.get("max_length", FRAMES)
    rows, columns = (bins - 4) // 3 + 1, (frames - 4) // 3 + 1
    grid = old[2:].reshape((MELS - 4) // 3 + 1, (FRAMES - 4) // 3 + 1, -1)  # mel bins, time, width
    grid = np.stack([resized_by_hand(row, columns) for row in grid])
    grid = np.stack([resized_by_hand(column, rows) for column in grid.transpose(1, 0, 2)], axis=1)
    expected = np.concatenate([old[:2], grid.reshape(rows * columns, -1)])
    found = model.encoder.backbone.embeddings.position_embeddings[0].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    inputs = torch.randn(2, frames, bins)
    model.save_pretrained(tmp_path / "ours")
    again = SpectrogramClassificationModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(inputs).logits, model(inputs).logits)
    assert torch.equal(model.to_native()(inputs).logits, model(inputs).logits)


def test_a_trained_model_reads_longer_clips_after_its_window_was_resized():
    model = tiny_classifier()
    model.encoder.backbone.layers[0].requires_grad_(False)
    short, before = spectrograms(), model(spectrograms()).logits
    model.resize_window(FRAMES)
    assert torch.equal(model(short).logits, before)
    model.resize_window(2 * FRAMES)
    assert model(spectrograms(frames=2 * FRAMES)).logits.shape == (2, 3)
    assert model.config.encoder.max_length == 2 * FRAMES and not model.encoder.backbone.training
    assert [one.requires_grad for one in model.encoder.backbone.layers[0].parameters()].count(True) == 0


@pytest.mark.parametrize(("kind", "channels"), [("resnet", 1), ("resnet-1", 3)])
def test_a_network_for_images_reads_one_channel_as_it_would_the_same_three_times(kind, channels, tmp_path):
    native = native_model(kind)
    native.save_pretrained(tmp_path)
    model = SpectrogramClassificationModel.from_encoder_pretrained(
        tmp_path, labels=LABELS, encoder_num_channels=channels, num_mel_bins=MELS
    )
    assert model.config.encoder.num_channels == channels
    inputs = spectrograms()
    with torch.no_grad():
        expected = native.base_model(as_native_input(kind, inputs)).pooler_output.flatten(1)
        torch.testing.assert_close(model.encoder(inputs)[0], expected, rtol=1e-5, atol=1e-5)


# What is no spectrogram ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ast", "resnet"])
def test_what_is_no_spectrogram_is_told_in_one_line_with_the_way_out(kind):
    model = tiny_classifier(kind)
    broken = spectrograms(3)
    broken[1, 5, 2] = torch.nan
    cases = {
        r"shape \(2, 16000\) are no spectrograms.*frames, 16.*waveforms with ASTFeatureExtr": torch.zeros(2, RATE),
        r"\(2, 40, 12\) have 12 mel bins, the model reads 16: use ASTF.*num_mel_bins=16": torch.zeros(2, FRAMES, 12),
        r"\(2, 16, 40\) have 40 mel bins, the model reads 16: transpose": torch.zeros(2, MELS, FRAMES),
        r"\(2, 1, 16, 40\) are no spectrograms": torch.zeros(2, 1, MELS, FRAMES),
        "NaN or infinite values in row 1": broken,
        "got none": None,
    }
    for message, inputs in cases.items():
        with pytest.raises(ValueError, match=message) as raised:
            model(inputs)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("frames", [FRAMES - 7, FRAMES + 7])
def test_frames_that_do_not_fit_the_window_are_told_with_the_ways_to_make_them_fit(frames):
    model = tiny_classifier()
    with pytest.raises(
        ValueError, match=rf"{frames} frames, .* window is 40: .*max_length=40.*resize_window\({frames}"
    ):
        model(spectrograms(frames=frames))
    assert tiny_classifier("resnet")(spectrograms(frames=frames)).logits.shape == (2, 3)


def test_the_feature_extractor_pads_and_crops_to_the_window_and_needs_no_torchaudio():
    short, long = noise(0.2), noise(1.0)
    padded = extractor()([short, long], sampling_rate=RATE, return_tensors="pt")
    assert padded["input_values"].shape == (2, FRAMES, MELS)
    wide = extractor(max_length=98)(long, sampling_rate=RATE, return_tensors="pt")["input_values"]
    assert torch.equal(padded["input_values"][1], wide[0, :FRAMES])
    for kind in ("ast", "resnet"):
        assert tiny_classifier(kind)(**padded).logits.shape == (2, 3)


# Inference -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_attentions_and_hidden_states_are_those_of_the_network(kind):
    model, inputs = tiny_classifier(kind), spectrograms()
    asked = {"output_hidden_states": True, **({"output_attentions": True} if kind == "ast" else {})}
    native = model.to_native()
    plain = native(as_native_input(kind, inputs), output_hidden_states=True)
    if kind == "ast":
        eager = native_model("ast", attn_implementation="eager")
        eager.load_state_dict(native.state_dict())
        expected = eager(inputs, output_attentions=True).attentions
    output = model(inputs, **asked)
    for ours, theirs in zip(output.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if kind == "ast":
        for ours, theirs in zip(output.attentions, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    else:
        with pytest.raises(ValueError, match="a resnet has no attention"):
            model(inputs, output_attentions=True)
    assert model(inputs).hidden_states is None and model(inputs).attentions is None
    as_tuple = model(inputs, return_dict=False)
    assert len(as_tuple) == 1 and torch.equal(as_tuple[0], model(inputs).logits)


@pytest.mark.parametrize("kind", ["ast", "resnet"])
def test_the_pipeline_names_the_class(kind, tmp_path):
    model = tiny_classifier(kind)
    publish_pretrained(model, tmp_path, processor=extractor(), metrics={"accuracy": 0.9})
    card = (tmp_path / "README.md").read_text()
    assert "a classifier of 3 classes" in card and 'pipeline("audio-classification"' in card
    assert ("An Audio Spectrogram Transformer with" if kind == "ast" else "A ResNet that reads") in card
    classify = hf.pipeline("audio-classification", model=str(tmp_path))
    assert type(classify.model) is SpectrogramClassificationModel
    clip = noise(0.3)
    found = cast(Any, classify(clip.copy()))
    with torch.no_grad():
        probabilities = model(**extractor()(clip, sampling_rate=RATE, return_tensors="pt")).logits[0].softmax(-1)
    assert {one["label"] for one in found} == set(LABELS)
    for one in found:
        assert one["score"] == pytest.approx(float(probabilities[LABELS.index(one["label"])]), abs=1e-5)


def test_a_published_folder_works_without_this_package(tmp_path):
    model = tiny_classifier("resnet")
    publish_pretrained(model, tmp_path / "model", processor=extractor())
    inputs = spectrograms()
    torch.save({"inputs": inputs, "logits": model(inputs).logits}, tmp_path / "given.pt")
    code = f"""
import sys; sys.modules["speechgraft"] = None
import numpy, torch
from transformers import AutoModelForAudioClassification, pipeline
folder, given = r"{tmp_path / "model"}", torch.load(r"{tmp_path / "given.pt"}")
model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
assert torch.equal(model(given["inputs"]).logits, given["logits"])
found = pipeline("audio-classification", folder, trust_remote_code=True)(numpy.zeros(4800, numpy.float32))
assert len(found) == 3
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ast", "resnet"])
@pytest.mark.parametrize(
    ("problem", "labels", "targets"),
    [
        ("single_label_classification", 3, torch.tensor([2, 0, 1, 1])),
        ("multi_label_classification", 3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])),
        ("regression", 1, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        ("regression", 2, torch.tensor([[0.5, 1.0], [-1.0, 0.0], [2.0, 3.0], [0.0, 1.0]])),
    ],
)
@pytest.mark.parametrize("stated", [True, False])
def test_losses_are_the_native_ones_also_when_a_step_is_accumulated(kind, problem, labels, targets, stated):
    if labels == 2 and not stated:
        pytest.skip("several numbers are not known from several labels unless it is said")
    model = tiny_classifier(kind, num_labels=labels, problem_type=problem if stated else None)
    inputs = spectrograms(4)
    native = model.to_native()
    expected = native(as_native_input(kind, inputs), labels=targets).loss
    torch.testing.assert_close(model(inputs, labels=targets).loss, expected)
    parts = (slice(0, 1), slice(1, 4))  # unequal, of which natively only one-label losses add up
    total = sum(model(inputs[part], labels=targets[part], num_items_in_batch=targets.numel()).loss for part in parts)
    torch.testing.assert_close(total, expected)


def test_clips_without_a_label_count_nothing():
    model, inputs, targets = tiny_classifier(), spectrograms(3), torch.tensor([2, -100, 1])
    output = model(inputs, labels=targets)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, targets))
    assert model(inputs, labels=torch.full((3,), -100)).loss.item() == 0


def test_trainer_trains_and_accumulates_as_one_batch(tmp_path):
    rows = cast(Any, [{"audio": noise(0.2 + 0.1 * i, i), "label": LABELS[i % 3]} for i in range(4)])

    def run(batch_size: int) -> tuple[float, float]:
        model = tiny_classifier()
        options = arguments(
            tmp_path,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=2,
            gradient_accumulation_steps=4 // batch_size,
            max_steps=1,
        )
        collator = SpeechEncoderCollator(extractor(), model.config)
        trainer = hf.Trainer(model, options, train_dataset=rows, eval_dataset=rows, data_collator=collator)
        trainer.train()
        predicted = trainer.predict(rows)
        assert cast(Any, predicted.predictions).shape == (4, 3) and "test_loss" in (predicted.metrics or {})
        return trainer.state.log_history[0]["loss"], trainer.state.log_history[0]["grad_norm"]

    np.testing.assert_allclose(run(1), run(4), rtol=1e-4)


def test_a_frozen_network_keeps_its_batch_statistics():
    model = tiny_classifier("resnet")
    model.freeze_base_model()
    model.train()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model(spectrograms(), labels=torch.tensor([0, 1])).loss.backward()
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.classifier.weight.grad is not None and model.training
    model = tiny_classifier("resnet").train()
    model.freeze_feature_encoder()
    model(spectrograms())
    assert torch.equal(
        model.encoder.backbone.embedder.embedder.normalization.running_mean,
        before["backbone.embedder.embedder.normalization.running_mean"],
    )
    assert model.encoder.backbone.encoder.training


def test_every_weight_learns_and_checkpointed_gradients_are_the_same():
    for kind in ("ast", "resnet"):
        model = tiny_classifier(kind).train()
        model(spectrograms(), labels=torch.tensor([0, 1])).loss.backward()
        assert [name for name, value in model.named_parameters() if value.grad is None] == []
    model = tiny_classifier("ast").train()
    grads = []
    for checkpointed in (False, True):
        model.zero_grad()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(spectrograms(), labels=torch.tensor([0, 1])).loss.backward()
        grads.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
    torch.testing.assert_close(grads[0], grads[1])
    with pytest.raises(ValueError, match="checkpointing"):
        tiny_classifier("resnet").gradient_checkpointing_enable()


def test_low_rank_adapters_save_the_new_head_with_them(tmp_path):
    peft = pytest.importorskip("peft")
    native_model("ast").save_pretrained(tmp_path)
    model = SpectrogramClassificationModel.from_encoder_pretrained(tmp_path, labels=LABELS)
    adapted = peft.get_peft_model(model, lora_config(model, r=2))
    learnt = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert any("head_norm" in name for name in learnt) and any("classifier" in name for name in learnt)
    assert any("q_proj.lora_A" in name for name in learnt) and any("fc2.lora_B" in name for name in learnt)
    assert adapted(input_values=spectrograms(), labels=torch.tensor([0, 1])).loss.requires_grad


@pytest.mark.parametrize("kind", ["ast", "resnet"])
def test_half_precision_reads_the_extractors_float32(kind, tmp_path):
    tiny_classifier(kind).save_pretrained(tmp_path)
    half = SpectrogramClassificationModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(spectrograms()).logits.dtype == torch.bfloat16
    if kind == "ast":
        half.resize_window(60)
        assert half.encoder.backbone.embeddings.position_embeddings.dtype == torch.bfloat16
        assert half(spectrograms(frames=60)).logits.isfinite().all()


MASKS: dict[str, Any] = {
    "mask_time_prob": 0.4,
    "mask_time_length": 5,
    "mask_feature_prob": 0.3,
    "mask_feature_length": 2,
    "mask_feature_min_masks": 1,
}


def seen_by_the_network(model: Any, spectrogram: torch.Tensor) -> torch.Tensor:
    """What reaches the backbone, as [B, N, M]."""
    seen = []
    keep = model.encoder.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(spectrogram)
    keep.remove()
    (image,) = seen
    return image if image.dim() == 3 else image[:, 0].transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_mel_bins_are_masked_in_training_alone_and_when_asked(kind):
    spectrogram = torch.randn(200, FRAMES, MELS)
    plain, model = tiny_classifier(kind), tiny_classifier(kind, **MASKS)
    assert torch.equal(model(spectrogram).logits, plain(spectrogram).logits)
    assert torch.equal(seen_by_the_network(model, spectrogram), spectrogram)
    assert torch.equal(seen_by_the_network(plain.train(), spectrogram), spectrogram)
    silent = tiny_classifier(kind, **MASKS, apply_spec_augment=False).train()
    assert torch.equal(seen_by_the_network(silent, spectrogram), spectrogram)

    seen = seen_by_the_network(model.train(), spectrogram)
    masked = seen == 0
    assert torch.equal(seen[~masked], spectrogram[~masked])
    frames, bins = masked.all(dim=2), masked.all(dim=1)  # [B, N], [B, M]
    assert torch.equal(masked, frames[:, :, None] | bins[:, None])
    # Spans of 5 that start independently leave a frame alone as often as none of its 5 starts is drawn.
    assert 0.25 < frames.float().mean().item() < 0.4 and 0.2 < bins.float().mean().item() < 0.3
    assert frames.any(dim=1).all() and bins.any(dim=1).all() and not masked.flatten(1).all(dim=1).any()
    assert (frames[0] != frames[1]).any() and (bins.float().std(dim=0) > 0).all()  # each clip has its own


def test_masks_reach_training_and_stay_with_the_model(tmp_path):
    model = tiny_classifier(**MASKS).train()
    spectrogram, labels = torch.randn(3, FRAMES, MELS), torch.tensor([0, 1, 2])
    losses = {model(spectrogram, labels=labels).loss.item() for _ in range(4)}
    assert len(losses) == 4
    model(spectrogram, labels=labels).loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)
    model.save_pretrained(tmp_path)
    loaded = SpectrogramClassificationModel.from_pretrained(tmp_path, mask_time_prob=0.0)
    assert (loaded.config.mask_time_prob, loaded.config.mask_feature_prob) == (0.0, 0.3)
    native_model("ast").save_pretrained(tmp_path / "native")
    warm = SpectrogramClassificationModel.from_encoder_pretrained(str(tmp_path / "native"), num_labels=2, **MASKS)
    assert warm.config.mask_feature_length == 2 and not hasattr(warm.config.encoder, "mask_time_prob")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mask_time_prob": 1.5}, "mask_time_prob is a probability between 0 and 1, got 1.5"),
        ({"mask_feature_length": 0}, "mask_feature_length must be at least 1, got 0"),
        ({"mask_time_min_masks": -1}, "mask_time_min_masks must be at least 0, got -1"),
    ],
)
def test_masks_that_cannot_be_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        SpectrogramClassificationConfig(**fields)
