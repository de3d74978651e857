"""How far synthesised speech is from a recording of the same text: spectrum, melody, voicing, length.

All of it compares with one reading of many possible ones, so it ranks models on the same sentences; it does not say
how natural they sound. Synthesis and recording are aligned by dynamic time warping first.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .audio_files import load_audio, source_name
from .mel_spectrograms import MelSettings, extract_log_mel

DECIBEL_PER_NEPER = 20 / math.log(10)  # of amplitudes, whose natural logarithm the cepstra are of
N_COEFFICIENTS = 13  # as in most publications; 24 is the other custom
LOWEST_F0, HIGHEST_F0 = 60.0, 500.0  # Hz, of speaking voices
AUDIBLE_RANGE = 4.0  # decades below a recording's peak, 80 dB: what is softer is noise, or digital silence
TOO_SHORT, TOO_LONG = 0.5, 2.0  # times the recording's length; readers differ by less


@dataclass(frozen=True)
class SynthesisScores:
    """One synthesised utterance beside its recording.

    Args:
        mel_cepstral_distortion: in dB.
        duration_ratio: length of the synthesis divided by the recording's.
        log_f0_rmse: root mean square difference of the natural logarithm of the fundamental frequency where both are
            voiced (0.0578 is a semitone); NaN where that is nowhere, None where it was not measured.
        voicing_error: fraction of aligned frames of which one is voiced and the other is not; None likewise.
        stop_error: "too short", "too long" or None.
    """

    mel_cepstral_distortion: float
    duration_ratio: float
    log_f0_rmse: float | None = None
    voicing_error: float | None = None
    stop_error: str | None = None


def compare_recordings(
    synthesis: Any,
    recording: Any,
    settings: MelSettings | None = None,
    n_coefficients: int = N_COEFFICIENTS,
    with_f0: bool = True,
) -> SynthesisScores:
    """Measure one synthesised utterance against a recording of the same text.

    Args:
        synthesis: anything `load_audio` takes, a bare waveform having the settings' sampling rate.
        recording: likewise.
        settings: of the spectrograms; SpeechT5's by default.
        n_coefficients: of the mel cepstra, without the first, which is the loudness.
        with_f0: whether the fundamental frequency is compared too, which takes longer and needs librosa.

    Raises:
        AudioError: empty or broken audio.
        ImportError: librosa is not installed.
    """
    settings = settings or MelSettings()
    waveforms = [load_audio(one, settings.sampling_rate, name=source_name(one)) for one in (synthesis, recording)]
    spectrograms = [extract_log_mel(waveform, settings) for waveform in waveforms]
    spectrograms = [np.maximum(one, one.max() - AUDIBLE_RANGE) for one in spectrograms]
    distortion, path = mel_cepstral_distortion(*spectrograms, n_coefficients=n_coefficients)
    ratio = len(waveforms[0]) / len(waveforms[1])
    scores = {"mel_cepstral_distortion": distortion, "duration_ratio": ratio, "stop_error": stop_error(ratio)}
    if with_f0:
        contours = [f0_contour(waveform, settings) for waveform in waveforms]
        error, voicing = f0_errors(*(contour[steps] for contour, steps in zip(contours, path.T, strict=True)))
        scores.update(log_f0_rmse=error, voicing_error=voicing)
    return SynthesisScores(**scores)


def summarize_scores(scores: Iterable[SynthesisScores]) -> dict[str, float]:
    """Means over utterances, and the fractions that stopped too early or too late.

    Raises:
        ValueError: there are no utterances.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("no utterances to summarize")
    summary = {}
    for name in ("mel_cepstral_distortion", "log_f0_rmse", "voicing_error", "duration_ratio"):
        values = [value for one in scores if (value := getattr(one, name)) is not None and not math.isnan(value)]
        if values:
            summary[name] = math.fsum(values) / len(values)
    for problem in ("too short", "too long"):
        summary[problem.replace(" ", "_")] = sum(one.stop_error == problem for one in scores) / len(scores)
    return summary


def mel_cepstra(log_mel: np.ndarray, n_coefficients: int = N_COEFFICIENTS) -> np.ndarray:
    """The shape of a spectrum, without its loudness.

    Args:
        log_mel: `[T, M]`, base-10 logarithms of mel magnitudes.
        n_coefficients: how many, below M.

    Returns:
        `[T, n_coefficients]`: c₁, c₂, … of ln|H| = c₀ + Σ cₘ cos(mω) on the mel axis, as SPTK defines mel cepstra.
    """
    n_mel_bins = log_mel.shape[1]
    if not 1 <= n_coefficients < n_mel_bins:
        raise ValueError(f"n_coefficients must be from 1 to {n_mel_bins - 1}, got {n_coefficients}")
    frequencies = math.pi * (np.arange(n_mel_bins) + 0.5) / n_mel_bins
    cosines = np.cos(np.outer(frequencies, np.arange(1, n_coefficients + 1)))  # [M, n_coefficients]
    return math.log(10) * log_mel.astype(np.float64) @ cosines * (2 / n_mel_bins)


def mel_cepstral_distortion(
    synthesis: np.ndarray, recording: np.ndarray, n_coefficients: int = N_COEFFICIENTS
) -> tuple[float, np.ndarray]:
    """Mel-cepstral distortion (Kubichek 1993) after alignment.

    (10 / ln 10) · √(2 Σₘ (cₘ − c′ₘ)²), c₀ left out, is the root mean square difference of two smoothed spectra in dB;
    it is averaged over the pairs of frames that dynamic time warping aligns. Numbers compare only under the same mel
    filters, number of coefficients and alignment.

    Args:
        synthesis: log-mel spectrogram `[T, M]`.
        recording: log-mel spectrogram `[T', M]`.
        n_coefficients: of the cepstra.

    Returns:
        The distortion in dB, and the alignment `[pairs, 2]`.

    Raises:
        ValueError: a spectrogram is empty or has NaN values, or their mel bins differ.
    """
    for name, one in (("synthesis", synthesis), ("recording", recording)):
        if one.ndim != 2 or not len(one) or not np.isfinite(one).all():
            raise ValueError(f"{name}: a finite log-mel spectrogram [T, M] is expected, got shape {list(one.shape)}")
    if synthesis.shape[1] != recording.shape[1]:
        raise ValueError(f"{synthesis.shape[1]} and {recording.shape[1]} mel bins cannot be compared")
    first, second = (mel_cepstra(one, n_coefficients) for one in (synthesis, recording))
    distances = np.sqrt(_squared_distances(first, second) / 2) * DECIBEL_PER_NEPER
    path = dtw_path(distances)
    return float(distances[path[:, 0], path[:, 1]].mean()), path


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`[T, T']` from `[T, D]` and `[T', D]`, row by row: exactly zero for equal frames, unlike by a product."""
    return np.stack([((row - second) ** 2).sum(-1) for row in first])


def dtw_path(costs: np.ndarray) -> np.ndarray:
    """The alignment of two sequences with the least total cost, from both beginnings to both ends.

    Args:
        costs: `[T, T']`, of each pair; a path goes on in one sequence, the other, or both.

    Returns:
        int64 `[pairs, 2]`, in order.
    """
    n_rows, n_columns = costs.shape
    totals = np.full((n_rows + 1, n_columns + 1), np.inf)
    totals[0, 0] = 0
    for diagonal in range(n_rows + n_columns - 1):  # its cells depend on the two before it, and not on each other
        rows = np.arange(max(0, diagonal - n_columns + 1), min(n_rows, diagonal + 1))
        columns = diagonal - rows
        before = np.minimum(totals[rows, columns + 1], totals[rows + 1, columns])
        totals[rows + 1, columns + 1] = costs[rows, columns] + np.minimum(before, totals[rows, columns])
    pairs = [(n_rows, n_columns)]
    while pairs[-1] != (1, 1):
        row, column = pairs[-1]
        pairs.append(min([(row - 1, column - 1), (row - 1, column), (row, column - 1)], key=lambda at: totals[at]))
    return np.array(pairs[::-1], dtype=np.int64) - 1


def f0_contour(waveform: np.ndarray, settings: MelSettings | None = None) -> np.ndarray:
    """The fundamental frequency at every frame of the spectrogram, by pYIN (Mauch and Dixon 2014) of librosa.

    Args:
        waveform: `[samples]` of the settings' sampling rate.
        settings: of the spectrogram whose frames are wanted.

    Returns:
        float64 `[T]` in Hz, NaN where the frame is not voiced.

    Raises:
        ImportError: librosa is not installed.
    """
    try:
        import librosa
    except ImportError as error:
        raise ImportError("The fundamental frequency needs librosa: pip install speechgraft[evaluation]") from error
    settings = settings or MelSettings()
    frame_length = 2 ** math.ceil(math.log2(3 * settings.sampling_rate / LOWEST_F0))  # three of the longest periods
    contour, _, _ = librosa.pyin(
        np.asarray(waveform, dtype=np.float64),
        fmin=LOWEST_F0,
        fmax=HIGHEST_F0,
        sr=settings.sampling_rate,
        frame_length=frame_length,
        hop_length=settings.hop_length,
    )
    return contour


def f0_errors(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """How much two contours differ, frame by frame.

    Args:
        first: Hz `[pairs]`, NaN where not voiced.
        second: the same, aligned with it.

    Returns:
        Root mean square difference of the natural logarithms where both are voiced (NaN where that is nowhere), and
        the fraction of frames of which only one is voiced.
    """
    voiced = ~np.isnan(first), ~np.isnan(second)
    both = voiced[0] & voiced[1]
    error = math.nan
    if both.any():
        error = float(np.sqrt(np.mean((np.log(first[both]) - np.log(second[both])) ** 2)))
    return error, float(np.mean(voiced[0] != voiced[1]))


def stop_error(duration_ratio: float, shortest: float = TOO_SHORT, longest: float = TOO_LONG) -> str | None:
    """Whether speech stopped at the wrong time, from its length divided by the recording's.

    Returns:
        "too short" below `shortest`, "too long" above `longest`, else None.
    """
    if duration_ratio < shortest:
        return "too short"
    return "too long" if duration_ratio > longest else None


def stop_error_rates(durations_s: Sequence[float], references_s: Sequence[float]) -> dict[str, float]:
    """Fractions of utterances that are too short and too long, where only lengths are known.

    Args:
        durations_s: of the syntheses, in seconds.
        references_s: of the recordings, in the same order.
    """
    errors = [stop_error(mine / reference) for mine, reference in zip(durations_s, references_s, strict=True)]
    n = max(1, len(errors))
    return {"too_short": errors.count("too short") / n, "too_long": errors.count("too long") / n}
