"""A long recording in pieces that a model can hear: cut where nobody speaks, overlapped where somebody always does.

Nothing but the pieces that are being looked at is kept, so recordings may be of any length.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

FRAME_S = 0.01  # of the levels that are looked at
PAUSE_S = 0.2  # the shortest silence to cut in
MARGIN_S = 0.2  # of silence that is kept around what is said
SPEECH_S = 0.06  # less than this above the level of silence is a click
SYLLABLE_S = 0.1  # the loudest so much of a piece tells how loud speech is
BELOW_SPEECH_DB = 40.0  # so far below the loudest there is no speech
SILENCE_DB = -75.0  # of full scale; below it there is none whatever came before
FORGETTING_DB = 2.0  # by which the loudest level falls from chunk to chunk, or one shout would silence an hour
DYNAMICS_DB = 50.0  # between pauses and speech; lower levels are all the same
QUIET_SHARE = 0.3  # of the way from pauses to speech: below it is a pause
LEAST_DYNAMICS_DB = 6.0  # or there are no pauses to tell from speech


@dataclass(frozen=True)
class SpeechChunk:
    """A piece of a recording in which somebody may speak.

    Attributes:
        samples: float32 [N].
        start_s: when they begin, in seconds of the recording.
        sampling_rate: in Hz.
        overlap_s: how much of its beginning the chunk before it holds too: no silence was found to cut in.
        overlaps_next: whether the chunk behind it holds some of its end too.
    """

    samples: np.ndarray
    start_s: float
    sampling_rate: int
    overlap_s: float = 0.0
    overlaps_next: bool = False

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return len(self.samples) / self.sampling_rate

    @property
    def end_s(self) -> float:
        """When it ends, in seconds of the recording."""
        return self.start_s + self.duration_s


def check_chunk_lengths(min_s: float, max_s: float, overlap_s: float) -> None:
    """Raise ValueError unless pieces of these lengths can be cut."""
    if not 0 < min_s <= max_s / 2:
        raise ValueError(f"chunks of {min_s:g} to {max_s:g} s: the shortest must be at most half of the longest")
    if not 0 <= overlap_s <= min_s:
        raise ValueError(f"an overlap of {overlap_s:g} s: it must be at most the shortest chunk, {min_s:g} s")


def cut_at_silence(
    blocks: Iterable[np.ndarray],
    sampling_rate: int,
    min_s: float = 5.0,
    max_s: float = 30.0,
    overlap_s: float = 4.0,
) -> Iterator[SpeechChunk]:
    """Cut a recording into chunks, in the longest pause that keeps each within bounds.

    Silence at the ends of a chunk is left out, and so are chunks of nothing else. Silence is what is far quieter than
    the loudest of late, or below what any recording has of sound.

    Args:
        blocks: the recording, float32 [N] in pieces of any length.
        sampling_rate: in Hz.
        min_s: least length of a chunk, in seconds, before silence is left out; a shorter recording is one chunk.
        max_s: most length of a chunk. At most so much, a shortest chunk and a block are held in memory.
        overlap_s: where there is no pause to cut in, chunks have the most length, and overlap by this.

    Raises:
        ValueError: the lengths contradict each other.
    """
    check_chunk_lengths(min_s, max_s, overlap_s)
    rate = sampling_rate
    shortest, longest, shared = (round(seconds * rate) for seconds in (min_s, max_s, overlap_s))
    pieces, is_last = iter(blocks), False
    held, start, overlap, loudest = np.zeros(0, np.float32), 0, 0, -np.inf
    while True:
        waiting = [held]
        while not is_last and sum(map(len, waiting)) < longest + shortest:
            piece = next(pieces, None)
            is_last = piece is None
            waiting += [] if piece is None else [piece]
        held = np.concatenate(waiting)
        levels = frame_levels(held[:longest], rate)
        cut, found = len(held), True
        if len(held) > longest:
            stop = min(longest, len(held) - shortest) if is_last else longest
            cut, found = _place_of_cut(levels, shortest, stop, rate)
        loudest = max(loudest - FORGETTING_DB, _loudness(levels))
        bounds = _bounds_of_speech(levels[: -(-cut // round(FRAME_S * rate))], loudest, rate, cut)
        if bounds is not None:
            begin = 0 if overlap else bounds[0]  # an overlap is needed as a whole, to find the seam in
            end = bounds[1] if found else cut
            yield SpeechChunk(held[begin:end].copy(), (start + begin) / rate, rate, overlap / rate, not found)
        if cut == len(held) and is_last:
            return
        overlap = 0 if found or bounds is None else shared
        held, start = held[cut - overlap :], start + cut - overlap


def frame_levels(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Level of each frame of 10 ms, in dB of full scale: [N] to [frames], the last of which may be shorter."""
    width = round(FRAME_S * sampling_rate)
    count = -(-len(samples) // width)
    power = np.pad(samples.astype(np.float64) ** 2, (0, count * width - len(samples))).reshape(count, width).mean(-1)
    return 10 * np.log10(np.maximum(power, 1e-20))


def sounding_s(samples: np.ndarray, sampling_rate: int) -> float:
    """Seconds of samples [N] that are no pause: those in which somebody speaks, where somebody does."""
    levels = frame_levels(samples, sampling_rate)
    loud = _loudness(levels)
    return FRAME_S * int((levels >= _quiet_below(levels, loud)).sum())


def _quiet_below(levels: np.ndarray, loud: float) -> float:
    """The level under which there is a pause, in dB; none is where speech does not stand out."""
    if len(levels) == 0:
        return -np.inf
    floor = max(float(np.quantile(levels, 0.05)), loud - DYNAMICS_DB)
    return floor + QUIET_SHARE * (loud - floor) if loud - floor >= LEAST_DYNAMICS_DB else -np.inf


def _loudness(levels: np.ndarray) -> float:
    """The level that sounds for a syllable, in dB: clicks do not count."""
    count = min(round(SYLLABLE_S / FRAME_S), len(levels))
    return float(np.partition(levels, -count)[-count]) if count else -np.inf


def _place_of_cut(levels: np.ndarray, shortest: int, longest: int, rate: int) -> tuple[int, bool]:
    """Where to cut, in samples, and whether it is quiet there."""
    quiet_below = _quiet_below(levels, _loudness(levels))
    width = round(FRAME_S * rate)
    first, behind = -(-shortest // width), longest // width
    is_quiet = np.zeros(len(levels) + 2, bool)
    is_quiet[1:-1] = levels < quiet_below
    edges = np.flatnonzero(np.diff(is_quiet))
    pauses = [(max(a, first), min(b, behind)) for a, b in edges.reshape(-1, 2)]
    pauses = [(a, b) for a, b in pauses if b - a >= PAUSE_S / FRAME_S]
    if not pauses:
        return longest, False
    a, b = max(pauses, key=lambda pause: (pause[1] - pause[0], pause[1]))
    return (a + b) // 2 * width, True


def _bounds_of_speech(levels: np.ndarray, loudest: float, rate: int, length: int) -> tuple[int, int] | None:
    """First sample and the one behind the last that matter, None where all is silence."""
    sounds = np.flatnonzero(levels > max(loudest - BELOW_SPEECH_DB, SILENCE_DB))
    if len(sounds) < SPEECH_S / FRAME_S and len(levels) > SPEECH_S / FRAME_S:
        return None
    if len(sounds) == 0:
        return None
    margin = round(MARGIN_S * rate)
    width = round(FRAME_S * rate)
    return max(int(sounds[0]) * width - margin, 0), min((int(sounds[-1]) + 1) * width + margin, length)


__all__ = ["SpeechChunk", "check_chunk_lengths", "cut_at_silence", "sounding_s"]
