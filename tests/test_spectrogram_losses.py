"""Losses of text to speech against loops that spell out their definitions."""

import math
from typing import Any

import pytest
import torch
from tiny_speech_synthesizers import tiny_native_synthesizer
from torch import nn
from transformers.models.speecht5.modeling_speecht5 import SpeechT5SpectrogramLoss

from speechgraft.modeling.spectrogram_losses import (
    guided_attention,
    real_frames,
    spectrogram_l1,
    stop_cross_entropy,
    stop_targets,
)

LENGTHS = [7, 4, 1]
MELS = 3


def padded_labels(lengths: list[int] = LENGTHS, extra: int = 0) -> torch.Tensor:
    labels = torch.full((len(lengths), max(lengths) + extra, MELS), -100.0)
    for row, length in zip(labels, lengths, strict=True):
        row[:length] = torch.randn(length, MELS)
    return labels


def mask_of(lengths: list[int], width: int | None = None) -> torch.Tensor:
    return torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]


def random_attentions(rows: int, steps: list[int], tokens: list[int], layers: int = 2, heads: int = 3) -> Any:
    """Weights that sum to 1 over the real tokens of each row, [B, H, N, S] for each layer."""
    scores = torch.randn(layers, rows, heads, max(steps), max(tokens))
    scores = scores.masked_fill(~mask_of(tokens)[None, :, None, None], -math.inf)
    return tuple(scores.softmax(dim=-1))


def test_a_frame_is_padding_where_every_bin_says_so():
    labels = padded_labels()
    assert real_frames(labels).sum(dim=-1).tolist() == LENGTHS
    labels[0, 2, 1] = -100  # one bin alone is no padding
    assert real_frames(labels).sum(dim=-1).tolist() == LENGTHS


def test_the_error_is_the_mean_over_real_frames_alone():
    labels = padded_labels()
    spectrogram = torch.randn_like(labels)
    errors = [
        (spectrogram[row, frame] - labels[row, frame]).abs() for row in range(3) for frame in range(LENGTHS[row])
    ]
    loss = spectrogram_l1(spectrogram, labels, mask_of(LENGTHS), torch.tensor(sum(LENGTHS)))
    assert torch.allclose(loss, torch.cat(errors).mean())


@pytest.mark.parametrize("poison", [1e30, math.inf, math.nan])
def test_what_the_model_writes_into_padding_is_no_concern(poison):
    labels, mask, frames = padded_labels(), mask_of(LENGTHS), torch.tensor(sum(LENGTHS))
    clean = torch.randn_like(labels)
    logits = torch.randn(labels.shape[:2])
    for spectrogram, stops in ((clean, logits), (clean.clone(), logits.clone())):
        if spectrogram is not clean:
            spectrogram[~mask], stops[~mask] = poison, poison
        spectrogram.requires_grad_()
        stops.requires_grad_()
        loss = spectrogram_l1(spectrogram, labels, mask, frames) + stop_cross_entropy(stops, mask, 5.0, frames)
        loss.backward()
        if spectrogram is clean:
            expected = loss.detach()
        assert torch.equal(loss, expected)
        assert torch.isfinite(spectrogram.grad).all() and torch.isfinite(stops.grad).all()
        assert not spectrogram.grad[~mask].any() and not stops.grad[~mask].any()


def test_speech_stops_at_its_last_frame_and_nowhere_else():
    targets = stop_targets(mask_of([3, 1, 0, 4], 5))
    assert targets.tolist() == [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]


def test_the_stop_loss_weighs_the_last_frame_as_asked():
    logits, mask = torch.randn(3, max(LENGTHS)), mask_of(LENGTHS)
    total = 0.0
    for row, length in enumerate(LENGTHS):
        for frame in range(length):
            chance = 1 / (1 + math.exp(-float(logits[row, frame])))
            total += -5 * math.log(chance) if frame == length - 1 else -math.log(1 - chance)
    loss = stop_cross_entropy(logits, mask, 5.0, torch.tensor(sum(LENGTHS)))
    assert float(loss) == pytest.approx(total / sum(LENGTHS), rel=1e-5)


@pytest.mark.parametrize("heads", [[0], [2, 0], [0, 1, 2]])
def test_guided_attention_is_the_mean_of_tachibana_over_the_cells_of_each_row(heads):
    steps, tokens, sigma = [6, 2, 5], [4, 7, 1], 0.4
    attentions = random_attentions(3, steps, tokens)
    found = guided_attention(attentions, heads, mask_of(steps), mask_of(tokens), sigma)
    for row in range(3):
        cells = []
        for layer in attentions:
            for head in heads:
                for step in range(steps[row]):
                    for token in range(tokens[row]):
                        away = token / tokens[row] - step / steps[row]
                        weight = 1 - math.exp(-(away**2) / (2 * sigma**2))
                        cells.append(weight * float(layer[row, head, step, token]))
        assert float(found[row]) == pytest.approx(sum(cells) / len(cells), rel=1e-4, abs=1e-7)


def test_a_row_has_the_guided_attention_that_it_has_alone():
    steps, tokens = [6, 2, 5], [4, 7, 1]
    attentions = random_attentions(3, steps, tokens)
    together = guided_attention(attentions, [0, 1], mask_of(steps), mask_of(tokens), 0.4)
    for row in range(3):
        alone = tuple(layer[row : row + 1, :, : steps[row], : tokens[row]] for layer in attentions)
        single = guided_attention(alone, [0, 1], mask_of(steps[row : row + 1]), mask_of(tokens[row : row + 1]), 0.4)
        assert torch.allclose(single[0], together[row], atol=1e-7)


def test_padding_on_the_left_moves_no_diagonal():
    attentions = random_attentions(1, [4], [5])
    right = guided_attention(attentions, [0], mask_of([4]), mask_of([5]), 0.4)
    moved = tuple(nn.functional.pad(layer, (3, 0)) for layer in attentions)
    left = guided_attention(moved, [0], mask_of([4]), mask_of([5], 8).flip(-1), 0.4)
    assert torch.allclose(left, right, atol=1e-7)


def test_the_diagonal_costs_nothing_and_the_far_corner_most():
    diagonal = torch.eye(8)[None, None]
    corner = diagonal.flip(-1)
    loss = {
        name: float(guided_attention((weights,), [0], mask_of([8]), mask_of([8]), 0.4))
        for name, weights in (("diagonal", diagonal), ("corner", corner))
    }
    assert loss["diagonal"] == 0 and loss["corner"] > 0.05


def test_a_row_without_a_frame_gives_zero_and_no_nan():
    attentions = tuple(layer.requires_grad_() for layer in random_attentions(2, [3, 3], [4, 4]))
    found = guided_attention(attentions, [0], mask_of([3, 0], 3), mask_of([4, 4]), 0.4)
    found.sum().backward()
    assert found[1] == 0 and all(torch.isfinite(layer.grad).all() for layer in attentions)


def test_minus_one_leaves_out_the_last_head_of_the_native_class():
    """`num_heads=-1`, documented as all heads, becomes the slice `[: -1]`."""
    native = tiny_native_synthesizer(guided_attention_loss_num_heads=-1)
    seen = []
    criterion: Any = SpeechT5SpectrogramLoss(native.config)
    criterion.attn_criterion.forward = lambda attentions, *masks: seen.append(attentions.shape[1]) or attentions.sum()
    labels = torch.randn(1, 4, native.config.num_mel_bins)
    heads = native.config.decoder_attention_heads
    attentions = (torch.rand(1, heads, 2, 5),) * 2
    criterion(torch.ones(1, 5), labels, labels, torch.zeros(1, 4), labels, attentions)
    assert seen == [2 * (heads - 1)]
