"""Many texts through a model: cut into sentences, batched by length, spoken, in the order given; bad ones are told."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..modeling.spectrogram_writing import row_generators
from ..processing.processing_text_to_spectrogram import TextToSpectrogramProcessor, pad_token_ids
from ..processing.speech_metrics import RealTimeFactor
from .common import CommandError, explained, one_line, say, without_warnings

BATCHES_READ_AHEAD = 8  # among which sentences are sorted by length, so that a batch has little padding
SHOWN_CHARACTERS = 60  # of a text in a message


@dataclass(frozen=True)
class Utterance:
    """What to say.

    Attributes:
        name: how messages and results call it.
        text: of any length.
        speaker: its own voice, [V]; None for that of the options.
        fault: why it cannot be spoken, where that is known before it is read.
    """

    name: str
    text: str
    speaker: Any = None
    fault: str | None = None


@dataclass
class SpokenSentence:
    """A sentence of an utterance.

    Attributes:
        text: as the model read it.
        input_ids: its tokens.
        waveform: float32 [samples].
        spectrogram: log-mel [T, M], at the speed asked for.
        stop_reason: "stop", or "max_length" where it was cut off.
        alignment: a `SpeechAlignment`, where asked for.
    """

    text: str
    input_ids: list[int]
    waveform: np.ndarray
    spectrogram: np.ndarray
    stop_reason: str
    alignment: Any = None


@dataclass
class Speech:
    """What was said.

    Attributes:
        utterance: that was spoken.
        sentences: that it consists of; none for an utterance with a fault.
        waveform: float32 [samples] of all of them, with pauses between.
        fault: why there is no speech, in one line.
    """

    utterance: Utterance
    sentences: list[SpokenSentence] = field(default_factory=list)
    waveform: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    fault: str | None = None

    @property
    def cut(self) -> list[SpokenSentence]:
        """The sentences that did not come to their end."""
        return [sentence for sentence in self.sentences if sentence.stop_reason != "stop"]


@dataclass(frozen=True)
class SpeakingOptions:
    """How to speak; the commands' help tells the meaning of each."""

    speaker: str | None = None
    vocoder: str | None = None
    seed: int = 0
    speed: float = 1.0
    max_duration_s: float | None = None
    attention_window: int | None = None
    stop_threshold: float | None = None
    batch_size: int = 8
    pause_s: float = 0.2
    with_alignments: bool = False

    @classmethod
    def from_arguments(cls, args: Any, **changes: Any) -> "SpeakingOptions":
        """Those of `add_speaking_arguments`."""
        names = ("speaker", "vocoder", "seed", "speed", "max_duration_s", "attention_window", "stop_threshold")
        return cls(**{name: getattr(args, name) for name in (*names, "batch_size")}, **changes)


class Synthesizer:
    """Speaks texts. A text sounds the same whatever comes before and beside it.

    Args:
        model: a `TextToSpectrogramModel`, in evaluation mode.
        processor: of the model.
        options: how to speak.

    Attributes:
        speed: counts the seconds of speech, and those spent on it.
        progress: called with the numbers of sentences found and spoken since the last call.
        cut_sentences: of streams, those that did not come to their end.

    Raises:
        CommandError: the voice, the vocoder or a setting does not suit the model.
    """

    def __init__(self, model: Any, processor: TextToSpectrogramProcessor, options: SpeakingOptions):
        self.model, self.processor, self.options = model, processor, options
        self.speed = RealTimeFactor()
        self.progress: Callable[[int, int], None] = lambda found, done: None
        self.cut_sentences: list[str] = []
        self.speaker = self._voice()
        self._told_of_voice = False
        if options.vocoder is not None:
            from .loading import check_is_model

            check_is_model(options.vocoder)
            with explained(f"--vocoder {options.vocoder}"):
                model.set_vocoder(options.vocoder)
        elif model.vocoder is None:
            say("the model has no vocoder, so it speaks by Griffin-Lim, which sounds hollow: give --vocoder")
        self.settings = self._settings()
        with explained():
            model.generation_config.for_call(None, self.settings)

    def _voice(self) -> torch.Tensor | None:
        from ..processing.speaker_embeddings import load_speaker_embedding

        if self.options.speaker is None:
            return None
        width = self.model.config.speaker_embedding_dim
        if width == 0:
            raise CommandError(f"--speaker {self.options.speaker}: the model has one voice: leave the option out")
        with explained("--speaker"):
            return torch.from_numpy(load_speaker_embedding(self.options.speaker, width))

    def _tell_if_voiceless(self, speaker: Any) -> None:
        """Say once what is missing where a model of many voices is given none: it would speak noise."""
        if speaker is None and self.model.lacks_voice and not self._told_of_voice:
            self._told_of_voice = True
            width = self.model.config.speaker_embedding_dim
            say(f"the model has many voices and was given none: give --speaker, an embedding of {width} values")

    def _settings(self) -> dict[str, Any]:
        config, options = self.model.config, self.options
        settings: dict[str, Any] = {"speed": options.speed}
        if options.max_duration_s is not None:
            available = config.max_speech_positions * config.reduction_factor
            wanted = options.max_duration_s * options.speed * config.sampling_rate / config.hop_length
            settings["max_new_tokens"] = max(1, math.floor(min(wanted, available)))
        for name in ("attention_window", "stop_threshold"):
            if getattr(options, name) is not None:
                settings[name] = getattr(options, name)
        return settings

    def __call__(self, utterances: Iterable[Utterance]) -> Iterator[Speech]:
        """Speak texts.

        Yields:
            The speech of each utterance, in their order; one that cannot be spoken has a `fault` and no sound.

        Raises:
            CommandError: memory does not suffice for a batch.
        """
        utterances = iter(utterances)
        while some := list(itertools.islice(utterances, BATCHES_READ_AHEAD * self.options.batch_size)):
            yield from self._speak_some(some)

    def stream(self, text: str) -> Iterator[np.ndarray]:
        """Speak one text, and give its sound as it comes: float32 [samples], chunk after chunk.

        Raises:
            ValueError: there is nothing to say.
            CommandError: memory does not suffice.
        """
        texts, ids = self.sentences(text)
        self._tell_if_voiceless(self.speaker)
        with without_warnings():
            stream = self.model.stream(
                **self._batch(ids),
                speaker_embeddings=self.speaker,
                generator=self._generators(len(ids)),
                pause_s=self.options.pause_s,
                **self.settings,
            )
        while True:
            with without_warnings(), self._enough_memory(ids[:1]):
                chunk = next(stream, None)
            if chunk is None:
                break
            yield chunk.float().cpu().numpy()
        for sentence, reason in zip(texts, stream.stop_reasons, strict=True):
            if reason != "stop":
                say(f"cut off before its end: {shortened(sentence)!r}")
                self.cut_sentences.append(sentence)

    @contextmanager
    def _enough_memory(self, ids: list[list[int]]) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise CommandError(
                f"out of memory for {len(ids)} sentences of up to {max(map(len, ids))} tokens: give a smaller "
                "--batch-size"
            ) from error

    def sentences(self, text: str) -> tuple[list[str], list[list[int]]]:
        """The sentences of a text, as the model reads them, and their tokens.

        Raises:
            ValueError: there is nothing to say.
        """
        sentences = self.processor.split_sentences(text, self.model.encoder.max_length)
        return sentences, self.processor(sentences, normalize=False)["input_ids"]

    def _generators(self, count: int) -> list[torch.Generator]:
        """One for each sentence of a text, whatever else is spoken."""
        return row_generators(torch.Generator().manual_seed(self.options.seed), count)

    def _speak_some(self, utterances: Sequence[Utterance]) -> list[Speech]:
        """Speak texts that fit into memory together, longest sentences first."""
        speeches = [Speech(utterance, fault=utterance.fault) for utterance in utterances]
        waiting: list[tuple[Speech, int, str, list[int], torch.Generator]] = []
        for speech in speeches:
            if speech.fault is not None:
                continue
            try:
                texts, ids = self.sentences(speech.utterance.text)
            except ValueError as error:
                name = f"{speech.utterance.name}: " if speech.utterance.name else ""
                speech.fault = name + one_line(error)
                continue
            speech.sentences = [None] * len(ids)  # type: ignore[list-item]
            rows = zip(itertools.repeat(speech), itertools.count(), texts, ids, self._generators(len(ids)))
            waiting.extend(rows)
        self.progress(len(waiting), 0)
        waiting.sort(key=lambda row: -len(row[3]))
        for start in range(0, len(waiting), self.options.batch_size):
            batch = waiting[start : start + self.options.batch_size]
            voices = [self.speaker if row[0].utterance.speaker is None else row[0].utterance.speaker for row in batch]
            spoken = self._speak_batch([row[3] for row in batch], [row[4] for row in batch], voices)
            for (speech, place, text, *_), sentence in zip(batch, spoken, strict=True):
                sentence.text = text
                speech.sentences[place] = sentence
            self.progress(0, len(batch))
        for speech in speeches:
            if speech.sentences:
                speech.waveform = self._joined(speech.sentences)
        return speeches

    def _speak_batch(
        self, ids: list[list[int]], generators: list[torch.Generator], voices: list[Any]
    ) -> list[SpokenSentence]:
        speakers = None if voices[0] is None else torch.stack([torch.as_tensor(voice) for voice in voices])
        self._tell_if_voiceless(speakers)
        start = time.perf_counter()
        with without_warnings(), self._enough_memory(ids):
            output = self.model.generate(
                **self._batch(ids),
                speaker_embeddings=speakers,
                generator=generators,
                output_alignments=self.options.with_alignments,
                **self.settings,
            )
        waveforms = [waveform.float().cpu().numpy() for waveform in output.waveform]
        self.speed.add(sum(map(len, waveforms)) / self.model.config.sampling_rate, time.perf_counter() - start)
        return [
            SpokenSentence(
                text="",
                input_ids=ids[row],
                waveform=waveforms[row],
                spectrogram=output.spectrogram[row, : output.spectrogram_lengths[row]].float().cpu().numpy(),
                stop_reason=output.stop_reasons[row],
                alignment=None if output.alignments is None else output.alignments[row],
            )
            for row in range(len(ids))
        ]

    def _batch(self, ids: list[list[int]]) -> dict[str, torch.Tensor]:
        arrays = pad_token_ids(ids, self.processor.tokenizer.pad_token_id)
        return {name: torch.from_numpy(values).to(self.model.device) for name, values in arrays.items()}

    def _joined(self, sentences: list[SpokenSentence]) -> np.ndarray:
        pause = np.zeros(round(self.options.pause_s * self.model.config.sampling_rate), np.float32)
        parts = [part for sentence in sentences for part in (pause, sentence.waveform)]
        return np.concatenate(parts[1:])

    def starts_s(self, speech: Speech) -> list[float]:
        """When each sentence of a speech begins, in seconds."""
        lengths = [len(sentence.waveform) / self.model.config.sampling_rate for sentence in speech.sentences]
        ends = itertools.accumulate(length + self.options.pause_s for length in lengths)
        return [0.0, *ends][: len(lengths)]


def shortened(text: str) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def make_synthesizer(args: Any, **changes: Any) -> Synthesizer:
    """A `Synthesizer` with the model and the settings that the options of `add_..._arguments` ask for.

    Raises:
        CommandError: there is no such model, or something does not suit it.
    """
    from .loading import load_synthesizer, load_synthesizer_processor

    model = load_synthesizer(args.model, args.dtype, args.attn, args.device)
    processor = load_synthesizer_processor(args.processor or args.model, model)
    return Synthesizer(model, processor, SpeakingOptions.from_arguments(args, **changes))
