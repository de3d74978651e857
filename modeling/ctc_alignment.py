"""When each token of a known text was said: forced alignment by a CTC head.

Shapes: `B` utterances, `T` frames, `S` tokens, `V` outputs of the head.
"""

from dataclasses import dataclass

import torch

from .sequence_losses import IGNORED_LABEL


@dataclass
class CtcAlignment:
    """Where the tokens of texts lie in their recordings.

    Args:
        starts: [B, S], first frame of each token; -1 where the target is ignored.
        ends: [B, S], the frame behind its last one.
        scores: [B, S], mean log probability of the token in its frames: how sure the head is of it.
        path_scores: [B], log probability of the whole path.
    """

    starts: torch.Tensor
    ends: torch.Tensor
    scores: torch.Tensor
    path_scores: torch.Tensor


@torch.no_grad()
def align_ctc(
    log_probs: torch.Tensor, frame_mask: torch.Tensor | None, targets: torch.Tensor, blank: int
) -> CtcAlignment:
    """The likeliest way in which the frames say the targets (Viterbi, with an optional blank around each token).

    Args:
        log_probs: [B, T, V], of the CTC head.
        frame_mask: boolean [B, T], True where a frame is real; None where all are.
        targets: [B, S], -100 where ignored (at the end), without start, prompt and end tokens.
        blank: the blank's id.

    Raises:
        ValueError: a text needs more frames than there are: one for each token, and one between equal neighbours.
    """
    n_rows, n_frames, _ = log_probs.shape
    real = targets != IGNORED_LABEL  # [B, S]
    n_tokens = real.sum(dim=-1)  # [B]
    lengths = torch.full_like(n_tokens, n_frames) if frame_mask is None else frame_mask.sum(dim=-1)
    tokens = targets.masked_fill(~real, blank)
    again = torch.zeros_like(real)
    again[:, 1:] = (tokens[:, 1:] == tokens[:, :-1]) & real[:, 1:]  # needs a blank before it
    _check_frames_suffice(lengths, n_tokens + again.sum(dim=-1))

    states = torch.full((n_rows, 2 * tokens.shape[1] + 1), blank, device=tokens.device)
    states[:, 1::2] = tokens  # blank, token, blank, token, …, blank
    skips = torch.zeros_like(states, dtype=torch.bool)  # from token to token, without the blank between them
    skips[:, 3::2] = ~again[:, 1:]
    emissions = log_probs.float().gather(2, states[:, None].expand(-1, n_frames, -1))  # [B, T, 2 S + 1]
    steps, last_scores = _best_steps(emissions, skips, lengths, 2 * n_tokens)
    path = _walk_back(steps, last_scores, lengths, 2 * n_tokens)  # [B, T], state of each frame, -1 behind the end
    best = torch.stack(
        [
            last_scores.gather(1, (2 * n_tokens - 1).clamp(min=0)[:, None])[:, 0],
            last_scores.gather(1, (2 * n_tokens)[:, None])[:, 0],
        ]
    ).amax(dim=0)
    return _spans(path, emissions, real, best)


def _check_frames_suffice(lengths: torch.Tensor, needed: torch.Tensor) -> None:
    if bool((needed > lengths).any()):
        row = int((needed > lengths).nonzero()[0])
        raise ValueError(
            f"text {row} of the batch needs at least {int(needed[row])} frames, but its recording has "
            f"{int(lengths[row])}: it cannot have been said in it"
        )


def _best_steps(
    emissions: torch.Tensor, skips: torch.Tensor, lengths: torch.Tensor, last_state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each frame and state, how many states back its best predecessor lies [B, T, K]; scores of the ends [B, K]."""
    n_rows, n_frames, n_states = emissions.shape
    nowhere = torch.finfo(emissions.dtype).min / 4
    scores = torch.full((n_rows, n_states), nowhere, device=emissions.device)
    scores[:, :2] = emissions[:, 0, :2]
    steps = torch.zeros((n_rows, n_frames, n_states), dtype=torch.int8, device=emissions.device)
    for t in range(1, n_frames):
        one = torch.nn.functional.pad(scores[:, :-1], [1, 0], value=nowhere)
        two = torch.nn.functional.pad(scores[:, :-2], [2, 0], value=nowhere).masked_fill(~skips, nowhere)
        best, steps_here = torch.stack([scores, one, two]).max(dim=0)
        goes_on = (t < lengths)[:, None]
        scores = torch.where(goes_on, best + emissions[:, t], scores)
        steps[:, t] = steps_here
    behind = torch.arange(n_states, device=scores.device) > last_state[:, None]
    return steps, scores.masked_fill(behind, nowhere)


def _walk_back(
    steps: torch.Tensor, last_scores: torch.Tensor, lengths: torch.Tensor, last_state: torch.Tensor
) -> torch.Tensor:
    """The best path, from its end to its beginning: [B, T] states, -1 behind a recording's end."""
    n_rows, n_frames, _ = steps.shape
    rows = torch.arange(n_rows, device=steps.device)
    on_token = (last_state - 1).clamp(min=0)  # it may end in its last token or in the blank behind it
    state = torch.where(last_scores[rows, on_token] > last_scores[rows, last_state], on_token, last_state)
    path = torch.full((n_rows, n_frames), -1, dtype=torch.long, device=steps.device)
    for t in range(n_frames - 1, -1, -1):
        heard = t < lengths
        path[:, t] = torch.where(heard, state, path[:, t])
        state = torch.where(heard, state - steps[rows, t, state], state)
    return path


def _spans(path: torch.Tensor, emissions: torch.Tensor, real: torch.Tensor, path_scores: torch.Tensor) -> CtcAlignment:
    """Frames and scores of each token from the state of each frame."""
    of_token = path[:, None] == 2 * torch.arange(real.shape[1], device=path.device)[:, None] + 1  # [B, S, T]
    frames = torch.arange(path.shape[1], device=path.device)
    starts = torch.where(of_token, frames, path.shape[1]).amin(dim=-1)
    ends = torch.where(of_token, frames + 1, 0).amax(dim=-1)
    own = emissions[:, :, 1::2].transpose(1, 2)  # [B, S, T]
    scores = own.masked_fill(~of_token, 0).sum(dim=-1) / of_token.sum(dim=-1).clamp(min=1)
    return CtcAlignment(
        starts=starts.masked_fill(~real, -1),
        ends=ends.masked_fill(~real, -1),
        scores=scores.masked_fill(~real, 0),
        path_scores=path_scores,
    )


__all__ = ["CtcAlignment", "align_ctc"]
