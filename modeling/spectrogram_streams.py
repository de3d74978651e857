"""Spectrograms refined and sped up chunk by chunk; the chunks, concatenated, are what the whole would give.

Shapes: `T` frames, `M` mel bins.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .quick_inference import quick_inference
from .spectrogram_decoder import Postnet
from .speech_vocoders import Vocoder

FIRST_CHUNK_FRAMES = 4  # of a stream; each of the next is twice as long as that before it, up to the length asked for


class PostnetStream:
    """Refines a spectrogram as it comes; what comes out lags by `Postnet.context_frames`."""

    def __init__(self, postnet: Postnet):
        self.postnet = postnet
        self.frames: torch.Tensor | None = None  # [T, M], those that later ones need beside them
        self.given = 0  # how many of them came out already

    def push(self, frames: torch.Tensor, last: bool = False) -> torch.Tensor:
        """Add frames [T, M], of which there may be none; gives those that no later frame changes."""
        held = frames if self.frames is None else torch.cat([self.frames, frames])
        context = self.postnet.context_frames
        ready = len(held) if last else max(self.given, len(held) - context)
        refined = self.postnet(held[None])[0, self.given : ready] if ready > self.given else held[:0]
        past = max(0, ready - context)
        self.frames, self.given = held[past:], ready - past
        return refined


class SpeedStream:
    """Plays a spectrogram faster or slower: a frame is taken, by linear interpolation, every `speed` frames."""

    def __init__(self, speed: float):
        self.speed = speed
        self.frames: torch.Tensor | None = None  # [T, M], from the first that is still needed
        self.dropped = 0  # frames before them
        self.given = 0  # frames that came out

    def push(self, frames: torch.Tensor, last: bool = False) -> torch.Tensor:
        """Add frames [T, M], of which there may be none; gives those that lie between frames that are there."""
        if self.speed == 1:
            return frames
        held = frames if self.frames is None else torch.cat([self.frames, frames])
        known = self.dropped + len(held)
        ready = self._ready(known, last)
        places = (torch.arange(self.given, ready, dtype=torch.float64) + 0.5) * self.speed - 0.5
        places = places.clamp(0, max(known - 1, 0))
        before = places.long()
        share = (places - before).to(held)[:, None]
        index = (before - self.dropped).to(held.device)
        first = held[index]
        spoken = first + share * (held[(index + 1).clamp(max=len(held) - 1)] - first)
        self.given = ready
        keep = min(int(self._place(ready)), known - 1)  # the last one stays: beyond it, it is repeated
        keep = max(keep, self.dropped)
        self.frames, self.dropped = held[keep - self.dropped :], keep
        return spoken

    def _place(self, frame: int) -> float:
        """Where a frame of the output lies in the input."""
        return max((frame + 0.5) * self.speed - 0.5, 0.0)

    def _ready(self, known: int, last: bool) -> int:
        """How many frames of the output lie between `known` frames of the input."""
        if last:
            return sped_up_length(known, self.speed)
        return max(self.given, math.floor((known - 1.5) / self.speed - 0.5) + 1)


def sped_up_length(frames: int, speed: float) -> int:
    """Frames that are left of so many."""
    return frames if speed == 1 else max(1, math.floor(frames / speed + 0.5))


def change_speed(spectrogram: torch.Tensor, speed: float) -> torch.Tensor:
    """A whole spectrogram [T, M] at another speed."""
    return SpeedStream(speed).push(spectrogram, last=True)


def sound_of_frames(
    written: Iterable[torch.Tensor], postnet: Postnet, speed: float, vocoder: Vocoder, chunk_frames: int
) -> Iterator[torch.Tensor]:
    """Sound of one utterance while its spectrogram is being written.

    Args:
        written: frames [r, M] of each decoder step.
        postnet: refines them.
        speed: of the speech.
        vocoder: makes sound of them.
        chunk_frames: frames that are written between two chunks of sound; fewer at first, to be heard soon.

    Yields:
        float32 [samples], never empty.
    """
    refining, playing, sounding = PostnetStream(postnet), SpeedStream(speed), vocoder.stream()
    lookahead = math.ceil(getattr(vocoder, "lookahead_frames", 0) * speed)
    size = min(FIRST_CHUNK_FRAMES, chunk_frames)
    waiting, enough = [], size + postnet.context_frames + lookahead  # or the first chunk has no sound in it
    for frames in written:
        waiting.append(frames)
        if sum(map(len, waiting)) < enough:
            continue
        sound = sounding.push(playing.push(refining.push(torch.cat(waiting))))
        size = min(2 * size, chunk_frames)
        waiting, enough = [frames[:0]], size
        if len(sound):
            yield sound
    end = playing.push(refining.push(torch.cat(waiting), last=True), last=True)
    for sound in (sounding.push(end), sounding.finish()):
        if len(sound):
            yield sound


class SpeechStream(Iterator[torch.Tensor]):
    """The sound of texts while they are being spoken: float32 [samples], chunk after chunk.

    Attributes:
        sampling_rate: in Hz.
        stop_reasons: of each text that came to its end so far, "stop" or "max_length".
        spectrogram_lengths: frames of each of them.
    """

    def __init__(
        self, model: nn.Module, sampling_rate: int, begin: Callable[["SpeechStream"], Iterator[torch.Tensor]]
    ):
        self.sampling_rate = sampling_rate
        self.stop_reasons: list[str] = []
        self.spectrogram_lengths: list[int] = []
        self._model = model
        self._chunks = begin(self)

    def __next__(self) -> torch.Tensor:
        with torch.no_grad(), evaluating(self._model), quick_inference(self._model):
            return next(self._chunks)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and batch statistics, whichever mode the model is in; afterwards it is in that again."""
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


__all__ = ["SpeechStream"]
