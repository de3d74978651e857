"""How good transcripts are and how fast they come: error rates for `Trainer`, a table of utterances, RTFx."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .processing_speech_seq2seq import IGNORED_LABEL, SpeechSeq2SeqProcessor
from .text_normalization import Normalizer, get_normalizer
from .transcription_errors import ErrorCounts, count_errors, pooled_errors
from .translation_scores import bleu, chrf

ERROR_RATES, TRANSLATION_SCORES = ("wer", "cer"), ("bleu", "chrf")


def make_compute_metrics(
    processor: SpeechSeq2SeqProcessor,
    normalizer: str | Normalizer | None = None,
    metrics: Sequence[str] = ERROR_RATES,
) -> Callable[[Any], dict[str, float]]:
    """The `compute_metrics` of a `Seq2SeqTrainer` with `predict_with_generate=True`.

    Args:
        processor: decodes predictions and labels, without special tokens.
        normalizer: applied to both before errors are counted: "basic" (None), "english", "none" or a function.
        metrics: what to measure: "wer" and "cer" for transcripts, "bleu" and "chrf" for translations.

    Returns:
        A function from `EvalPrediction` to these metrics: error rates as fractions pooled over the evaluation set;
        BLEU and chrF from 0 to 100, of the texts as they are.

    Raises:
        ValueError: a metric is unknown.
        ImportError: BLEU or chrF is asked for, and sacrebleu is not installed.
    """
    normalize = get_normalizer(normalizer)
    if unknown := [metric for metric in metrics if metric not in (*ERROR_RATES, *TRANSLATION_SCORES)]:
        raise ValueError(f"metrics are some of {', '.join((*ERROR_RATES, *TRANSLATION_SCORES))}, not {unknown[0]!r}")
    if set(metrics) & set(TRANSLATION_SCORES):
        bleu([""], [""])  # what is missing is told now, not at the end of an epoch

    def compute_metrics(prediction: Any) -> dict[str, float]:
        hypotheses = decode_token_ids(processor, prediction.predictions)
        references = decode_token_ids(processor, prediction.label_ids)
        found = {}
        if set(metrics) & set(ERROR_RATES):
            found |= error_rates([*map(normalize, references)], [*map(normalize, hypotheses)])
        if set(metrics) & set(TRANSLATION_SCORES):
            found |= translation_scores(references, hypotheses)
        return {metric: found[metric] for metric in metrics}

    return compute_metrics


def translation_scores(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """`{"bleu", "chrf"}`: both from 0 to 100, over all texts together.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    return {"bleu": bleu(references, hypotheses), "chrf": chrf(references, hypotheses)}


def decode_token_ids(processor: SpeechSeq2SeqProcessor, token_ids: Any) -> list[str]:
    """Token ids `[B, S]` as Trainer collects them, padded with -100, to texts.

    Raises:
        ValueError: they are logits, because Trainer did not generate.
    """
    if isinstance(token_ids, tuple):
        token_ids = token_ids[0]
    token_ids = np.asarray(token_ids)
    if token_ids.ndim != 2 or token_ids.dtype.kind not in "iu":
        raise ValueError(
            f"token ids [B, S] are expected, not {token_ids.dtype} {list(token_ids.shape)}:"
            " use Seq2SeqTrainer with predict_with_generate=True"
        )
    pad_token_id = processor.tokenizer.pad_token_id
    padding = processor.end_token_id if pad_token_id is None else pad_token_id
    token_ids = np.where(token_ids == IGNORED_LABEL, padding, token_ids)
    return processor.batch_decode(token_ids, skip_special_tokens=True)


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """`{"wer", "cer"}`: pooled word and character error rate, as fractions."""
    return {
        "wer": pooled_errors(references, hypotheses).rate,
        "cer": pooled_errors(references, hypotheses, unit="character").rate,
    }


@dataclass(frozen=True)
class UtteranceErrors:
    """One line of the table of utterances; `words` counts the errors."""

    name: str
    reference: str
    hypothesis: str
    words: ErrorCounts


def utterance_errors(
    references: Sequence[str],
    hypotheses: Sequence[str],
    names: Sequence[str] | None = None,
    normalizer: str | Normalizer | None = None,
) -> list[UtteranceErrors]:
    """Word errors of each utterance, in the order given. `names` are file names, say; numbers by default."""
    normalize = get_normalizer(normalizer)
    names = [str(index) for index in range(len(references))] if names is None else names
    rows = []
    for name, reference, hypothesis in zip(names, references, hypotheses, strict=True):
        reference, hypothesis = normalize(reference), normalize(hypothesis)
        rows.append(UtteranceErrors(name, reference, hypothesis, count_errors(reference, hypothesis)))
    return rows


def worst_utterances(rows: Iterable[UtteranceErrors], count: int = 10) -> list[UtteranceErrors]:
    """The utterances with errors that have the most of them, those with the higher rate first among equals."""
    wrong = [row for row in rows if row.words.errors]
    return sorted(wrong, key=lambda row: (-row.words.errors, -row.words.rate, row.name))[:count]


def format_utterances(rows: Iterable[UtteranceErrors]) -> str:
    """A table for the terminal: errors, their kinds, the rate, and under it what was said and what was recognised."""
    lines = ["errors  sub  del  ins     WER  utterance"]
    for row in rows:
        words = row.words
        kinds = f"{words.substitutions:>5}{words.deletions:>5}{words.insertions:>5}"
        lines.append(f"{words.errors:>6}{kinds}{words.rate:>8.1%}  {row.name}")
        lines.append(f"        said:  {row.reference}")
        lines.append(f"        heard: {row.hypothesis}")
    return "\n".join(lines)


def error_breakdown(rows: Iterable[UtteranceErrors]) -> Mapping[str, float]:
    """All utterances' word errors together: `wer`, the counts of each kind, and the number of reference words."""
    total = sum((row.words for row in rows), start=ErrorCounts())
    return {
        "wer": total.rate,
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "reference_words": total.reference_length,
    }


class RealTimeFactor:
    """RTFx: seconds of audio transcribed per second of waiting, from the waveform to the text.

    The sum over all recordings of their duration, divided by the sum of the time spent: as the Open ASR leaderboard
    counts, not a mean of ratios.

    ```python
    speed = RealTimeFactor()
    for waveform in waveforms:
        with speed.measure(len(waveform) / 16_000):
            transcribe(waveform)
    speed.rtfx
    ```
    """

    def __init__(self) -> None:
        self.audio_s = 0.0
        self.wall_s = 0.0

    @contextmanager
    def measure(self, audio_s: float) -> Iterator[None]:
        """Time the block, which transcribes `audio_s` seconds of audio. A block that raises is not counted."""
        start = time.perf_counter()
        yield
        self.add(audio_s, time.perf_counter() - start)

    def add(self, audio_s: float, wall_s: float) -> None:
        """Count `audio_s` seconds of audio that took `wall_s` seconds."""
        self.audio_s += audio_s
        self.wall_s += wall_s

    @property
    def rtfx(self) -> float:
        """Audio seconds per wall second; 0 before anything was measured."""
        return self.audio_s / self.wall_s if self.wall_s else 0.0
