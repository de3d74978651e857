"""Losses of text to speech, summed over what is real and divided once: padding and accumulation change nothing.

Shapes: `B` batch, `T` frames, `M` mel bins, `S` text tokens, `N` decoder steps, `H` heads.
"""

from collections.abc import Sequence

import torch
from torch import nn

PADDED_FRAME = -100.0


def real_frames(labels: torch.Tensor) -> torch.Tensor:
    """Which frames of [B, T, M] are speech and which are padding (-100 in every bin): boolean [B, T]."""
    return (labels != PADDED_FRAME).any(dim=-1)


def spectrogram_l1(
    spectrogram: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, frames: torch.Tensor
) -> torch.Tensor:
    """Absolute error, as the mean over mel bins and frames.

    Args:
        spectrogram: [B, T, M].
        labels: [B, T, M].
        mask: boolean [B, T], True where a frame is real.
        frames: scalar, frames of the whole optimiser step.

    Returns:
        Scalar.
    """
    padding = ~mask[..., None]
    error = spectrogram.float().masked_fill(padding, 0) - labels.float().masked_fill(padding, 0)
    return error.abs().sum() / (frames * labels.shape[-1])


def stop_targets(mask: torch.Tensor) -> torch.Tensor:
    """1 at the last real frame of each row, 0 elsewhere: [B, T] to float [B, T]."""
    after = mask.long().flip(-1).cumsum(-1).flip(-1)  # real frames from here on
    return (mask & (after == 1)).float()


def stop_cross_entropy(
    stop_logits: torch.Tensor, mask: torch.Tensor, positive_weight: float, frames: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy of stopping at each frame, as the mean over frames.

    Args:
        stop_logits: [B, T].
        mask: boolean [B, T], True where a frame is real.
        positive_weight: of the frame that ends an utterance, one among hundreds.
        frames: scalar, frames of the whole optimiser step.

    Returns:
        Scalar.
    """
    losses = nn.functional.binary_cross_entropy_with_logits(
        stop_logits.float().masked_fill(~mask, 0),
        stop_targets(mask),
        pos_weight=torch.tensor(float(positive_weight), device=stop_logits.device),
        reduction="none",
    )
    return losses.masked_fill(~mask, 0).sum() / frames


def guided_attention(
    attentions: Sequence[torch.Tensor],
    heads: Sequence[int],
    step_mask: torch.Tensor,
    text_mask: torch.Tensor,
    sigma: float,
) -> torch.Tensor:
    """Attention weights away from the diagonal (Tachibana et al. 2017), as the mean over the cells of each row.

    With n of N tokens and t of T steps, a cell weighs `1 - exp(-(n / N - t / T)**2 / (2 * sigma**2))`.

    Args:
        attentions: cross-attentions of each layer, [B, H, N, S].
        heads: which heads of each layer count.
        step_mask: boolean [B, N], True where a decoder step is real.
        text_mask: boolean [B, S], True where a token is real.
        sigma: how far from the diagonal is free, as a share of the whole.

    Returns:
        [B], the mean over layers, heads, and pairs of real step and real token; 0 for a row without any.
    """
    chosen = torch.stack([layer[:, list(heads)] for layer in attentions]).float().mean(dim=(0, 2))  # [B, N, S]
    distance = _relative_places(text_mask)[:, None, :] - _relative_places(step_mask)[:, :, None]
    cells = step_mask[:, :, None] & text_mask[:, None, :]
    weights = 1 - torch.exp(-(distance**2) / (2 * sigma**2))
    return (chosen * weights).masked_fill(~cells, 0).sum(dim=(1, 2)) / cells.sum(dim=(1, 2)).clamp(min=1)


def _relative_places(mask: torch.Tensor) -> torch.Tensor:
    """How far along each real place of a row is, from 0 to below 1: float [B, S]."""
    return (mask.cumsum(-1) - 1) / mask.sum(-1, keepdim=True).clamp(min=1)
