"""Phrases that are expected, such as names and terms, made likelier while a transcript is written.

Every token that carries a phrase on earns a bonus; if the phrase is left before its end, what was earned is given
back, so that only whole phrases gain (contextual shallow fusion, Zhao et al. 2019, "Shallow-Fusion End-to-End
Contextual Biasing"). Phrases may overlap or contain each other: a trie with failure links (Aho and Corasick 1975)
knows of each hypothesis every phrase that its last tokens may be the beginning of.

Shapes: `N` hypotheses, `S` text tokens, `V` vocabulary, `L` tokens of the longest phrase.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

DEFAULT_PHRASE_WEIGHT = 1.5  # nats for each token
ROOT = 0

# Token ids of phrases, or a weight for each of them.
Phrases = Sequence[Sequence[int]] | Mapping[tuple[int, ...], float]


@dataclass(frozen=True)
class PhraseState:
    """Where a hypothesis stands.

    Args:
        node: of the trie, the longest beginning of a phrase that the hypothesis ends in.
        kept: [L], bonus of each of the last tokens, the newest first, for the whole phrases that it is part of.
    """

    node: int
    kept: np.ndarray


class PhraseTrie:
    """The bonus of every hypothesis, token by token.

    The bonus of a hypothesis is the sum over its tokens of the largest weight among the phrases that the token is part
    of. Counted are phrases that are complete, and for the time being those that the end of the hypothesis is the
    beginning of. So no token counts twice, however many phrases share it.

    Args:
        phrases: token ids of each phrase and the weight of each of its tokens, in nats.

    Raises:
        ValueError: a phrase is empty, or a weight is not a positive number.
    """

    def __init__(self, phrases: Mapping[tuple[int, ...], float]):
        self.children: list[dict[int, int]] = [{}]
        self.depth = [0]
        self._heaviest, self._ending = [0.0], [0.0]  # weights of the phrases that go through, or end at, a node
        for tokens, weight in phrases.items():
            self._add(tokens, weight)
        self.longest = max(self.depth)
        said = {token for children in self.children for token in children}
        self.lowest_token, self.highest_token = min(said, default=0), max(said, default=0)
        self._link()
        self._moves: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._fresh_scores: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}  # of states without a whole phrase

    def _add(self, tokens: Sequence[int], weight: float) -> None:
        if len(tokens) == 0:
            raise ValueError("a phrase is empty: it has no tokens")
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"the weight of a phrase is a positive number, got {weight} for {list(tokens)}")
        node = ROOT
        for token in tokens:
            if token not in self.children[node]:
                self.children[node][token] = len(self.children)
                self.children.append({})
                self.depth.append(self.depth[node] + 1)
                self._heaviest.append(0.0)
                self._ending.append(0.0)
            node = self.children[node][token]
            self._heaviest[node] = max(self._heaviest[node], weight)
        self._ending[node] = max(self._ending[node], weight)

    def _link(self) -> None:
        """Failure links, and what each node means for the last tokens: whole phrases, and begun ones too."""
        self.shorter = [ROOT] * len(self.children)  # the next shorter beginning of a phrase that ends alike
        self._whole = np.zeros((len(self.children), self.longest))
        self._begun = np.zeros_like(self._whole)
        queue = deque((ROOT, token, child) for token, child in self.children[ROOT].items())
        while queue:
            parent, token, node = queue.popleft()
            if parent != ROOT:
                self.shorter[node] = self.follow(self.shorter[parent], token)
            for table, weights in ((self._whole, self._ending), (self._begun, self._heaviest)):
                table[node] = table[self.shorter[node]]
                covered = table[node, : self.depth[node]]
                np.maximum(covered, weights[node], out=covered)
            queue.extend((node, following, child) for following, child in self.children[node].items())

    def follow(self, node: int, token: int) -> int:
        """The longest beginning of a phrase that `node` and one more token end in."""
        while node != ROOT and token not in self.children[node]:
            node = self.shorter[node]
        return self.children[node].get(token, ROOT)

    def moves(self, node: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that lead from a node to another one than the root, and those nodes."""
        if node not in self._moves:
            chain = [node]
            while chain[-1] != ROOT:
                chain.append(self.shorter[chain[-1]])
            found: dict[int, int] = {}
            for place in reversed(chain):  # the longest beginning has the last word
                found.update(self.children[place])
            self._moves[node] = np.array(list(found), dtype=np.int64), np.array(list(found.values()), dtype=np.int64)
        return self._moves[node]

    def start(self) -> PhraseState:
        """The state of a hypothesis that has said nothing."""
        return PhraseState(ROOT, np.zeros(self.longest))

    def extend(self, state: PhraseState, token: int) -> PhraseState:
        """The state behind one more token."""
        node = self.follow(state.node, token)
        return PhraseState(node, np.maximum(_shifted(state.kept), self._whole[node]))

    def score(self, state: PhraseState) -> tuple[float, np.ndarray, np.ndarray]:
        """What each token would add to the bonus.

        Returns:
            The change for most tokens, at most 0, the end of the transcript included; the token ids of the others;
            and the change for each of those.
        """
        fresh = not state.kept.any()  # as most hypotheses are, most of the time
        if fresh and state.node in self._fresh_scores:
            return self._fresh_scores[state.node]
        before = np.maximum(state.kept, self._begun[state.node]).sum()
        tokens, nodes = self.moves(state.node)
        after = state.kept[-1] + np.maximum(_shifted(state.kept), self._begun[nodes]).sum(axis=-1)
        found = float(state.kept.sum() - before), tokens, after - before
        if fresh:
            self._fresh_scores[state.node] = found
        return found

    def bonus(self, tokens: Sequence[int], ended: bool = True) -> float:
        """Of a whole hypothesis: with `ended`, nothing for a phrase that its end only began."""
        state, total = self.start(), 0.0
        for token in tokens:
            total += float(state.kept[-1])  # of the token that gets too old to change
            state = self.extend(state, token)
        now = state.kept if ended else np.maximum(state.kept, self._begun[state.node])
        return total + float(now.sum())

    def prefix_scores(self, prefixes: Sequence[tuple[int, ...]], ended: bool) -> list[float]:
        """The bonus of each hypothesis: a `language_model` of weight 1 for `ctc_decoding.prefix_beam_search`."""
        return [self.bonus(tokens, ended) for tokens in prefixes]


def _shifted(kept: np.ndarray) -> np.ndarray:
    """One place older, with nothing yet for the newest token: [L] to [L]."""
    return np.concatenate([[0.0], kept[:-1]])


class PhraseBiasLogitsProcessor(LogitsProcessor):
    """Adds to each token's score what it does for the phrases, and takes back what was in vain.

    `SpeechSeq2SeqModel.generate(hot_words=…)` makes one for each call; by itself it works with any model of
    Transformers, as `generate(logits_processor=[…])`, in greedy search, in beams and in sampling.

    Args:
        phrases: token ids of each phrase, or a mapping from these to weights; `processor.hot_word_ids` gives either.
        weight: of each token of phrases without a weight of their own, in nats: how much likelier it becomes.
        prompt_length: tokens before the transcript, start token included; None takes all that is there at first.

    Raises:
        ValueError: there is no phrase, one is empty or not in the vocabulary, or a weight is not positive.
    """

    def __init__(self, phrases: Phrases, weight: float = DEFAULT_PHRASE_WEIGHT, prompt_length: int | None = None):
        self.trie = PhraseTrie(_with_weights(phrases, weight))
        self.prompt_length = prompt_length
        self._states: dict[tuple[int, ...], PhraseState] = {(): self.trie.start()}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids [N, S] and scores [N, V] to scores [N, V]."""
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        self._check_vocabulary(scores.shape[-1])
        said = [tuple(row) for row in input_ids[:, self.prompt_length :].tolist()]
        states = {row: self._follow(row) for row in said}
        self._states = {(): self.trie.start(), **states}
        found = {row: self.trie.score(state) for row, state in states.items()}
        others, tokens, changes = zip(*(found[row] for row in said), strict=True)
        rows = np.repeat(np.arange(len(said)), [len(some) for some in tokens])
        apart = np.concatenate([change - other for change, other in zip(changes, others, strict=True)])
        where = tuple(torch.as_tensor(places, device=scores.device) for places in (rows, np.concatenate(tokens)))
        scores = scores + scores.new_tensor(others)[:, None]
        return scores.index_put(where, scores.new_tensor(apart), accumulate=True)

    def _follow(self, said: tuple[int, ...]) -> PhraseState:
        """The state of a hypothesis, from the one that it extends where that was seen last."""
        if said in self._states:
            return self._states[said]
        if said[:-1] in self._states:
            return self.trie.extend(self._states[said[:-1]], said[-1])
        state = self.trie.start()
        for token in said:
            state = self.trie.extend(state, token)
        return state

    def _check_vocabulary(self, size: int) -> None:
        for token in (self.trie.lowest_token, self.trie.highest_token):
            if not 0 <= token < size:
                raise ValueError(f"token {token} of a phrase is not in the vocabulary of {size}")


def _with_weights(phrases: Phrases, weight: float) -> dict[tuple[int, ...], float]:
    if isinstance(phrases, Mapping):
        weighted: Any = {tuple(tokens): float(own) for tokens, own in phrases.items()}
    else:
        weighted = {tuple(tokens): float(weight) for tokens in phrases}
    if not weighted:
        raise ValueError("there are no phrases: leave hot_words out, or give at least one")
    return weighted


__all__ = ["DEFAULT_PHRASE_WEIGHT", "PhraseBiasLogitsProcessor", "PhraseState", "PhraseTrie", "Phrases"]
