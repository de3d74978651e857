"""What cross-attention tells of synthesised speech: how sure it was, how long each token took, when each word came.

Shapes: `L` layers, `H` heads, `N` decoder steps, `r` frames of a step, `S` text tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# How tokenizers mark a space: characters, SentencePiece, byte-level pieces.
SPACES = " \u2581\u0120\n"
CONTINUES = "##"  # of WordPiece, whose other tokens each begin a word


@dataclass
class WordTiming:
    """One row of a word-timing table.

    Args:
        word: as the tokenizer writes it.
        start_s: when it begins, in seconds of the waveform.
        end_s: when it ends.
    """

    word: str
    start_s: float
    end_s: float


@dataclass
class SpeechAlignment:
    """Which token was spoken when, by the cross-attention head that is most focused.

    Args:
        weights: [N, S], of that head.
        layer: where it is.
        head: its index.
        focus_rate: mean over steps of the largest weight, up to 1 (Ren et al. 2019, as ESPnet computes it). Below
            about 0.5 speech has usually lost its text.
        durations: integers [S], frames of each token; they add up to the length of the spectrogram as it was written.
        seconds_per_frame: of the waveform; the hop over the sampling rate, unless speech was sped up.
    """

    weights: torch.Tensor
    layer: int
    head: int
    focus_rate: float
    durations: torch.Tensor
    seconds_per_frame: float

    @property
    def durations_s(self) -> torch.Tensor:
        """Seconds of each token: float64 [S], which add up to the length of the waveform."""
        return self.durations.double() * self.seconds_per_frame

    @property
    def coverage(self) -> float:
        """Share of the tokens that were attended to at all; the rest was skipped."""
        return float((self.durations > 0).double().mean())

    def word_timings(self, input_ids: Sequence[int] | torch.Tensor, tokenizer: Any) -> list[WordTiming]:
        """The word-timing table.

        Args:
            input_ids: [S], the tokens that were spoken, without padding.
            tokenizer: that made them.

        Raises:
            ValueError: there are not as many tokens as in the alignment.
        """
        ids = torch.as_tensor(input_ids).flatten().tolist()
        if len(ids) != len(self.durations):
            raise ValueError(
                f"the alignment has {len(self.durations)} tokens, input_ids {len(ids)}: leave padding out"
            )
        ends = self.durations_s.cumsum(0).tolist()
        starts = [0.0, *ends[:-1]]
        return [
            WordTiming(tokenizer.decode(ids[first : last + 1]).strip(), starts[first], ends[last])
            for first, last in token_spans_of_words(ids, tokenizer)
        ]


def focus_rates(attentions: torch.Tensor) -> torch.Tensor:
    """Mean over steps of each head's largest weight: [L, H, N, S] to [L, H]."""
    return attentions.float().amax(dim=-1).mean(dim=-1)


def align_speech(
    attentions: torch.Tensor,
    frames: int,
    reduction_factor: int,
    seconds_per_frame: float,
    heads: Iterable[int] | None = None,
) -> SpeechAlignment:
    """Durations and focus rate of one utterance, by its most focused head, as ESPnet's duration calculator.

    Args:
        attentions: cross-attentions [L, H, N, S] of real steps on real tokens.
        frames: length of the spectrogram, of which the last step may have written fewer than `reduction_factor`.
        reduction_factor: frames of a step.
        seconds_per_frame: of the waveform.
        heads: those to choose from in each layer; None for all.
    """
    rates = focus_rates(attentions)
    chosen = torch.arange(rates.shape[1]) if heads is None else torch.tensor(sorted(heads))
    best = int(rates[:, chosen.to(rates.device)].argmax())
    layer, head = best // len(chosen), int(chosen[best % len(chosen)])
    weights = attentions[layer, head]
    durations = token_durations(weights, frames, reduction_factor)
    return SpeechAlignment(weights, layer, head, float(rates[layer, head]), durations, seconds_per_frame)


def token_durations(weights: torch.Tensor, frames: int, reduction_factor: int) -> torch.Tensor:
    """Frames for which each token is attended to most: weights [N, S] to integers [S] that add up to `frames`."""
    steps, tokens = weights.shape
    of_step = torch.full((steps,), reduction_factor, device=weights.device)
    of_step[-1] = frames - (steps - 1) * reduction_factor
    return torch.zeros(tokens, dtype=torch.long, device=weights.device).index_add(0, weights.argmax(-1), of_step)


def token_spans_of_words(ids: Sequence[int], tokenizer: Any) -> list[tuple[int, int]]:
    """Places of the first and last token of each word, without the punctuation around it.

    Args:
        ids: of a text.
        tokenizer: that made them; of characters, SentencePiece, WordPiece or byte-level pieces.
    """
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    is_wordpiece = any(token.startswith(CONTINUES) for token in tokenizer.get_vocab())
    words: list[list[int]] = [[]]
    for place, (token, token_id) in enumerate(zip(tokens, ids, strict=True)):
        begins = not token.startswith(CONTINUES) if is_wordpiece else token[:1] in SPACES
        if begins or token_id in special:
            words.append([])
        if token_id not in special and token.strip(SPACES):
            words[-1].append(place)
    spoken = ([place for place in word if _has_sound(tokens[place])] for word in words)
    return [(word[0], word[-1]) for word in spoken if word]


def _has_sound(token: str) -> bool:
    return any(character.isalnum() for character in token) or "<" in token  # an unknown token is of something


__all__ = ["SpeechAlignment", "WordTiming", "align_speech", "focus_rates", "token_durations"]
