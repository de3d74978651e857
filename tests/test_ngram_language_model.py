"""N-gram models give the probabilities of their files, and bring them to bear in both kinds of search."""

import gzip
import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lively_models import lively
from test_phrase_biasing import byte_level
from tiny_models import VOCABULARY, audio
from tiny_tokenizers import WORDS, tiny_tokenizer
from transformers import LogitsProcessor, Wav2Vec2CTCTokenizer

from speechgraft.modeling.ctc_decoding import prefix_beam_search
from speechgraft.modeling.ngram_language_model import END, START, NgramLanguageModel

ARPA = """\
made by hand

\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.5
-0.7\t</s>
-1.0\t<unk>
-0.6\tthe\t-0.25
-0.9\tcat\t-0.125

\\2-grams:
-0.2\t<s> the\t-0.0625
-0.3\tthe cat\t-0.03125
-0.4\tcat </s>

\\3-grams:
-0.1\t<s> the cat

\\end\\
"""


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "model.arpa"
    path.write_text(ARPA)
    return path


def test_probabilities_are_those_of_the_file(arpa, tmp_path):
    """Worked out by hand from the format's definition."""
    packed = tmp_path / "model.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.encode()))
    for path in (arpa, packed):
        model = NgramLanguageModel.from_arpa(path)
        assert model.order == 3
        for words, expected in (
            (["the", "cat"], -0.2 - 0.1 + (-0.03125 - 0.4)),  # "the cat </s>" backs off
            (["cat"], (-0.5 - 0.9) - 0.4),  # there is no "<s> cat", and it has no weight of its own
            (["the", "zebra", "cat"], -0.2 + (-0.0625 - 0.25 - 1.0) - 0.9 - 0.4),  # unknown words forget
            ([], -0.5 - 0.7),
        ):
            assert model.total(words) / math.log(10) == pytest.approx(expected)
        assert model.total(["the"], ended=False) / math.log(10) == pytest.approx(-0.2)


def test_files_that_are_cut_or_are_none_are_told_in_a_line(arpa, tmp_path):
    for text, message in (
        (ARPA[: ARPA.index("\\3-grams")], "0 of 1 3-grams"),
        (ARPA.replace("ngram 2=3", "ngram 2=4"), "3 of 4 2-grams"),
        ("hello\n", "it has no header"),
        (ARPA.replace("cat </s>", "cat"), "line 18: not of an ARPA file: '-0.4"),
        (ARPA.replace("-0.9\tcat", "x\tcat"), "line 13"),
    ):
        path = tmp_path / "bad.arpa"
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as told:
            NgramLanguageModel.from_arpa(path)
        assert "bad.arpa" in str(told.value) and "\n" not in str(told.value)


def test_what_was_counted_sums_to_one_behind_every_context_and_survives_its_file(tmp_path):
    rng = random.Random(0)
    texts = [rng.choices(["a", "b", "c"], k=rng.randint(0, 6)) for _ in range(30)]
    model = NgramLanguageModel.from_texts(texts, order=3)
    words = ["a", "b", "c", END, "never"]
    for length in range(4):
        for context in itertools.product([START, "a", "b", "never"], repeat=length):
            assert sum(math.exp(model.log_prob(word, context)) for word in words) == pytest.approx(1)
    model.save_arpa(tmp_path / "counted.arpa")
    loaded = NgramLanguageModel.from_arpa(tmp_path / "counted.arpa")
    assert [loaded.total(text) for text in texts] == pytest.approx([model.total(text) for text in texts], rel=1e-5)


def test_counts_are_smoothed_as_published():
    """Witten-Bell by hand: of two texts "a b" and "a", with the words a, b, the end and the unknown one."""
    model = NgramLanguageModel.from_texts([["a", "b"], ["a"]], order=2)
    unigrams = {"a": 2, "b": 1, END: 2}
    p = {word: (unigrams.get(word, 0) + 3 / 4) / (5 + 3) for word in ("a", "b", END, "?")}
    assert math.exp(model.log_prob("a", [START])) == pytest.approx((2 + 1 * p["a"]) / (2 + 1))
    assert math.exp(model.log_prob("b", [START, "a"])) == pytest.approx((1 + 2 * p["b"]) / (2 + 2))
    assert math.exp(model.log_prob("a", [START, "a"])) == pytest.approx(2 * p["a"] / (2 + 2))
    assert math.exp(model.log_prob("?", [])) == pytest.approx(p["?"])
    with pytest.raises(ValueError, match="no texts"):
        NgramLanguageModel.from_texts([])


@pytest.fixture(scope="module")
def counted() -> NgramLanguageModel:
    rng = random.Random(1)
    return NgramLanguageModel.from_texts([rng.choices(WORDS[:8], k=5) for _ in range(40)], order=3)


class Naive(LogitsProcessor):
    """The change of a whole hypothesis's log probability by each token, words being tokens here."""

    def __init__(self, total: Any, end: int, weight: float):
        self.total, self.end, self.weight = total, end, weight

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        changes = []
        for row in input_ids[:, 1:].tolist():
            before = self.total(row, False)
            after = [
                self.total(row, True) if t == self.end else self.total([*row, t], False) for t in range(VOCABULARY)
            ]
            changes.append([one - before for one in after])
        return scores + self.weight * torch.tensor(changes)


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 4}], ids=str)
def test_generation_scores_as_the_model_says(counted, unit, options):
    model = lively("wav2vec2-layer", "bert")
    tokenizer = tiny_tokenizer("bert")
    inputs = audio("wav2vec2-layer", 9600, 6400)
    scorer = counted.scorer(tokenizer, unit)
    assert len(tokenizer) < VOCABULARY  # the decoder has outputs to spare

    def by_tokens(token_ids: list[int], ended: bool) -> float:
        words = tokenizer.convert_ids_to_tokens(token_ids)
        return counted.total([END if word == "[SEP]" else word or "" for word in words], ended)

    def by_words(token_ids: list[int], ended: bool) -> float:
        words = tokenizer.decode(token_ids, skip_special_tokens=True).split()
        is_open = bool(tokenizer.decode(token_ids[-1:], skip_special_tokens=True))
        return counted.total(words if ended or not is_open else words[:-1], ended)

    naive = Naive(by_tokens if unit == "token" else by_words, model.config.eos_token_id, 0.6)
    options = {"max_new_tokens": 7, "return_dict_in_generate": True, "output_scores": True, **options}
    found = model.generate(**inputs, **options, language_model=scorer, language_model_weight=0.6)
    expected = model.generate(**inputs, **options, logits_processor=[naive])
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.scores[-1], expected.scores[-1], rtol=1e-4, atol=1e-4)


def test_words_are_told_apart_in_every_kind_of_tokenizer(counted, tmp_path):
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "|": 1, "l": 2, "a": 3, "b": 4, "</s>": 5}')
    spelling = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", pad_token="<pad>", unk_token="<pad>", bos_token=None)
    scorer = counted.scorer(spelling)
    assert scorer.split([3, 2, 2, 1, 4, 3]) == (["all"], "ba")
    assert scorer.split([3, 2, 2, 1]) == (["all"], "")
    tokenizer = byte_level()
    scorer = counted.scorer(tokenizer, normalize=str.lower)
    assert scorer.split(tokenizer("New cat cats")["input_ids"]) == (["new", "cat"], "cats")
    assert scorer.split([]) == ([], "")
    with pytest.raises(ValueError, match="unit is one of word, token, not 'phone'"):
        counted.scorer(tokenizer, "phone")


def test_ctc_search_finds_the_best_by_acoustics_and_words(tmp_path):
    """Against every transcript of the frames, with words of letters."""
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "|": 1, "a": 2, "b": 3, "</s>": 4}')
    tokenizer = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", pad_token="<pad>", unk_token="<pad>", bos_token=None)
    ngrams = NgramLanguageModel.from_texts([["ab", "a"], ["ab", "ab"], ["b"]], order=2)
    log_probs = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    plain = {one.token_ids: one.ctc_score for one in prefix_beam_search(log_probs, None, 0, num_beams=5000)[0]}

    def joint(token_ids: tuple[int, ...]) -> float:
        words = "".join(" |ab"[token] for token in token_ids).replace("|", " ").split()
        return plain[token_ids] + 0.7 * ngrams.total(words)

    best = max(plain, key=joint)
    assert best != max(plain, key=lambda token_ids: plain[token_ids])
    scores = ngrams.scorer(tokenizer).prefix_scores
    found = prefix_beam_search(log_probs, None, 0, 5000, language_model=scores, language_model_weight=0.7)[0][0]
    assert found.token_ids == best
    assert found.score == pytest.approx(joint(best))
