"""What was said before, told to a decoder that was trained to go on from it, as Whisper's was.

The decoder reads `<|startofprev|>` and the end of the previous text in front of the start token. None of it is part of
the transcript: `generate()` gives it back to nobody, and whatever scores hypotheses sees what follows.

Shapes: `B` batch, `P` tokens of previous text, padded on the left, `S` text tokens.
"""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin

from ..configuration.previous_text_tokens import START_OF_PREVIOUS_TEXT, previous_text_ids, start_of_previous_text
from .speech_chunks import SpeechChunk
from .speech_timestamps import TimedWord
from .transcript_merging import join_words

POSITIONS = 448  # tokens, where the decoder has no bound: Whisper's
WARMEST = 0.5  # temperature of a text that the next one may go on from (Radford et al. 2023, section 4.5)
LONG_SILENCE_S = 10.0  # behind it, somebody speaks of something else
COUNTING_EVERYTHING = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}


class PreviousTextMixin(GenerationMixin):
    """`prompt_ids=` of `generate()`, with the meaning that Whisper's own class gives it, for each row."""

    def generate(self, *args: Any, prompt_ids: Any = None, **kwargs: Any) -> Any:
        """As in Transformers, behind previous text.

        Args:
            args: see Transformers.
            prompt_ids: tokens of what was said before, the token that starts it included
                (`processor.get_prompt_ids(text)`): [P] for all rows, or one list for each, of any lengths, also empty.
            kwargs: see Transformers. Lengths, `max_length` among them, count the previous text and its padding.

        Returns:
            See Transformers; sequences without the previous text.

        Raises:
            ValueError: the previous text takes more than half of the decoder's positions, there are not as many as
                rows, or a setting would take it for the beginning of the transcript.
        """
        if prompt_ids is None:
            return cast(Any, super()).generate(*args, **kwargs)
        rows = _rows(prompt_ids)
        output = cast(Any, super()).generate(*args, prompt_ids=rows, **kwargs)
        width = max(map(len, rows))
        if isinstance(output, torch.Tensor):
            return output[:, width:]
        output.sequences = output.sequences[:, width:]
        return output

    def previous_text_token(self, tokenizer: Any) -> int:
        """Id of the token that starts previous text.

        Raises:
            ValueError: nobody knows one.
        """
        known = getattr(self.generation_config, "prev_sot_token_id", None)
        found = start_of_previous_text(tokenizer) if known is None else known
        if found is None:
            kind = cast(Any, self).config.decoder.model_type
            raise ValueError(
                f"the {kind} decoder cannot be told what was said before: it has no token that starts previous text. "
                "If it was trained with one, set model.generation_config.prev_sot_token_id to its id, or use a "
                f"tokenizer that has {START_OF_PREVIOUS_TEXT}; if not, leave out condition_on_previous_text and "
                "initial_prompt"
            )
        return found

    def most_previous_tokens(self) -> int:
        """Of previous text, the token that starts it included: half of the decoder's positions."""
        model = cast(Any, self)
        return (model.family.max_length(model.config.decoder) or POSITIONS) // 2

    def behind_previous_text(self, sequences: torch.Tensor, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Arguments of `forward()` for sequences [B, S], each behind the previous text of its row."""
        ids, mask = self._padded(rows, len(sequences), sequences.device)
        arguments = {"decoder_input_ids": torch.cat([ids, sequences], dim=1)}  # [B, P + S]
        if not bool(mask.all()):
            mask = torch.cat([mask, torch.ones_like(sequences, dtype=torch.bool)], dim=1)
            arguments |= {"decoder_attention_mask": mask.long(), "decoder_position_ids": self._positions(mask)}
        return arguments

    def _padded(
        self, rows: Sequence[Sequence[int]], batch_size: int, device: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and boolean mask [B, P], padded on the left."""
        if len(rows) not in (1, batch_size):
            raise ValueError(f"{len(rows)} prompt_ids for {batch_size} recordings: give one, or one for each")
        width = max(map(len, rows))
        padding = cast(Any, self).config.pad_token_id or 0
        ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
        return ids.expand(batch_size, -1), mask.expand(batch_size, -1)

    def _positions(self, mask: torch.Tensor) -> torch.Tensor:
        """Places [B, S] of tokens in their own row, padding not counted."""
        model = cast(Any, self)
        first = model.config.pad_token_id + 1 if model.family.positions_start_after_padding else 0
        return (mask.long().cumsum(dim=-1) - 1).clamp(min=0) + first

    def _counts_positions(self) -> bool:
        """Whether the decoder can be told the positions of its tokens."""
        return _takes_position_ids(type(cast(Any, self).get_decoder()))

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, prompt_ids: list[list[int]] | None = None, **kwargs: Any
    ) -> Any:
        """As in Transformers; settings that cannot go with previous text are refused."""
        prepared, model_kwargs = cast(Any, super())._prepare_generation_config(generation_config, **kwargs)
        if prompt_ids is None:
            return prepared, model_kwargs
        if model_kwargs.get("decoder_input_ids") is not None:
            raise ValueError("prompt_ids come before the start token, decoder_input_ids begin with it: give either")
        for name, harmless in COUNTING_EVERYTHING.items():
            if (getattr(prepared, name, None) or harmless) != harmless:
                raise ValueError(f"{name} would count what prompt_ids say as part of the transcript: leave either out")
        lengths, most = set(map(len, prompt_ids)), self.most_previous_tokens()
        if max(lengths) > most:
            raise ValueError(
                f"prompt_ids have {max(lengths)} tokens; at most {most}, half of the positions, are heard"
            )
        if len(lengths) > 1 and not self._counts_positions():
            kind = cast(Any, self).config.decoder.model_type
            raise ValueError(f"prompt_ids of rows differ in length, but a {kind} decoder takes no position ids")
        prepared.previous_text = prompt_ids
        return prepared, model_kwargs

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict[str, Any]:
        """As in Transformers; then previous text is on its way to where the decoder's first tokens are laid out."""
        model_kwargs = cast(Any, super())._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )
        if hasattr(generation_config, "previous_text"):
            model_kwargs["previous_text"] = cast(Any, generation_config).previous_text
        return model_kwargs

    def _with_previous_text(
        self, ids: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """First tokens [B, S] behind previous text, and the arguments of the decoding steps."""
        rows = model_kwargs.pop("previous_text", None)
        if rows is None or not any(rows):
            return ids, model_kwargs
        arguments = self.behind_previous_text(ids, rows)
        arguments.pop("decoder_position_ids", None)  # every step has its own
        return arguments.pop("decoder_input_ids"), {**model_kwargs, **arguments}

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in Transformers; padding on the left takes no positions."""
        mask = kwargs.get("decoder_attention_mask")
        if mask is not None and mask.dim() == 2 and self._counts_positions():
            kwargs["decoder_position_ids"] = self._positions(mask)
        return cast(Any, super()).prepare_inputs_for_generation(*args, **kwargs)


@functools.cache  # every decoding step asks
def _takes_position_ids(decoder_class: type[nn.Module]) -> bool:
    return "position_ids" in inspect.signature(decoder_class.forward).parameters


def _rows(prompt_ids: Any) -> list[list[int]]:
    """Token ids, of all rows or of each, as lists."""
    given = prompt_ids.tolist() if hasattr(prompt_ids, "tolist") else list(prompt_ids)
    if not given or isinstance(given[0], int):
        return [given]
    return [row.tolist() if hasattr(row, "tolist") else list(row) for row in given]


@dataclass
class SaidBefore:
    """What the chunks of a recording said so far.

    Attributes:
        token_ids: of the chunks before the last one.
        text: of the last chunk, empty where the next one shall not go on from it.
        words: of the last chunk.
        end_s: where the last chunk ends, in seconds of the recording.
    """

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    words: tuple[TimedWord, ...] = ()
    end_s: float = 0.0


class PreviousTextPrompts:
    """What the decoder is told before each chunk of a recording.

    Args:
        model: with `PreviousTextMixin`.
        tokenizer: of its decoder.
        conditioned: whether chunks go on from those before them.
        initial_prompt: text in front of it all.

    Raises:
        ValueError: the decoder knows no previous text, or the initial prompt is too long.
    """

    def __init__(self, model: Any, tokenizer: Any, conditioned: bool, initial_prompt: str | None):
        self.tokenizer, self.conditioned = tokenizer, conditioned
        self.start, self.most = model.previous_text_token(tokenizer), model.most_previous_tokens() - 1
        self.initial = previous_text_ids(tokenizer, initial_prompt or "")
        if len(self.initial) > self.most:
            raise ValueError(f"initial_prompt has {len(self.initial)} tokens: at most {self.most} are heard")

    @property
    def longest(self) -> int:
        """Tokens that may come before a start token; it depends on no recording, and so the room behind it neither."""
        return 1 + (self.most if self.conditioned else len(self.initial))

    def prompt_ids(self, said: SaidBefore, chunk: SpeechChunk) -> list[int]:
        """What to tell before the next chunk of a recording."""
        if self.conditioned:
            self._settle(said, chunk)
        room = self.most - len(self.initial)
        told = [*self.initial, *said.token_ids[max(len(said.token_ids) - room, 0) :]]
        return [self.start, *told] if told else []

    def hear(self, said: SaidBefore, chunk: SpeechChunk, heard: Any) -> None:
        """Take note of what a chunk said, None for silence: a guess at a high temperature is not gone on from."""
        said.end_s = chunk.end_s
        if heard is None or heard.temperature > WARMEST:
            said.token_ids, said.text, said.words = [], "", ()
        else:
            said.text, said.words = heard.text, heard.words

    def _settle(self, said: SaidBefore, chunk: SpeechChunk) -> None:
        """Let the last chunk's text be context, but for the words that the next chunk hears again."""
        text = said.text
        if chunk.overlap_s:
            text = join_words(word for word in said.words if word.start_s + word.end_s < 2 * chunk.start_s)
        is_new = chunk.start_s - said.end_s >= LONG_SILENCE_S
        ids = [*said.token_ids, *previous_text_ids(self.tokenizer, text)]
        said.token_ids = [] if is_new else ids[-self.most :]
        said.text, said.words = "", ()


__all__ = ["PreviousTextMixin", "PreviousTextPrompts", "SaidBefore"]
