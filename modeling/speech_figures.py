"""Pictures of a speech model: how its losses fell, and which audio it listened to for each word.

matplotlib is optional and imported when a picture is drawn; nothing here needs a display.

Shapes: `S` text tokens, `T` encoder frames.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INSTALL_HINT = 'pip install "speechgraft[plot]"'

Curve = Sequence[tuple[int, float]]  # (optimiser step, loss)


class FiguresNotInstalledError(ImportError):
    """The optional package that draws pictures is not installed."""


def require_matplotlib() -> None:
    """Check before a long run that its pictures can be drawn at its end.

    Raises:
        FiguresNotInstalledError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise FiguresNotInstalledError(f"pictures need matplotlib, which is not installed: {INSTALL_HINT}")


def losses_by_step(log_history: Sequence[Mapping[str, Any]], name: str = "loss") -> list[tuple[int, float]]:
    """One curve of `trainer.state.log_history`: the entries that have `name`, with their steps."""
    return [(int(entry["step"]), float(entry[name])) for entry in log_history if name in entry]


def plot_losses(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Draw loss curves, one panel for each training run, and save the picture.

    Args:
        panels: title of a run to its curves, each under the name of its loss.
        path: where to save; the ending tells the format.

    Raises:
        FiguresNotInstalledError: matplotlib is missing.
    """
    figure = _figure(width_in=4.2 * len(panels), height_in=3.4)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        for name, curve in curves.items():
            axes.plot([step for step, _ in curve], [loss for _, loss in curve], label=name)
        axes.set_title(title)
        axes.set_xlabel("optimiser step")
        axes.set_yscale("log")  # CTC starts so high that the rest would look flat
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    all_axes[0].set_ylabel("loss per token")
    figure.savefig(path)


def plot_cross_attention(
    attention: np.ndarray,
    tokens: Sequence[str],
    frame_s: float,
    path: Path,
    title: str = "",
    word_starts_s: Sequence[tuple[str, float]] = (),
) -> None:
    """Draw which part of the audio each token was read from, and save the picture.

    Args:
        attention: [S, T], rows sum to 1; average or choose layers and heads before.
        tokens: the S tokens, in order.
        frame_s: seconds from one encoder frame to the next; frame t is drawn around `t * frame_s`.
        path: where to save; the ending tells the format.
        title: above the picture.
        word_starts_s: words and the times at which they really start, in seconds, to compare with.

    Raises:
        ValueError: there are not as many tokens as rows.
        FiguresNotInstalledError: matplotlib is missing.
    """
    if attention.ndim != 2 or len(attention) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens need attention of shape [{len(tokens)}, T], got {attention.shape}")
    figure = _figure(width_in=9.0, height_in=1.6 + 0.32 * len(tokens))
    axes = figure.subplots()
    frames = attention.shape[1]
    extent = (-0.5 * frame_s, (frames - 0.5) * frame_s, len(tokens) - 0.5, -0.5)
    image = axes.imshow(attention, aspect="auto", origin="upper", extent=extent, cmap="magma")
    axes.set_xlim(0, (frames - 0.5) * frame_s)
    axes.set_yticks(range(len(tokens)), tokens)
    axes.set_xlabel("audio (s)")
    axes.set_ylabel("decoder output")
    _mark_words(axes, word_starts_s)
    axes.set_title(title, pad=34 if word_starts_s else 8, fontsize=10)
    figure.colorbar(image, label="attention", pad=0.02)
    figure.savefig(path)


def _mark_words(axes: Any, word_starts_s: Sequence[tuple[str, float]]) -> None:
    for word, start_s in word_starts_s:
        axes.axvline(start_s, color="white", linewidth=0.7, linestyle=":")
        axes.text(start_s, -0.7, word, rotation=30, fontsize=7, ha="left", va="bottom")


def _figure(width_in: float, height_in: float) -> Any:
    """A figure of its own, outside of pyplot's global list, so that a caller's windows and backend are left alone."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
