"""BLEU and chrF are those that papers report, offline, and Trainer can ask for them."""

import math
import socket
import sys
from collections import Counter
from types import SimpleNamespace

import evaluate
import pytest
from test_processing_speech_seq2seq import make

from speechgraft.processing.bleu_score import BleuScore
from speechgraft.processing.chrf_score import ChrfScore
from speechgraft.processing.processing_speech_seq2seq import pad_labels
from speechgraft.processing.speech_metrics import make_compute_metrics, translation_scores
from speechgraft.processing.translation_scores import bleu, chrf


def papineni(references: list[str], hypotheses: list[str]) -> float:
    """BLEU by its definition, for texts whose words are parted by spaces."""
    matched, there, heard, said = [0] * 4, [0] * 4, 0, 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        words, wanted = hypothesis.split(), reference.split()
        heard, said = heard + len(words), said + len(wanted)
        for n in range(1, 5):
            own, theirs = (
                Counter(zip(*(text[place:] for place in range(n)), strict=False)) for text in (words, wanted)
            )
            matched[n - 1] += (own & theirs).total()
            there[n - 1] += own.total()
    precision = sum(math.log(m / t) for m, t in zip(matched, there, strict=True)) / 4
    return 100 * min(1, math.exp(1 - said / heard)) * math.exp(precision)


def popovic(references: list[str], hypotheses: list[str]) -> float:
    """chrF2 by its definition: precision and recall are means over character n-grams up to six, without spaces."""
    precision, recall = 0.0, 0.0
    for n in range(1, 7):
        matched, there, wanted = 0, 0, 0
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            own, theirs = (
                Counter(text[place : place + n] for place in range(len(text) - n + 1))
                for text in (hypothesis.replace(" ", ""), reference.replace(" ", ""))
            )
            matched, there, wanted = matched + (own & theirs).total(), there + own.total(), wanted + theirs.total()
        precision, recall = precision + matched / there / 6, recall + matched / wanted / 6
    return 100 * 5 * precision * recall / (4 * precision + recall)


REFERENCES = ["the cat sat on the mat in the sun", "there is a dog in the garden of my house"]
HYPOTHESES = ["the cat sat on a mat in the sun", "there is a dog in the garden of the house today"]


def test_scores_are_those_of_the_definitions():
    found = translation_scores(REFERENCES, HYPOTHESES)
    assert found == pytest.approx({"bleu": papineni(REFERENCES, HYPOTHESES), "chrf": popovic(REFERENCES, HYPOTHESES)})
    assert translation_scores(REFERENCES, REFERENCES) == pytest.approx({"bleu": 100, "chrf": 100})
    assert BleuScore().compute(predictions=HYPOTHESES, references=REFERENCES) == pytest.approx(found["bleu"])
    assert ChrfScore().compute(predictions=HYPOTHESES, references=REFERENCES) == pytest.approx(found["chrf"])


def test_any_of_several_references_may_be_met():
    references = [[REFERENCES[0], HYPOTHESES[0]], [REFERENCES[1], HYPOTHESES[1]]]
    assert bleu(references, HYPOTHESES) == pytest.approx(100)
    assert BleuScore().compute(predictions=HYPOTHESES, references=references) == pytest.approx(100)
    assert chrf(references, HYPOTHESES) == pytest.approx(100)
    with pytest.raises(ValueError, match="as many references"):
        bleu([["a"], ["a", "b"]], ["a", "b"])
    with pytest.raises(ValueError, match="1 references, but 2 hypotheses"):
        chrf(["a"], ["a", "b"])


def test_metrics_load_by_path_without_network(repository, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("bleu_score", "chrf_score"):
        metric = evaluate.load(str(repository / "processing" / f"{name}.py"))
        assert metric.compute(predictions=REFERENCES, references=REFERENCES) == pytest.approx(100)


def test_trainer_gets_the_metrics_that_it_asked_for():
    processor = make("wav2vec2", "bert")
    texts = ["the cat sat", "one two three", "hello world"]
    labels = pad_labels([processor.label_ids(text) for text in texts])
    heard = pad_labels([processor.label_ids(text) for text in ("the cat sat", "one two", "hello world")])
    prediction = SimpleNamespace(predictions=heard, label_ids=labels)
    both = make_compute_metrics(processor, metrics=("chrf", "wer"))(prediction)
    assert list(both) == ["chrf", "wer"]
    assert both["wer"] == 1 / 8
    assert both["chrf"] == chrf(texts, ["the cat sat", "one two", "hello world"])
    assert list(make_compute_metrics(processor)(prediction)) == ["wer", "cer"]
    with pytest.raises(ValueError, match="some of wer, cer, bleu, chrf, not 'ter'"):
        make_compute_metrics(processor, metrics=("ter",))


def test_a_missing_library_is_told_before_the_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"pip install 'speechgraft\[translation\]'"):
        make_compute_metrics(make("wav2vec2", "bert"), metrics=("bleu",))
    assert make_compute_metrics(make("wav2vec2", "bert"))
