"""Pictures of speech: they show the frames, the tokens and the times they are given, and refuse what does not fit."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from speechgraft.modeling.speech_figures import (
    FiguresNotInstalledError,
    plot_alignment,
    plot_losses,
    plot_spectrogram,
    plot_synthesis,
)

FRAME_S = 0.016


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (figures.append(self), savefig(self, path)))
    return figures


def mel(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, 80)).astype(np.float32) - 3


def test_spectrograms_share_time_and_loudness(drawn, tmp_path):
    plot_spectrogram({"recording": mel(100), "synthesis": mel(60, 1) + 5}, FRAME_S, tmp_path / "a.png")
    recording, synthesis = drawn[0].axes[:2]
    assert (recording.get_title(), synthesis.get_title()) == ("recording", "synthesis")
    assert recording.get_xlim() == synthesis.get_xlim() == (0, pytest.approx(100 * FRAME_S))
    images = [axes.images[0] for axes in (recording, synthesis)]
    assert images[0].get_clim() == images[1].get_clim()
    assert images[0].get_clim()[1] == pytest.approx(float(mel(100).max())), "speech that raves darkens no recording"
    assert images[1].get_extent()[1] == pytest.approx(60 * FRAME_S)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_an_alignment_has_a_row_for_each_token_and_rises_with_time(drawn, tmp_path):
    weights = np.eye(4).repeat(3, axis=0)  # [12, 4]
    plot_alignment(weights, ["h", "i", "\u2581", "</s>"], 2 * FRAME_S, tmp_path / "a.png", "title")
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["h", "i", " ", "</s>"]
    image = axes.images[0]
    assert image.get_array().shape == (4, 12) and image.origin == "lower"
    assert image.get_extent() == [0, pytest.approx(24 * FRAME_S), -0.5, 3.5]


def test_long_texts_are_drawn_in_a_figure_of_bounded_height(drawn, tmp_path):
    tokens = list("abcdefghij") * 40
    plot_synthesis({"synthesis": mel(50)}, np.full((25, 400), 1 / 400), tokens, FRAME_S, 0.032, tmp_path / "a.png")
    assert drawn[0].get_figheight() < 12
    assert len(drawn[0].axes[1].get_yticks()) <= 120


def test_what_does_not_fit_is_refused(tmp_path):
    path = Path(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"3 tokens need weights of shape \[N, 3\], got \[5, 2\]"):
        plot_alignment(np.zeros((5, 2)), ["a", "b", "c"], 0.1, path)
    with pytest.raises(ValueError, match=r"mel: a spectrogram is \[T, M\], got shape \[5\]"):
        plot_spectrogram({"mel": np.zeros(5)}, 0.1, path)
    with pytest.raises(ValueError, match="no spectrogram"):
        plot_spectrogram({}, 0.1, path)


def test_without_matplotlib_the_package_to_install_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FiguresNotInstalledError, match=r"speechgraft\[plot\]"):
        plot_spectrogram({"mel": mel(3)}, 0.1, tmp_path / "a.png")


def test_the_axis_of_losses_claims_no_unit_that_some_of_them_lack(drawn, tmp_path):
    plot_losses({"one": {"mel loss": [(1, 2.0), (2, 1.0)]}, "two": {"loss": [(1, 1.0)]}}, tmp_path / "a.png")
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["loss", ""]
