"""How a text-to-speech model speaks: a batch at once, one text as it comes, or a text of any length.

Decoding is in `spectrogram_writing`; postnet, speed and vocoder follow here, on each row's own frames.

Shapes: `B` batch, `S` text tokens, `N` decoder steps, `r` frames of a step, `T` frames, `M` mel bins, `L` layers,
`H` heads, `V` width of a speaker embedding.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

from .alignment_diagnostics import SpeechAlignment, WordTiming, align_speech
from .quick_inference import quick_inference
from .spectrogram_decoder import Generators
from .spectrogram_generation_config import SpectrogramGenerationConfig
from .spectrogram_streams import SpeechStream, change_speed, evaluating, sound_of_frames, sped_up_length
from .spectrogram_writing import (
    MAX_LENGTH,
    WrittenRow,
    WrittenStep,
    collect_rows,
    diagonal_heads,
    row_generators,
    write_spectrograms,
)
from .speech_vocoders import GriffinLimVocoder, SpeechVocoder, Vocoder, check_vocoder_agrees, load_vocoder

logger = logging.get_logger(__name__)

SHOWN_ROWS = 5  # in a warning


@dataclass
class SynthesisOutput(ModelOutput):
    """What `TextToSpectrogramModel.generate` returns. Every row has its own length.

    Args:
        waveform: float32 [samples] of each row, at `config.sampling_rate`; None where no waveform was asked for.
        waveform_lengths: samples of each, integers [B].
        spectrogram: [B, T, M], log-mel as the vocoder heard it, padded with silence.
        spectrogram_lengths: frames of each row, integers [B].
        stop_reasons: for each row "stop", or "max_length" where it was cut off.
        cross_attentions: for each layer [B, H, N, S], 0 beyond a row's last step.
        alignments: a `SpeechAlignment` for each row, over its real tokens.
    """

    waveform: list[torch.Tensor] | None = None
    waveform_lengths: torch.Tensor | None = None
    spectrogram: torch.Tensor | None = None
    spectrogram_lengths: torch.Tensor | None = None
    stop_reasons: list[str] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    alignments: list[SpeechAlignment] | None = None


@dataclass
class SpokenSentence:
    """A sentence of a longer text, and where it is in the waveform.

    Args:
        text: as it was spelled; None where token ids were given.
        input_ids: its tokens.
        start_s: where it begins, in seconds.
        end_s: where it ends.
        spectrogram: [T, M].
        stop_reason: "stop", or "max_length" where it was cut off.
        alignment: which token was spoken when, where it was asked for.
    """

    text: str | None
    input_ids: list[int]
    start_s: float
    end_s: float
    spectrogram: torch.Tensor
    stop_reason: str
    alignment: SpeechAlignment | None = None


@dataclass
class SpokenText:
    """A text of any length, spoken.

    Args:
        waveform: float32 [samples].
        sampling_rate: in Hz.
        sentences: that it consists of.
    """

    waveform: torch.Tensor
    sampling_rate: int
    sentences: list[SpokenSentence] = field(default_factory=list)

    def word_timings(self, tokenizer: Any) -> list[WordTiming]:
        """The word-timing table of the whole text, in seconds of the waveform.

        Raises:
            ValueError: the text was spoken without `output_alignments=True`.
        """
        rows = []
        for sentence in self.sentences:
            if sentence.alignment is None:
                raise ValueError("there are no alignments: call synthesize with output_alignments=True")
            for row in sentence.alignment.word_timings(sentence.input_ids, tokenizer):
                rows.append(WordTiming(row.word, sentence.start_s + row.start_s, sentence.start_s + row.end_s))
        return rows


class SpectrogramGenerationMixin:
    """How a `TextToSpectrogramModel` speaks: `generate`, `stream`, and `synthesize` for long texts."""

    config: Any
    generation_config: Any
    encoder: Any
    decoder: Any
    postnet: Any
    vocoder: Any
    generation_config_class = SpectrogramGenerationConfig

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """Part of `from_pretrained`: read `generation_config.json`, unless another class wrote it about tokens."""
        own = self.generation_config
        cast(Any, GenerationMixin).adjust_generation_fn(self, *args, **kwargs)
        found = self.generation_config.to_dict()
        of_model = {one.name for one in fields(self.config)} - set(
            own.to_dict()
        )  # changed while loading, and put here
        found = {name: value for name, value in found.items() if name not in of_model}
        self.generation_config = SpectrogramGenerationConfig.from_dict(found) if "stop_threshold" in found else own

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        speaker_embeddings: Any = None,
        vocoder: Any = None,
        generator: Generators = None,
        generation_config: GenerationConfig | None = None,
        token_type_ids: torch.Tensor | None = None,
        **settings: Any,
    ) -> SynthesisOutput | tuple:
        """Speak a batch of texts. Each row comes out as it would alone.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 1 where a token is real. Where it is left out, padding tokens are not.
            speaker_embeddings: [V] for all rows or [B, V]; None for the default voice, if there is one.
            vocoder: a vocoder, or the folder of one; None for the checkpoint's, or Griffin-Lim where it has none.
            generator: of the prenet's dropout, which is always on. With one generator each row gets a seed of its own
                from it, in the order of rows; a list has one for each row. The same seeds give the same bits, and
                PyTorch's global randomness stays untouched. None takes seeds from the latter.
            generation_config: settings that come before the model's own.
            token_type_ids: [B, S], for pretrained encoders that read them.
            settings: fields of `SpectrogramGenerationConfig` for this call, such as `max_new_tokens`, in frames,
                `speed` or `attention_window`.

        Returns:
            Waveforms, spectrograms, their lengths, and why each row ended.

        Raises:
            ValueError: a setting is unknown or has no effect on speech; text or speech is longer than there are
                positions; or an input has the wrong shape.
        """
        chosen = self.generation_config.for_call(generation_config, settings)
        output, cut = self._speak(
            input_ids, attention_mask, speaker_embeddings, vocoder, generator, chosen, token_type_ids
        )
        self._warn_of_cuts([f"row {row}" for row in cut], chosen)
        return output.to_tuple() if not chosen.return_dict_in_generate else output

    def stream(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        speaker_embeddings: Any = None,
        vocoder: Any = None,
        generator: Generators = None,
        generation_config: GenerationConfig | None = None,
        chunk_frames: int = 16,
        pause_s: float = 0.0,
        **settings: Any,
    ) -> SpeechStream:
        """Speak texts one after the other, and give the sound as it comes.

        The chunks, concatenated, are the waveforms of `generate`, with pauses of `pause_s` between them.

        Args:
            input_ids: [B, S]; each row is spoken when those before it are.
            attention_mask: see `generate`, as for what follows.
            speaker_embeddings: see there.
            vocoder: see there.
            generator: see there.
            generation_config: see there.
            chunk_frames: frames that are written between two chunks, but fewer between the first ones, so that sound
                starts soon. Short chunks cost more.
            pause_s: silence between texts, in seconds.
            settings: fields of `SpectrogramGenerationConfig`, without those about what is returned.

        Raises:
            ValueError: as in `generate`, before any sound.
        """
        model: Any = self
        chosen = self.generation_config.for_call(generation_config, settings)
        for name in ("output_attentions", "output_alignments"):
            if getattr(chosen, name):
                raise ValueError(f"a stream returns sound alone: {name} is for generate()")
        if not chosen.output_waveform:
            raise ValueError("a stream is of sound: output_waveform=False is for generate()")
        if chunk_frames < 1 or pause_s < 0:
            raise ValueError(f"chunk_frames must be at least 1 and pause_s not negative: {chunk_frames}, {pause_s}")
        texts = self._checked_texts(input_ids, attention_mask, chosen)
        self._warn_of_no_voice(speaker_embeddings)
        speakers = self._rows_of_speakers(speaker_embeddings, len(texts))
        sounding = self._vocoder_for(vocoder)
        limits = self._frame_limits([len(text) for text in texts], chosen)
        generators = row_generators(generator, len(texts)) if self._draws(chosen) else None
        pause = torch.zeros(round(pause_s * self.config.sampling_rate), device=input_ids.device)

        def begin(stream: SpeechStream) -> Iterator[torch.Tensor]:
            for index, text in enumerate(texts):
                if index and len(pause):
                    yield pause
                drawn = None if generators is None else generators[index : index + 1]
                steps = write_spectrograms(
                    model, model.encode(text[None]), speakers[index], [limits[index]], chosen, drawn
                )
                written = _frames_of_one(steps, stream)
                yield from sound_of_frames(written, self.postnet, chosen.speed, sounding, chunk_frames)
                stream.spectrogram_lengths[-1] = sped_up_length(stream.spectrogram_lengths[-1], chosen.speed)
                if stream.stop_reasons[-1] == MAX_LENGTH and limits[index][0] < limits[index][1]:
                    self._warn_of_cuts([f"text {index}"], chosen)

        return SpeechStream(cast(nn.Module, self), self.config.sampling_rate, begin)

    @torch.no_grad()
    def synthesize(
        self,
        text: str | Sequence[Any],
        processor: Any = None,
        *,
        speaker_embeddings: Any = None,
        vocoder: Any = None,
        generator: Generators = None,
        generation_config: GenerationConfig | None = None,
        pause_s: float = 0.2,
        batch_size: int = 8,
        **settings: Any,
    ) -> SpokenText:
        """Speak a text of any length, sentence by sentence.

        Args:
            text: a text, or several that follow each other; or token ids, a list of them for each sentence.
            processor: the model's `TextToSpectrogramProcessor`, which finds the sentences; not needed for token ids.
            speaker_embeddings: [V] or [1, V]; None for the default voice.
            vocoder: see `generate`, as for what follows.
            generator: see there; rows are sentences.
            generation_config: see there.
            pause_s: silence between sentences, in seconds.
            batch_size: sentences that are spoken at once; it changes nothing but speed and memory.
            settings: fields of `SpectrogramGenerationConfig`; with `output_alignments=True` the result can tell when
                each word was spoken.

        Raises:
            ValueError: there is nothing to say, or as in `generate`.
        """
        chosen = self.generation_config.for_call(generation_config, settings)
        chosen.output_waveform, chosen.output_attentions = True, False
        if batch_size < 1 or pause_s < 0:
            raise ValueError(f"batch_size must be at least 1 and pause_s not negative: {batch_size}, {pause_s}")
        texts, ids = self._sentences(text, processor)
        generators = row_generators(generator, len(ids)) if self._draws(chosen) else None
        sounding = self._vocoder_for(vocoder)
        spoken = SpokenText(torch.zeros(0), self.config.sampling_rate)
        pause = torch.zeros(round(pause_s * self.config.sampling_rate))
        parts: list[torch.Tensor] = []
        for first in range(0, len(ids), batch_size):
            places = range(first, min(first + batch_size, len(ids)))
            drawn = None if generators is None else [generators[place] for place in places]
            batch, mask = self._padded([ids[place] for place in places])
            output, cut = self._speak(batch, mask, speaker_embeddings, sounding, drawn, chosen)
            self._warn_of_cuts([f"sentence {first + row}" for row in cut], chosen)
            for row, place in enumerate(places):
                self._add_sentence(spoken, parts, output, row, texts[place], ids[place], pause)
        spoken.waveform = torch.cat(parts)
        return spoken

    def stream_text(self, text: str | Sequence[Any], processor: Any = None, **arguments: Any) -> SpeechStream:
        """Speak a text of any length, and give the sound as it comes: `synthesize` in chunks.

        Args:
            text: see `synthesize`.
            processor: see there.
            arguments: of `stream`; `pause_s` is as in `synthesize` where it is left out.
        """
        _, ids = self._sentences(text, processor)
        return self.stream(*self._padded(ids), **{"pause_s": 0.2, **arguments})

    def _speak(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        speaker_embeddings: Any,
        vocoder: Any,
        generator: Generators,
        chosen: SpectrogramGenerationConfig,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[SynthesisOutput, list[int]]:
        """The output, and the rows that were cut off although nobody asked for exactly their length."""
        self._checked_padding(attention_mask, chosen)
        self._warn_of_no_voice(speaker_embeddings)
        sounding = self._vocoder_for(vocoder) if chosen.output_waveform else None
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        with evaluating(cast(nn.Module, self)), quick_inference(cast(nn.Module, self)):
            encoded = cast(Any, self).encode(input_ids, attention_mask, **types)
            mask = encoded.attention_mask
            if mask is None:
                mask = torch.ones(encoded.last_hidden_state.shape[:2], dtype=torch.bool, device=input_ids.device)
            limits = self._frame_limits(mask.sum(dim=-1).tolist(), chosen)
            generators = row_generators(generator, len(mask)) if self._draws(chosen) else None
            written = collect_rows(
                write_spectrograms(self, encoded, speaker_embeddings, limits, chosen, generators), len(mask)
            )
            refined = [self.postnet(row.frames[None])[0] for row in written]
            spectrograms = [change_speed(one, chosen.speed) for one in refined]
            waveforms = None if sounding is None else [sounding(one) for one in spectrograms]
        output = self._synthesis_output(written, spectrograms, waveforms, mask, chosen)
        reached = [row for row, one in enumerate(written) if one.stop_reason == MAX_LENGTH]
        return output, [row for row in reached if limits[row][0] < limits[row][1]]

    def _synthesis_output(
        self,
        written: list[WrittenRow],
        spectrograms: list[torch.Tensor],
        waveforms: list[torch.Tensor] | None,
        text_mask: torch.Tensor,
        chosen: SpectrogramGenerationConfig,
    ) -> SynthesisOutput:
        device, silence = text_mask.device, math.log10(self.config.mel_floor)
        attentions = None
        if chosen.output_attentions:
            by_row = [cast(torch.Tensor, row.cross_attentions).permute(2, 0, 1, 3) for row in written]  # [N, L, H, S]
            attentions = tuple(nn.utils.rnn.pad_sequence(by_row, batch_first=True).permute(2, 0, 3, 1, 4))
        alignments = None
        if chosen.output_alignments:
            rows = zip(written, spectrograms, text_mask, strict=True)
            alignments = [self._alignment(row, len(spectrogram), mask) for row, spectrogram, mask in rows]
        return SynthesisOutput(
            waveform=waveforms,
            waveform_lengths=None if waveforms is None else torch.tensor(list(map(len, waveforms)), device=device),
            spectrogram=nn.utils.rnn.pad_sequence(spectrograms, batch_first=True, padding_value=silence),
            spectrogram_lengths=torch.tensor(list(map(len, spectrograms)), device=device),
            stop_reasons=[row.stop_reason for row in written],
            cross_attentions=attentions,
            alignments=alignments,
        )

    def _alignment(self, row: WrittenRow, frames_spoken: int, text_mask: torch.Tensor) -> SpeechAlignment:
        frames = len(row.frames)
        seconds = frames_spoken * self.config.hop_length / self.config.sampling_rate
        attentions = cast(torch.Tensor, row.cross_attentions)[..., text_mask]  # [L, H, N, S]
        return align_speech(
            attentions, frames, self.config.reduction_factor, seconds / frames, diagonal_heads(self.config)
        )

    def _draws(self, chosen: SpectrogramGenerationConfig) -> bool:
        return chosen.prenet_dropout and self.config.speech_decoder_prenet_dropout > 0

    def _frame_limits(self, tokens: list[int], chosen: SpectrogramGenerationConfig) -> list[tuple[int, int]]:
        """Fewest and most frames of each row.

        Raises:
            ValueError: more frames are asked for than there are positions, or the fewest exceed the most.
        """
        available = self.config.max_speech_positions * self.config.reduction_factor
        for name in ("max_new_tokens", "min_new_tokens", "max_length"):
            wanted = getattr(chosen, name)
            if wanted is not None and wanted > available:
                raise ValueError(
                    f"{name}={wanted} frames, but the model has positions for {available} "
                    f"(max_speech_positions={self.config.max_speech_positions} steps of "
                    f"{self.config.reduction_factor}): split the text, as synthesize() does"
                )
        return [self._limits_of_row(count, available, chosen) for count in tokens]

    def _limits_of_row(self, tokens: int, available: int, chosen: SpectrogramGenerationConfig) -> tuple[int, int]:
        most = chosen.max_new_tokens
        if most is None:
            by_text = max(1, int(tokens * chosen.max_frames_per_token))
            most = min(by_text, available if chosen.max_length is None else chosen.max_length)
        fewest = chosen.min_new_tokens
        if fewest is None:
            fewest = min(int(tokens * chosen.min_frames_per_token), most)
        if fewest > most:
            raise ValueError(f"min_new_tokens={fewest} exceeds the most frames of the row, {most}: see max_new_tokens")
        return fewest, most

    def _vocoder_for(self, given: Any) -> Vocoder:
        """The vocoder of a call.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it makes sound from other spectrograms than the model's.
        """
        if given is None and self.vocoder is not None:
            return self.vocoder
        if given is None:
            logger.warning_once(
                "This checkpoint has no vocoder, so Griffin-Lim is used, which sounds hollow: give vocoder=, or store "
                "one with set_vocoder()"
            )
            return GriffinLimVocoder(self.config)
        ready: Any = given if isinstance(given, Vocoder) else load_vocoder(given).to(cast(Any, self).device)
        if isinstance(ready, SpeechVocoder):
            check_vocoder_agrees(self.config, ready.config)
        for name in ("sampling_rate", "hop_length", "num_mel_bins"):
            ours, its = getattr(self.config, name), getattr(ready, name)
            if ours != its:
                raise ValueError(
                    f"model and vocoder do not agree: {name} is {ours} in the model and {its} in the vocoder"
                )
        return ready

    def _checked_padding(self, attention_mask: torch.Tensor | None, chosen: SpectrogramGenerationConfig) -> None:
        """Pipelines pass the tokenizer's padding token."""
        given, own = chosen.pad_token_id, self.config.pad_token_id
        if attention_mask is None and given is not None and given != own:
            raise ValueError(f"pad_token_id={given}, but the model pads with {own}: give an attention_mask")

    def _checked_texts(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, chosen: SpectrogramGenerationConfig
    ) -> list[torch.Tensor]:
        """Token ids of each row without its padding: tensors [S]."""
        self._checked_padding(attention_mask, chosen)
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be [batch, tokens], got {list(input_ids.shape)}")
        mask = self.encoder.checked_mask(input_ids, None, attention_mask)
        if mask is None:
            return list(input_ids)
        return [row[real] for row, real in zip(input_ids, mask, strict=True)]

    def _warn_of_no_voice(self, speaker_embeddings: Any) -> None:
        if speaker_embeddings is None and cast(Any, self).lacks_voice:
            logger.warning_once(
                f"this model learned several voices and stores none: give speaker_embeddings "
                f"[{self.config.speaker_embedding_dim}], or store one with set_default_speaker(); without a voice "
                "speech may be noise"
            )

    def _rows_of_speakers(self, speaker_embeddings: Any, rows: int) -> list[Any]:
        found = cast(Any, self).speakers(speaker_embeddings, rows)
        return [None] * rows if found is None else list(found)

    def _sentences(self, text: str | Sequence[Any], processor: Any) -> tuple[list[str | None], list[list[int]]]:
        """Each sentence as text, where there is one, and as token ids."""
        given = [text] if isinstance(text, str) else list(text)
        if not given:
            raise ValueError("there is nothing to say")
        if not isinstance(given[0], str):
            return [None] * len(given), [torch.as_tensor(ids).flatten().tolist() for ids in given]
        if processor is None:
            raise ValueError("to speak a text synthesize() needs the model's processor; without it give token ids")
        limit = self.encoder.max_length
        sentences = [sentence for one in given for sentence in processor.split_sentences(one, limit)]
        return sentences, processor(sentences, normalize=False)["input_ids"]

    def _padded(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [torch.tensor(row, dtype=torch.long) for row in ids]
        batch = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id or 0)
        lengths = torch.tensor([len(row) for row in rows])
        device = cast(Any, self).device
        return batch.to(device), (torch.arange(batch.shape[1]) < lengths[:, None]).long().to(device)

    def _add_sentence(
        self,
        spoken: SpokenText,
        parts: list[torch.Tensor],
        output: SynthesisOutput,
        row: int,
        text: str | None,
        ids: list[int],
        pause: torch.Tensor,
    ) -> None:
        waveform = cast(list, output.waveform)[row]
        if parts:
            parts.append(pause.to(waveform.device))
        start = sum(map(len, parts))
        parts.append(waveform)
        frames = int(cast(torch.Tensor, output.spectrogram_lengths)[row])
        spoken.sentences.append(
            SpokenSentence(
                text=text,
                input_ids=ids,
                start_s=start / spoken.sampling_rate,
                end_s=(start + len(waveform)) / spoken.sampling_rate,
                spectrogram=cast(torch.Tensor, output.spectrogram)[row, :frames],
                stop_reason=cast(list, output.stop_reasons)[row],
                alignment=None if output.alignments is None else output.alignments[row],
            )
        )

    def _warn_of_cuts(self, names: list[str], chosen: SpectrogramGenerationConfig) -> None:
        if not names:
            return
        shown = ", ".join(names[:SHOWN_ROWS]) + (", ..." if len(names) > SHOWN_ROWS else "")
        by_text = f"max_frames_per_token={chosen.max_frames_per_token:g}, max_length={chosen.max_length}"
        limit = by_text if chosen.max_new_tokens is None else f"max_new_tokens={chosen.max_new_tokens}"
        logger.warning(
            f"The speech of {shown} was cut off at the limit ({limit}) before it came to its end: the text may be "
            "incomplete, or the model may have lost it"
        )


def _frames_of_one(steps: Iterable[WrittenStep], stream: SpeechStream) -> Iterator[torch.Tensor]:
    """Frames [r, M] of a text that is alone in its batch; the stream is told how it ends."""
    count = 0
    for step in steps:
        kept, reason = step.ended.get(0, (step.frames.shape[1], ""))
        count += kept
        if reason:
            stream.stop_reasons.append(reason)
            stream.spectrogram_lengths.append(count)
        yield step.frames[0, :kept]


__all__ = [
    "SpectrogramGenerationConfig",
    "SpectrogramGenerationMixin",
    "SpeechAlignment",
    "SpeechStream",
    "SpokenSentence",
    "SpokenText",
    "SynthesisOutput",
    "WordTiming",
]
