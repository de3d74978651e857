"""Texts spoken and compared with their recordings, one by one and together."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from ..processing.audio_files import AudioError, load_audio
from ..processing.speaker_embeddings import SpeakerError
from ..processing.speech_metrics import error_rates, utterance_errors
from ..processing.speech_synthesis_metrics import SynthesisScores, compare_recordings, summarize_scores
from .common import say
from .evaluate_asr import recordings_of
from .synthesis import Speech, Synthesizer, Utterance

Audio = dict[str, Any]  # as `datasets` makes them: array and sampling_rate


@dataclass
class Measures:
    """What is known of one spoken text.

    Attributes:
        file: of the recording.
        text: as it is written.
        duration_s: of the speech.
        mel_cepstral_distortion, duration_ratio, log_f0_rmse, voicing_error, stop_error: see `SynthesisScores`.
        cut_off: whether the model did not come to its end.
        focus_rate: see `SpeechAlignment`, over all sentences.
        tokens_attended: share of the tokens; the others were skipped.
        heard, heard_of_recording: by a recogniser.
        wer: of what was heard of the speech.
        mos, mos_of_recording: predicted opinion scores.
    """

    file: str
    text: str
    duration_s: float
    mel_cepstral_distortion: float
    duration_ratio: float
    log_f0_rmse: float | None
    voicing_error: float | None
    stop_error: str | None
    cut_off: bool
    focus_rate: float
    tokens_attended: float
    heard: str | None = None
    heard_of_recording: str | None = None
    wer: float | None = None
    mos: float | None = None
    mos_of_recording: float | None = None


@dataclass
class Comparison:
    """One text, as it was spoken and as it was recorded.

    Attributes:
        measures: what is known of it.
        speech: with its sentences.
        spoken: the speech's sound.
        recording: the recording's.
    """

    measures: Measures
    speech: Speech
    spoken: Audio
    recording: Audio


@dataclass
class Comparer:
    """Speaks the texts of a data set, and compares.

    Args:
        synthesizer: speaks, with alignments.
        speakers: gives the voice of a row; None for the synthesizer's.
        with_f0: whether melody and voicing are measured.

    Attributes:
        skipped: what could not be used, in a line each.
    """

    synthesizer: Synthesizer
    speakers: Any = None
    with_f0: bool = True
    skipped: list[str] = field(default_factory=list)

    def __call__(self, dataset: Any) -> Iterator[Comparison]:
        """Rows with `audio` and `text`, in their order; those that cannot be used are told and skipped."""
        from tqdm import tqdm

        rate = self.synthesizer.model.config.sampling_rate
        audios: list[Any] = []
        total = len(dataset) if hasattr(dataset, "__len__") else None
        speeches = self.synthesizer(self._utterances(dataset, audios))
        shown = tqdm(speeches, "speaking", total, unit="clip", dynamic_ncols=True, disable=None)
        for index, speech in enumerate(shown):
            audio, audios[index] = audios[index], None
            try:
                if speech.fault is not None:
                    raise AudioError(speech.fault)
                recording = {"array": load_audio(audio, rate, name=speech.utterance.name), "sampling_rate": rate}
            except AudioError as error:
                self.skipped.append(str(error))
                say(f"skipped: {error}")
                continue
            spoken = {"array": speech.waveform, "sampling_rate": rate}
            scores = compare_recordings(spoken, recording, with_f0=self.with_f0)
            yield Comparison(measures_of(speech, scores, rate), speech, spoken, recording)

    def _utterances(self, dataset: Any, audios: list[Any]) -> Iterator[Utterance]:
        """The texts, those that cannot be used with a fault; `audios` gets their recordings."""
        for recording, row in zip(recordings_of(dataset), dataset, strict=True):
            voice, fault = None, recording.fault
            if self.speakers is not None and fault is None:
                try:
                    voice = self.speakers(row)
                except SpeakerError as error:
                    fault = f"{recording.name}: {error}"
            audios.append(recording.audio)
            yield Utterance(recording.name, recording.reference, voice, fault)


def measures_of(speech: Speech, scores: SynthesisScores, sampling_rate: int) -> Measures:
    """What is known of a speech before it is heard by others."""
    alignments = [sentence.alignment for sentence in speech.sentences]
    steps = [len(alignment.weights) for alignment in alignments]
    tokens = [len(alignment.durations) for alignment in alignments]
    return Measures(
        file=speech.utterance.name,
        text=speech.utterance.text,
        duration_s=len(speech.waveform) / sampling_rate,
        **asdict(scores),
        cut_off=bool(speech.cut),
        focus_rate=_weighted_mean([alignment.focus_rate for alignment in alignments], steps),
        tokens_attended=_weighted_mean([alignment.coverage for alignment in alignments], tokens),
    )


def _weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def summarize(rows: Sequence[Measures]) -> dict[str, float]:
    """Means over utterances, and fractions of them."""
    names = [one.name for one in fields(SynthesisScores)]
    summary = summarize_scores(SynthesisScores(**{name: getattr(row, name) for name in names}) for row in rows)
    for name in ("cut_off", "focus_rate", "tokens_attended", "mos", "mos_of_recording"):
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        if values:
            summary[name] = math.fsum(values) / len(values)
    return {**summary, "utterances": len(rows), "speech_s": math.fsum(row.duration_s for row in rows)}


def measure_words(
    rows: Sequence[Measures],
    of_speech: Sequence[str | None],
    of_recordings: Sequence[str | None],
    normalizer: str,
) -> dict[str, float]:
    """Word and character error rates, of all that a recogniser heard both spoken and recorded; rows get their own."""
    heard = [place for place in range(len(rows)) if of_speech[place] is not None and of_recordings[place] is not None]
    texts, summary = [rows[place].text for place in heard], {}
    for kind, hypotheses in (("", of_speech), ("_of_recording", of_recordings)):
        errors = utterance_errors(texts, [str(hypotheses[place]) for place in heard], normalizer=normalizer)
        rates = error_rates([one.reference for one in errors], [one.hypothesis for one in errors])
        summary |= {f"{name}{kind}": rate for name, rate in rates.items()}
        for place, one in zip(heard, errors, strict=True):
            setattr(rows[place], f"heard{kind}", one.hypothesis)
            if not kind:
                rows[place].wer = one.words.rate
    return summary


def joined_alignment(speech: Speech, pause_s: float, sampling_rate: int) -> tuple[np.ndarray, list[int], float]:
    """The alignments of all sentences as one.

    Returns:
        Weights [N, S], where nothing is read during pauses; the tokens [S]; and the seconds of a step.
    """
    alignments = [sentence.alignment.weights.float().cpu().numpy() for sentence in speech.sentences]
    seconds = sum(len(sentence.waveform) for sentence in speech.sentences) / sampling_rate
    step_s = seconds / sum(map(len, alignments))
    pause = round(pause_s / step_s)
    steps = sum(map(len, alignments)) + pause * (len(alignments) - 1)
    joined = np.zeros((steps, sum(one.shape[1] for one in alignments)), np.float32)
    step = token = 0
    for one in alignments:
        joined[step : step + one.shape[0], token : token + one.shape[1]] = one
        step, token = step + one.shape[0] + pause, token + one.shape[1]
    return joined, [i for sentence in speech.sentences for i in sentence.input_ids], step_s
