"""Scores of transcripts, as they grow, by a CTC head: joint CTC/attention decoding inside `generate()`.

A decoder alone may repeat itself, stop early, or skip what was said. The CTC head sees every frame once and in order,
so the probability that it gives to a beginning of the transcript tells such mistakes (Watanabe et al. 2017, algorithm
2).

Shapes: `B` utterances, `N` hypotheses (`B` times the beams), `T` frames, `V` tokens.
"""

from dataclasses import dataclass

import torch
from transformers import LogitsProcessor

LOG_ZERO = -1e5  # of one frame: finite, so that sums of it can be subtracted again
IMPOSSIBLE = -1e9  # score of a token that cannot come


@dataclass
class CtcPrefixState:
    """Of each hypothesis, the log probability of all alignments with it that end at frame t (0: before the first).

    Args:
        ends_in_token: [N, T + 1], those that end in its last token.
        ends_in_blank: [N, T + 1], those that end in a blank.
        last_token: [N], -1 where nothing was said yet.
        log_prefix: [N], log probability that the transcript begins with the hypothesis.
    """

    ends_in_token: torch.Tensor
    ends_in_blank: torch.Tensor
    last_token: torch.Tensor
    log_prefix: torch.Tensor

    def rows(self, index: torch.Tensor) -> "CtcPrefixState":
        """The state of some hypotheses [M]."""
        return CtcPrefixState(*(value[index] for value in vars(self).values()))


class CtcPrefixScorer:
    """Log probabilities that a transcript begins with a hypothesis, for all its extensions by one token at once.

    Args:
        log_probs: [B, T, V], of the CTC head.
        frame_mask: boolean [B, T], True where a frame is real; None where all are.
        blank: id of the blank.
        end: id of the token that ends a transcript, or the ids of several.
    """

    def __init__(self, log_probs: torch.Tensor, frame_mask: torch.Tensor | None, blank: int, end: int | list[int]):
        log_probs = log_probs.float().clamp(min=LOG_ZERO)
        if frame_mask is not None:  # behind the end only blanks follow, certainly: they change nothing
            log_probs = log_probs.masked_fill(~frame_mask[..., None], LOG_ZERO)
            log_probs[..., blank] = log_probs[..., blank].masked_fill(~frame_mask, 0.0)
        self.log_probs = log_probs
        self.probs = log_probs.exp()
        self.blank, self.ends = blank, end if isinstance(end, list) else [end]
        # Differences of sums over a thousand frames need more than single precision, where there is more.
        self.dtype = torch.float32 if log_probs.device.type == "mps" else torch.float64
        self.blank_sums = _sums(log_probs[..., blank].to(self.dtype))  # [B, T + 1]

    def start(self, n_each: int = 1) -> CtcPrefixState:
        """The state of `n_each` hypotheses for each utterance that have said nothing yet."""
        blanks = self.blank_sums.repeat_interleave(n_each, dim=0)
        return CtcPrefixState(
            ends_in_token=torch.full_like(blanks, IMPOSSIBLE),
            ends_in_blank=blanks,
            last_token=torch.full((len(blanks),), -1, device=blanks.device),
            log_prefix=torch.zeros_like(blanks[:, 0]),
        )

    def score(self, state: CtcPrefixState) -> torch.Tensor:
        """Log probability that the transcript begins with each hypothesis and one more token.

        Returns:
            [N, V]; for the end token, that the transcript is the hypothesis; for the blank, `IMPOSSIBLE`.
        """
        n_each = len(state.last_token) // len(self.probs)
        ended = torch.logaddexp(state.ends_in_token, state.ends_in_blank)  # [N, T + 1]
        scores = self._sum_over_frames(ended[:, :-1], n_each)  # [N, V]
        # A token can repeat the one before it only behind a blank.
        again = self._sum_over_frames_of_one(state.ends_in_blank[:, :-1], state.last_token.clamp(min=0))  # [N]
        repeats = torch.nn.functional.one_hot(state.last_token.clamp(min=0), scores.shape[-1]).bool()
        repeats &= (state.last_token >= 0)[:, None]
        scores = torch.where(repeats, again[:, None], scores)
        scores[:, self.blank] = IMPOSSIBLE
        scores[:, self.ends] = ended[:, -1:]
        return scores

    def extend(self, state: CtcPrefixState, tokens: torch.Tensor) -> CtcPrefixState:
        """The hypotheses [N], each with one more token [N]."""
        n_each = len(tokens) // len(self.probs)
        utterances = torch.arange(len(self.probs), device=tokens.device).repeat_interleave(n_each)
        of_token = self.log_probs[utterances, :, tokens].to(self.dtype)  # [N, T]
        blanks = self.blank_sums[utterances]  # [N, T + 1]
        ended = torch.logaddexp(state.ends_in_token, state.ends_in_blank)
        before = torch.where((tokens == state.last_token)[:, None], state.ends_in_blank, ended)[:, :-1]  # [N, T]
        sums = _sums(of_token)
        arrived = torch.logcumsumexp(before - sums[:, :-1], dim=-1) + sums[:, 1:]
        ends_in_token = torch.nn.functional.pad(arrived, [1, 0], value=IMPOSSIBLE)
        rested = torch.logcumsumexp(ends_in_token[:, :-1] - blanks[:, :-1], dim=-1) + blanks[:, 1:]
        return CtcPrefixState(
            ends_in_token=ends_in_token,
            ends_in_blank=torch.nn.functional.pad(rested, [1, 0], value=IMPOSSIBLE),
            last_token=tokens,
            log_prefix=torch.logsumexp(before + of_token, dim=-1),
        )

    def _sum_over_frames(self, log_before: torch.Tensor, n_each: int) -> torch.Tensor:
        """Of every token, the log of the sum over t of `before[t] * probability[t]`: [N, T] to [N, V]."""
        largest = log_before.amax(dim=-1, keepdim=True)
        before = (log_before - largest).exp().float().unflatten(0, (-1, n_each))  # [B, n_each, T]
        total = torch.bmm(before, self.probs).flatten(0, 1)  # [N, V]
        return (total.clamp(min=torch.finfo(total.dtype).tiny).log() + largest).clamp(min=IMPOSSIBLE)

    def _sum_over_frames_of_one(self, log_before: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The same for one token of each hypothesis: [N, T], [N] to [N]."""
        utterances = torch.arange(len(self.probs), device=tokens.device)
        utterances = utterances.repeat_interleave(len(tokens) // len(self.probs))
        return torch.logsumexp(log_before + self.log_probs[utterances, :, tokens], dim=-1).clamp(min=IMPOSSIBLE)


def _sums(log_probs: torch.Tensor) -> torch.Tensor:
    """Running sums over frames, beginning with 0: [N, T] to [N, T + 1]."""
    return torch.nn.functional.pad(log_probs.cumsum(dim=-1), [1, 0])


class CtcPrefixLogitsProcessor(LogitsProcessor):
    """Mixes the decoder's scores with those of the CTC head: `(1 - weight) * decoder + weight * CTC`, per token.

    Args:
        scorer: of the utterances that are decoded.
        weight: share of the CTC score, between 0 and 1.
        prompt_length: tokens before the transcript, the start token included.

    Raises:
        ValueError: the weight is outside its range.
    """

    def __init__(self, scorer: CtcPrefixScorer, weight: float, prompt_length: int):
        if not 0 <= weight <= 1:
            raise ValueError(f"ctc_weight is a share between 0 and 1, got {weight}")
        self.scorer, self.weight, self.prompt_length = scorer, weight, prompt_length
        self._state: CtcPrefixState | None = None
        self._said: torch.Tensor | None = None  # [N, S], the hypotheses of the state

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids [N, S] and the decoder's scores [N, V] to mixed log probabilities [N, V]."""
        said = input_ids[:, self.prompt_length :]
        state = self._follow(said)
        ctc = (self.scorer.score(state) - state.log_prefix[:, None]).to(scores.dtype).clamp(min=IMPOSSIBLE)
        decoder = scores.log_softmax(dim=-1)
        self._state, self._said = state, said
        return (1 - self.weight) * decoder + self.weight * ctc

    def _follow(self, said: torch.Tensor) -> CtcPrefixState:
        """The state of hypotheses that extend those of the last call, in whatever order a search left them."""
        before = self._said
        if self._state is not None and before is not None and before.shape[1] + 1 == said.shape[1]:
            n_each = len(said) // len(self.scorer.probs)
            old, new = before.unflatten(0, (-1, n_each)), said[:, :-1].unflatten(0, (-1, n_each))
            same = (new[:, :, None] == old[:, None]).all(dim=-1)  # [B, new, old]
            if bool(same.any(dim=-1).all()):
                parents = same.int().argmax(dim=-1)  # [B, new]
                parents = parents + n_each * torch.arange(len(parents), device=said.device)[:, None]
                return self.scorer.extend(self._state.rows(parents.flatten()), said[:, -1])
        state = self.scorer.start(len(said) // len(self.scorer.probs))
        for tokens in said.unbind(dim=1):
            state = self.scorer.extend(state, tokens)
        return state


__all__ = ["CtcPrefixLogitsProcessor", "CtcPrefixScorer", "CtcPrefixState"]
