"""Live text is told early, is never taken back, and ends as the whole recording reads."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lively_models import lively
from test_phrase_biasing import NaiveBias
from test_processing_speech_seq2seq import make
from tiny_models import audio
from tiny_recognizers import noise
from tiny_tokenizers import WORDS
from transformers import BatchEncoding
from transformers.generation.streamers import BaseStreamer, TextIteratorStreamer

from speechgraft.modeling.live_transcription import LiveTranscription, average_lagging

RATE = 100  # Hz, of the audio of these tests
START, END = 1000, 1001


class Listener:
    """Recognises one word in each second of audio, which says its number; a word that is cut off, it mishears."""

    sampling_rate = RATE
    device = "cpu"
    config = SimpleNamespace(eos_token_id=END)

    def __init__(self, text: list[str], slow_s: float = 0.0):
        self.text = text
        self.begins: list[list[int]] = []  # with what it was made to begin
        self.vocabulary = sorted({*text, "uh"})

    def start_and_prompt(self, language: Any, task: Any) -> tuple[int, list[int]]:
        return START, []

    def __call__(self, audio: np.ndarray, **_: Any) -> Any:
        return BatchEncoding({"samples": torch.tensor(audio)})

    def decode(self, tokens: list[int], **_: Any) -> str:
        return " ".join(self.vocabulary[token] for token in tokens)

    def generate(self, samples: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        seconds = samples.round().int().tolist()
        whole = [second for second in dict.fromkeys(seconds) if seconds.count(second) >= 0.9 * RATE]
        cut = [second for second in dict.fromkeys(seconds) if 20 <= seconds.count(second) < 0.9 * RATE]
        heard = [self.text[second] for second in whole] + ["uh"] * len(cut)
        begin = decoder_input_ids[0].tolist()
        self.begins.append(begin[1:])
        tokens = [self.vocabulary.index(word) for word in heard]
        assert tokens[: len(begin) - 1] == begin[1:], "what was stable was cut off, or was not said"
        return torch.tensor([[START, *tokens, END]])


TEXT = ["the", "cat", "sat", "on", "the", "mat", "and", "one", "two", "three", "four", "the", "cat", "sat"]


def say(text: list[str], chunk_s: float) -> list[np.ndarray]:
    samples = np.repeat(np.arange(len(text), dtype=np.float32), RATE)
    pieces = range(0, len(samples), round(chunk_s * RATE))
    return [samples[start : start + round(chunk_s * RATE)] for start in pieces]


@pytest.mark.parametrize("chunk_s", [0.1, 0.7, 1.5, 60.0])
@pytest.mark.parametrize("step_s", [0.5, 1.3])
def test_words_come_in_order_and_none_is_taken_back(chunk_s, step_s):
    listener = Listener(TEXT)
    live = LiveTranscription(listener, listener, step_s=step_s, max_window_s=100)
    partials = list(live.follow(say(TEXT, chunk_s)))
    for before, after in zip(partials, partials[1:], strict=False):
        assert after.stable.startswith(before.stable)
        assert " ".join(TEXT).startswith(before.stable)
    assert partials[-1].stable == " ".join(TEXT)
    assert [partial.is_final for partial in partials] == [False] * (len(partials) - 1) + [True]
    if chunk_s < 60:
        assert len(partials[len(partials) // 2].stable.split()) >= len(TEXT) // 2 - 4


def test_stable_is_what_two_hypotheses_in_a_row_agree_on():
    listener = Listener(TEXT)
    live = LiveTranscription(listener, listener, step_s=0.5, max_window_s=100)
    hypotheses = [[], ["uh"], ["the"], ["the", "uh"], ["the", "cat"], ["the", "cat", "uh"]]
    for chunk, before, now in zip(say(TEXT, 0.5), hypotheses, hypotheses[1:], strict=False):
        partial = live.hear(chunk)
        agreed = [one for one, other in zip(before, now, strict=False) if one == other]
        stable = agreed if len(agreed) < len(now) else agreed[:-1]  # the last word may still go on
        assert partial is not None
        assert (partial.stable.split(), partial.unstable.split()) == (stable, now[len(stable) :])


def test_long_audio_is_settled_piece_by_piece():
    class Pausing(Listener):
        """Silence, which is the number 0, for a fifth of each second."""

        def __call__(self, audio: np.ndarray, **_: Any) -> Any:
            return super().__call__(audio[audio != 0] - 1)

    listener = Pausing(TEXT)
    spoken = np.repeat(np.arange(1, len(TEXT) + 1, dtype=np.float32), RATE)
    spoken = np.concatenate(
        [np.concatenate([second, np.zeros(20, np.float32)]) for second in spoken.reshape(-1, RATE)]
    )
    live = LiveTranscription(listener, listener, step_s=1.3, max_window_s=4)
    partials = list(live.follow(spoken[start : start + 10] for start in range(0, len(spoken), 10)))
    assert partials[-1].stable == " ".join(TEXT)
    assert max(map(len, listener.begins)) <= 5  # words of one window


def test_latency_is_the_published_measure():
    """Average lagging by hand: words evenly spoken, each told a second later, lag by a second and a word."""
    assert average_lagging([2.0, 3.0, 4.0, 5.0], 5.0) == pytest.approx(sum((2.0, 1.75, 1.5, 1.25)) / 4)
    assert average_lagging([4.0, 4.0], 4.0) == 4.0  # all at the end: as much as the audio is long
    assert average_lagging([1.0, 2.0, 3.0, 4.0], 4.0) == 1.0  # a word behind
    assert average_lagging([], 3.0) == 0.0
    listener = Listener(TEXT)
    live = LiveTranscription(listener, listener, step_s=0.5, max_window_s=100)
    list(live.follow(say(TEXT, 0.1)))
    latency = live.latency
    assert latency.words == len(TEXT)
    assert latency.first_word_s == 1.5  # "the" at 1 s, "the uh" at 1.5 s
    assert 1.0 < latency.average_lagging_s < 2.5
    assert latency.rtfx > 1 and 0 < latency.longest_step_s < 1


@pytest.fixture(scope="module")
def model() -> Any:
    return lively("wav2vec2-layer", "bert", ctc_weight=0.3)


def test_a_model_begins_with_what_was_stable_and_keeps_its_bias(model):
    processor = make("wav2vec2", "bert")
    options: dict[str, Any] = {"max_length": 14, "num_beams": 2, "ctc_weight": 0.3, "hot_words": [[7, 9]]}
    live = LiveTranscription(model, processor, step_s=0.3, max_window_s=5, **options)
    partials = list(live.follow(np.split(noise(1.5, 3), 10)))
    for before, after in zip(partials, partials[1:], strict=False):
        assert after.stable.startswith(before.stable)
    assert partials[-1].is_final and partials[-1].stable
    assert set(partials[-1].stable.split()) <= {*WORDS, "[UNK]"}


@pytest.mark.parametrize("unit, expected", [("word", "ab"), ("character", "abcd")])
def test_languages_without_spaces_are_told_by_characters(unit, expected):
    class Spelling(Listener):
        def decode(self, tokens: list[int], **_: Any) -> str:
            return super().decode(tokens).replace(" ", "").replace("_", " ")

    text = ["a", "b_", "c", "d", "e", "f"]
    listener = Spelling(text)
    live = LiveTranscription(listener, listener, step_s=1.0, max_window_s=100, unit=unit)
    partials = [live.hear(chunk) for chunk in say(text, 1.0)][:5]
    assert partials[-1] is not None
    assert partials[-1].stable.replace(" ", "") == expected


def test_a_beginning_that_is_given_counts_for_phrases(model):
    inputs = {name: value[:1] for name, value in audio("wav2vec2-layer", 9600).items()}
    begin = torch.tensor([[2, 7]])
    phrases = {(7, 9, 5): 3.0}
    options: dict[str, Any] = {"decoder_input_ids": begin, "max_new_tokens": 5}
    found = model.generate(**inputs, **options, hot_words=phrases)
    naive = NaiveBias(phrases, model.config.eos_token_id)
    assert torch.equal(found, model.generate(**inputs, **options, logits_processor=[naive]))
    assert not torch.equal(found, model.generate(**inputs, **options))


def test_a_streamer_gets_every_token_as_it_is_written(model):
    class Recorder(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    inputs = {name: value[:1] for name, value in audio("wav2vec2-layer", 9600).items()}
    recorder = Recorder()
    written = model.generate(**inputs, max_new_tokens=6, streamer=recorder, ctc_weight=0.3, hot_words=[[7, 9]])
    assert recorder.ended and recorder.tokens == written[0].tolist()
    processor = make("wav2vec2", "bert")
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    written = model.generate(**inputs, max_new_tokens=6, streamer=streamer)
    text = processor.decode(written[0], skip_special_tokens=True)
    assert "".join(streamer).split() == text.split() and text


def test_settings_that_cannot_work_are_told():
    listener = Listener(TEXT)
    with pytest.raises(ValueError, match="step_s=0 must be positive"):
        LiveTranscription(listener, listener, step_s=0)
    with pytest.raises(ValueError, match="max_window_s=1 two steps or more"):
        LiveTranscription(listener, listener, max_window_s=1)
    with pytest.raises(ValueError, match="unit is one of word, character, not 'phone'"):
        LiveTranscription(listener, listener, unit="phone")
