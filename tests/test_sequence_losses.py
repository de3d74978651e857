"""The losses against their definitions: brute-force sums over alignments, and PyTorch's own."""

import itertools
import math

import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from speechgraft.modeling.sequence_losses import (
    ctc_loss,
    decoder_cross_entropy,
    normalizer,
    transcript_tokens,
)

ONE = torch.tensor(1)


def collapsed(path: tuple[int, ...], blank: int) -> list[int]:
    """What an alignment spells: repeats merged, blanks dropped."""
    return [token for token, _ in itertools.groupby(path) if token != blank]


def brute_force_ctc(log_probs: torch.Tensor, target: list[int], blank: int) -> float:
    """-log of the summed probability of every path over [T, V] that spells the target."""
    frames, vocabulary = log_probs.shape
    total = 0.0
    for path in itertools.product(range(vocabulary), repeat=frames):
        if collapsed(path, blank) == target:
            total += math.exp(sum(float(log_probs[frame, token]) for frame, token in enumerate(path)))
    return -math.log(total)


@pytest.mark.parametrize("blank", [0, 3])
def test_ctc_loss_is_the_probability_of_all_alignments(blank: int) -> None:
    logits = torch.randn(4, 5, 4, dtype=torch.float64)
    tokens = [token for token in range(4) if token != blank]
    targets = [[tokens[0]], [tokens[1], tokens[1]], [tokens[0], tokens[2], tokens[1]], []]
    frames = [5, 4, 3, 2]
    padded = torch.tensor([row + [-100] * (3 - len(row)) for row in targets])
    mask = torch.arange(5) < torch.tensor(frames)[:, None]
    expected = [
        brute_force_ctc(logits[row, :length].log_softmax(-1), targets[row], blank) for row, length in enumerate(frames)
    ]
    assert float(ctc_loss(logits, mask, padded, blank, ONE)) == pytest.approx(sum(expected), rel=1e-5)
    assert float(ctc_loss(logits, mask, padded, blank, torch.tensor(8))) == pytest.approx(sum(expected) / 8, rel=1e-5)


def test_ctc_loss_and_gradient_are_those_of_pytorch() -> None:
    logits = torch.randn(3, 12, 7, requires_grad=True)
    targets = torch.tensor([[1, 2, 2, 3], [4, 5, -100, -100], [6, 1, 2, -100]])
    frames = torch.tensor([12, 9, 7])
    ours = ctc_loss(logits, torch.arange(12) < frames[:, None], targets, 0, ONE)
    (gradient,) = torch.autograd.grad(ours, logits)

    reference = torch.nn.CTCLoss(blank=0, reduction="sum")
    rows = torch.cat([row[row >= 0] for row in targets])
    theirs = reference(logits.log_softmax(-1).transpose(0, 1), rows, frames, torch.tensor([4, 2, 3]))
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


def test_compiled_ctc_loss_gives_the_eager_loss_and_gradient() -> None:
    logits = torch.randn(3, 6, 7, requires_grad=True)
    targets = torch.tensor([[1, 2, 2, 3], [4, 5, -100, -100], [1, 1, 1, 1]])  # the last has no alignment
    mask = torch.arange(6) < torch.tensor([6, 4, 6])[:, None]
    eager = ctc_loss(logits, mask, targets, 0, ONE)
    (expected,) = torch.autograd.grad(3 * eager, logits)
    compiled = torch.compile(ctc_loss, backend="aot_eager", fullgraph=True)(logits, mask, targets, 0, ONE)
    (gradient,) = torch.autograd.grad(3 * compiled, logits)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(gradient, expected)


def test_ignored_places_inside_a_transcript_are_skipped_not_read_as_tokens() -> None:
    logits = torch.randn(2, 8, 5)
    scattered = torch.tensor([[-100, 1, -100, 2], [3, -100, 3, -100]])
    compact = torch.tensor([[1, 2, -100, -100], [3, 3, -100, -100]])
    torch.testing.assert_close(ctc_loss(logits, None, scattered, 0, ONE), ctc_loss(logits, None, compact, 0, ONE))


@pytest.fixture
def warnings_told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from speechgraft.modeling import sequence_losses

    told: list[str] = []
    monkeypatch.setattr(sequence_losses.logger, "warning_once", told.append, raising=False)
    return told


def test_a_clip_too_short_for_its_transcript_is_told_and_leaves_the_others_alone(warnings_told: list[str]) -> None:
    logits = torch.randn(2, 4, 5, requires_grad=True)
    targets = torch.tensor([[1, 1, 2, 2], [1, 2, 3, -100]])  # the first needs 4 + 2 frames
    both = ctc_loss(logits, None, targets, 0, ONE)
    assert len(warnings_told) == 1
    assert "row 0 has 4 encoder frames for a transcript that needs 6" in warnings_told[0]
    alone = ctc_loss(logits[1:], None, targets[1:], 0, ONE)
    assert len(warnings_told) == 1
    torch.testing.assert_close(both, alone)
    (gradient,) = torch.autograd.grad(both, logits)
    assert torch.isfinite(gradient).all()
    assert not gradient[0].any()


def test_just_enough_frames_are_an_alignment(warnings_told: list[str]) -> None:
    logits = torch.randn(1, 6, 3)
    loss = ctc_loss(logits, None, torch.tensor([[1, 1, 2, 2]]), 0, ONE)
    path = [1, 0, 1, 2, 0, 2]  # the only one
    assert float(loss) == pytest.approx(-float(logits[0].log_softmax(-1)[range(6), path].sum()), rel=1e-5)
    assert not warnings_told


def test_clips_that_do_not_count_add_neither_loss_nor_gradient() -> None:
    logits = torch.randn(2, 6, 5, requires_grad=True)
    targets = torch.tensor([[1, 2], [-100, -100]])
    loss = ctc_loss(logits, None, targets, 0, ONE, counted=torch.tensor([True, False]))
    torch.testing.assert_close(loss, ctc_loss(logits[:1], None, targets[:1], 0, ONE))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[1].any()


def test_smoothed_cross_entropy_is_the_one_of_trainer() -> None:
    logits, labels = torch.randn(2, 4, 9), torch.tensor([[1, 2, 3, -100], [4, 5, -100, -100]])
    ours = decoder_cross_entropy(logits, labels, normalizer(labels, None), smoothing=0.1)
    theirs = LabelSmoother(epsilon=0.1)({"logits": logits}, labels)
    torch.testing.assert_close(ours, theirs)


def test_cross_entropy_is_summed_and_divided_by_the_labels_of_the_whole_step() -> None:
    logits, labels = torch.randn(2, 3, 9), torch.tensor([[1, 2, 3], [4, -100, -100]])
    picked = [(0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 0, 4)]
    total = -sum(float(logits[row, place].log_softmax(-1)[label]) for row, place, label in picked)
    for items, divisor in ((None, 4), (10, 10), (torch.tensor(10), 10)):
        loss = decoder_cross_entropy(logits, labels, normalizer(labels, items))
        assert float(loss) == pytest.approx(total / divisor, rel=1e-5)


def test_half_precision_logits_lose_no_precision_in_the_losses() -> None:
    logits, targets = torch.randn(2, 8, 5).bfloat16(), torch.tensor([[1, 2], [3, -100]])
    assert ctc_loss(logits, None, targets, 0, ONE).dtype == torch.float32
    torch.testing.assert_close(
        ctc_loss(logits, None, targets, 0, ONE), ctc_loss(logits.float(), None, targets, 0, ONE)
    )
    assert decoder_cross_entropy(logits[:, :2], targets, ONE).dtype == torch.float32


@pytest.mark.parametrize("end", [2, [2, 9]])
def test_the_transcript_loses_prompt_and_end_token_even_if_several_ids_end_it(end: int | list[int]) -> None:
    labels = torch.tensor([[7, 5, 6, 2], [7, 4, 2, -100]])
    assert transcript_tokens(labels, 1, end).tolist() == [[5, 6, -100], [4, -100, -100]]
