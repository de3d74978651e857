"""Transcripts of live audio: words as soon as they are certain, and none of them taken back.

The audio so far is transcribed again and again, as it grows. What two hypotheses in a row agree on, from the
beginning, is stable (local agreement, Liu et al. 2020, "Low-Latency Sequence-to-Sequence Speech Recognition and
Translation by Partial Hypothesis Selection"); the decoder is then made to begin with it, so that later hypotheses
cannot contradict it.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

FRAME_S = 0.02  # in which loudness is measured to find a pause
UNITS = ("word", "character")
BROKEN = "\ufffd"  # of a character whose bytes are not all there


@dataclass(frozen=True)
class PartialTranscript:
    """What is known of the text so far.

    Args:
        stable: text that will not change any more; it begins with that of the step before.
        unstable: what comes behind it in the latest hypothesis, and may change.
        audio_s: seconds of audio that were heard.
        computing_s: seconds that this step took.
        is_final: whether the audio has ended, so that all is stable.
    """

    stable: str
    unstable: str
    audio_s: float
    computing_s: float
    is_final: bool = False


@dataclass(frozen=True)
class LiveLatency:
    """How far the stable text was behind the speaker.

    Args:
        words: that were told.
        first_word_s: seconds of audio that had been heard when the first was.
        average_lagging_s: seconds by which words came later than those of a speaker who says them evenly from the
            beginning to the end of the audio (Ma et al. 2019, 2020; the text's own length as the reference).
        longest_step_s: seconds of computing in the slowest step.
        rtfx: seconds of audio for each second of computing; live audio needs more than 1.
    """

    words: int
    first_word_s: float
    average_lagging_s: float
    longest_step_s: float
    rtfx: float


class LiveTranscription:
    """One live transcript; make another for other audio.

    ```python
    live = LiveTranscription(model, processor, step_s=1.0)
    for partial in live.follow(chunks):  # of samples, from a microphone or a socket
        print(partial.stable, "|", partial.unstable)
    print(live.latency)
    ```

    Args:
        model: a `SpeechSeq2SeqModel`, in evaluation mode.
        processor: of the model.
        step_s: seconds of new audio after which a new hypothesis is made: less is sooner, and more work.
        max_window_s: seconds that are transcribed at once. Of longer audio, what was heard is settled at the quietest
            place of the last step, and the rest begins anew.
        unit: "word" where stable text ends behind whole words; "character" for languages without spaces.
        language, task: for decoders of many languages, as in `generate()`.
        options: of `generate()`, such as `num_beams`, `ctc_weight` or `hot_words`.

    Raises:
        ValueError: a length is not positive, the window is shorter than two steps, or the unit is unknown.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        step_s: float = 1.0,
        max_window_s: float = 20.0,
        unit: str = "word",
        language: str | None = None,
        task: str | None = None,
        **options: Any,
    ):
        if step_s <= 0 or max_window_s < 2 * step_s:
            raise ValueError(
                f"step_s={step_s:g} must be positive, and max_window_s={max_window_s:g} two steps or more"
            )
        if unit not in UNITS:
            raise ValueError(f"unit is one of {', '.join(UNITS)}, not {unit!r}")
        self.model, self.processor, self.options, self.unit = model, processor, options, unit
        self.rate: int = processor.sampling_rate
        self.step, self.window = round(step_s * self.rate), round(max_window_s * self.rate)  # in samples
        start, prompt = model.start_and_prompt(language, task)
        self.first_tokens = [start, *prompt]
        self._settled = ""  # text of audio that is gone
        self._audio = np.zeros(0, np.float32)  # what is transcribed at once
        self._new = self._heard = 0  # samples: since the last step, and all
        self._stable: list[int] = []  # tokens of the window
        self._hypothesis: list[int] = []  # the last one, of the window
        self._told: list[float] = []  # for each stable word, the seconds heard when it was told
        self._steps: list[float] = []  # seconds of computing

    def follow(self, chunks: Iterable[Any]) -> Iterator[PartialTranscript]:
        """Partial transcripts of chunks of samples as they come, and the final one behind them."""
        for chunk in chunks:
            if (partial := self.hear(chunk)) is not None:
                yield partial
        yield self.finish()

    def hear(self, samples: Any) -> PartialTranscript | None:
        """Take more audio, float samples at the processor's rate; a transcript where a step is full, else None."""
        samples, partial = np.asarray(samples, dtype=np.float32).reshape(-1), None
        for start in range(0, len(samples), self.step):  # a long chunk is many steps
            some = samples[start : start + self.step]
            self._audio = np.concatenate([self._audio, some])
            self._new, self._heard = self._new + len(some), self._heard + len(some)
            if self._new >= self.step:
                partial = self._listen()
        return partial

    def finish(self) -> PartialTranscript:
        """The transcript of all audio, after its end."""
        began = time.perf_counter()
        if len(self._audio) > 0:
            self._settle(len(self._audio))
        return self._tell(began, "", is_final=True)

    @property
    def latency(self) -> LiveLatency:
        """Of the transcript so far."""
        audio_s, computing_s = self._heard / self.rate, sum(self._steps)
        return LiveLatency(
            words=len(self._told),
            first_word_s=self._told[0] if self._told else float("nan"),
            average_lagging_s=average_lagging(self._told, audio_s),
            longest_step_s=max(self._steps, default=0.0),
            rtfx=audio_s / computing_s if computing_s else 0.0,
        )

    def _listen(self) -> PartialTranscript:
        began = time.perf_counter()
        hypothesis = self._transcribe(self._audio)
        agreed = _common_length(self._hypothesis, hypothesis)
        self._stable = hypothesis[: self._certain(hypothesis, agreed)]
        self._hypothesis = hypothesis
        if len(self._audio) >= self.window:
            self._settle(len(self._audio) - self._quietest(self._audio[-self._new :]))
        self._new = 0
        whole, stable = self._text(self._hypothesis), self._text(self._stable)
        return self._tell(began, whole.removeprefix(stable).strip())

    def _transcribe(self, audio: np.ndarray) -> list[int]:
        """The best tokens of some audio that begin with those that are stable, without the end."""
        inputs = self.processor(audio=audio, sampling_rate=self.rate, return_tensors="pt").to(self.model.device)
        begin = torch.tensor([[*self.first_tokens, *self._stable]], device=self.model.device)
        with torch.inference_mode():
            output = self.model.generate(**inputs, decoder_input_ids=begin, **self.options)
        tokens = getattr(output, "sequences", output)[0].tolist()[len(self.first_tokens) :]
        ends = _as_list(self.model.config.eos_token_id)
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        return tokens[:end]

    def _certain(self, tokens: list[int], agreed: int) -> int:
        """How many of the tokens agreed on are whole units of text, at least those that were stable before."""
        whole, before = self._text(tokens), self._text(self._stable)
        for count in range(agreed, len(self._stable), -1):
            text = self._text(tokens[:count])
            ends_here = self.unit == "character" or whole[len(text) : len(text) + 1] in (" ", "")
            is_last = count == len(tokens)  # and may go on with the audio
            if whole.startswith(text) and text.startswith(before) and ends_here and not is_last and BROKEN not in text:
                return count
        return len(self._stable)

    def _text(self, tokens: list[int]) -> str:
        return self.processor.decode(tokens, skip_special_tokens=True).strip()

    def _settle(self, samples: int) -> None:
        """Take the text of the first samples of the window for granted, and forget these."""
        text = self._text(self._transcribe(self._audio[:samples]))
        self._settled = f"{self._settled} {text}".strip() if self.unit == "word" else self._settled + text
        self._audio, self._stable, self._hypothesis = self._audio[samples:], [], []

    def _quietest(self, audio: np.ndarray) -> int:
        """Samples behind the quietest frame: stable words were heard by the step before, so they are not cut off."""
        frame = max(round(FRAME_S * self.rate), 1)
        frames = audio[: len(audio) // frame * frame].reshape(-1, frame)
        if len(frames) == 0:
            return 0
        return len(audio) - (int(np.square(frames).sum(axis=1).argmin()) * frame + frame // 2)

    def _tell(self, began: float, unstable: str, is_final: bool = False) -> PartialTranscript:
        space = " " if self.unit == "word" else ""
        stable = f"{self._settled}{space}{self._text(self._stable)}".strip()
        words = len(stable.split()) if self.unit == "word" else len(stable)
        heard_s = self._heard / self.rate
        self._told += [heard_s] * (words - len(self._told))
        self._steps.append(time.perf_counter() - began)
        return PartialTranscript(stable, unstable, heard_s, self._steps[-1], is_final)


def average_lagging(told_s: list[float], audio_s: float) -> float:
    """Average lagging (Ma et al. 2019) in seconds, over the words up to the first that was told at the end.

    Args:
        told_s: for each word, the seconds of audio that had been heard when it was told.
        audio_s: seconds of all the audio.
    """
    if not told_s:
        return 0.0
    count = next((place for place, heard in enumerate(told_s, start=1) if heard >= audio_s), len(told_s))
    even_s = audio_s / len(told_s)
    return sum(heard - place * even_s for place, heard in enumerate(told_s[:count])) / count


def _common_length(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _as_list(token_ids: int | list[int] | None) -> list[int]:
    return token_ids if isinstance(token_ids, list) else [] if token_ids is None else [token_ids]


__all__ = ["LiveLatency", "LiveTranscription", "PartialTranscript", "average_lagging"]
