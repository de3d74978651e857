"""SpecAugment (Park et al. 2019) as tensor operations alone, so that a training step compiles without a break."""

from typing import Any

import torch


def mask_spectrogram(spectrogram: torch.Tensor, config: Any) -> torch.Tensor:
    """Silence spans of frames and of mel bins, drawn anew for each clip.

    Args:
        spectrogram: [B, N, M], normalised: 0 is the mean.
        config: with the fields `mask_time_prob`, `mask_time_length`, `mask_time_min_masks`, and `mask_feature_…` for
            mel bins; a probability of 0 masks nothing.

    Returns:
        [B, N, M].
    """
    for dim, axis in ((1, "time"), (2, "feature")):
        probability, span_length, min_spans = (
            getattr(config, f"mask_{axis}_{setting}") for setting in ("prob", "length", "min_masks")
        )
        if probability > 0:
            rows, size = spectrogram.shape[0], spectrogram.shape[dim]
            lengths = torch.full((rows,), size, device=spectrogram.device)
            masked = span_mask(lengths, size, float(probability), span_length, min_spans)
            spectrogram = spectrogram.masked_fill(masked.unsqueeze(3 - dim), 0)
    return spectrogram


def span_mask(
    lengths: torch.Tensor, size: int, probability: float, span_length: int, min_spans: int = 0
) -> torch.Tensor:
    """Draw random spans for each row.

    The number of spans is `probability * length / span_length`, rounded up or down at random so that its mean is
    exact, and at least `min_spans`; they start at different places and may overlap. In a row of fewer than
    `2 * span_length` places the spans shrink to half the row, and no row gets so many that nothing is left to hear.

    Args:
        lengths: [B], places of each row that may be masked.
        size: length of the rows, padding included.
        probability: expected share of places covered before overlaps.
        span_length: places in one span.
        min_spans: least number of spans in a row.

    Returns:
        Boolean [B, size], True where masked.
    """
    device, rows = lengths.device, lengths.shape[0]
    span = (lengths // 2).clamp(max=span_length)  # [B], 0 where a row has but one place
    at_least_one = span.clamp(min=1)
    wanted = (probability * lengths / at_least_one + torch.rand(rows, device=device)).floor().clamp(min=min_spans)
    wanted = wanted.minimum((lengths - 1) // at_least_one)  # [B]
    most = max(int(probability * max(size / span_length, 3)) + 1, min_spans)  # a shrunken span is a third or more
    places = torch.arange(size, device=device)
    draw = torch.rand(rows, size, device=device).masked_fill(places > (lengths - span)[:, None], -1)
    starts = draw.topk(min(most, size)).indices  # [B, spans], without repetition
    used = torch.arange(starts.shape[1], device=device) < wanted[:, None]  # [B, spans]
    covers = (places >= starts[..., None]) & (places < (starts + span[:, None])[..., None])  # [B, spans, size]
    return (covers & used[..., None]).any(dim=1)
