"""Scores of transcripts, as they grow, by a CTC head: joint CTC/attention decoding inside `generate()`.

A decoder alone may repeat itself, stop early, or skip what was said. The CTC head sees every frame once and in order,
so the probability that it gives to a beginning of the transcript tells such mistakes (Watanabe et al. 2017, algorithm
2).

Shapes: `B` utterances, `N` hypotheses (`B` times the beams), `T` frames, `V` tokens.
"""

import functools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import LogitsProcessor

from .quick_inference import OneDnnLinear, linear

LOG_ZERO = -1e5  # of one frame: finite, so that sums of it can be subtracted again
IMPOSSIBLE = -1e9  # score of a token that cannot come
# Log probability beside the best end of a hypothesis below which another end does not count for what comes next. A
# letter that is heard and not written costs 3 to 8: this is beyond the end of any token.
FAR_OFF = 150.0
# Below it a sum over frames of products of probabilities, each at most 1, is worked out from their logarithms.
LEAST_SUM = 1e-20
TOKENS_AT_ONCE = 2048  # of the CTC head: what they give for 10 s stays in the caches until it is summed


@dataclass
class CtcPrefixState:
    """Of each hypothesis, the log probability of all alignments with it that end at frame t (0: before the first).

    Args:
        ends_in_token: [N, T + 1], those that end in its last token.
        ends_in_blank: [N, T + 1], those that end in a blank.
        last_token: [N], -1 where nothing was said yet.
        log_prefix: [N], log probability that the transcript begins with the hypothesis.
        utterance: [N], which one it is heard in.
    """

    ends_in_token: torch.Tensor
    ends_in_blank: torch.Tensor
    last_token: torch.Tensor
    log_prefix: torch.Tensor
    utterance: torch.Tensor

    def rows(self, index: torch.Tensor) -> "CtcPrefixState":
        """The state of some hypotheses [M]."""
        return CtcPrefixState(*(value[index] for value in vars(self).values()))

    def replaced(self, index: torch.Tensor, rows: "CtcPrefixState") -> "CtcPrefixState":
        """The state with others in place of some hypotheses [M]."""
        pairs = zip(vars(self).values(), vars(rows).values(), strict=True)
        return CtcPrefixState(*(value.index_copy(0, index, new) for value, new in pairs))


class CtcPrefixScorer:
    """Log probabilities that a transcript begins with a hypothesis, for its extensions by one token.

    Args:
        logits: [B, T, V], of the CTC head, or log probabilities. Scores are found sooner where the frames of a token
            lie together in memory, as `logits_of_ctc_head` lays them out.
        frame_mask: boolean [B, T], True where a frame is real; None where all are.
        blank: id of the blank.
        end: id of the token that ends a transcript, or the ids of several; none in a vocabulary without such tokens.
        log_totals: [B, T], what normalises the logits, where that is known.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        frame_mask: torch.Tensor | None,
        blank: int,
        end: int | list[int],
        log_totals: torch.Tensor | None = None,
    ):
        self.logits = logits.float()
        if log_totals is None:  # one utterance after the other: of 30,000 tokens and 10 s, each takes 60 MB
            log_totals = torch.stack([of_utterance.logsumexp(dim=-1) for of_utterance in self.logits])
        self.log_totals = log_totals  # [B, T]
        self.frame_mask = frame_mask
        self.blank, self.ends = blank, end if isinstance(end, list) else [end]
        self.n_utterances, _, self.n_tokens = self.logits.shape
        # Differences of sums over a thousand frames need more than single precision, where there is more.
        self.dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        utterances = torch.arange(self.n_utterances, device=logits.device)
        of_blank = self._of_tokens(utterances, torch.full_like(utterances, blank))
        self.blank_sums = _sums(of_blank.to(self.dtype))  # [B, T + 1]

    def _of_tokens(self, utterances: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Log probabilities of one token each, in the utterances [...]: [..., T]."""
        log_probs = self.logits.transpose(1, 2)[utterances, tokens]
        log_probs = log_probs.sub_(self.log_totals[utterances]).clamp_(min=LOG_ZERO)
        if self.frame_mask is not None:  # behind the end only blanks follow, certainly: they change nothing
            behind = LOG_ZERO * (tokens != self.blank)
            log_probs = torch.where(self.frame_mask[utterances], log_probs, behind[..., None])
        return log_probs

    @functools.cached_property
    def _probs(self) -> torch.Tensor:
        """[B, T, V], where every token is asked for."""
        probs = (self.logits - self.log_totals[..., None]).exp()
        return probs if self.frame_mask is None else probs * self.frame_mask[..., None]

    def start(self, n_each: int = 1) -> CtcPrefixState:
        """The state of `n_each` hypotheses for each utterance that have said nothing yet."""
        utterances = torch.arange(self.n_utterances, device=self.logits.device).repeat_interleave(n_each)
        blanks = self.blank_sums[utterances]
        return CtcPrefixState(
            ends_in_token=torch.full_like(blanks, IMPOSSIBLE),
            ends_in_blank=blanks,
            last_token=torch.full_like(utterances, -1),
            log_prefix=torch.zeros_like(blanks[:, 0]),
            utterance=utterances,
        )

    def whole(self, state: CtcPrefixState) -> torch.Tensor:
        """Log probability [N] that each hypothesis is the whole transcript."""
        return torch.logaddexp(state.ends_in_token[:, -1], state.ends_in_blank[:, -1])

    def score(self, state: CtcPrefixState, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Log probability that the transcript begins with each hypothesis and one more token.

        Args:
            state: of the hypotheses. For all tokens, as many for each utterance, in order.
            tokens: [N, K], candidates; None for all of the vocabulary.

        Returns:
            [N, K] or [N, V]; for the end token, that the transcript is the hypothesis; for the blank, `IMPOSSIBLE`.
        """
        ended = torch.logaddexp(state.ends_in_token, state.ends_in_blank)[:, :-1]  # [N, T]
        # A token can repeat the one before it only behind a blank.
        after_blank = state.ends_in_blank[:, :-1]
        if tokens is None:
            scores = self._sum_over_frames(ended)  # [N, V]
            last = state.last_token.clamp(min=0)[:, None]
            again = self._sum_over_frames_of(after_blank, state.utterance, last)  # [N, 1]
            again = torch.where(state.last_token[:, None] >= 0, again, scores.gather(1, last))
            scores = scores.scatter(1, last, again)
            scores[:, self.blank] = IMPOSSIBLE
            scores[:, self.ends] = self.whole(state)[:, None]
            return scores
        repeats = tokens == state.last_token[:, None]  # [N, K]
        scores = self._sum_over_frames_of(ended, state.utterance, tokens, repeats, after_blank)
        scores = scores.masked_fill(tokens == self.blank, IMPOSSIBLE)
        is_end = torch.isin(tokens, torch.tensor(self.ends, dtype=tokens.dtype, device=tokens.device))
        return torch.where(is_end, self.whole(state)[:, None], scores)

    @property
    def never(self) -> list[int]:
        """Ids of tokens that no transcript holds."""
        return [self.blank]

    def near(self, state: CtcPrefixState) -> tuple["CtcPrefixScorer", CtcPrefixState]:
        """A scorer of the frames around the end of each hypothesis, for what may follow soon, and the state there.

        Left out are frames before or behind which the hypothesis ends with a share below `exp(-FAR_OFF)`.

        Returns:
            A scorer of N utterances of as many frames as the widest needs, and the hypotheses, one in each.
        """
        ended = torch.logaddexp(state.ends_in_token, state.ends_in_blank)  # [N, T + 1]
        likely = ended > ended.amax(dim=-1, keepdim=True) - FAR_OFF
        first = likely.int().argmax(dim=-1)
        last = likely.shape[1] - 1 - likely.flip(-1).int().argmax(dim=-1)
        width = int((last - first).max()) + 1  # frames
        n_frames = self.logits.shape[1]
        width = min(width, n_frames)
        first = first.clamp(max=n_frames - width)
        frames = first[:, None] + torch.arange(width, device=first.device)  # [N, W]
        rows = state.utterance[:, None]
        mask = None if self.frame_mask is None else self.frame_mask[rows, frames]
        logits, log_totals = self.logits[rows, frames], self.log_totals[rows, frames]
        scorer = CtcPrefixScorer(logits, mask, self.blank, self.ends, log_totals)
        places = torch.cat([frames, frames[:, -1:] + 1], dim=1)  # of T + 1
        here = CtcPrefixState(
            ends_in_token=state.ends_in_token.gather(1, places),
            ends_in_blank=state.ends_in_blank.gather(1, places),
            last_token=state.last_token,
            log_prefix=state.log_prefix,
            utterance=torch.arange(len(first), device=first.device),
        )
        return scorer, here

    def extend(self, state: CtcPrefixState, tokens: torch.Tensor) -> CtcPrefixState:
        """The hypotheses [N], each with one more token [N]."""
        everyone = torch.arange(len(tokens), device=tokens.device)
        return self.grow(state, everyone, tokens, everyone)[1]

    def grow(
        self, state: CtcPrefixState, parents: torch.Tensor, tokens: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, CtcPrefixState]:
        """Longer hypotheses, of which only some will be gone on with.

        Args:
            state: of hypotheses.
            parents: [M], which of them each longer one extends.
            tokens: [M], by which token.
            kept: [L], places of those to go on with among the M.

        Returns:
            Log probabilities [M] that the transcript begins so, and the state of the kept ones.
        """
        utterance = state.utterance[parents]
        of_token = self._of_tokens(utterance, tokens).to(self.dtype)  # [M, T]
        ended = torch.logaddexp(state.ends_in_token, state.ends_in_blank)
        repeats = (tokens == state.last_token[parents])[:, None]  # can come only behind a blank
        before = torch.where(repeats, state.ends_in_blank[parents], ended[parents])[:, :-1]  # [M, T]
        log_prefix = torch.logsumexp(before + of_token, dim=-1)
        blanks, sums = self.blank_sums[utterance[kept]], _sums(of_token[kept])  # [L, T + 1]
        arrived = torch.logcumsumexp(before[kept] - sums[:, :-1], dim=-1) + sums[:, 1:]
        ends_in_token = torch.nn.functional.pad(arrived, [1, 0], value=IMPOSSIBLE)
        rested = torch.logcumsumexp(ends_in_token[:, :-1] - blanks[:, :-1], dim=-1) + blanks[:, 1:]
        ends_in_blank = torch.nn.functional.pad(rested, [1, 0], value=IMPOSSIBLE)
        last = tokens[kept], log_prefix[kept], utterance[kept]
        return log_prefix, CtcPrefixState(ends_in_token, ends_in_blank, *last)

    def _sum_over_frames(self, log_before: torch.Tensor) -> torch.Tensor:
        """Of every token, the log of the sum over t of `before[t] * probability[t]`: [N, T] to [N, V]."""
        largest = log_before.amax(dim=-1, keepdim=True)
        before = (log_before - largest).exp().float().unflatten(0, (self.n_utterances, -1))  # [B, N / B, T]
        total = torch.bmm(before, self._probs).flatten(0, 1)  # [N, V]
        return (total.clamp(min=torch.finfo(total.dtype).tiny).log() + largest).clamp(min=IMPOSSIBLE)

    def _sum_over_frames_of(
        self,
        log_before: torch.Tensor,
        utterances: torch.Tensor,
        tokens: torch.Tensor,
        unlike: torch.Tensor | None = None,
        log_before_unlike: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The same for some tokens of each hypothesis.

        Args:
            log_before: [N, T].
            utterances: [N].
            tokens: [N, K].
            unlike: boolean [N, K], tokens that something else comes before; None where there are none.
            log_before_unlike: [N, T], that.

        Returns:
            [N, K].
        """
        of_tokens = self._of_tokens(utterances[:, None].expand_as(tokens), tokens)  # [N, K, T]
        most, largest = of_tokens.amax(dim=-1, keepdim=True), log_before.amax(dim=-1, keepdim=True)
        before = (log_before - largest).exp().to(of_tokens.dtype)
        total = torch.bmm((of_tokens - most).exp_(), before[..., None])[..., 0]  # [N, K]
        scores = total.to(self.dtype).log() + most[..., 0] + largest
        rest = total < LEAST_SUM  # where single precision is too coarse, or says nothing at all
        if unlike is not None:
            rest = rest | unlike
        if bool(rest.any()):
            rows, places = rest.nonzero(as_tuple=True)
            these = log_before[rows]
            if unlike is not None and log_before_unlike is not None:
                these = torch.where(unlike[rows, places][:, None], log_before_unlike[rows], these)
            scores[rows, places] = torch.logsumexp(these + of_tokens[rows, places], dim=-1)
        return scores.clamp(min=IMPOSSIBLE)


def _sums(log_probs: torch.Tensor) -> torch.Tensor:
    """Running sums over frames, beginning with 0: [N, T] to [N, T + 1]."""
    return torch.nn.functional.pad(log_probs.cumsum(dim=-1), [1, 0])


def logits_of_ctc_head(head: nn.Module, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A CTC head's output for `CtcPrefixScorer`, which looks single tokens up, over all frames.

    Args:
        head: a linear layer, or what stands in its place.
        hidden_states: [B, T, D].

    Returns:
        Logits [B, T, V], and their `log_totals` [B, T] where these were worked out on the way: by linear layers on a
        CPU, part after part of a large vocabulary, each while the caches hold it.
    """
    plain = type(head) in (nn.Linear, OneDnnLinear) and "forward" not in vars(head) and not head._forward_hooks
    if not plain or torch.is_grad_enabled() or not hidden_states.is_cpu:
        return head(hidden_states), None
    weight, bias = cast(nn.Linear, head).weight, cast(nn.Linear, head).bias
    if len(weight) <= TOKENS_AT_ONCE:
        return head(hidden_states), None
    logits = hidden_states.new_empty(len(hidden_states), len(weight), hidden_states.shape[1])  # [B, V, T]
    log_totals = []
    for states, of_utterance in zip(hidden_states, logits, strict=True):
        sums = []
        for part in range(0, len(weight), TOKENS_AT_ONCE):
            tokens = slice(part, part + TOKENS_AT_ONCE)
            added = 0.0 if bias is None else bias[tokens, None]
            torch.add(linear(weight[tokens], states), added, out=of_utterance[tokens])
            sums.append(of_utterance[tokens].float().logsumexp(dim=0))
        log_totals.append(torch.stack(sums).logsumexp(dim=0))
    return logits.transpose(1, 2), torch.stack(log_totals)


class CtcPrefixLogitsProcessor(LogitsProcessor):
    """Mixes the decoder's scores with those of the CTC head: `(1 - weight) * decoder + weight * CTC`, per token.

    Args:
        scorer: of the utterances that are decoded: `CtcPrefixScorer`, or `SpelledPrefixScorer`.
        weight: share of the CTC score, between 0 and 1.
        prompt_length: tokens before the transcript, the start token included.
        candidates: how many of the decoder's best tokens the CTC head scores for each hypothesis. Any other is taken
            to score as the worst of these, which ranks it behind all of them. None scores all.
        spelled: to how many of these a head of letters confines itself after their first letter.

    Raises:
        ValueError: the weight is outside its range, or there are no candidates.
    """

    def __init__(
        self,
        scorer: Any,
        weight: float,
        prompt_length: int,
        candidates: int | None = None,
        spelled: int | None = None,
    ):
        if not 0 <= weight <= 1:
            raise ValueError(f"ctc_weight is a share between 0 and 1, got {weight}")
        if candidates is not None and candidates < 1:
            raise ValueError(f"ctc_candidates must be at least 1, got {candidates}")
        self.scorer, self.weight, self.prompt_length = scorer, weight, prompt_length
        self.candidates = scorer.n_tokens if candidates is None else min(candidates, scorer.n_tokens)
        self.spelled = spelled if hasattr(scorer, "best_begun") else None
        self._state: Any = None
        self._said: torch.Tensor | None = None  # [N, S], the hypotheses of the state

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids [N, S] and the decoder's scores [N, V] to mixed log probabilities [N, V]."""
        said = input_ids[:, self.prompt_length :]
        state = self._follow(said)
        decoder = scores.log_softmax(dim=-1)
        self._state, self._said = state, said
        if self.candidates < self.scorer.n_tokens:
            return self._mix_best(state, decoder)
        return (1 - self.weight) * decoder + self.weight * self._of_next(state, self.scorer.score(state), decoder)

    def _mix_best(self, state: Any, decoder: torch.Tensor) -> torch.Tensor:
        """Mixed scores [N, V], where the CTC head scores the decoder's best tokens and the end of the transcript."""
        of_decoder, tokens = decoder.topk(self.candidates, dim=-1)  # [N, K]
        if self.spelled is not None:
            tokens = self.scorer.best_begun(state, tokens, of_decoder, self.weight, self.spelled)
        scores = self.scorer.score(state, tokens)
        possible = scores > IMPOSSIBLE
        worst = scores.masked_fill(~possible, float("inf")).amin(dim=-1, keepdim=True)
        worst = torch.where(possible.any(dim=-1, keepdim=True), worst, IMPOSSIBLE)
        scores, worst, whole = (
            self.weight * self._of_next(state, each, decoder)
            for each in (scores, worst, self.scorer.whole(state)[:, None])
        )
        decoder = (1 - self.weight) * decoder
        mixed = (decoder + worst).scatter_(1, tokens, decoder.gather(1, tokens) + scores)
        mixed[:, self.scorer.never] = decoder[:, self.scorer.never] + self.weight * IMPOSSIBLE
        mixed[:, self.scorer.ends] = decoder[:, self.scorer.ends] + whole
        return mixed

    def _of_next(self, state: Any, scores: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        """Scores [N, ...] of longer hypotheses to what the next token adds to them, in the decoder's precision."""
        return (scores - state.log_prefix[:, None]).to(decoder.dtype).clamp(min=IMPOSSIBLE)

    def _follow(self, said: torch.Tensor) -> Any:
        """The state of hypotheses that extend those of the last call, in whatever order a search left them."""
        before = self._said
        n_each = len(said) // self.scorer.n_utterances
        if self._state is not None and before is not None and before.shape[1] + 1 == said.shape[1]:
            old, new = before.unflatten(0, (-1, n_each)), said[:, :-1].unflatten(0, (-1, n_each))
            same = (new[:, :, None] == old[:, None]).all(dim=-1)  # [B, new, old]
            if bool(same.any(dim=-1).all()):
                parents = same.int().argmax(dim=-1)  # [B, new]
                parents = parents + n_each * torch.arange(len(parents), device=said.device)[:, None]
                return self.scorer.extend(self._state.rows(parents.flatten()), said[:, -1])
        state = self.scorer.start(n_each)
        for tokens in said.unbind(dim=1):
            state = self.scorer.extend(state, tokens)
        return state


__all__ = ["CtcPrefixLogitsProcessor", "CtcPrefixScorer", "CtcPrefixState", "logits_of_ctc_head"]
