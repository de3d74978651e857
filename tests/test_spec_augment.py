"""SpecAugment masks as much as people ask for, no more, nothing that is not there, and only in training."""

from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny_models import ENCODERS, audio, family_name, tiny_config, tiny_model
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from speechgraft.modeling.spec_augment import span_mask


@pytest.mark.parametrize(
    "probability, span, least, lengths",
    [(0.05, 10, 2, (300, 500)), (0.65, 10, 0, (100, 500)), (0.2, 4, 0, (37, 80)), (0.3, 2, 5, (30, 40))],
)
def test_the_share_that_is_masked_is_that_of_transformers(probability, span, least, lengths):
    size, draws = max(lengths), 2000
    repeated = torch.tensor(lengths * draws)
    ours = span_mask(repeated, size, probability, span, least).unflatten(0, (draws, len(lengths))).float()
    real: Any = (torch.arange(size) < torch.tensor(lengths)[:, None]).long()
    # Transformers rounds the number of spans once for a batch, so it takes many batches to see its mean.
    reference = np.stack(
        [_compute_mask_indices((len(lengths), size), probability, span, real, least) for _ in range(draws)]
    )
    for row, length in enumerate(lengths):
        share, expected = ours[:, row, :length].mean().item(), reference[:, row, :length].mean()
        assert share == pytest.approx(expected, rel=0.03)


def test_padding_is_not_masked_in_place_of_speech():
    lengths = torch.tensor([1, 2, 5, 19, 20, 21, 60, 99])
    padding = torch.arange(100) >= lengths[:, None]
    assert not any((span_mask(lengths, 100, 0.9, 10, 2) & padding).any() for _ in range(200))


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9, 10, 11, 19, 20, 21, 40])
def test_short_clips_lose_something_and_never_everything(length, probability):
    rows = span_mask(torch.tensor([length] * 300 + [100]), 100, probability, 10, 2)[:-1, :length]
    assert not rows.all(dim=1).any()
    assert length == 1 or rows.any(dim=1).all()


def test_spans_have_the_length_that_was_asked_for():
    one_span = span_mask(torch.full((100,), 200), 200, 1e-9, 10, min_spans=1)
    assert set(one_span.sum(dim=1).tolist()) == {10}
    assert ((one_span[:, 1:] != one_span[:, :-1]).sum(dim=1) <= 2).all()  # in one piece
    assert one_span.any(dim=0).sum() > 150  # anywhere
    assert not span_mask(torch.full((100,), 200), 200, 0.0, 10).any()


def test_masks_of_every_length_come_from_one_compiled_graph():
    torch.compiler.reset()
    compiled = torch.compile(span_mask, fullgraph=True, dynamic=True, backend="eager")
    for size in (50, 60, 333):
        assert compiled(torch.tensor([size, size - 20]), size, 0.5, 10, 2).any(dim=1).all()


@pytest.mark.parametrize("setting", ["mask_time_length", "mask_feature_length", "mask_time_min_masks"])
def test_settings_that_mask_nothing_are_refused(setting):
    with pytest.raises(StrictDataclassError, match=f"{setting} must be at least"):
        tiny_config(**{setting: -1})


def encode(name, training, **fields):
    """Encoder output of a tiny model whose training mode differs by nothing else: no dropout, no batch statistics."""
    model = tiny_model(name, **fields).train(training)
    for module in model.modules():
        for attribute in ("dropout", "dropout_positions", "activation_dropout", "attention_dropout", "drop_prob", "p"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    with torch.no_grad():
        return model.encoder(**audio(name, 9600, 16000)).last_hidden_state


WITHOUT_A_PLACE = {"moonshine"}  # it has no mask embedding, and its input is a waveform


@pytest.mark.parametrize("name", ENCODERS)
def test_speech_is_masked_in_training_alone_and_only_when_asked(name):
    plain = encode(name, training=False)
    prob = {"mask_time_prob": 0.5}
    torch.testing.assert_close(encode(name, training=False, apply_spec_augment=True, **prob), plain)
    torch.testing.assert_close(encode(name, training=True, apply_spec_augment=False, **prob), plain)
    masked = encode(name, training=True, apply_spec_augment=True, **prob)
    assert torch.allclose(masked, plain, atol=1e-3) == (family_name(name) in WITHOUT_A_PLACE)
