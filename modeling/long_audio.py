"""Recordings of any length to text: cut at silence, decoded in batches, judged, decoded again where they went wrong.

Shapes: `B` chunks, `N` hypotheses of each, `T` encoder frames, `S` text tokens.
"""

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from .confidence_calibration import ConfidenceCalibration, ConfidenceCurve, fit_confidences
from .mask_ctc import FILLING_ARGUMENTS, check_filling_arguments
from .previous_text import PreviousTextPrompts, SaidBefore
from .quick_inference import quick_inference
from .speech_chunks import SpeechChunk, check_chunk_lengths, cut_at_silence, sounding_s
from .speech_timestamps import METHODS, WORD, TimedWord, rows_of, time_words
from .transcript_merging import (
    TimedSegment,
    in_order,
    join_words,
    merge_words,
    part_from,
    right_words,
    segment_of,
    segment_words,
)

UNITS = (None, "segment", "word", "char")
LEAST_TOKENS = 10  # that a transcript may have, however short its audio
BATCHES_READ_AHEAD = 4  # among which chunks are sorted by length, so that a batch has little padding


@dataclass(frozen=True)
class TranscriptionOptions:
    """How `transcribe()` works.

    Attributes:
        batch_size: chunks to decode at once. The text does not depend on it.
        timestamps: "segment", "word", "char", or None for none: then segments are chunks.
        timing: what tells times: "ctc", "attention", or "auto" for the first that the model has.
        num_beams: hypotheses that beam search follows; None takes the model's own setting.
        ctc_weight: share of the CTC head's score; None takes the model's own setting.
        n_best: hypotheses to return of each recording, at most as many as beams.
        min_chunk_s: least seconds of a chunk.
        max_chunk_s: most seconds of a chunk, at most the window that the model hears. Shorter recordings are not cut.
        overlap_s: seconds that chunks overlap by, where there is no silence to cut in.
        tokens_per_second: a transcript has at most this many tokens for each second of its audio, and ten more.
        least_tokens_per_second: a text with fewer tokens for each second that is no pause leaves something out:
            Whisper may end behind the first sentence. Such a chunk is heard again in halves. None does without.
        max_new_tokens: likewise in all, for each chunk; None leaves it to the model.
        temperatures: the first is the one to decode with, 0 for no sampling. Transcripts that fail are sampled again
            with the others, one after another, until one passes; or else the likeliest is taken.
        compression_ratio_threshold: a text that zlib shortens by more than this repeats itself: it fails.
        log_prob_threshold: a text whose tokens have a lower mean log probability fails.
        no_speech_threshold: of the decoder's probability that nobody speaks. Above it, a text that fails by its log
            probability is taken for imagined: it is empty.
        seed: of sampling. What is sampled for a chunk does not depend on the others.
        condition_on_previous_text: tell the decoder before each chunk what those before it said, as much as half of
            its positions hold, for decoders that were trained so: Whisper's. Names stay spelled alike and sentences go
            on, but so may mistakes. Chunks of one recording then wait for each other; a batch has those of several.
        initial_prompt: text to tell such a decoder before each chunk, in front of what was said: names, spelling,
            style. It is no part of the transcript.
        generate_kwargs: further arguments of `generate()`, such as `language_model` and `hot_words`; of
            `generate_masked()` where the decoder fills in masked tokens. Such a one neither searches nor samples.
    """

    batch_size: int = 8
    timestamps: str | None = "word"
    timing: str = "auto"
    num_beams: int | None = None
    ctc_weight: float | None = None
    n_best: int = 1
    min_chunk_s: float = 5.0
    max_chunk_s: float = 30.0
    overlap_s: float = 4.0
    tokens_per_second: float = 20.0
    least_tokens_per_second: float | None = 1.0
    max_new_tokens: int | None = None
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    log_prob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    seed: int = 0
    condition_on_previous_text: bool = False
    initial_prompt: str | None = None
    generate_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.timestamps not in UNITS:
            raise ValueError(f"timestamps is 'segment', 'word', 'char' or None, not {self.timestamps!r}")
        if self.timing not in METHODS:
            raise ValueError(f"timing is one of {', '.join(METHODS)}, not {self.timing!r}")
        if self.batch_size < 1 or self.n_best < 1:
            raise ValueError("batch_size and n_best are at least 1")
        if "prompt_ids" in self.generate_kwargs:
            raise ValueError("prompt_ids are worked out for each piece: give initial_prompt")
        if told := {"language", "task"} & set(self.generate_kwargs):
            raise ValueError(
                f"{' and '.join(sorted(told))} hold for a whole recording: call model.set_language() before"
            )
        if not self.temperatures or min(self.temperatures) < 0:
            raise ValueError(f"temperatures are one or more numbers from 0, not {self.temperatures}")
        if self.num_beams is not None and self.num_beams < self.n_best:
            raise ValueError(f"n_best={self.n_best} needs num_beams={self.n_best} or more, not {self.num_beams}")
        if self.condition_on_previous_text and self.n_best > 1:
            raise ValueError(
                f"n_best={self.n_best}: with condition_on_previous_text each piece goes on from the best text of the "
                "one before it, so others of that one cannot be combined with it"
            )
        check_chunk_lengths(self.min_chunk_s, self.max_chunk_s, self.overlap_s)


@dataclass(frozen=True)
class Hypothesis:
    """One of the n best transcripts of a recording.

    Attributes:
        text: of the transcript.
        score: mean log probability of a token, as the search ranked by it; the end token counts.
        words: with their times.
    """

    text: str
    score: float
    words: tuple[TimedWord, ...] = ()


@dataclass(frozen=True)
class Transcription:
    """What is said in a recording.

    Attributes:
        text: all of it.
        segments: its lines, with their words where those were asked for.
        duration_s: of the recording, in seconds.
        confidence: the share of the words that can be expected to be right; 0 where there are none.
        hypotheses: the n best, the first of which is the text.
    """

    text: str
    segments: tuple[TimedSegment, ...]
    duration_s: float
    confidence: float
    hypotheses: tuple[Hypothesis, ...] = ()

    @property
    def words(self) -> tuple[TimedWord, ...]:
        """All words, in order."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def score(self) -> float:
        """Mean log probability of a token; 0 for silence."""
        return self.hypotheses[0].score if self.hypotheses else 0.0


@dataclass(frozen=True)
class _Heard:
    """One hypothesis of a chunk; times are of the recording."""

    text: str
    words: tuple[TimedWord, ...]
    score: float
    mean_log_prob: float
    n_tokens: int
    no_speech_prob: float
    temperature: float = 0.0


@dataclass(frozen=True)
class _End:
    """Behind the chunks of a recording: its length, or why it cannot be used."""

    duration_s: float = 0.0
    fault: Exception | None = None


@dataclass
class _Recording:
    """Of a recording, what is known so far."""

    chunks: list[SpeechChunk] = field(default_factory=list)  # without their samples, once they are decoded
    heard: dict[int, list[_Heard]] = field(default_factory=dict)
    said: SaidBefore = field(default_factory=SaidBefore)  # where chunks go on from each other
    end: _End | None = None


class DurationLimit(LogitsProcessor):
    """Ends each transcript that has as many tokens as its own audio can hold, whatever the rest of the batch may have.

    Args:
        limits: [B], tokens of each utterance, without start and prompt.
        prompt_length: tokens before the transcript, the start token included.
        end: id of the token that ends a transcript, or the ids of several.
    """

    def __init__(self, limits: Sequence[int], prompt_length: int, end: int | list[int]):
        self.limits, self.prompt_length = torch.tensor(list(limits)), prompt_length
        self.end = end[0] if isinstance(end, list) else end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids [B * N, S] and scores [B * N, V] to scores, of which only the end token's is left at the limit."""
        limits = self.limits.to(scores.device).repeat_interleave(len(scores) // len(self.limits))
        is_full = input_ids.shape[1] - self.prompt_length >= limits
        if not bool(is_full.any()):
            return scores
        only_end = torch.full_like(scores, -torch.inf)
        only_end[:, self.end] = 0
        return torch.where(is_full[:, None], only_end, scores)


def compression_ratio(text: str) -> float:
    """By which factor zlib shortens a text: about 1.5 for language, far above 2.4 for one that repeats itself."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0


class LongAudioTranscriber:
    """Transcribes recordings of any length, in memory that their length does not matter for.

    Args:
        model: a `SpeechSeq2SeqModel`.
        processor: of the model.
        options: how to.

    Raises:
        ValueError: the options ask for what the model has not.
    """

    def __init__(self, model: Any, processor: Any, options: TranscriptionOptions | None = None):
        self.model, self.processor = model, processor
        options = options or TranscriptionOptions()
        window = processor.window_samples
        if window is not None and window / processor.sampling_rate < options.max_chunk_s:
            window_s = window / processor.sampling_rate
            shortest = min(options.min_chunk_s, window_s / 2)
            overlap_s = min(options.overlap_s, shortest)
            options = replace(options, max_chunk_s=window_s, min_chunk_s=shortest, overlap_s=overlap_s)
        if options.ctc_weight and model.ctc_head is None:
            raise ValueError(f"ctc_weight={options.ctc_weight:g}: the model was trained without a CTC head")
        self.fills_in = getattr(getattr(model, "config", None), "mask_token_id", None) is not None
        if self.fills_in:
            options = _without_search(options)
            check_filling_arguments(model, **options.generate_kwargs)
        self.options = options
        self.prompts = None
        if options.condition_on_previous_text or options.initial_prompt:
            told = options.condition_on_previous_text, options.initial_prompt
            self.prompts = PreviousTextPrompts(model, processor.tokenizer, *told)
        model.agree_on_token_ids()  # the end token may have been changed since the model last generated
        beams = options.num_beams
        if beams is None:
            beams = max(options.n_best, model.generation_config.num_beams or 1)
        self.num_beams = beams
        self.confidence_curve = ConfidenceCurve.of(model.generation_config)

    def __call__(self, recordings: Iterable[Any]) -> Iterator[Transcription | Exception]:
        """Transcribe recordings.

        Args:
            recordings: each whatever `processor.audio_blocks` reads, or an iterable of blocks, float32 [samples].

        Yields:
            For each recording, in order, its transcription; for one that cannot be read, the error.
        """
        open_ones: dict[int, _Recording] = {}
        emitted = 0
        for some in self._rounds(recordings):
            waiting = []
            for index, part in some:
                recording = open_ones.setdefault(index, _Recording())
                if isinstance(part, _End):
                    recording.end = part
                else:
                    waiting.append((part, index, len(recording.chunks)))
                    recording.chunks.append(replace(part, samples=np.zeros(0, np.float32)))
            self._decode_all(waiting, open_ones)
            while emitted in open_ones and (end := open_ones[emitted].end) is not None:
                recording = open_ones.pop(emitted)
                yield end.fault if end.fault is not None else self._together(recording, end.duration_s)
                emitted += 1

    def _rounds(self, recordings: Iterable[Any]) -> Iterator[list[tuple[int, SpeechChunk | _End]]]:
        """Parts of recordings to go on with at once: of each a single one, where they go on from each other."""
        size = self.options.batch_size
        each = (self._parts(index, recording) for index, recording in enumerate(recordings))
        if not self.options.condition_on_previous_text:
            parts = itertools.chain.from_iterable(each)
            while some := list(itertools.islice(parts, BATCHES_READ_AHEAD * size)):
                yield some
            return
        being_read: list[Iterator[tuple[int, SpeechChunk | _End]]] = []
        while being_read := [*being_read, *itertools.islice(each, size - len(being_read))]:
            some = [next(parts) for parts in being_read]
            yield some
            ended = [isinstance(part, _End) for _, part in some]
            being_read = [parts for parts, has_ended in zip(being_read, ended, strict=True) if not has_ended]

    def _parts(self, index: int, recording: Any) -> Iterator[tuple[int, SpeechChunk | _End]]:
        """The chunks of a recording, and behind them that it ends."""
        options, rate = self.options, self.processor.sampling_rate
        counted = _CountedBlocks(recording if isinstance(recording, Iterator) else self._blocks(recording))
        lengths = options.min_chunk_s, options.max_chunk_s, options.overlap_s
        try:
            for chunk in cut_at_silence(counted, rate, *lengths):
                yield index, chunk
        except (ValueError, OSError) as fault:
            yield index, _End(fault=fault)
        else:
            yield index, _End(counted.n_samples / rate)

    def _blocks(self, recording: Any) -> Iterator[Any]:
        return iter(self.processor.audio_blocks(recording, self.options.max_chunk_s))

    def _decode_all(self, waiting: list[tuple[SpeechChunk, int, int]], recordings: dict[int, _Recording]) -> None:
        """Decode chunks, each with its recording and its place there, in batches of similar length."""
        waiting.sort(key=lambda item: -len(item[0].samples))
        size = self.options.batch_size
        for first in range(0, len(waiting), size):
            batch = waiting[first : first + size]
            told = [self._prompt_ids(recordings[index].said, chunk) for chunk, index, _ in batch]
            heard = self.decode([chunk for chunk, _, _ in batch], told)
            for (chunk, index, place), hypotheses in zip(batch, heard, strict=True):
                recordings[index].heard[place] = hypotheses
                if self.prompts is not None:
                    self.prompts.hear(recordings[index].said, chunk, hypotheses[0] if hypotheses else None)

    def _prompt_ids(self, said: SaidBefore, chunk: SpeechChunk) -> list[int]:
        return [] if self.prompts is None else self.prompts.prompt_ids(said, chunk)

    @torch.no_grad()
    def decode(
        self, chunks: Sequence[SpeechChunk], prompt_ids: Sequence[Sequence[int]] | None = None
    ) -> list[list[_Heard]]:
        """The hypotheses of each chunk, best first; `prompt_ids` are what the decoder is told before each."""
        with quick_inference(self.model):
            return self._decode(chunks, prompt_ids or [[] for _ in chunks])

    def _decode(self, chunks: Sequence[SpeechChunk], told: Sequence[Sequence[int]]) -> list[list[_Heard]]:
        rate = self.processor.sampling_rate
        samples = [chunk.samples for chunk in chunks]
        inputs = self.processor(audio=samples, sampling_rate=rate, return_tensors="pt").to(self.model.device)
        encoded = self.model.get_encoder()(**inputs)
        first, *others = self.options.temperatures
        heard = self._search(encoded, chunks, first, told)
        for row, chunk in enumerate(chunks):
            tried = [heard[row]]
            for temperature in others:
                if not self._fails(tried[-1][0]) or self._is_silent(tried[0][0]):
                    break
                with _seeded(self.model.device, hash((self.options.seed, round(1000 * chunk.start_s), temperature))):
                    alone = rows_of(encoded, torch.tensor([row]))
                    tried += self._search(alone, [chunk], temperature, told[row : row + 1])
            passed = [one for one in tried if not self._fails(one[0])]
            best = passed[-1] if passed else max(tried, key=lambda one: one[0].mean_log_prob)
            heard[row] = [] if self._is_silent(best[0]) else best
            if heard[row] and self._leaves_out(best[0], chunk):
                heard[row] = self._in_halves(chunk, told[row], best)
        return heard

    def _leaves_out(self, heard: _Heard, chunk: SpeechChunk) -> bool:
        least = self.options.least_tokens_per_second
        if least is None or chunk.duration_s < 2 * self.options.min_chunk_s:
            return False
        possible = self._most_tokens([self._limit(chunk)]) - 1
        return heard.n_tokens - 1 < min(least * sounding_s(chunk.samples, chunk.sampling_rate), possible)

    def _limit(self, chunk: SpeechChunk) -> int:
        return LEAST_TOKENS + math.ceil(self.options.tokens_per_second * chunk.duration_s)

    def _in_halves(self, chunk: SpeechChunk, told: Sequence[int], whole: list[_Heard]) -> list[_Heard]:
        """The hypotheses of a chunk from those of its two parts, if they say more than `whole` and are no worse."""
        quarter_s = chunk.duration_s / 4
        overlap_s = min(self.options.overlap_s, quarter_s)
        parts = list(
            cut_at_silence([chunk.samples], chunk.sampling_rate, quarter_s, 3 * quarter_s, overlap_s)
        )  # in the longest pause of the two quarters in the middle
        parts = [replace(part, start_s=chunk.start_s + part.start_s) for part in parts]
        if len(parts) < 2:
            return whole
        parts[0] = replace(parts[0], overlap_s=chunk.overlap_s)
        parts[-1] = replace(parts[-1], overlaps_next=chunk.overlaps_next)
        found = [
            (part, heard) for part, heard in zip(parts, self.decode(parts, [told] * len(parts)), strict=True) if heard
        ]
        chosen = _best_combinations([heard for _, heard in found], self.options.n_best)
        joined = [_as_one([(part, one) for (part, _), one in zip(found, row, strict=True)]) for row in chosen]
        is_better = joined and joined[0].n_tokens > whole[0].n_tokens and not self._fails(joined[0])
        return joined if is_better else whole

    def _search(
        self, encoded: Any, chunks: Sequence[SpeechChunk], temperature: float, told: Sequence[Sequence[int]]
    ) -> list[list[_Heard]]:
        if self.fills_in:
            return self._fill_in(encoded, chunks)
        options, n_best = self.options, self.options.n_best
        width = max(map(len, told))
        before = width + 1 + len(self.model.config.decoder_prompt_token_ids)
        limits = [self._limit(chunk) for chunk in chunks]
        output = self.model.generate(
            encoder_outputs=encoded,
            max_length=before + self._most_tokens(limits),
            num_return_sequences=n_best,
            logits_processor=LogitsProcessorList(
                [DurationLimit(limits, before, self.model.generation_config.eos_token_id)]
            ),
            return_dict_in_generate=True,
            output_scores=self.num_beams > 1,
            **({"prompt_ids": told} if width else {}),
            **self._search_arguments(temperature),
            **options.generate_kwargs,
        )
        ranked = output.get("sequences_scores")
        scores = [None] * len(output.sequences) if ranked is None else ranked.float().tolist()
        rows = torch.arange(len(chunks)).repeat_interleave(n_best)
        copies = [(chunks[row], told[row]) for row in rows.tolist()]
        heard = self._read(rows_of(encoded, rows), output.sequences, copies, scores, temperature)
        found = [heard[row : row + n_best] for row in range(0, len(heard), n_best)]
        return [sorted(one, key=lambda hypothesis: -hypothesis.score) for one in found]

    def _fill_in(self, encoded: Any, chunks: Sequence[SpeechChunk]) -> list[list[_Heard]]:
        """The one hypothesis of each chunk, by a decoder that fills in masked tokens."""
        options = self.options
        sequences = self.model.generate_masked(
            encoder_outputs=encoded, max_new_tokens=options.max_new_tokens, **options.generate_kwargs
        )
        copies = [(chunk, ()) for chunk in chunks]
        return [[one] for one in self._read(encoded, sequences, copies, [None] * len(chunks), 0.0)]

    def _most_tokens(self, limits: Sequence[int]) -> int:
        """That any of some transcripts may have, behind the start token and the prompt."""
        model, options = self.model, self.options
        prompt = 1 + len(model.config.decoder_prompt_token_ids)
        most, own = max(limits) + 1, model.generation_config.max_length
        if options.max_new_tokens is not None:
            most = min(most, options.max_new_tokens)
        elif own is not None:
            most = min(most, own - prompt)
        if self.prompts is not None:  # whatever the previous text of these chunks, or a batch would change their texts
            positions = model.family.max_length(model.config.decoder) or math.inf
            most = int(min(most, positions - self.prompts.longest - prompt))
        return most

    def _search_arguments(self, temperature: float) -> dict[str, Any]:
        options = self.options
        arguments: dict[str, Any] = {"do_sample": False, "num_beams": self.num_beams}
        if temperature > 0:
            arguments = {"do_sample": True, "temperature": temperature, "num_beams": 1, "top_k": 0, "top_p": 1.0}
        if options.ctc_weight is not None:
            arguments["ctc_weight"] = options.ctc_weight
        if self.model.config.ctc_characters is not None:
            arguments["tokenizer"] = self.processor.tokenizer  # what its tokens spell, for joint decoding
        return arguments

    def _read(
        self,
        encoded: Any,
        sequences: torch.Tensor,
        copies: Sequence[tuple[SpeechChunk, Sequence[int]]],
        scores: Sequence[float | None],
        temperature: float,
    ) -> list[_Heard]:
        """Sequences as hypotheses of chunks and what was told before, with the times of words where they matter."""
        options, chunks = self.options, [chunk for chunk, _ in copies]
        needed = options.timestamps is not None or any(chunk.overlap_s or chunk.overlaps_next for chunk in chunks)
        timed = time_words(
            self.model,
            self.processor,
            encoded,
            sequences,
            [chunk.duration_s for chunk in chunks],
            method=options.timing if needed else None,
            with_characters=options.timestamps == "char",
            confidence_curve=self.confidence_curve,
            prompt_ids=[told for _, told in copies],
        )
        return [
            _Heard(
                text=text,
                words=tuple(_shifted(word, chunk.start_s) for word in words),
                score=scored.mean_log_prob if score is None else score,
                mean_log_prob=scored.mean_log_prob,
                n_tokens=len(scored.token_ids) + 1,
                no_speech_prob=scored.no_speech_prob,
                temperature=temperature,
            )
            for (text, words, scored), chunk, score in zip(timed, chunks, scores, strict=True)
        ]

    def _fails(self, heard: _Heard) -> bool:
        ratio, least = self.options.compression_ratio_threshold, self.options.log_prob_threshold
        repeats = ratio is not None and compression_ratio(heard.text) > ratio
        return repeats or (least is not None and heard.mean_log_prob < least)

    def _is_silent(self, heard: _Heard) -> bool:
        threshold, least = self.options.no_speech_threshold, self.options.log_prob_threshold
        unlikely = least is None or heard.mean_log_prob < least
        return threshold is not None and heard.no_speech_prob > threshold and unlikely

    def _together(self, recording: _Recording, duration_s: float) -> Transcription:
        parts = [(recording.chunks[place], heard) for place, heard in sorted(recording.heard.items()) if heard]
        hypotheses = [
            _joined([(chunk, heard) for (chunk, _), heard in zip(parts, chosen, strict=True)])
            for chosen in _best_combinations([heard for _, heard in parts], self.options.n_best)
        ]
        best = hypotheses[0] if hypotheses else Hypothesis("", 0.0)
        words = best.words
        if self.options.timestamps is None:
            segments = [] if not words else _segments_of_chunks(words, [chunk for chunk, _ in parts])
        else:
            segments = segment_words(words)
        if self.options.timestamps in (None, "segment"):
            segments = [replace(segment, words=()) for segment in segments]
        sure = sum(word.confidence for word in words) / len(words) if words else 0.0
        return Transcription(best.text, tuple(segments), duration_s, sure, tuple(hypotheses))


def _without_search(options: TranscriptionOptions) -> TranscriptionOptions:
    """As asked for, of a decoder that fills in masked tokens.

    Raises:
        ValueError: what was asked for is a matter of searching, sampling, or going on from a text.
    """
    asked = {
        "num_beams": (options.num_beams or 1) > 1,
        "n_best": options.n_best > 1,
        "ctc_weight": bool(options.ctc_weight),
        "temperatures": options.temperatures not in ((0.0,), TranscriptionOptions.temperatures),
        "condition_on_previous_text": options.condition_on_previous_text,
        "initial_prompt": options.initial_prompt is not None,
        **{name: name not in FILLING_ARGUMENTS for name in options.generate_kwargs},
    }
    if refused := [name for name, is_asked in asked.items() if is_asked]:
        raise ValueError(
            f"{', '.join(refused)}: the decoder fills in masked tokens, it does not search: leave this out"
        )
    return replace(options, num_beams=1, temperatures=(0.0,))


class _CountedBlocks:
    """Passes blocks on and counts their samples."""

    def __init__(self, blocks: Iterator[Any]):
        self.blocks, self.n_samples = blocks, 0

    def __iter__(self) -> Iterator[Any]:
        for block in self.blocks:
            self.n_samples += len(block)
            yield block


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Random numbers of its own for what is done inside; those outside go on as if nothing had been."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed % 2**31)
        yield


def _shifted(word: TimedWord, by_s: float) -> TimedWord:
    characters = tuple(_shifted(character, by_s) for character in word.characters)
    return replace(word, start_s=word.start_s + by_s, end_s=word.end_s + by_s, characters=characters)


def _best_combinations(choices: Sequence[Sequence[_Heard]], n_best: int) -> list[list[_Heard]]:
    """The likeliest ways to take one hypothesis of each chunk, best first: chunks are independent of each other."""
    if not choices:
        return []
    best: list[tuple[float, list[_Heard]]] = [(0.0, [])]
    for hypotheses in choices:
        longer = [(total + one.score * one.n_tokens, [*taken, one]) for total, taken in best for one in hypotheses]
        best = sorted(longer, key=lambda pair: -pair[0])[:n_best] if len(choices) > 1 else longer
    return [taken for _, taken in best]


def _joined(parts: Sequence[tuple[SpeechChunk, _Heard]]) -> Hypothesis:
    """Chunks' texts as one; words that two chunks hold come once."""
    if len(parts) == 1:
        ((_, heard),) = parts
        return Hypothesis(heard.text, heard.score, heard.words)
    words: list[TimedWord] = []
    for chunk, heard in parts:
        part = part_from(heard.words)
        if chunk.overlap_s:
            words = merge_words(words, part, chunk.start_s, chunk.start_s + chunk.overlap_s)
        else:
            words = in_order([*words, *part])
    n_tokens = sum(heard.n_tokens for _, heard in parts)
    score = sum(heard.score * heard.n_tokens for _, heard in parts) / n_tokens
    return Hypothesis(join_words(words), score, tuple(words))


def _as_one(parts: Sequence[tuple[SpeechChunk, _Heard]]) -> _Heard:
    """Hypotheses of parts of a chunk as one of the chunk."""
    joined = _joined(parts)
    each = [heard for _, heard in parts]
    n_tokens = sum(heard.n_tokens for heard in each)
    return _Heard(
        text=joined.text,
        words=joined.words,
        score=joined.score,
        mean_log_prob=sum(heard.mean_log_prob * heard.n_tokens for heard in each) / n_tokens,
        n_tokens=n_tokens,
        no_speech_prob=min(heard.no_speech_prob for heard in each),
        temperature=max(heard.temperature for heard in each),
    )


def _segments_of_chunks(words: Sequence[TimedWord], chunks: Sequence[SpeechChunk]) -> list[TimedSegment]:
    """One segment for each chunk, of the words that lie in it; its times are the chunk's."""
    ends = [chunk.start_s for chunk in chunks[1:]] + [math.inf]
    segments, at = [], 0
    for chunk, end in zip(chunks, ends, strict=True):
        inside = list(itertools.takewhile(lambda word, end=end: word.start_s < end, words[at:]))
        at += len(inside)
        if inside:
            stop = min(chunk.end_s, end)
            segments.append(replace(segment_of(inside), start_s=chunk.start_s, end_s=max(stop, chunk.start_s)))
    return segments


class TranscribesAudio:
    """What a speech-to-text model does with recordings, beyond `generate()`."""

    def transcribe(self, audio: Any, processor: Any, **options: Any) -> Any:
        """Write down what is said, in recordings of any length.

        They are read in blocks, cut at silence, decoded in batches, decoded again at higher temperatures where the
        text repeats itself or is unlikely, and put together. Memory does not grow with the length of a recording.

        Args:
            audio: a recording, or a list of them: anything that the processor reads (a path, the bytes of a file, a
                waveform [samples] at the processor's sampling rate, …), or an iterator of blocks, float32 [samples].
            processor: of the model.
            options: of `TranscriptionOptions`: `timestamps`, `batch_size`, `num_beams`, …

        Returns:
            A `Transcription`, or a list of them for a list of recordings.

        Raises:
            TypeError: an option is unknown.
            ValueError: an option is wrong, or a recording cannot be read: then an `AudioError` tells why.
        """
        known = {each.name for each in fields(TranscriptionOptions)}
        if unknown := sorted(set(options) - known):
            raise TypeError(f"transcribe() has no {', '.join(unknown)}; its options are {', '.join(sorted(known))}")
        many = isinstance(audio, list | tuple) and not (audio and isinstance(audio[0], int | float))
        transcriber = LongAudioTranscriber(self, processor, TranscriptionOptions(**options))
        results = list(transcriber(audio if many else [audio]))
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results if many else results[0]

    @torch.no_grad()
    def align(
        self, audio: Any, text: str, processor: Any, timing: str = "auto", with_characters: bool = False
    ) -> list[TimedWord]:
        """When each word of a known text is said, and how likely the model finds it.

        Args:
            audio: one recording, anything that the processor reads, of a length that the model hears at once.
            text: what is said in it.
            processor: of the model.
            timing: "ctc", "attention", or "auto" for the first that the model has.
            with_characters: also give the times of each word's characters.

        Raises:
            ValueError: the text is empty, or the model has not what `timing` asks for.
        """
        model: Any = self
        (waveform,) = [torch.cat([torch.as_tensor(block) for block in processor.audio_blocks(audio, 30.0)])]
        rate = processor.sampling_rate
        inputs = processor(audio=waveform.numpy(), sampling_rate=rate, return_tensors="pt").to(model.device)
        encoded = model.get_encoder()(**inputs)
        ids = [model.config.decoder_start_token_id, *processor.label_ids(text)]
        sequences = torch.tensor([ids], device=model.device)
        curve = ConfidenceCurve.of(model.generation_config)
        ((_, words, _),) = time_words(
            model, processor, encoded, sequences, [len(waveform) / rate], timing, with_characters, curve
        )
        return words

    def calibrate_confidence(
        self, recordings: Iterable[Any], texts: Iterable[str], processor: Any, **options: Any
    ) -> ConfidenceCalibration:
        """Fit the confidences of words to how often words are right, on recordings that the model was not trained on.

        What is fitted, see `confidence_calibration`, is kept in `generation_config.confidence_calibration`, saved with
        the model, and used by `transcribe()` and `align()` from then on. It holds for the way of decoding that
        `options` tell: another `ctc_weight` wants it fitted again.

        Args:
            recordings: some hundred utterances, anything that the processor reads.
            texts: what is said in each. Case and punctuation do not matter.
            processor: of the model.
            options: of `transcribe()`.

        Returns:
            The curve, and the expected calibration error before and after.

        Raises:
            ValueError: no word was recognised, or there are not as many texts as recordings.
        """
        model: Any = self
        curve = ConfidenceCurve.of(model.generation_config)
        ConfidenceCurve().keep_in(model.generation_config)
        sure: list[float] = []
        right: list[bool] = []
        try:
            heard = self.transcribe(list(recordings), processor, **{"timestamps": "word", **options})
            for transcription, text in zip(heard, texts, strict=True):
                words = transcription.words
                sure += [word.confidence for word in words]
                right += right_words([word.text for word in words], WORD.findall(text))
            calibration = fit_confidences(sure, right)
            curve = calibration.curve
        finally:  # where nothing was found, all is as it was
            curve.keep_in(model.generation_config)
        return calibration


__all__ = [
    "Hypothesis",
    "LongAudioTranscriber",
    "TimedSegment",
    "TimedWord",
    "TranscribesAudio",
    "Transcription",
    "TranscriptionOptions",
]
