"""Error rates are those of the definition, pooled, offline, and what Trainer hands over is decoded right."""

import random
import socket
import time
from types import SimpleNamespace

import evaluate
import jiwer
import numpy as np
import pytest
from test_processing_speech_seq2seq import make

from speechgraft.processing.character_error_rate import CharacterErrorRate
from speechgraft.processing.speech_metrics import (
    RealTimeFactor,
    decode_token_ids,
    error_breakdown,
    error_rates,
    format_utterances,
    make_compute_metrics,
    utterance_errors,
    worst_utterances,
)
from speechgraft.processing.transcription_errors import ErrorCounts, count_errors, pooled_errors
from speechgraft.processing.word_error_rate import WordErrorRate


def edit_distance(reference: list, hypothesis: list) -> int:
    """By the recurrence of Levenshtein, as an oracle."""
    row = list(range(len(hypothesis) + 1))
    for i, said in enumerate(reference, start=1):
        previous, row[0] = row[0], i
        for j, heard in enumerate(hypothesis, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (said != heard))
    return row[-1]


def random_transcripts(n: int, letters: str = "abc ") -> list[str]:
    rng = random.Random(n)
    return ["".join(rng.choice(letters) for _ in range(rng.randrange(12))) for _ in range(n)]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat", "the cat sat", (3, 0, 0, 0)),
        ("the cat sat", "the bat sat", (2, 1, 0, 0)),
        ("the cat sat", "cat sat", (2, 0, 1, 0)),
        ("the cat sat", "the cat sat down", (3, 0, 0, 1)),
        ("the cat sat", "", (0, 0, 3, 0)),
        ("", "the cat", (0, 0, 0, 2)),
        (" ", "", (0, 0, 0, 0)),
    ],
)
def test_the_kinds_of_word_errors(reference, hypothesis, expected):
    assert count_errors(reference, hypothesis) == ErrorCounts(*expected)


@pytest.mark.parametrize("unit", ["word", "character"])
def test_errors_are_the_edit_distance(unit):
    references, hypotheses = random_transcripts(200), random_transcripts(201)[:200]
    split = str.split if unit == "word" else (lambda text: list(text.strip()))
    distances = [edit_distance(split(r), split(h)) for r, h in zip(references, hypotheses, strict=True)]
    if unit == "word":  # the number of spaces between words does not matter
        assert [count_errors(r, h).errors for r, h in zip(references, hypotheses, strict=True)] == distances
    total = pooled_errors(references, hypotheses, unit)
    assert total.errors == sum(distances)
    assert total.rate == sum(distances) / sum(len(split(r)) for r in references)


def test_metrics_agree_with_jiwer_and_are_pooled_not_averaged():
    references = ["a b c d e f g h", "a"]
    hypotheses = ["a b c d e f g h", "b"]
    assert WordErrorRate().compute(predictions=hypotheses, references=references) == 1 / 9  # the mean would be 1/2
    references, hypotheses = ["hello world", "it is a cat"], ["hallo world", "is a a cat"]
    rates = error_rates(references, hypotheses)
    assert rates["wer"] == jiwer.wer(references, hypotheses) == 3 / 6
    assert rates["cer"] == jiwer.cer(references, hypotheses)
    assert CharacterErrorRate().compute(predictions=hypotheses, references=references) == rates["cer"]


def test_empty_references_count_what_was_inserted():
    """jiwer 3 refuses them; dropping them would reward a model that talks into silence."""
    metric = WordErrorRate()
    assert metric.compute(predictions=["thank you", "a b"], references=["", "a b"]) == 2 / 2
    assert metric.compute(predictions=["", ""], references=["", ""]) == 0
    assert metric.compute(predictions=["a b c"], references=[""]) == 3
    assert metric.compute(predictions=["", "a"], references=["x y", "a"]) == 2 / 3


def test_metrics_load_by_path_without_network(repository, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name, expected in (("word_error_rate", 1 / 3), ("character_error_rate", 2 / 11)):
        metric = evaluate.load(str(repository / "processing" / f"{name}.py"))
        assert metric.compute(predictions=["the hat sit"], references=["the cat sat"]) == pytest.approx(
            {"word_error_rate": 2 / 3}.get(name, expected)
        )
        metric.add_batch(predictions=["a"], references=["a"])
        assert metric.compute() == 0


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 references, but 1 hypotheses"):
        pooled_errors(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="unit is one of word, character, not 'phone'"):
        count_errors("a", "b", unit="phone")


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart", "whisper"])
def test_what_trainer_collects_is_decoded_without_its_padding(family):
    """-100 in predictions or labels, which Trainer adds to make them one array, is no token: decoding it crashes."""
    processor = make("wav2vec2", family)
    rows = processor(text=["the cat sat", "hello"])["labels"]
    start = processor.tokenizer.bos_token_id or processor.tokenizer.cls_token_id or 0
    labels = np.array([rows[0], [*rows[1], -100, -100]])
    predictions = np.array([[start, *rows[0]], [start, *rows[1], -100, -100]])
    assert decode_token_ids(processor, labels) == ["the cat sat", "hello"]
    prediction = SimpleNamespace(predictions=predictions, label_ids=labels)
    assert make_compute_metrics(processor)(prediction) == {"wer": 0.0, "cer": 0.0}
    predictions[0, 2] = processor.tokenizer.vocab["hello"]
    for given in (predictions, (predictions, None)):
        prediction = SimpleNamespace(predictions=given, label_ids=labels)
        metrics = make_compute_metrics(processor)(prediction)
        assert metrics["wer"] == 1 / 4
        assert 0 < metrics["cer"] < 1


def test_metrics_apply_the_normalizer_to_both_sides():
    processor = make("wav2vec2")
    labels = np.array([processor(text="the cat sat")["labels"]])
    prediction = SimpleNamespace(predictions=labels, label_ids=labels)
    seen = []

    def normalizer(text: str) -> str:
        seen.append(text)
        return "same"

    assert make_compute_metrics(processor, normalizer)(prediction)["wer"] == 0
    assert seen == ["the cat sat", "the cat sat"]


def test_logits_instead_of_generated_ids_say_what_to_set():
    logits = np.zeros((2, 5, 16), dtype=np.float32)
    with pytest.raises(ValueError, match=r"float32 \[2, 5, 16\].*predict_with_generate=True"):
        decode_token_ids(make("wav2vec2"), logits)


def test_the_table_of_utterances_shows_the_worst_first():
    references = ["The cat sat.", "hello", "one two three", ""]
    hypotheses = ["the cat sat", "hello world", "three", "you"]
    rows = utterance_errors(references, hypotheses, names=["a.wav", "b.wav", "c.wav", "d.wav"])
    assert [row.words.errors for row in rows] == [0, 1, 2, 1]
    worst = worst_utterances(rows, 2)
    assert [row.name for row in worst] == ["c.wav", "b.wav"]
    table = format_utterances(worst).splitlines()
    assert table[1].split() == ["2", "0", "2", "0", "66.7%", "c.wav"]
    assert "one two three" in table[2] and "three" in table[3]
    assert error_breakdown(rows) == {
        "wer": 4 / 7,
        "substitutions": 0,
        "deletions": 2,
        "insertions": 2,
        "reference_words": 7,
    }


def test_rtfx_is_the_ratio_of_sums(monkeypatch):
    speed = RealTimeFactor()
    assert speed.rtfx == 0
    clock = iter([0.0, 1.0, 10.0, 10.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for audio_s in (2.0, 10.0):
        with speed.measure(audio_s):
            pass
    assert speed.rtfx == 12.0 / 1.5  # the mean of the ratios would be 11


def test_a_failed_transcription_does_not_count_as_fast():
    speed = RealTimeFactor()
    with pytest.raises(RuntimeError), speed.measure(60.0):
        raise RuntimeError
    assert speed.audio_s == speed.wall_s == 0
