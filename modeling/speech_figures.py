"""Pictures of a speech model: how its losses fell, which audio it listened to for each word, what it says and reads.

matplotlib is optional and imported when a picture is drawn; nothing here needs a display.

Shapes: `S` text tokens, `T` frames of an encoder or a spectrogram, `M` mel bins, `N` decoder steps.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INSTALL_HINT = 'pip install "speechgraft[plot]"'

CURVES_WITH_ROOM_FOR_NAMES = 3  # in a panel, among the lines

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
        panels: title of a run to its curves, each under the name of its loss. What is called "validation" and the name
            of another curve is drawn as that one's dashes.
        path: where to save; the ending tells the format.

    Raises:
        FiguresNotInstalledError: matplotlib is missing.
    """
    many = max((len(curves) for curves in panels.values()), default=0) > CURVES_WITH_ROOM_FOR_NAMES
    figure = _figure(width_in=(6.4 if many else 4.2) * len(panels), height_in=3.4)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        colours = {name: f"C{place}" for place, name in enumerate(sorted({_trained(name) for name in curves}))}
        for name, curve in sorted(curves.items(), key=lambda pair: (_trained(pair[0]), pair[0])):
            style = {"color": colours[_trained(name)], "linestyle": "-" if _trained(name) == name else "--"}
            axes.plot([step for step, _ in curve], [loss for _, loss in curve], label=name, **style)
        axes.set_title(title)
        axes.set_xlabel("optimiser step")
        axes.set_yscale("log")  # CTC starts so high that the rest would look flat
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, **({"loc": "upper left", "bbox_to_anchor": (1, 1)} if many else {}))
    all_axes[0].set_ylabel("loss")
    figure.savefig(path)


def _trained(name: str) -> str:
    return name.removeprefix("validation ")


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


def plot_spectrogram(spectrograms: Mapping[str, np.ndarray], frame_s: float, path: Path) -> None:
    """Draw spectrograms below each other, on one scale of time and loudness, and save the picture.

    Args:
        spectrograms: title to log-mel [T, M]; their lengths may differ. The first sets the scale of loudness.
        frame_s: seconds from one frame to the next.
        path: where to save; the ending tells the format.

    Raises:
        ValueError: there is nothing to draw, or a spectrogram has another shape.
        FiguresNotInstalledError: matplotlib is missing.
    """
    _check_spectrograms(spectrograms)
    figure = _figure(width_in=9.0, height_in=2.3 * len(spectrograms) + 0.4)
    all_axes = figure.subplots(len(spectrograms), 1, squeeze=False, sharex=True)[:, 0]
    _draw_spectrograms(figure, all_axes, spectrograms, frame_s)
    figure.savefig(path)


def plot_alignment(weights: np.ndarray, tokens: Sequence[str], step_s: float, path: Path, title: str = "") -> None:
    """Draw which token speech was read from at each moment, and save the picture.

    Args:
        weights: [N, S], of one attention head; rows sum to 1.
        tokens: the S tokens.
        step_s: seconds of a decoder step.
        path: where to save; the ending tells the format.
        title: above the picture.

    Raises:
        ValueError: there are not as many tokens as columns.
        FiguresNotInstalledError: matplotlib is missing.
    """
    _check_alignment(weights, tokens)
    figure = _figure(width_in=9.0, height_in=_alignment_height_in(tokens))
    axes = figure.subplots()
    _draw_alignment(figure, axes, weights, tokens, step_s)
    axes.set_title(title, fontsize=10)
    figure.savefig(path)


def plot_synthesis(
    spectrograms: Mapping[str, np.ndarray],
    weights: np.ndarray,
    tokens: Sequence[str],
    frame_s: float,
    step_s: float,
    path: Path,
    title: str = "",
) -> None:
    """Draw spectrograms and below them an alignment, on one scale of time; see `plot_spectrogram`, `plot_alignment`.

    Raises:
        ValueError: a shape is wrong.
        FiguresNotInstalledError: matplotlib is missing.
    """
    _check_spectrograms(spectrograms)
    _check_alignment(weights, tokens)
    heights = [2.1] * len(spectrograms) + [_alignment_height_in(tokens)]
    figure = _figure(width_in=9.0, height_in=sum(heights) + 0.4)
    ratios = {"height_ratios": heights}
    *upper, lower = figure.subplots(len(heights), 1, sharex=True, gridspec_kw=ratios)
    _draw_spectrograms(figure, upper, spectrograms, frame_s)
    _draw_alignment(figure, lower, weights, tokens, step_s)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)


QUIETEST = 4.0  # decades below the loudest: 80 dB
LABELLED_TOKENS = 120  # of more, only some are named


def _check_spectrograms(spectrograms: Mapping[str, np.ndarray]) -> None:
    if not spectrograms:
        raise ValueError("there is no spectrogram to draw")
    for name, one in spectrograms.items():
        if one.ndim != 2 or not one.size:
            raise ValueError(f"{name}: a spectrogram is [T, M], got shape {list(one.shape)}")


def _draw_spectrograms(
    figure: Any, all_axes: Sequence[Any], spectrograms: Mapping[str, np.ndarray], frame_s: float
) -> None:
    loudest = float(next(iter(spectrograms.values())).max())  # a model that raves must not darken the recording
    longest_s = max(len(one) for one in spectrograms.values()) * frame_s
    for axes, (name, one) in zip(all_axes, spectrograms.items(), strict=True):
        extent = (0, len(one) * frame_s, -0.5, one.shape[1] - 0.5)
        image = axes.imshow(
            one.T, aspect="auto", origin="lower", extent=extent, cmap="magma", vmin=loudest - QUIETEST, vmax=loudest
        )
        axes.set_xlim(0, longest_s)
        axes.set_ylabel("mel bin")
        axes.set_title(name, fontsize=10)
    all_axes[-1].set_xlabel("time (s)")
    figure.colorbar(image, ax=list(all_axes), label="log10 magnitude", pad=0.02)


def _check_alignment(weights: np.ndarray, tokens: Sequence[str]) -> None:
    if weights.ndim != 2 or weights.shape[1] != len(tokens):
        raise ValueError(f"{len(tokens)} tokens need weights of shape [N, {len(tokens)}], got {list(weights.shape)}")


def _alignment_height_in(tokens: Sequence[str]) -> float:
    return 1.2 + min(0.13 * len(tokens), 6.5)


def _draw_alignment(figure: Any, axes: Any, weights: np.ndarray, tokens: Sequence[str], step_s: float) -> None:
    extent = (0, len(weights) * step_s, -0.5, len(tokens) - 0.5)
    image = axes.imshow(weights.T, aspect="auto", origin="lower", extent=extent, cmap="magma", vmin=0)
    every = -(-len(tokens) // LABELLED_TOKENS)
    shown = [token.replace("\u2581", " ").replace("\u0120", " ") for token in tokens][::every]
    axes.set_yticks(range(0, len(tokens), every), shown, fontsize=6)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("text")
    figure.colorbar(image, ax=axes, label="attention", pad=0.02)


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
