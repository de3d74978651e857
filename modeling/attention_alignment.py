"""When each token of a text was said, by what a decoder attends to: dynamic time warping of its cross-attention.

The method of Whisper's word times (https://github.com/openai/whisper, `timing.py`), for any decoder.

Shapes: `H` attention heads, `S` decoder steps, `T` encoder frames.
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

MEDIAN_FRAMES = 7  # Whisper's: 140 ms


def align_attention(attentions: torch.Tensor, median_frames: int = MEDIAN_FRAMES) -> np.ndarray:
    """The frame at which each decoder step begins to listen: never before that of the step before it.

    Args:
        attentions: [H, S, T], cross-attention of the heads to trust, on real frames and the steps of one text.
        median_frames: width of the median filter over frames, odd; 1 for none.

    Returns:
        Integers [S], from 0.
    """
    weights = attentions.float()
    spread, mean = torch.std_mean(
        weights, dim=-2, keepdim=True, unbiased=False
    )  # a frame that all steps like tells nothing
    weights = (weights - mean) / spread.clamp(min=1e-6)
    smooth = median_filter(weights.cpu().numpy(), median_frames)
    return first_frames(warping_path(-smooth.mean(axis=0)))


def median_filter(values: np.ndarray, width: int) -> np.ndarray:
    """Running median over the last axis, mirrored at its ends; an axis not longer than half `width` stays as it is."""
    half = width // 2
    if half == 0 or values.shape[-1] <= half:
        return values
    mirrored = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    return np.median(sliding_window_view(mirrored, 2 * half + 1, axis=-1), axis=-1)


def warping_path(cost: np.ndarray) -> np.ndarray:
    """The cheapest path from the first corner of a matrix to the last, one step down, right or both at a time.

    Args:
        cost: [S, T].

    Returns:
        Integers [L, 2]: row and column of each cell on the path, in order.
    """
    rows, columns = cost.shape
    totals = np.full((rows + 1, columns + 1), np.inf)
    totals[0, 0] = 0
    for diagonal in range(2, rows + columns + 1):  # its cells depend on the two diagonals before it alone
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        before = np.minimum(np.minimum(totals[i - 1, j - 1], totals[i - 1, j]), totals[i, j - 1])
        totals[i, j] = before + cost[i - 1, j - 1]
    return _walk_back(totals)


def _walk_back(totals: np.ndarray) -> np.ndarray:
    i, j = totals.shape[0] - 1, totals.shape[1] - 1
    path = [(i - 1, j - 1)]
    while (i, j) != (1, 1):
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda cell: totals[cell])
        path.append((i - 1, j - 1))
    return np.array(path[::-1])


def first_frames(path: np.ndarray) -> np.ndarray:
    """The first column that a path visits in each row."""
    begins = np.diff(path[:, 0], prepend=-1) > 0
    return path[begins, 1]


__all__ = ["align_attention", "first_frames", "median_filter", "warping_path"]
