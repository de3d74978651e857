"""Transcripts of a CTC head are the ones that enumerating every alignment finds."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from speechgraft.modeling.ctc_decoding import greedy_ctc, prefix_beam_search

ENOUGH_BEAMS = 1000


def random_log_probs(*shape: int, seed: int = 0, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator)).log_softmax(dim=-1)


def collapse(path, blank: int) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def every_transcript(log_probs: torch.Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """Log probability of each transcript of one clip [T, V], by enumeration."""
    probabilities: dict[tuple[int, ...], float] = defaultdict(float)
    rows = log_probs.double().tolist()
    for path in itertools.product(range(len(rows[0])), repeat=len(rows)):
        log_prob = sum(row[token] for row, token in zip(rows, path, strict=True))
        probabilities[collapse(path, blank)] += math.exp(log_prob)
    return {tokens: math.log(probability) for tokens, probability in probabilities.items()}


def bigram(prefixes, ended):
    """A language model that likes falling token ids, and short transcripts that end in 1."""
    scores = [sum(-0.7 * max(b - a, -1) for a, b in itertools.pairwise((9, *prefix))) for prefix in prefixes]
    ends = [0.0 if prefix[-1:] == (1,) else -2.0 for prefix in prefixes]
    return [score + ended * end for score, end in zip(scores, ends, strict=True)]


@pytest.mark.parametrize("blank", [0, 2])
def test_beam_search_sums_all_alignments_of_each_transcript(blank):
    for seed in range(4):
        log_probs = random_log_probs(1, 5, 3, seed=seed)
        (found,) = prefix_beam_search(log_probs, None, blank, ENOUGH_BEAMS)
        expected = every_transcript(log_probs[0], blank)
        assert {one.token_ids for one in found} == set(expected)
        for one in found:
            assert one.ctc_score == pytest.approx(expected[one.token_ids], abs=1e-9) and one.score == one.ctc_score
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_the_best_transcript_may_differ_from_the_best_path():
    """Each frame prefers the blank, and yet something was said: greedy decoding cannot know."""
    log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    assert greedy_ctc(log_probs, None, 0)[0].token_ids == ()
    (found,) = prefix_beam_search(log_probs, None, 0, 4)
    assert found[0].token_ids == (1,) and found[0].score == pytest.approx(math.log(0.64))


def test_a_language_model_is_counted_once_for_each_transcript():
    for seed in range(4):
        log_probs = random_log_probs(1, 5, 3, seed=seed, sharpness=1.0)
        (found,) = prefix_beam_search(
            log_probs, None, 0, ENOUGH_BEAMS, language_model=bigram, language_model_weight=0.6, length_bonus=0.3
        )
        expected = {
            tokens: score + 0.6 * bigram([tokens], True)[0] + 0.3 * len(tokens)
            for tokens, score in every_transcript(log_probs[0], 0).items()
        }
        assert found[0].token_ids == max(expected, key=lambda tokens: expected[tokens])
        for one in found:
            assert one.score == pytest.approx(expected[one.token_ids], abs=1e-9)


def test_the_language_model_is_asked_for_many_prefixes_at_once_and_never_twice():
    asked: list[tuple[int, ...]] = []
    calls: list[int] = []

    def language_model(prefixes, ended):
        calls.append(len(prefixes))
        asked.extend(() if ended else prefixes)
        return [0.0] * len(prefixes)

    log_probs = random_log_probs(1, 12, 6)
    prefix_beam_search(log_probs, None, 0, 4, language_model=language_model, tokens_per_frame=3)
    assert len(asked) == len(set(asked)) and len(calls) <= 12 + 1
    assert max(calls) <= 4 * 3


def test_few_beams_find_what_many_find_on_clear_speech():
    log_probs = random_log_probs(3, 40, 8, sharpness=12.0)
    few, many = (prefix_beam_search(log_probs, None, 0, beams) for beams in (8, 100))
    assert [one[0].token_ids for one in few] == [one[0].token_ids for one in many]
    pruned = prefix_beam_search(log_probs, None, 0, 8, tokens_per_frame=4)
    assert [one[0].token_ids for one in pruned] == [one[0].token_ids for one in few]


def test_no_beam_is_wasted_on_a_transcript_that_is_there_already():
    (found,) = prefix_beam_search(random_log_probs(1, 30, 5), None, 0, 20)
    assert len(found) == 20 == len({one.token_ids for one in found})


def test_greedy_decoding_joins_repeats_and_keeps_those_across_a_blank():
    path = [1, 1, 0, 1, 2, 2, 0, 0, 3]
    log_probs = torch.nn.functional.one_hot(torch.tensor([path]), 4).float().mul(5).log_softmax(-1)
    assert greedy_ctc(log_probs, None, 0)[0].token_ids == (1, 1, 2, 3) == collapse(path, 0)
    assert greedy_ctc(log_probs, None, 3)[0].token_ids == (1, 0, 1, 2, 0)


def test_padding_is_not_decoded():
    log_probs = random_log_probs(2, 9, 4, seed=3)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    for decode in (greedy_ctc, lambda *args: [found[0] for found in prefix_beam_search(*args, 8)]):
        batch, alone = decode(log_probs, mask, 0), decode(log_probs[1:, :5], None, 0)
        assert batch[1].token_ids == alone[0].token_ids
        assert batch[1].ctc_score == pytest.approx(alone[0].ctc_score, abs=1e-6)


def test_tokens_of_no_probability_do_not_come():
    log_probs = random_log_probs(1, 6, 4)
    log_probs[..., 2] = -np.inf
    (found,) = prefix_beam_search(log_probs, None, 0, 50)
    assert all(2 not in one.token_ids and math.isfinite(one.score) for one in found)


def test_no_beams_are_refused():
    with pytest.raises(ValueError, match="num_beams"):
        prefix_beam_search(random_log_probs(1, 2, 3), None, 0, 0)
