"""Joint decoding with a CTC head that tells characters apart: what the decoder's tokens spell, and how they score.

A token stands for the characters that it adds to the text, the space before a new word included. That a transcript
begins with some tokens then has the probability that it begins with the characters which they spell.

Shapes: `B` utterances, `N` hypotheses (`B` times the beams), `K` candidates of each, `T` frames, `V` tokens.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.models import WordPiece

from .ctc_prefix_scoring import IMPOSSIBLE, CtcPrefixScorer, CtcPrefixState

# WordPiece takes a word apart at its punctuation and forgets whether there were spaces; these are the usual ones.
SPACE_BEFORE_ALONE = "([{¿¡"
NO_SPACE_AROUND = "'’-‐‑–/_@\""


@dataclass(frozen=True)
class TokenSpelling:
    """What each of the decoder's tokens spells, as places in the CTC head's alphabet.

    Args:
        texts: of each token, without a space before it.
        spaced: whether a space parts it from what was said before.
        glues: whether no space parts what follows it.
        never: ids of tokens that a transcript cannot hold: special ones, and those that the tokenizer lacks.
        space: the space's place; None where the alphabet has none.
    """

    texts: Sequence[tuple[int, ...]]
    spaced: Sequence[bool]
    glues: Sequence[bool]
    never: Sequence[int]
    space: int | None

    def added(self, token: int, glued: bool) -> tuple[tuple[int, ...], bool]:
        """What a token adds to a text that no space may follow (`glued`) or may; and the same of the longer text."""
        spaced = self.spaced[token]
        text = self.texts[token]
        if not spaced and not text:  # such as the unknown token
            return text, glued
        if spaced and not glued and self.space is not None:
            text = (self.space, *text)
        return text, self.glues[token]


def token_spelling(tokenizer: Any, characters: str, vocabulary: int) -> TokenSpelling:
    """Work out what a tokenizer's tokens spell, from how it decodes each behind another one.

    A letter that the alphabet has in the other case only, as that of a decoder without capitals, is taken for that
    one. Other characters outside of the alphabet are left out, as they were in training; so are those of which a token
    has a part of the bytes only.

    Args:
        tokenizer: of the decoder.
        characters: the alphabet, in the order of the head's outputs from 1.
        vocabulary: size of the decoder's.
    """
    special = set(tokenizer.all_special_ids)
    size = min(len(tokenizer), vocabulary)
    never = sorted((special - {tokenizer.unk_token_id}) & set(range(size)) | set(range(size, vocabulary)))
    pieces = [""] * vocabulary
    plain = [token_id for token_id in range(size) if token_id not in special]
    for token_id, piece in zip(plain, _pieces(tokenizer, plain), strict=True):
        pieces[token_id] = piece
    places = _places(characters)
    texts = [tuple(places[one] for one in " ".join(piece.split()) if one in places) for piece in pieces]
    spaced = [piece[:1].isspace() for piece in pieces]
    glues = [piece[-1:].isspace() for piece in pieces]
    if isinstance(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), WordPiece):
        for token_id, piece in enumerate(pieces):
            mark = piece.strip()
            if len(mark) == 1 and unicodedata.category(mark)[0] == "P":
                spaced[token_id] = mark in SPACE_BEFORE_ALONE
                glues[token_id] = mark in SPACE_BEFORE_ALONE or mark in NO_SPACE_AROUND
    return TokenSpelling(texts, spaced, glues, never, places.get(" "))


def _pieces(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to a text, with the space before it."""
    options = {"clean_up_tokenization_spaces": False}
    anchor = next((one for one in token_ids if tokenizer.decode([one], **options).strip().isalnum()), None)
    if anchor is None:
        raise ValueError(f"{type(tokenizer).__name__} has no token that spells a word, so no CTC head can score them")
    before = tokenizer.decode([anchor], **options)
    behind = tokenizer.batch_decode([[anchor, one] for one in token_ids], **options)
    return [text.removeprefix(before) for text in behind]


def _places(characters: str) -> dict[str, int]:
    places = {character: place for place, character in enumerate(characters, start=1)}
    for character, place in list(places.items()):
        for other in (character.lower(), character.upper()):
            places.setdefault(other, place)
    return places


@dataclass
class SpelledPrefixState:
    """Hypotheses as a CTC head of characters knows them.

    Args:
        prefix: what they spell.
        glued: [N], whether no space may follow what they spell.
    """

    prefix: CtcPrefixState
    glued: torch.Tensor

    @property
    def log_prefix(self) -> torch.Tensor:
        """Log probability [N] that the transcript begins with each hypothesis."""
        return self.prefix.log_prefix

    def rows(self, index: torch.Tensor) -> "SpelledPrefixState":
        """The state of some hypotheses [M]."""
        return SpelledPrefixState(self.prefix.rows(index), self.glued[index])


class SpelledPrefixScorer:
    """As `CtcPrefixScorer`, of the decoder's tokens, by a CTC head that tells characters apart.

    Args:
        characters: scorer of the characters.
        spelling: of the decoder's tokens.
        end: id of the token that ends a transcript, or the ids of several.
    """

    def __init__(self, characters: CtcPrefixScorer, spelling: TokenSpelling, end: int | list[int]):
        self.characters, self.spelling = characters, spelling
        self.ends = end if isinstance(end, list) else [end]
        self.never = [token_id for token_id in spelling.never if token_id not in self.ends]
        self.n_utterances, self.n_tokens = characters.n_utterances, len(spelling.texts)

    def start(self, n_each: int = 1) -> SpelledPrefixState:
        """The state of `n_each` hypotheses for each utterance that have said nothing yet."""
        prefix = self.characters.start(n_each)
        return SpelledPrefixState(prefix, torch.ones_like(prefix.last_token, dtype=torch.bool))

    def whole(self, state: SpelledPrefixState) -> torch.Tensor:
        """Log probability [N] that each hypothesis is the whole transcript."""
        return self.characters.whole(state.prefix)

    def score(self, state: SpelledPrefixState, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """See `CtcPrefixScorer.score`. Beginnings that candidates share are worked out once."""
        if tokens is None:
            tokens = torch.arange(self.n_tokens, device=state.glued.device).expand(len(state.glued), -1)
        return self._score(state, tokens, None)

    def best_begun(
        self, state: SpelledPrefixState, tokens: torch.Tensor, of_decoder: torch.Tensor, weight: float, count: int
    ) -> torch.Tensor:
        """Of many candidates those that may score best: to spell them all to their ends would take too long.

        A token's first letter tells how much the CTC head can give it at most.

        Args:
            state: of the hypotheses.
            tokens: [N, K], candidates.
            of_decoder: [N, K], what the decoder gives them.
            weight: share of the CTC score.
            count: how many to leave.

        Returns:
            [N, count] of the tokens, or all where there are no more.
        """
        if tokens.shape[1] <= count:
            return tokens
        at_most = self._score(state, tokens, 1) - state.log_prefix[:, None]
        best = ((1 - weight) * of_decoder + weight * at_most).topk(count, dim=-1).indices
        return tokens.gather(1, best)

    def _score(self, state: SpelledPrefixState, tokens: torch.Tensor, letters: int | None) -> torch.Tensor:
        """Scores of candidates [N, K], or of so many letters of each, and the space before them."""
        branches: list[dict[tuple[int, int], int]] = []  # of each length: (place of what comes before, character)
        ends: list[list[tuple[int, int]]] = []  # of each candidate: its length, and its place among those of it
        for hypothesis, (row, glued) in enumerate(zip(tokens.tolist(), state.glued.tolist(), strict=True)):
            texts = (self.spelling.added(token, glued)[0] for token in row)
            if letters is not None:
                texts = (text[: letters + (text[:1] == (self.spelling.space,))] for text in texts)
            ends.append([self._grow(branches, hypothesis, text) for text in texts])
        log_prefixes = self._log_prefixes(state.prefix, branches)
        starts = [0]
        for values in log_prefixes:
            starts.append(starts[-1] + len(values))
        places = [[starts[length] + place for length, place in row] for row in ends]
        scores = torch.cat(log_prefixes)[torch.tensor(places, device=tokens.device)]  # [N, K]
        scores = torch.where(_among(tokens, self.ends), self.whole(state)[:, None], scores)
        return scores.masked_fill(_among(tokens, self.never), IMPOSSIBLE)

    @staticmethod
    def _grow(branches: list[dict[tuple[int, int], int]], place: int, text: tuple[int, ...]) -> tuple[int, int]:
        for depth, character in enumerate(text):
            if depth == len(branches):
                branches.append({})
            place = branches[depth].setdefault((place, character), len(branches[depth]))
        return len(text), place

    def _log_prefixes(self, state: CtcPrefixState, branches: list[dict[tuple[int, int], int]]) -> list[torch.Tensor]:
        """Log probabilities that the transcript begins so, for every beginning of each length from 0."""
        found = [state.log_prefix]
        scorer, state = self.characters.near(state)
        device = state.last_token.device
        for depth, level in enumerate(branches):
            following = branches[depth + 1] if depth + 1 < len(branches) else {}
            kept = {place: new for new, place in enumerate(dict.fromkeys(place for place, _ in following))}
            parents, characters = (torch.tensor(ids, device=device) for ids in zip(*level, strict=True))
            kept_places = torch.tensor(list(kept), dtype=torch.long, device=device)
            log_prefix, state = scorer.grow(state, parents, characters, kept_places)
            found.append(log_prefix)
            if following:
                branches[depth + 1] = {(kept[place], one): value for (place, one), value in following.items()}
        return found

    def extend(self, state: SpelledPrefixState, tokens: torch.Tensor) -> SpelledPrefixState:
        """The hypotheses [N], each with one more token [N]."""
        pairs = zip(tokens.tolist(), state.glued.tolist(), strict=True)
        added = [self.spelling.added(token, glued) for token, glued in pairs]
        longest = max(len(text) for text, _ in added)
        prefix = state.prefix
        for depth in range(longest):
            rows = [row for row, (text, _) in enumerate(added) if len(text) > depth]
            index = torch.tensor(rows, device=tokens.device)
            characters = torch.tensor([added[row][0][depth] for row in rows], device=tokens.device)
            prefix = prefix.replaced(index, self.characters.extend(prefix.rows(index), characters))
        return SpelledPrefixState(prefix, torch.tensor([glued for _, glued in added], device=tokens.device))


def _among(tokens: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    return torch.isin(tokens, torch.tensor(ids, dtype=tokens.dtype, device=tokens.device))


__all__ = ["SpelledPrefixScorer", "SpelledPrefixState", "TokenSpelling", "token_spelling"]
