"""Many recordings through a model: read, batched by length, transcribed, in the order given; bad ones are told."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..modeling.long_audio import LongAudioTranscriber, Transcription, TranscriptionOptions
from ..modeling.quick_inference import quick_inference
from ..modeling.speech_timestamps import score_texts
from ..processing.audio_files import AudioError, audio_duration_s, load_audio
from ..processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor
from ..processing.speech_metrics import RealTimeFactor
from .common import CommandError

BATCHES_READ_AHEAD = 8  # among which recordings are sorted by length, so that a batch has little padding


@dataclass(frozen=True)
class Recording:
    """What to transcribe.

    Attributes:
        name: how messages and results call it, usually its path.
        audio: anything that `load_audio` takes.
        reference: what was said, where that is known.
        fault: why it cannot be used, where that is known before it is read.
    """

    name: str
    audio: Any = None
    reference: str = ""
    fault: str | None = None


@dataclass(frozen=True)
class Transcript:
    """What was recognised.

    Attributes:
        recording: the one that was transcribed.
        duration_s: of the recording, in seconds.
        texts: the hypotheses, best first; none for a recording with a fault.
        scores: mean log-probability of a token for each text, where asked for.
        transcription: the best text's lines and words, with times and confidence, from a `LongTranscriber`.
        fault: why there is no transcript, in one line that names the recording.
    """

    recording: Recording
    duration_s: float = 0.0
    texts: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    transcription: Transcription | None = None
    fault: str | None = None


@dataclass(frozen=True)
class DecodingOptions:
    """How to transcribe; the commands' help tells the meaning of each.

    `num_beams` and `ctc_weight` None take the model's own setting. `n_best` hypotheses need as many beams.
    `generate_kwargs` are further arguments of `generate()`, or of `generate_masked()`: those of `decoding_arguments`.
    """

    batch_size: int = 8
    num_beams: int | None = None
    n_best: int = 1
    with_scores: bool = False
    max_new_tokens: int | None = None
    max_duration_s: float = 60.0
    ctc_weight: float | None = None
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Transcriber:
    """Transcribes recordings.

    Attributes:
        model: a `SpeechSeq2SeqModel`, in evaluation mode.
        processor: of the model.
        options: how to decode.
        speed: counts the seconds of audio, and those spent from waveforms to texts.
    """

    model: Any
    processor: SpeechSeq2SeqProcessor
    options: DecodingOptions = field(default_factory=DecodingOptions)
    speed: RealTimeFactor = field(default_factory=RealTimeFactor)

    def __call__(self, recordings: Iterable[Recording]) -> Iterator[Transcript]:
        """Transcribe recordings.

        Yields:
            A transcript for each recording, in their order; one that cannot be used has a `fault` and no text.

        Raises:
            CommandError: memory does not suffice for a batch.
        """
        recordings = iter(recordings)
        while some := list(itertools.islice(recordings, BATCHES_READ_AHEAD * self.options.batch_size)):
            yield from self._transcribe_some(some)

    def _transcribe_some(self, recordings: Sequence[Recording]) -> list[Transcript]:
        """Transcribe recordings that fit into memory together, longest first."""
        done: dict[int, Transcript] = {}
        waveforms: dict[int, np.ndarray] = {}
        for index, recording in enumerate(recordings):
            try:
                waveforms[index] = self._read(recording)
            except AudioError as error:
                done[index] = Transcript(recording, fault=str(error))
        by_length = sorted(waveforms, key=lambda index: -len(waveforms[index]))
        for start in range(0, len(by_length), self.options.batch_size):
            batch = by_length[start : start + self.options.batch_size]
            transcribed = self._transcribe_batch([waveforms[index] for index in batch])
            for index, (texts, scores) in zip(batch, transcribed, strict=True):
                duration_s = len(waveforms[index]) / self.processor.sampling_rate
                done[index] = Transcript(recordings[index], duration_s, texts, scores)
        return [done[index] for index in range(len(recordings))]

    def _read(self, recording: Recording) -> np.ndarray:
        """The waveform, unless it is longer than the model can hear at once."""
        if recording.fault is not None:
            raise AudioError(recording.fault)
        rate = self.processor.sampling_rate
        if isinstance(recording.audio, str):  # its header tells the length of an hour before the hour is decoded
            self._check_duration(recording.name, audio_duration_s(recording.audio))
        waveform = load_audio(recording.audio, rate, name=recording.name)
        self._check_duration(recording.name, len(waveform) / rate)
        return waveform

    def _check_duration(self, name: str, duration_s: float) -> None:
        window = self.processor.window_samples
        window_s = float("inf") if window is None else window / self.processor.sampling_rate
        if duration_s > min(window_s, self.options.max_duration_s):
            limit = (
                f"the model hears {window_s:g} s at once"
                if duration_s > window_s
                else f"the limit --max-duration-s is {self.options.max_duration_s:g} s"
            )
            raise AudioError(f"{name}: {duration_s:.1f} s long, but {limit}: cut it into shorter pieces")

    def __post_init__(self) -> None:
        if self.options.ctc_weight and self.model.ctc_head is None:
            raise CommandError(f"--ctc-weight {self.options.ctc_weight:g}: the model was trained without a CTC head")

    def _transcribe_batch(self, waveforms: Sequence[np.ndarray]) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
        rate, n_best = self.processor.sampling_rate, self.options.n_best
        try:
            with self.speed.measure(sum(map(len, waveforms)) / rate):
                inputs = self.processor(audio=list(waveforms), sampling_rate=rate, return_tensors="pt")
                texts, scores = self._generate(inputs.to(self.model.device))
        except torch.OutOfMemoryError as error:
            raise CommandError(
                f"out of memory for {len(waveforms)} recordings of up to {max(map(len, waveforms)) / rate:.1f} s: "
                "give a smaller --batch-size, fewer beams or a smaller --max-duration-s"
            ) from error
        rows = range(0, len(texts), n_best)
        return [(tuple(texts[row : row + n_best]), tuple(scores[row : row + n_best])) for row in rows]

    @torch.inference_mode()
    def _generate(self, inputs: Any) -> tuple[list[str], list[float]]:
        """The texts of B recordings, `n_best` for each, and their scores where asked for."""
        if self.model.config.mask_token_id is not None:
            return self._fill_in(inputs)
        options = self.options
        length = {}
        if options.max_new_tokens is not None:
            prompt = 1 + len(self.model.config.decoder_prompt_token_ids or [])
            length = {"max_length": prompt + options.max_new_tokens}
        chosen = {"num_beams": options.num_beams, "ctc_weight": options.ctc_weight, **options.generate_kwargs}
        search = {name: value for name, value in chosen.items() if value is not None}
        output: Any = self.model.generate(
            **inputs,
            **search,
            **length,
            do_sample=False,
            num_return_sequences=options.n_best,
            tokenizer=self.processor.tokenizer,  # whose tokens a CTC head of characters spells
            return_dict_in_generate=True,
            output_scores=options.with_scores,
        )
        texts = self.processor.batch_decode(output.sequences, skip_special_tokens=True)
        scores = self._scores(output).tolist() if options.with_scores else []
        return [text.strip() for text in texts], scores

    def _fill_in(self, inputs: Any) -> tuple[list[str], list[float]]:
        """As `_generate`, by a decoder that fills in masked tokens."""
        options = self.options
        with quick_inference(self.model):
            encoded = self.model.get_encoder()(**inputs)
        sequences = self.model.generate_masked(
            encoder_outputs=encoded, max_new_tokens=options.max_new_tokens, **options.generate_kwargs
        )
        scored = score_texts(self.model, self.processor.tokenizer, encoded, sequences) if options.with_scores else []
        texts = self.processor.batch_decode(sequences, skip_special_tokens=True)
        return [text.strip() for text in texts], [one.mean_log_prob for one in scored]

    def _scores(self, output: Any) -> torch.Tensor:
        """Mean log-probability of the tokens generated for each sequence, [B * n_best]; the end token counts."""
        if output.get("sequences_scores") is not None:  # beam search ranks by it
            return output.sequences_scores
        scores = self.model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        tokens = output.sequences[:, -scores.shape[1] :]  # [B, S]
        is_end = torch.isin(tokens, torch.tensor(self.model.config.eos_token_id, device=tokens.device)).long()
        heard = is_end.cumsum(dim=1) - is_end == 0  # up to the first end token
        return (scores.masked_fill(~heard, 0).sum(dim=1) / heard.sum(dim=1)).float()


@dataclass
class LongTranscriber:
    """Transcribes recordings of any length, cut at silence, with times and confidence.

    Attributes:
        model: a `SpeechSeq2SeqModel`, in evaluation mode.
        processor: of the model.
        options: how to decode.
        max_duration_s: longer recordings have a fault; None takes them all.
    """

    model: Any
    processor: SpeechSeq2SeqProcessor
    options: TranscriptionOptions = field(default_factory=TranscriptionOptions)
    max_duration_s: float | None = None

    def __call__(self, recordings: Iterable[Recording]) -> Iterator[Transcript]:
        """Transcribe recordings.

        Yields:
            A transcript for each recording, in their order; one that cannot be used has a `fault` and no text.

        Raises:
            CommandError: memory does not suffice for a batch.
        """
        waiting: deque[Recording] = deque()

        def sources() -> Iterator[Iterator[np.ndarray]]:
            for recording in recordings:
                waiting.append(recording)
                yield self._blocks(recording)

        try:
            for found in LongAudioTranscriber(self.model, self.processor, self.options)(sources()):
                yield _transcript(waiting.popleft(), found)
        except torch.OutOfMemoryError as error:
            raise CommandError(
                f"out of memory for {self.options.batch_size} pieces of up to {self.options.max_chunk_s:g} s: give a "
                "smaller --batch-size, fewer beams or a smaller --max-chunk-s"
            ) from error

    def _blocks(self, recording: Recording) -> Iterator[np.ndarray]:
        if recording.fault is not None:
            raise AudioError(recording.fault)
        audio = recording.audio
        is_file = isinstance(audio, str)
        if is_file and self.max_duration_s is not None and (length_s := audio_duration_s(audio)) > self.max_duration_s:
            raise AudioError(
                f"{recording.name}: {length_s:.1f} s long, but the limit --max-duration-s is {self.max_duration_s:g} s"
            )
        rate = self.processor.sampling_rate
        yield from self.processor.audio_blocks(audio if is_file else load_audio(audio, rate, name=recording.name))


def _transcript(recording: Recording, found: Transcription | Exception) -> Transcript:
    if isinstance(found, Exception):
        return Transcript(recording, fault=str(found))
    texts = tuple(hypothesis.text for hypothesis in found.hypotheses) or ("",)
    scores = tuple(hypothesis.score for hypothesis in found.hypotheses) or (0.0,)
    return Transcript(recording, found.duration_s, texts, scores, found)
