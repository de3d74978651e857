"""Transcripts from the frames of a CTC head: the best path, or the best transcripts by prefix beam search.

Shapes: `B` clips, `T` frames, `V` vocabulary, `K` prefixes that are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

IMPOSSIBLE = -np.inf

# Log probabilities of whole prefixes, asked for together: (token ids of each, whether they end there).
PrefixScores = Callable[[list[tuple[int, ...]], bool], Sequence[float]]


@dataclass(frozen=True)
class CtcHypothesis:
    """A transcript.

    Args:
        token_ids: without blanks.
        score: what it was ranked by: `ctc_score`, and the language model's with its weight.
        ctc_score: log probability of all its alignments; of the best path alone in greedy decoding.
    """

    token_ids: tuple[int, ...]
    score: float
    ctc_score: float


def greedy_ctc(log_probs: torch.Tensor, frame_mask: torch.Tensor | None, blank: int) -> list[CtcHypothesis]:
    """The most probable token of each frame, repeats joined and blanks dropped (Graves et al. 2006, section 3.2).

    Args:
        log_probs: [B, T, V].
        frame_mask: [B, T], True where a frame is real; None where all are.
        blank: the blank's id.

    Returns:
        One hypothesis for each clip.
    """
    scores, path = log_probs.float().max(dim=-1)  # [B, T]
    if frame_mask is not None:
        path, scores = path.masked_fill(~frame_mask, blank), scores.masked_fill(~frame_mask, 0.0)
    totals = scores.sum(dim=-1).tolist()
    merged = [torch.unique_consecutive(row) for row in path]
    tokens = [tuple(row[row != blank].tolist()) for row in merged]
    return [CtcHypothesis(*one) for one in zip(tokens, totals, totals, strict=True)]


def prefix_beam_search(
    log_probs: torch.Tensor,
    frame_mask: torch.Tensor | None,
    blank: int,
    num_beams: int = 10,
    language_model: PrefixScores | None = None,
    language_model_weight: float = 0.5,
    length_bonus: float = 0.0,
    tokens_per_frame: int | None = None,
) -> list[list[CtcHypothesis]]:
    """The best transcripts, each with the sum of all its alignments (Hannun et al. 2014).

    A transcript's score is its CTC score plus `language_model_weight` times the language model's plus `length_bonus`
    for each token. With enough beams the search is exact.

    Args:
        log_probs: [B, T, V].
        frame_mask: [B, T], True where a frame is real; None where all are.
        blank: the blank's id.
        num_beams: prefixes kept from frame to frame.
        language_model: a function from a list of prefixes and whether they are whole transcripts to the log
            probability of each, by an n-gram model, a neural one, or a lexicon. It is asked once for each prefix, all
            of a frame together, and in the end once more for those that are left, as whole transcripts.
        language_model_weight: the language model's share.
        length_bonus: for each token, against a language model's love of short transcripts.
        tokens_per_frame: extend prefixes only by this many most probable tokens of a frame; None by all. Set it with
            a slow language model.

    Returns:
        For each clip up to `num_beams` hypotheses, best first.

    Raises:
        ValueError: there are no beams.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, got {num_beams}")
    frames = [log_probs.shape[1]] * len(log_probs) if frame_mask is None else frame_mask.sum(dim=-1).tolist()
    clips = log_probs.double().cpu().numpy()
    found = []
    for clip, length in zip(clips, frames, strict=True):
        search = _PrefixBeams(blank, num_beams, language_model, language_model_weight, length_bonus)
        for frame in clip[:length]:  # [V]
            search.advance(frame, _likely_tokens(frame, blank, tokens_per_frame))
        found.append(search.finish())
    return found


def _likely_tokens(frame: np.ndarray, blank: int, limit: int | None) -> np.ndarray:
    tokens = np.delete(np.arange(len(frame)), blank)
    return tokens if limit is None else tokens[np.argsort(-frame[tokens], kind="stable")[:limit]]


class _PrefixBeams:
    """The prefixes of one clip, and the log probability of their alignments up to a frame, by what these end in."""

    def __init__(
        self, blank: int, num_beams: int, language_model: PrefixScores | None, weight: float, length_bonus: float
    ):
        self.blank, self.num_beams = blank, num_beams
        self.language_model, self.weight, self.length_bonus = language_model, weight, length_bonus
        self.prefixes: list[tuple[int, ...]] = [()]
        self.in_blank, self.in_token = np.zeros(1), np.full(1, IMPOSSIBLE)  # [K]
        self.known: dict[tuple[int, ...], float] = {(): 0.0}  # bonus of each prefix: language model and length

    def advance(self, frame: np.ndarray, tokens: np.ndarray) -> None:
        """Hear one frame [V], at which prefixes stay or grow by one of these tokens."""
        total = np.logaddexp(self.in_blank, self.in_token)  # [K]
        last = np.array([prefix[-1] if prefix else -1 for prefix in self.prefixes])
        in_blank = total + frame[self.blank]
        in_token = np.where(last >= 0, self.in_token + frame[last], IMPOSSIBLE)
        again = tokens[None] == last[:, None]  # [K, tokens]: the same token is a new one only after a blank
        grown = np.where(again, self.in_blank[:, None], total[:, None]) + frame[tokens]
        self._merge(in_token, grown, tokens)
        stay = [(prefix, in_blank[row], in_token[row]) for row, prefix in enumerate(self.prefixes)]
        grow = self._promising(grown, len(stay))
        new = [((*self.prefixes[row], int(tokens[place])), IMPOSSIBLE, grown[row, place]) for row, place in grow]
        self._keep([*stay, *new])

    def _merge(self, in_token: np.ndarray, grown: np.ndarray, tokens: np.ndarray) -> None:
        """Add a prefix that grows into another to that one, in place."""
        rows = {prefix: row for row, prefix in enumerate(self.prefixes)}
        places = {int(token): place for place, token in enumerate(tokens)}
        for prefix, row in rows.items():
            parent = rows.get(prefix[:-1]) if prefix else None
            place = places.get(prefix[-1]) if prefix else None
            if parent is not None and place is not None:
                in_token[row] = np.logaddexp(in_token[row], grown[parent, place])
                grown[parent, place] = IMPOSSIBLE

    def _promising(self, grown: np.ndarray, n_stay: int) -> list[tuple[int, int]]:
        """Places in `grown` [K, tokens] that may be kept: all where a language model has yet to speak."""
        flat = grown.ravel()
        order = np.flatnonzero(flat > IMPOSSIBLE)
        if self.language_model is None and len(order) > self.num_beams:
            bonus = np.repeat([self.known[prefix] for prefix in self.prefixes], grown.shape[1])
            order = order[np.argpartition(-(flat + bonus)[order], self.num_beams - 1)[: self.num_beams]]
        return [divmod(int(place), grown.shape[1]) for place in order]

    def _keep(self, candidates: list[tuple[tuple[int, ...], float, float]]) -> None:
        self._ask([prefix for prefix, _, _ in candidates])
        in_blank = np.array([one[1] for one in candidates])
        in_token = np.array([one[2] for one in candidates])
        scores = np.logaddexp(in_blank, in_token) + np.array([self.known[prefix] for prefix, _, _ in candidates])
        best = np.argsort(-scores, kind="stable")[: self.num_beams]
        self.prefixes = [candidates[place][0] for place in best]
        self.in_blank, self.in_token = in_blank[best], in_token[best]

    def _ask(self, prefixes: list[tuple[int, ...]]) -> None:
        new = [prefix for prefix in prefixes if prefix not in self.known]
        self.known.update(zip(new, self._bonus(new, ended=False), strict=True))

    def _bonus(self, prefixes: list[tuple[int, ...]], ended: bool) -> list[float]:
        bonus = [self.length_bonus * len(prefix) for prefix in prefixes]
        if self.language_model is None or not prefixes:
            return bonus
        scores = self.language_model(prefixes, ended)
        return [own + self.weight * float(score) for own, score in zip(bonus, scores, strict=True)]

    def finish(self) -> list[CtcHypothesis]:
        """The prefixes as transcripts, best first."""
        ctc_scores = np.logaddexp(self.in_blank, self.in_token).tolist()
        bonus = self._bonus(self.prefixes, ended=True)
        found = [
            CtcHypothesis(prefix, ctc_score + extra, ctc_score)
            for prefix, ctc_score, extra in zip(self.prefixes, ctc_scores, bonus, strict=True)
        ]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)


__all__ = ["CtcHypothesis", "PrefixScores", "greedy_ctc", "prefix_beam_search"]
