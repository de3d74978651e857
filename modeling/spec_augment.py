"""SpecAugment (Park et al. 2019) as tensor operations alone, so that a training step compiles without a break."""

import torch


def span_mask(
    lengths: torch.Tensor, size: int, probability: float, span_length: int, min_spans: int = 0
) -> torch.Tensor:
    """Draw random spans for each row.

    The number of spans is `probability * length / span_length`, rounded up or down at random so that its mean is
    exact, at least `min_spans`; spans may overlap. In a row of fewer than `2 * span_length` places the spans shrink to
    half the row, so that something is always left to hear.

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
    span = torch.clamp(lengths // 2, min=1, max=span_length)  # [B]
    wanted = (probability * lengths / span + torch.rand(rows, device=device)).floor().clamp(min=min_spans)  # [B]
    most = max(int(probability * size / min(span_length, max(size // 2, 1))) + 1, min_spans)
    most = min(most, size)
    starts = (torch.rand(rows, most, device=device) * (lengths - span + 1).clamp(min=1)[:, None]).long()  # [B, spans]
    used = torch.arange(most, device=device) < wanted[:, None]  # [B, spans]
    places = torch.arange(size, device=device)
    covers = (places >= starts[..., None]) & (places < (starts + span[:, None])[..., None])  # [B, spans, size]
    return (covers & used[..., None]).any(dim=1) & (places < lengths[:, None])
