"""The measures of synthesised speech are what their definitions say."""

import math

import numpy as np
import pytest
from test_mel_spectrograms import speechlike

from speechgraft.processing.audio_files import AudioError
from speechgraft.processing.mel_spectrograms import MelSettings, extract_log_mel
from speechgraft.processing.speech_synthesis_metrics import (
    SynthesisScores,
    compare_recordings,
    dtw_path,
    f0_contour,
    f0_errors,
    mel_cepstra,
    mel_cepstral_distortion,
    stop_error,
    stop_error_rates,
    summarize_scores,
)

RATE = 16_000
RNG = np.random.default_rng(0)


def least_cost(costs: np.ndarray, row: int = 0, column: int = 0) -> float:
    """By trying every path."""
    if (row, column) == (costs.shape[0] - 1, costs.shape[1] - 1):
        return costs[row, column]
    steps = [(row + 1, column), (row, column + 1), (row + 1, column + 1)]
    inside = [at for at in steps if at[0] < costs.shape[0] and at[1] < costs.shape[1]]
    return costs[row, column] + min(least_cost(costs, *at) for at in inside)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 4), (3, 6), (6, 5)])
def test_alignment_is_the_best_of_all(shape):
    for _ in range(5):
        costs = RNG.random(shape)
        path = dtw_path(costs)
        assert path[0].tolist() == [0, 0] and path[-1].tolist() == [shape[0] - 1, shape[1] - 1]
        assert all(step in ([0, 1], [1, 0], [1, 1]) for step in np.diff(path, axis=0).tolist())
        assert costs[tuple(path.T)].sum() == pytest.approx(least_cost(costs))


def test_distortion_of_one_ripple_is_what_one_computes_by_hand():
    """A ripple of amplitude a in log10 differs by 20a dB at its peaks, so by 20a/√2 dB in the root mean square."""
    n_mel_bins, amplitude = 80, 0.3
    omega = math.pi * (np.arange(n_mel_bins) + 0.5) / n_mel_bins
    flat = np.full((3, n_mel_bins), -2.0)
    for order in (1, 5, 13):
        rippled = flat + amplitude * np.cos(order * omega)
        assert mel_cepstra(rippled, 13)[0, order - 1] == pytest.approx(amplitude * math.log(10))
        assert mel_cepstral_distortion(rippled, flat, 13)[0] == pytest.approx(20 * amplitude / math.sqrt(2))
        constant = 10 / math.log(10) * math.sqrt(2)
        assert mel_cepstral_distortion(rippled, flat, 13)[0] == pytest.approx(constant * amplitude * math.log(10))
    assert mel_cepstral_distortion(flat + amplitude * np.cos(14 * omega), flat, 13)[0] == pytest.approx(0, abs=1e-9)


def test_with_every_coefficient_it_is_the_difference_of_the_spectra():
    """Parseval: the root mean square difference in dB over the mel axis, without its mean."""
    first, second = RNG.normal(size=(2, 1, 80))
    difference = 20 * (first - second)[0]
    difference = difference - difference.mean()
    all_but_last = mel_cepstral_distortion(first, second, 79)[0]
    assert all_but_last == pytest.approx(math.sqrt((difference**2).mean()))


def test_loudness_and_tempo_cost_nothing():
    mel = extract_log_mel(speechlike(0.5))
    assert mel_cepstral_distortion(mel, mel)[0] == 0
    assert mel_cepstral_distortion(mel + 0.5, mel)[0] == pytest.approx(0, abs=1e-5)
    distortion, path = mel_cepstral_distortion(np.repeat(mel, 3, axis=0), mel)
    assert distortion == 0 and len(path) == 3 * len(mel)


def test_distortion_is_symmetric_and_grows_with_the_difference():
    audio, noise = speechlike(0.4), RNG.normal(0, 1, round(0.4 * RATE)).astype(np.float32)
    mels = [extract_log_mel(audio + level * noise) for level in (0, 0.01, 0.1)]
    little, much = (mel_cepstral_distortion(mels[0], mel)[0] for mel in mels[1:])
    assert 0 < little < much
    assert mel_cepstral_distortion(mels[1], mels[0])[0] == pytest.approx(little)
    assert mel_cepstral_distortion(mels[0], mels[1], 24)[0] > little


@pytest.mark.parametrize(
    ("first", "second", "options", "problem"),
    [
        (np.zeros((0, 80)), np.zeros((1, 80)), {}, r"synthesis: a finite log-mel .* shape \[0, 80\]"),
        (np.zeros((1, 80)), np.full((1, 80), np.nan), {}, "recording: a finite log-mel spectrogram"),
        (np.zeros((1, 80)), np.zeros((1, 40)), {}, "80 and 40 mel bins cannot be compared"),
        (np.zeros((1, 80)), np.zeros((1, 80)), {"n_coefficients": 80}, "n_coefficients must be from 1 to 79, got 80"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, options, problem):
    with pytest.raises(ValueError, match=problem):
        mel_cepstral_distortion(first, second, **options)


def test_f0_errors_by_hand():
    first = np.array([100, 200, np.nan, 110, np.nan])
    second = np.array([100, 100, 100, np.nan, np.nan])
    error, voicing = f0_errors(first, second)
    assert error == pytest.approx(math.log(2) / math.sqrt(2)) and voicing == pytest.approx(2 / 5)
    error, voicing = f0_errors(np.array([np.nan]), np.array([90.0]))
    assert math.isnan(error) and voicing == 1


def voice(f0: float, duration_s: float = 0.6) -> np.ndarray:
    """Harmonics between two stretches of near silence."""
    t = np.arange(round(duration_s * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * f0 * k * t) / k for k in range(1, 10))
    quiet = RNG.normal(0, 1e-4, round(0.2 * RATE))
    return np.concatenate([quiet, 0.2 * tone, quiet]).astype(np.float32)


def test_the_fundamental_frequency_of_a_voice_is_found():
    pytest.importorskip("librosa")
    for settings in (MelSettings(), MelSettings(hop_length=200)):
        contour = f0_contour(voice(120), settings)
        assert len(contour) == settings.n_frames(RATE)
        assert np.nanmedian(contour) == pytest.approx(120, rel=0.01)
        assert np.isnan(contour[:5]).all() and np.mean(~np.isnan(contour)) == pytest.approx(0.6, abs=0.1)


def test_recordings_are_compared_as_a_whole():
    pytest.importorskip("librosa")
    same = compare_recordings(voice(120), voice(120))
    assert same.mel_cepstral_distortion < 2 and same.duration_ratio == 1 and same.stop_error is None
    assert same.log_f0_rmse == pytest.approx(0, abs=0.01)
    assert same.voicing_error is not None and same.voicing_error < 0.1
    higher = compare_recordings(voice(132, 1.5), {"array": voice(120), "sampling_rate": RATE})
    assert higher.log_f0_rmse == pytest.approx(math.log(1.1), abs=0.02)
    assert higher.duration_ratio == pytest.approx(1.9) and higher.stop_error is None


def test_digital_silence_is_not_worse_than_a_quiet_room():
    room = RNG.normal(0, 1e-6, 2 * RATE).astype(np.float32)
    speech = np.pad(speechlike(1.0), (RATE // 2, RATE // 2))
    assert compare_recordings(speech, speech + room, with_f0=False).mel_cepstral_distortion < 0.5


def test_without_the_fundamental_frequency_librosa_is_not_needed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "librosa", None)
    scores = compare_recordings(speechlike(0.1), speechlike(0.3), with_f0=False)
    assert scores.log_f0_rmse is None and scores.stop_error == "too short"
    with pytest.raises(ImportError, match=r"pip install speechgraft\[evaluation\]"):
        compare_recordings(speechlike(0.1), speechlike(0.3))
    with pytest.raises(AudioError, match="empty audio"):
        compare_recordings(np.zeros(0), speechlike(0.3))


def test_speech_that_stops_too_early_or_never_is_counted():
    assert [stop_error(ratio) for ratio in (0.1, 0.5, 1, 2, 2.1)] == ["too short", None, None, None, "too long"]
    assert stop_error_rates([1, 0.1, 9, 1.2], [1, 1, 1, 1]) == {"too_short": 0.25, "too_long": 0.25}
    assert stop_error_rates([], []) == {"too_short": 0, "too_long": 0}


def test_a_summary_is_means_over_what_was_measured():
    scores = [
        SynthesisScores(4.0, 1.0, 0.1, 0.2),
        SynthesisScores(6.0, 0.2, math.nan, 0.4, "too short"),
        SynthesisScores(8.0, 1.2),
    ]
    assert summarize_scores(scores) == pytest.approx(
        {
            "mel_cepstral_distortion": 6.0,
            "log_f0_rmse": 0.1,
            "voicing_error": 0.3,
            "duration_ratio": 0.8,
            "too_short": 1 / 3,
            "too_long": 0.0,
        }
    )
    assert "log_f0_rmse" not in summarize_scores(scores[2:])
    with pytest.raises(ValueError, match="no utterances"):
        summarize_scores([])
