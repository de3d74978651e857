"""Decoding step by step until each row stops: dropout of its own, limits of its own, and no work once it is done.

Shapes: `B` batch, `b` rows that still speak, `S` text tokens, `r` frames of a step, `T` frames, `M` mel bins,
`N` decoder steps, `L` layers, `H` heads, `U` prenet units.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from .spectrogram_decoder import Generators, SpectrogramPrenet
from .spectrogram_generation_config import SpectrogramGenerationConfig

STOP, MAX_LENGTH = "stop", "max_length"
STEPS_DRAWN_AT_ONCE = 32  # of dropout masks: drawing for each step alone costs as much as the prenet itself
LEAST_ROOM = 64  # decoder steps of a static cache


@dataclass
class WrittenStep:
    """One decoder step of the rows that still speak.

    Args:
        rows: which of the batch they are.
        frames: [b, r, M], before the postnet.
        cross_attentions: [b, L, H, 1, S], where asked for.
        ended: for the rows that end with this step, how many of its frames are theirs, and why they end.
    """

    rows: list[int]
    frames: torch.Tensor
    cross_attentions: torch.Tensor | None
    ended: dict[int, tuple[int, str]]


@dataclass
class WrittenRow:
    """What was written for one row.

    Args:
        frames: [T, M], before the postnet.
        cross_attentions: [L, H, N, S], where asked for.
        stop_reason: "stop" or "max_length".
    """

    frames: torch.Tensor
    cross_attentions: torch.Tensor | None
    stop_reason: str


def write_spectrograms(
    model: Any,
    encoded: Any,
    speaker_embeddings: Any,
    limits: list[tuple[int, int]],
    chosen: SpectrogramGenerationConfig,
    generators: Sequence[torch.Generator] | None,
) -> Iterator[WrittenStep]:
    """Decode, step by step, until every row has ended; rows that did leave the batch.

    Args:
        model: a `TextToSpectrogramModel`.
        encoded: B texts, from its `encode`.
        speaker_embeddings: see `TextToSpectrogramModel.start_decoding`.
        limits: fewest and most frames of each row.
        chosen: the threshold of the stop, the attention window, and so on.
        generators: of each row's dropout; None for no dropout.
    """
    config = model.config
    r, rows, frames = config.reduction_factor, list(range(len(limits))), 0
    room = room_for(max(most for _, most in limits), config) if chosen.static_cache else None
    state = model.start_decoding(encoded, speaker_embeddings, max_steps=room)
    masks = PrenetMasks(model.decoder.prenet, generators)
    window = AttentionWindow(encoded, diagonal_heads(config), config, chosen.window) if chosen.window else None
    wants_weights = bool(chosen.output_attentions or chosen.output_alignments)
    written = encoded.last_hidden_state.new_zeros(len(rows), r, config.num_mel_bins)  # silence
    while rows:
        if window is not None:
            state.cross_mask = window.mask()
        step = model.decode_step(
            written[:, -1],
            state,
            prenet_masks=masks.next(),
            output_attentions=wants_weights or window is not None,
        )
        # A graph that was captured writes the next step over the memory of this one.
        written = step.frames.clone() if chosen.static_cache else step.frames
        if window is not None:
            window.follow(step.cross_attentions)
        ended = _ended(step.stop_logits, [limits[row] for row in rows], frames, chosen.stop_threshold)
        weights = torch.stack(step.cross_attentions, dim=1) if wants_weights else None  # [b, L, H, 1, S]
        yield WrittenStep(rows, written, weights, {rows[place]: how for place, how in ended.items()})
        frames += r
        if ended:
            going = [place for place in range(len(rows)) if place not in ended]
            rows = [rows[place] for place in going]
            if rows:
                kept = torch.tensor(going, device=written.device)
                written = written[kept]
                for held in (state, masks, *([] if window is None else [window])):
                    held.select_rows(kept)


def room_for(frames: int, config: TextToSpectrogramConfig) -> int:
    """Steps of a static cache for so many frames: one of few sizes, each of which takes a graph of a compiled step."""
    steps = -(-frames // config.reduction_factor)
    return min(max(LEAST_ROOM, 1 << (steps - 1).bit_length()), config.max_speech_positions)


def diagonal_heads(config: TextToSpectrogramConfig) -> list[int]:
    """Heads of each layer that training drew to the diagonal; all where it drew none."""
    return config.guided_heads if config.use_guided_attention_loss else list(range(config.decoder_attention_heads))


def row_generators(generator: Generators, rows: int) -> list[torch.Generator]:
    """A generator for each row, so that a row's dropout does not depend on its neighbours.

    Args:
        generator: one, or PyTorch's own where it is None, that seeds are drawn from in the order of rows; or one for
            each row.
        rows: how many there are.

    Raises:
        ValueError: there are not as many generators as rows.
    """
    if isinstance(generator, Sequence):
        if len(generator) != rows:
            raise ValueError(f"there are {len(generator)} generators for {rows} rows")
        return list(generator)
    device = "cpu" if generator is None else generator.device
    seeds = [torch.randint(2**62, (1,), generator=generator, device=device) for _ in range(rows)]
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


class PrenetMasks:
    """The prenet's dropout masks, step after step.

    Args:
        prenet: that they are for.
        generators: one for each row; None for no dropout.
    """

    def __init__(self, prenet: SpectrogramPrenet, generators: Sequence[torch.Generator] | None):
        self.prenet = prenet
        self.generators = None if generators is None else list(generators)
        self.drawn: list[torch.Tensor] = []  # [b, STEPS_DRAWN_AT_ONCE, U] for each layer
        self.used = STEPS_DRAWN_AT_ONCE

    def next(self) -> list[torch.Tensor]:
        """Masks [b, 1, U] of the next step for each layer; none without dropout."""
        if self.generators is None:
            return []
        if self.used == STEPS_DRAWN_AT_ONCE:
            self.drawn = self.prenet.draw_masks(len(self.generators), STEPS_DRAWN_AT_ONCE, self.generators)
            self.used = 0
        self.used += 1
        return [mask[:, self.used - 1 : self.used] for mask in self.drawn]

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep some rows: their indices."""
        if self.generators is not None:
            self.generators = [self.generators[row] for row in rows.tolist()]
            self.drawn = [mask[rows] for mask in self.drawn]


class AttentionWindow:
    """Lets some heads see only the tokens around the last one that was attended to, which never moves back.

    Args:
        encoded: the text, for its mask.
        heads: of each layer, to which the window applies, and which are followed.
        config: of the model.
        size: tokens back and tokens ahead.
    """

    def __init__(self, encoded: Any, heads: list[int], config: Any, size: tuple[int, int]):
        states = encoded.last_hidden_state
        real = encoded.attention_mask
        self.real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if real is None else real
        self.heads, (self.back, self.ahead) = heads, size
        self.free = torch.ones(config.decoder_attention_heads, dtype=torch.bool, device=states.device)
        self.free[heads] = False
        self.place = self.real.long().argmax(dim=-1)  # [b]

    def mask(self) -> torch.Tensor:
        """Boolean [b, H, 1, S], True where a head may look."""
        tokens = torch.arange(self.real.shape[1], device=self.real.device)
        distance = tokens - self.place[:, None]  # [b, S]
        near = (distance >= -self.back) & (distance <= self.ahead)
        return (self.real[:, None] & (near[:, None] | self.free[:, None]))[:, :, None]

    def follow(self, cross_attentions: Iterable[torch.Tensor]) -> None:
        """Move on by the weights [b, H, 1, S] of each layer."""
        followed = [layer[:, self.heads, 0].float().mean(dim=1) for layer in cross_attentions]
        self.place = torch.maximum(self.place, torch.stack(followed).mean(dim=0).argmax(dim=-1))

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep some rows: their indices."""
        self.real, self.place = self.real[rows], self.place[rows]


def _ended(
    stop_logits: torch.Tensor, limits: list[tuple[int, int]], frames: int, threshold: float
) -> dict[int, tuple[int, str]]:
    """Which rows end with a step, how many of its frames they keep, and why they end.

    A row stops when any frame of the step reaches the threshold, as SpeechT5's authors have it.

    Args:
        stop_logits: [b, r].
        limits: fewest and most frames of each row.
        frames: that there are before this step.
        threshold: a probability.
    """
    ended = {}
    for place, probabilities in enumerate(stop_logits.float().sigmoid().tolist()):
        fewest, most = limits[place]
        kept = min(len(probabilities), most - frames)
        if frames + kept >= fewest and any(p >= threshold for p in probabilities[:kept]):
            ended[place] = kept, STOP
        elif frames + kept == most:
            ended[place] = kept, MAX_LENGTH
    return ended


def collect_rows(steps: Iterable[WrittenStep], rows: int) -> list[WrittenRow]:
    """What was written for each of so many rows."""
    frames: list[list[torch.Tensor]] = [[] for _ in range(rows)]
    weights: list[list[torch.Tensor]] = [[] for _ in range(rows)]
    reasons, since = [""] * rows, []
    for step in steps:
        since.append(step)
        if not step.ended:
            continue
        together = torch.cat([one.frames for one in since], dim=1)  # [b, n r, M], of the same rows
        attentions = [one.cross_attentions for one in since if one.cross_attentions is not None]
        seen = torch.cat(attentions, dim=3) if attentions else None  # [b, L, H, n, S]
        for place, row in enumerate(step.rows):
            kept, reasons[row] = step.ended.get(row, (step.frames.shape[1], ""))
            frames[row].append(together[place, : together.shape[1] - step.frames.shape[1] + kept])
            if seen is not None:
                weights[row].append(seen[place])
        since = []
    return [
        WrittenRow(torch.cat(one), torch.cat(seen, dim=2) if seen else None, reason)
        for one, seen, reason in zip(frames, weights, reasons, strict=True)
    ]
