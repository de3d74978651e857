"""A known text lies where the CTC head heard it: the best of all alignments, in the batch as alone."""

import itertools

import pytest
import torch

from speechgraft.modeling.ctc_alignment import align_ctc

BLANK = 0
TEXTS = [[1], [2, 1], [1, 1], [3, 3, 2], [1, 2, 1]]


def random_log_probs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(-1)


def best_path(log_probs: torch.Tensor, text: list[int]) -> tuple[tuple[int, ...], float]:
    """The likeliest of all paths [T] that collapse to the text, found by going through every one."""
    best: tuple[tuple[int, ...], float] = ((), float("-inf"))
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if [token for token, _ in itertools.groupby(path) if token != BLANK] == text:
            score = float(sum(log_probs[t, token] for t, token in enumerate(path)))
            best = max(best, (path, score), key=lambda pair: pair[1])
    return best


def spans(path: tuple[int, ...]) -> list[tuple[int, int]]:
    """First frame and the frame behind the last one of every run that is no blank."""
    found, at = [], 0
    for token, run in itertools.groupby(path):
        length = len(list(run))
        if token != BLANK:
            found.append((at, at + length))
        at += length
    return found


@pytest.mark.parametrize("seed", range(3))
def test_tokens_lie_on_the_best_of_all_paths(seed):
    log_probs = random_log_probs(len(TEXTS), 6, 4, seed=seed)
    lengths = torch.tensor([6, 4, 5, 6, 5])
    targets = torch.tensor([[*text, *[-100] * (3 - len(text))] for text in TEXTS])
    found = align_ctc(log_probs, torch.arange(6) < lengths[:, None], targets, BLANK)
    for row, text in enumerate(TEXTS):
        heard = log_probs[row, : lengths[row]]
        path, score = best_path(heard, text)
        ours = list(zip(found.starts[row].tolist(), found.ends[row].tolist(), strict=True))
        assert ours == spans(path) + [(-1, -1)] * (3 - len(text))
        assert float(found.path_scores[row]) == pytest.approx(score, rel=1e-5)
        for token, (start, end), own in zip(text, spans(path), found.scores[row].tolist(), strict=False):
            assert own == pytest.approx(float(heard[start:end, token].mean()), rel=1e-5)
        alone = align_ctc(heard[None], None, torch.tensor([text]), BLANK)
        assert torch.equal(alone.starts[0], found.starts[row, : len(text)])


def test_times_never_go_back_and_stay_inside_the_recording():
    log_probs = random_log_probs(4, 200, 30)
    targets = torch.randint(1, 30, (4, 60), generator=torch.Generator().manual_seed(1))
    found = align_ctc(log_probs, None, targets, BLANK)
    assert (found.starts[:, 1:] >= found.ends[:, :-1]).all() and (found.ends > found.starts).all()
    assert found.starts.min() >= 0 and found.ends.max() <= 200


def test_a_text_without_tokens_has_no_times():
    found = align_ctc(random_log_probs(2, 5, 4), None, torch.tensor([[1], [-100]]), BLANK)
    assert found.starts[1].tolist() == [-1]
    assert float(found.path_scores[1]) == pytest.approx(float(random_log_probs(2, 5, 4)[1, :, BLANK].sum()), rel=1e-5)


def test_a_text_that_cannot_have_been_said_in_the_time_names_its_row():
    log_probs = random_log_probs(2, 4, 4)
    with pytest.raises(ValueError, match="text 1 of the batch needs at least 5 frames, but its recording has 4"):
        align_ctc(log_probs, None, torch.tensor([[1, 2, 3], [1, 1, 1]]), BLANK)
