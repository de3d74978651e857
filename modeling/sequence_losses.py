"""Losses over token sequences, summed over tokens and divided once, so that gradient accumulation changes nothing.

Shapes: `B` batch, `S` text tokens, `T` encoder frames, `V` vocabulary.
"""

from typing import Any

import torch
from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

IGNORED_LABEL = -100


def normalizer(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
    """What summed losses are divided by: the labels of the whole optimiser step, or else of this batch; at least 1."""
    if num_items_in_batch is None:
        return (labels != IGNORED_LABEL).sum().clamp(min=1)
    return torch.as_tensor(num_items_in_batch, device=labels.device).clamp(min=1)


def decoder_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, divisor: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy of each label at its own position, summed and divided by `divisor`.

    Args:
        logits: [B, S, V], of decoder inputs that were already shifted.
        labels: [B, S], -100 where ignored.
        divisor: scalar.
        smoothing: share of the target's probability that is spread over the vocabulary (Szegedy et al. 2016).

    Returns:
        Scalar, 0 where every label is ignored.
    """
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
        label_smoothing=smoothing,
    )
    return total / divisor


def ctc_loss(
    logits: torch.Tensor,
    frame_mask: torch.Tensor | None,
    targets: torch.Tensor,
    blank: int,
    divisor: torch.Tensor,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Connectionist temporal classification (Graves et al. 2006), summed over clips and divided by `divisor`.

    A clip with fewer frames than its transcript needs (one for each token and one between equal neighbours) has no
    alignment. It contributes 0, with a warning, instead of an infinite loss.

    Args:
        logits: [B, T, V].
        frame_mask: [B, T], True where a frame is real; None where all are.
        targets: [B, S], -100 where ignored, without start, prompt and end tokens.
        blank: the blank's id.
        divisor: scalar.
        counted: boolean [B], False for clips that do not contribute; None where all do.

    Returns:
        Scalar.
    """
    frames = torch.full(logits.shape[:1], logits.shape[1], device=logits.device)
    input_lengths = frames if frame_mask is None else frame_mask.sum(dim=-1)
    places = (targets == IGNORED_LABEL).long().argsort(dim=-1, stable=True)
    targets = targets.gather(1, places)  # ignored places last, wherever they stood
    real = targets != IGNORED_LABEL  # [B, S]
    log_probs = nn.functional.log_softmax(logits.float(), dim=-1).transpose(0, 1)  # [T, B, V]
    if not torch.compiler.is_compiling():
        repeats = ((targets[:, 1:] == targets[:, :-1]) & real[:, 1:]).sum(dim=-1)
        _warn_of_impossible_alignments(input_lengths, real.sum(dim=-1) + repeats)
    losses = _ctc_losses(log_probs, targets.masked_fill(~real, 0), input_lengths, real.sum(dim=-1), blank)  # [B]
    if counted is not None:
        losses = losses.masked_fill(~counted, 0)
    return losses.sum() / divisor


def _ctc_losses(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
) -> torch.Tensor:
    if torch.compiler.is_compiling():
        return _ctc_losses_and_gradient(log_probs, targets, input_lengths, target_lengths, blank)[0]
    return nn.functional.ctc_loss(
        log_probs, targets, input_lengths, target_lengths, blank=blank, reduction="none", zero_infinity=True
    )


@torch.library.custom_op("speechgraft::ctc_losses_and_gradient", mutates_args=())
def _ctc_losses_and_gradient(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch's CTC loss, whose workspace has a size that depends on the data, as one step of a compiled graph.

    Args:
        log_probs: [T, B, V].
        targets: [B, S].
        input_lengths: [B], in frames.
        target_lengths: [B], in tokens.
        blank: the blank's id.

    Returns:
        Losses [B], 0 where there is no alignment, and their gradient [T, B, V].
    """
    lengths = input_lengths.tolist(), target_lengths.tolist()
    losses, workspace = torch.ops.aten._ctc_loss(log_probs, targets, *lengths, blank, True)
    gradient = torch.ops.aten._ctc_loss_backward(
        torch.ones_like(losses), log_probs, targets, *lengths, losses, workspace, blank, True
    )
    return losses.masked_fill(losses.isinf(), 0), gradient


@_ctc_losses_and_gradient.register_fake
def _(log_probs: torch.Tensor, targets: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return log_probs.new_empty(log_probs.shape[1]), torch.empty_like(log_probs)


def _keep_gradient(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _ctc_backward(ctx: Any, of_losses: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return gradient * of_losses[None, :, None], None, None, None, None


_ctc_losses_and_gradient.register_autograd(_ctc_backward, setup_context=_keep_gradient)


def _warn_of_impossible_alignments(frames: torch.Tensor, needed: torch.Tensor) -> None:
    too_short = frames < needed
    if bool(too_short.any()):
        row = int(too_short.nonzero()[0])
        logger.warning_once(
            f"CTC has no alignment for {int(too_short.sum())} clip(s) of a batch: row {row} has {int(frames[row])} "
            f"encoder frames for a transcript that needs {int(needed[row])}. They do not contribute to the CTC loss; "
            "use fewer adapter layers or a larger token vocabulary if there are many"
        )


def transcript_tokens(labels: torch.Tensor, skip_first: int, end_token_id: int | list[int] | None) -> torch.Tensor:
    """The transcript alone: labels without the prompt and the end token.

    Args:
        labels: [B, S], -100 where padded.
        skip_first: length of the prompt.
        end_token_id: id or ids of the end token, which are removed wherever they stand.

    Returns:
        [B, S - skip_first], -100 where removed.
    """
    targets = labels[:, skip_first:]
    ends = [] if end_token_id is None else end_token_id if isinstance(end_token_id, list) else [end_token_id]
    for end in ends:
        targets = targets.masked_fill(targets == end, IGNORED_LABEL)
    return targets
