"""Phrases that are expected, such as names and terms, made likelier while a transcript is written.

Every token that carries a phrase on earns a bonus; if the phrase is left before its end, what was earned is given
back, so that only whole phrases gain (contextual shallow fusion, Zhao et al. 2019, "Shallow-Fusion End-to-End
Contextual Biasing"). Phrases may overlap or contain each other: a trie with failure links (Aho and Corasick 1975)
knows of each hypothesis every phrase that its last tokens may be the beginning of.

Phrases are whole words where it is known which tokens carry a word on: "cat" is neither in "category" nor in "bobcat".
The tokens of a hypothesis are then read as symbols: a token that carries on the word before it is another symbol than
the same token at the beginning of a word. So a phrase cannot begin inside a word, and what a complete one has earned
is settled by the next symbol.

Shapes: `N` hypotheses, `S` text tokens, `V` vocabulary, `L` tokens of the longest phrase.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from transformers import LogitsProcessor

DEFAULT_PHRASE_WEIGHT = 1.5  # nats for each token
ROOT = 0

# Token ids of phrases, or a weight for each of them.
# What `processor.hot_word_ids` returns also says, as its attribute `joints`, which tokens carry a word on.
Phrases = Sequence[Sequence[int]] | Mapping[tuple[int, ...], float]


class Joints(Protocol):
    """Between which tokens a word goes on: where the first joins to its right and the second to its left."""

    @property
    def left(self) -> np.ndarray:
        """Boolean [V]: the token goes on with a word that is open before it."""
        ...

    @property
    def right(self) -> np.ndarray:
        """Boolean [V]: the token leaves its word open."""
        ...


@dataclass(frozen=True)
class PhraseState:
    """Where a hypothesis stands.

    Args:
        node: of the trie, the longest beginning of a phrase that the hypothesis ends in.
        kept: [L + 1], bonus of each of the last tokens, the newest first, for the whole phrases that it is part of and
            that the next token cannot make part of a longer word.
        in_word: whether the next token may carry on a word.
    """

    node: int
    kept: np.ndarray
    in_word: bool = False


@dataclass(frozen=True)
class PhraseScores:
    """What each next token would add to a hypothesis' bonus.

    Args:
        beginning: for most tokens, the end of the transcript included; at most 0.
        going_on: for most of those that carry on the hypothesis' last word; not more.
        tokens: ids of those that are not like most.
        gains: for each of these, how much more than for most.
    """

    beginning: float
    going_on: float
    tokens: np.ndarray
    gains: np.ndarray


class PhraseTrie:
    """The bonus of every hypothesis, token by token.

    The bonus of a hypothesis is the sum over its tokens of the largest weight among the phrases that the token is part
    of. Counted are phrases that are complete, and for the time being those that the end of the hypothesis is the
    beginning of. So no token counts twice, however many phrases share it.

    Args:
        phrases: token ids of each phrase and the weight of each of its tokens, in nats.
        joints: between which tokens a word goes on; phrases count as whole words alone. None: they count anywhere.

    Raises:
        ValueError: a phrase is empty, or a weight is not a positive number.
    """

    def __init__(self, phrases: Mapping[tuple[int, ...], float], joints: Joints | None = None):
        self.joints = joints
        self._joining = np.flatnonzero(joints.left if joints is not None else [])  # tokens that carry a word on
        self.children: list[dict[int, int]] = [{}]  # by symbol: a token's id, or its complement inside a word
        self.depth = [0]
        self._heaviest, self._ending = [0.0], [0.0]  # weights of the phrases that go through, or end at, a node
        for tokens, weight in phrases.items():
            self._add(tokens, weight)
        self.longest = max(self.depth)
        said = {token for tokens in phrases for token in tokens}
        self.lowest_token, self.highest_token = min(said, default=0), max(said, default=0)
        self._link()
        self._moves: dict[tuple[int, bool], tuple[np.ndarray, np.ndarray]] = {}
        self._fresh_scores: dict[tuple[int, bool], PhraseScores] = {}  # of states without a whole phrase

    def _add(self, tokens: Sequence[int], weight: float) -> None:
        if len(tokens) == 0:
            raise ValueError("a phrase is empty: it has no tokens")
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"the weight of a phrase is a positive number, got {weight} for {list(tokens)}")
        node, in_word = ROOT, False
        for token in tokens:
            symbol, in_word = self._symbol(token, in_word), self._joins("right", token)
            if symbol not in self.children[node]:
                self.children[node][symbol] = len(self.children)
                self.children.append({})
                self.depth.append(self.depth[node] + 1)
                self._heaviest.append(0.0)
                self._ending.append(0.0)
            node = self.children[node][symbol]
            self._heaviest[node] = max(self._heaviest[node], weight)
        self._ending[node] = max(self._ending[node], weight)

    def _joins(self, side: str, token: int) -> bool:
        if self.joints is None:
            return False
        joining = getattr(self.joints, side)
        return 0 <= token < len(joining) and bool(joining[token])

    def _symbol(self, token: int, in_word: bool) -> int:
        return ~token if in_word and self._joins("left", token) else token

    def _link(self) -> None:
        """Failure links, and what each node means for the last tokens: whole phrases, and begun ones too."""
        self.shorter = [ROOT] * len(self.children)  # the next shorter beginning of a phrase that ends alike
        self._whole = np.zeros((len(self.children), self.longest + 1))
        self._begun = np.zeros_like(self._whole)
        queue = deque((ROOT, symbol, child) for symbol, child in self.children[ROOT].items())
        while queue:
            parent, symbol, node = queue.popleft()
            if parent != ROOT:
                self.shorter[node] = self.follow(self.shorter[parent], symbol)
            for table, weights in ((self._whole, self._ending), (self._begun, self._heaviest)):
                table[node] = table[self.shorter[node]]
                covered = table[node, : self.depth[node]]
                np.maximum(covered, weights[node], out=covered)
            queue.extend((node, following, child) for following, child in self.children[node].items())

    def follow(self, node: int, symbol: int) -> int:
        """The longest beginning of a phrase that `node` and one more symbol end in."""
        while node != ROOT and symbol not in self.children[node]:
            node = self.shorter[node]
        return self.children[node].get(symbol, ROOT)

    def moves(self, node: int, in_word: bool) -> tuple[np.ndarray, np.ndarray]:
        """Symbols that lead from a node to another one than the root, and those nodes.

        Inside a word, tokens that carry it on are other symbols; behind its end there are no such symbols.
        """
        if (node, in_word) not in self._moves:
            chain = [node]
            while chain[-1] != ROOT:
                chain.append(self.shorter[chain[-1]])
            found: dict[int, int] = {}
            for place in reversed(chain):  # the longest beginning has the last word
                found.update(self.children[place])
            symbols, nodes = (np.array(list(each), dtype=np.int64) for each in (found, found.values()))
            possible = symbols >= 0
            if in_word:
                possible = ~np.isin(symbols, self._joining)
            self._moves[node, in_word] = symbols[possible], nodes[possible]
        return self._moves[node, in_word]

    def start(self) -> PhraseState:
        """The state of a hypothesis that has said nothing."""
        return PhraseState(ROOT, np.zeros(self.longest + 1))

    def extend(self, state: PhraseState, token: int) -> PhraseState:
        """The state behind one more token."""
        symbol = self._symbol(token, state.in_word)
        kept = state.kept if symbol < 0 else self._settled(state)
        return PhraseState(self.follow(state.node, symbol), _shifted(kept), self._joins("right", token))

    def _settled(self, state: PhraseState) -> np.ndarray:
        """What is kept where the last word ends here."""
        return np.maximum(state.kept, self._whole[state.node])

    def score(self, state: PhraseState) -> PhraseScores:
        """What each token would add to the bonus."""
        fresh = not state.kept.any()  # as most hypotheses are, most of the time
        place = state.node, state.in_word
        if fresh and place in self._fresh_scores:
            return self._fresh_scores[place]
        before = np.maximum(state.kept, self._begun[state.node]).sum()
        settled = self._settled(state)
        symbols, nodes = self.moves(*place)
        inside = symbols < 0
        kept = np.where(inside[:, None], _shifted(state.kept), _shifted(settled))
        after = state.kept[-1] + np.maximum(kept, self._begun[nodes]).sum(axis=-1)
        like_most = np.where(inside, state.kept.sum(), settled.sum())
        found = PhraseScores(
            beginning=float(settled.sum() - before),
            going_on=float(state.kept.sum() - before),
            tokens=np.where(inside, ~symbols, symbols),
            gains=after - like_most,
        )
        if fresh:
            self._fresh_scores[place] = found
        return found

    def bonus(self, tokens: Sequence[int], ended: bool = True) -> float:
        """Of a whole hypothesis: with `ended`, nothing for a phrase that its end only began."""
        state, total = self.start(), 0.0
        for token in tokens:
            total += float(state.kept[-1])  # of the token that gets too old to change
            state = self.extend(state, token)
        now = self._settled(state) if ended else np.maximum(state.kept, self._begun[state.node])
        return total + float(now.sum())

    def prefix_scores(self, prefixes: Sequence[tuple[int, ...]], ended: bool) -> list[float]:
        """The bonus of each hypothesis: a `language_model` of weight 1 for `ctc_decoding.prefix_beam_search`."""
        return [self.bonus(tokens, ended) for tokens in prefixes]


def _shifted(kept: np.ndarray) -> np.ndarray:
    """One place older, with nothing yet for the newest token: [L + 1] to [L + 1]."""
    return np.concatenate([[0.0], kept[:-1]])


class PhraseBiasLogitsProcessor(LogitsProcessor):
    """Adds to each token's score what it does for the phrases, and takes back what was in vain.

    `SpeechSeq2SeqModel.generate(hot_words=…)` makes one for each call; by itself it works with any model of
    Transformers, as `generate(logits_processor=[…])`, in greedy search, in beams and in sampling.

    Args:
        phrases: token ids of each phrase, or a mapping from these to weights; `processor.hot_word_ids` gives either,
            and with them what it takes to count them as whole words alone. Plain lists and mappings count anywhere.
        weight: of each token of phrases without a weight of their own, in nats: how much likelier it becomes.
        prompt_length: tokens before the transcript, start token included; None takes all that is there at first.

    Raises:
        ValueError: there is no phrase, one is empty or not in the vocabulary, or a weight is not positive.
    """

    def __init__(self, phrases: Phrases, weight: float = DEFAULT_PHRASE_WEIGHT, prompt_length: int | None = None):
        self.trie = PhraseTrie(_with_weights(phrases, weight), getattr(phrases, "joints", None))
        self.prompt_length = prompt_length
        self._states: dict[tuple[int, ...], PhraseState] = {(): self.trie.start()}
        self._joining: torch.Tensor | None = None  # see `_carrying_on`

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids [N, S] and scores [N, V] to scores [N, V]."""
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        self._check_vocabulary(scores.shape[-1])
        said = [tuple(row) for row in input_ids[:, self.prompt_length :].tolist()]
        states = {row: self._follow(row) for row in said}
        self._states = {(): self.trie.start(), **states}
        found = {row: self.trie.score(state) for row, state in states.items()}
        each = [found[row] for row in said]
        scores = scores + self._of_most_tokens(each, states, said, scores)
        rows = np.repeat(np.arange(len(said)), [len(one.tokens) for one in each])
        tokens, gains = (np.concatenate([getattr(one, name) for one in each]) for name in ("tokens", "gains"))
        where = tuple(torch.as_tensor(places, device=scores.device) for places in (rows, tokens))
        return scores.index_put(where, scores.new_tensor(gains), accumulate=True)

    def _of_most_tokens(
        self,
        each: Sequence[PhraseScores],
        states: Mapping[tuple[int, ...], PhraseState],
        said: Sequence[tuple[int, ...]],
        scores: torch.Tensor,
    ) -> torch.Tensor:
        """What the tokens add that begin or go on with no phrase: [N, 1], or [N, V] where words may go on."""
        added = scores.new_tensor([one.beginning for one in each])[:, None]
        lost = [(one.going_on - one.beginning) * states[row].in_word for one, row in zip(each, said, strict=True)]
        if not any(lost):
            return added
        return added + scores.new_tensor(lost)[:, None] * self._carrying_on(scores)

    def _carrying_on(self, scores: torch.Tensor) -> torch.Tensor:
        """[V], 1 where a token carries a word on, else 0; on the device and in the precision of the scores."""
        held = self._joining
        if held is None or held.shape[0] != scores.shape[-1] or held.device != scores.device:
            joining = self.trie.joints.left[: scores.shape[-1]] if self.trie.joints is not None else np.zeros(0)
            held = self._joining = scores.new_zeros(scores.shape[-1])
            held[: len(joining)] = torch.as_tensor(np.asarray(joining)).to(held)
        return held.to(scores.dtype)

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


__all__ = [
    "DEFAULT_PHRASE_WEIGHT",
    "Joints",
    "PhraseBiasLogitsProcessor",
    "PhraseScores",
    "PhraseState",
    "PhraseTrie",
    "Phrases",
]
