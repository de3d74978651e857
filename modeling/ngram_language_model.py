"""N-gram language models of words or tokens, from ARPA files or from texts, for `generate()` and for CTC search.

Shapes: `N` hypotheses, `S` text tokens, `V` vocabulary.
"""

import gzip
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import Wav2Vec2CTCTokenizer

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -100 * math.log(10)  # what KenLM gives to a word that it has never seen, where the file has no <unk>
KEPT_DISTRIBUTIONS = 1024
SPACES = ("Ġ", "▁")  # with which tokens begin that stand behind a space

# Of n-grams: natural logarithms of the probability of the last word, and of the backoff weight behind them.
Ngrams = Mapping[tuple[str, ...], tuple[float, float]]


class NgramLanguageModel:
    """Probabilities of words after the words before them, with backoff to fewer of these.

    `p(w | h) = p(h w)` where the n-gram is known, else `backoff(h) * p(w | h without its first word)`.

    It is a table in memory, some 200 bytes an n-gram: made for models of a domain, of up to some millions of n-grams.

    Args:
        ngrams: of every order, to their log probabilities and those of backoff, in nats.
    """

    def __init__(self, ngrams: Ngrams):
        self.ngrams = ngrams
        self.order = max(map(len, ngrams), default=0)

    @classmethod
    def from_arpa(cls, path: str | PathLike) -> "NgramLanguageModel":
        """Read a file in ARPA format, as KenLM, SRILM and others write it; packed where its name ends in `.gz`.

        Raises:
            ValueError: a line is not as the format has it, or n-grams are missing; the message names the line.
            OSError: the file cannot be read.
        """
        path = Path(path)
        open_file: Any = gzip.open if path.suffix == ".gz" else open
        with open_file(path, "rt", encoding="utf-8") as lines:
            return cls(_read_arpa(lines, str(path)))

    @classmethod
    def from_texts(cls, texts: Iterable[Sequence[str]], order: int = 3) -> "NgramLanguageModel":
        """Count n-grams, and make up for those that were not seen by Witten and Bell's method (1991).

        `p(w | h) = (count(h w) + kinds(h) * p(w | shorter h)) / (count(h) + kinds(h))`, where `kinds` are the
        different words seen behind `h`; below one word, all words are equally likely, an unknown one included.

        Args:
            texts: words, or tokens, of each text: `text.split()`, say.
            order: words of the longest n-gram.

        Raises:
            ValueError: there is no text, or the order is below 1.
        """
        if order < 1:
            raise ValueError(f"the order of an n-gram model is at least 1, got {order}")
        followers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for text in texts:
            words = [START, *text, END]
            for place in range(1, len(words)):
                for length in range(min(order, place + 1)):
                    followers[tuple(words[place - length : place])][words[place]] += 1
        if not followers:
            raise ValueError("there are no texts to count n-grams in")
        return cls(_witten_bell(followers))

    def save_arpa(self, path: str | PathLike) -> None:
        """Write the model in ARPA format, which KenLM and others read."""
        by_order: list[list[str]] = [[] for _ in range(self.order)]
        for words, (log_prob, backoff) in sorted(self.ngrams.items()):
            backoffs = f"\t{backoff / math.log(10):.7g}" if backoff else ""
            by_order[len(words) - 1].append(f"{log_prob / math.log(10):.7g}\t{' '.join(words)}{backoffs}")
        parts = ["\\data\\", *(f"ngram {n}={len(lines)}" for n, lines in enumerate(by_order, start=1)), ""]
        for n, lines in enumerate(by_order, start=1):
            parts += [f"\\{n}-grams:", *lines, ""]
        Path(path).write_text("\n".join([*parts, "\\end\\", ""]), encoding="utf-8")

    def known(self, word: str) -> str:
        """The word, or the sign for those that the model does not know."""
        return word if (word,) in self.ngrams else UNKNOWN

    def log_prob(self, word: str, context: Sequence[str]) -> float:
        """Log probability of a word, in nats, after those of the context; `</s>` ends a text, `<s>` begins it."""
        word = self.known(word)
        before = tuple(map(self.known, context[max(len(context) - self.order + 1, 0) :]))
        backoff = 0.0
        while True:
            if (*before, word) in self.ngrams:
                return backoff + self.ngrams[(*before, word)][0]
            if not before:
                return backoff + NEVER
            backoff += self.ngrams.get(before, (0.0, 0.0))[1]
            before = before[1:]

    def total(self, words: Sequence[str], ended: bool = True) -> float:
        """Log probability that a text is these words, in nats; without `ended`, that it begins with them."""
        text = [START, *words, *([END] if ended else [])]
        return sum(self.log_prob(text[place], text[:place]) for place in range(1, len(text)))

    def scorer(self, tokenizer: Any, unit: str = "word", **options: Any) -> "NgramWordScorer | NgramTokenScorer":
        """What `generate(language_model=…)` takes; its `prefix_scores` are for `ctc_decoding.prefix_beam_search`.

        Args:
            tokenizer: of the transcripts.
            unit: what the model counts: "word", or "token" of this tokenizer.
            options: see `NgramWordScorer` and `NgramTokenScorer`.

        Raises:
            ValueError: the unit is neither.
        """
        if unit not in SCORERS:
            raise ValueError(f"unit is one of {', '.join(SCORERS)}, not {unit!r}")
        return SCORERS[unit](self, tokenizer, **options)


def _read_arpa(lines: Iterable[str], name: str) -> dict[tuple[str, ...], tuple[float, float]]:
    ngrams: dict[tuple[str, ...], tuple[float, float]] = {}
    counts: dict[int, int] = {}
    length, ended = -1, False  # of the n-grams that are read: -1 before the header, 0 in it
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        try:
            if line == "\\data\\":
                length = 0
            elif line == "\\end\\":
                ended = True
                break
            elif length >= 0 and line.startswith("\\"):
                length = int(line.removeprefix("\\").removesuffix("-grams:"))
            elif length == 0 and line:
                order, count = line.removeprefix("ngram ").split("=")
                counts[int(order)] = int(count)
            elif length > 0 and line:
                words, entry = _arpa_entry(line, length)
                ngrams[words] = entry
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: not of an ARPA file: {line[:60]!r}") from error
    found = Counter(map(len, ngrams))
    if not ended or any(found[order] != count for order, count in counts.items()):
        said = ", ".join(f"{found[order]} of {count} {order}-grams" for order, count in counts.items())
        raise ValueError(f"{name}: no ARPA file, or not the whole of one ({said or 'it has no header'})")
    return ngrams


def _arpa_entry(line: str, length: int) -> tuple[tuple[str, ...], tuple[float, float]]:
    """A line of log10 probability, words, and log10 backoff, which may be missing."""
    parts = line.split()
    if not length + 1 <= len(parts) <= length + 2:
        raise ValueError
    backoff = float(parts[length + 1]) if len(parts) > length + 1 else 0.0
    return tuple(parts[1 : length + 1]), (float(parts[0]) * math.log(10), backoff * math.log(10))


def _witten_bell(followers: Mapping[tuple[str, ...], Counter[str]]) -> Ngrams:
    words = [*followers[()], UNKNOWN]
    probs: dict[tuple[str, ...], float] = {}
    shares: dict[tuple[str, ...], float] = {}  # of each context, what is left to shorter ones
    for context in sorted(followers, key=len):
        seen = followers[context]
        total = seen.total() + len(seen)
        shares[context] = len(seen) / total
        for word in words if not context else seen:
            shorter = 1 / len(words) if not context else probs[(*context[1:], word)]
            probs[(*context, word)] = seen[word] / total + shares[context] * shorter
    ngrams = {words: (math.log(p), math.log(shares.get(words, 1.0))) for words, p in probs.items()}
    return {(START,): (NEVER, math.log(shares.get((START,), 1.0))), **ngrams}


class NgramTokenScorer:
    """Scores hypotheses by a model of the tokenizer's own tokens, as `tokenizer.tokenize(text)` spells them.

    Args:
        ngrams: the model.
        tokenizer: of the transcripts.
        vocab_size: `V`; None takes the tokenizer's. `generate()` takes as many as the decoder has outputs.
        end_token_id: what ends a transcript; None takes the tokenizer's end-of-sentence token, else its separator.
    """

    def __init__(
        self,
        ngrams: NgramLanguageModel,
        tokenizer: Any,
        vocab_size: int | None = None,
        end_token_id: int | None = None,
    ):
        self.ngrams, self.end = ngrams, _end_of(tokenizer, end_token_id)
        self._make = partial(NgramTokenScorer, ngrams, tokenizer, end_token_id=end_token_id)
        spelled = _token_strings(tokenizer, vocab_size)
        self.words = [END if token_id == self.end else ngrams.known(token) for token_id, token in enumerate(spelled)]
        places: dict[str, list[int]] = defaultdict(list)
        for token_id, word in enumerate(self.words):
            places[word].append(token_id)
        followers: dict[tuple[str, ...], tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for ngram, (log_prob, _) in ngrams.ngrams.items():
            for token_id in places.get(ngram[-1], ()):
                followers[ngram[:-1]][0].append(token_id)
                followers[ngram[:-1]][1].append(log_prob)
        self._followers = {
            context: (torch.tensor(ids), torch.tensor(log_probs)) for context, (ids, log_probs) in followers.items()
        }
        self._distributions: dict[tuple[str, ...], torch.Tensor] = {}

    def __call__(self, said: torch.Tensor) -> torch.Tensor:
        """Token ids [N, S] to log probabilities [N, V] of the next one."""
        contexts = [self._context(row) for row in said[:, max(said.shape[1] - self.ngrams.order + 1, 0) :].tolist()]
        if said.shape[1] < self.ngrams.order - 1:
            contexts = [(START, *context) for context in contexts]
        return torch.stack([self._distribution(context) for context in contexts]).to(said.device)

    def with_vocabulary(self, vocab_size: int) -> "NgramTokenScorer":
        """The same scorer for a decoder with so many outputs."""
        return self if len(self.words) == vocab_size else self._make(vocab_size=vocab_size)

    def _context(self, token_ids: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.words[token_id] for token_id in token_ids)

    def _distribution(self, context: tuple[str, ...]) -> torch.Tensor:
        """Of the next token, [V]: that behind the shorter context, with what is known of this one."""
        if context in self._distributions:
            return self._distributions[context]
        if context:
            backoff = self.ngrams.ngrams.get(context, (0.0, 0.0))[1]
            distribution = self._distribution(context[1:]) + backoff
        else:
            distribution = torch.full((len(self.words),), NEVER)
        if context in self._followers:
            token_ids, log_probs = self._followers[context]
            distribution[token_ids] = log_probs
        if len(self._distributions) > KEPT_DISTRIBUTIONS:
            self._distributions.clear()
        self._distributions[context] = distribution
        return distribution

    def prefix_scores(self, prefixes: Sequence[tuple[int, ...]], ended: bool) -> list[float]:
        """Log probabilities of whole prefixes: a `language_model` for `ctc_decoding.prefix_beam_search`."""
        return [self.ngrams.total(self._context(prefix), ended) for prefix in prefixes]


class NgramWordScorer:
    """Scores hypotheses by a model of words, each as soon as it is whole: when the next one begins, or the text ends.

    Args:
        ngrams: the model.
        tokenizer: of the transcripts. Words begin where it marks a space, or, for WordPiece, at each token that does
            not continue another; with a word delimiter, behind it; in other vocabularies each token is a word.
        vocab_size: `V`; None takes the tokenizer's. `generate()` takes as many as the decoder has outputs.
        end_token_id: what ends a transcript; None takes the tokenizer's end-of-sentence token, else its separator.
        normalize: how the model spells a word, such as `str.lower`; None: as the tokenizer does.
    """

    def __init__(
        self,
        ngrams: NgramLanguageModel,
        tokenizer: Any,
        vocab_size: int | None = None,
        end_token_id: int | None = None,
        normalize: Callable[[str], str] | None = None,
    ):
        self.ngrams, self.end, self.normalize = ngrams, _end_of(tokenizer, end_token_id), normalize or str
        self._make = partial(NgramWordScorer, ngrams, tokenizer, end_token_id=end_token_id, normalize=normalize)
        self.begins = torch.tensor(_begins_word(_token_strings(tokenizer, vocab_size), tokenizer))
        self._begins = self.begins.tolist()
        self._decode_options: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        if isinstance(tokenizer, Wav2Vec2CTCTokenizer):
            self._decode_options["group_tokens"] = False  # of a CTC path they would be joined, of a text they are two
        self.tokenizer = tokenizer
        self._spelled: dict[tuple[int, ...], str] = {}

    def __call__(self, said: torch.Tensor) -> torch.Tensor:
        """Token ids [N, S] to scores [N, V]: what each next token tells of the words before it."""
        scores = torch.zeros(len(said), len(self.begins))
        for row, token_ids in zip(scores, said.tolist(), strict=True):
            words, last = self.split(token_ids)
            begun = [START, *words]
            whole = self.ngrams.log_prob(last, begun) if last else 0.0
            row[self.begins] = whole
            row[self.end] = whole + self.ngrams.log_prob(END, [*begun, last] if last else begun)
        return scores.to(said.device)

    def prefix_scores(self, prefixes: Sequence[tuple[int, ...]], ended: bool) -> list[float]:
        """Log probabilities of whole prefixes: a `language_model` for `ctc_decoding.prefix_beam_search`.

        Of prefixes that are not whole transcripts, the last word does not count, as it may go on.
        """
        scores = []
        for prefix in prefixes:
            words, last = self.split(prefix)
            scores.append(self.ngrams.total([*words, last] if ended and last else words, ended))
        return scores

    def with_vocabulary(self, vocab_size: int) -> "NgramWordScorer":
        """The same scorer for a decoder with so many outputs."""
        return self if len(self.begins) == vocab_size else self._make(vocab_size=vocab_size)

    def split(self, token_ids: Iterable[int]) -> tuple[list[str], str]:
        """The words that are whole, and the last one, which may go on and may be empty."""
        groups: list[list[int]] = [[]]
        for token_id in token_ids:
            if self._begins[token_id]:
                groups.append([])
            groups[-1].append(token_id)
        *words, last = map(self._spell, groups)
        return [word for word in words if word], last

    def _spell(self, token_ids: Sequence[int]) -> str:
        key = tuple(token_ids)
        if key not in self._spelled:
            text = self.tokenizer.decode(list(key), **self._decode_options) if key else ""
            self._spelled[key] = self.normalize(text.strip())
        return self._spelled[key]


SCORERS: dict[str, Any] = {"word": NgramWordScorer, "token": NgramTokenScorer}


def _end_of(tokenizer: Any, given: int | None) -> int:
    for token_id in (given, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token_id is not None:
            return token_id
    raise ValueError(f"{type(tokenizer).__name__} has neither eos_token nor sep_token: give end_token_id=…")


def _token_strings(tokenizer: Any, vocab_size: int | None) -> list[str]:
    """How the tokenizer spells each id; empty where an id has no token."""
    strings = [""] * (vocab_size or len(tokenizer))
    for token, token_id in tokenizer.get_vocab().items():
        if token_id < len(strings):
            strings[token_id] = token
    return strings


def _begins_word(tokens: Sequence[str], tokenizer: Any) -> list[bool]:
    def those_with(test: Callable[[str], bool]) -> Iterator[bool]:
        return map(test, tokens)

    delimiters = {getattr(tokenizer, "word_delimiter_token", None), " "}
    if any(those_with(lambda token: token.startswith(SPACES))):
        return list(those_with(lambda token: token.startswith(SPACES)))
    if any(those_with(lambda token: token in delimiters)):
        return list(those_with(lambda token: token in delimiters))
    return list(those_with(lambda token: not token.startswith("##")))


__all__ = ["NgramLanguageModel", "NgramTokenScorer", "NgramWordScorer"]
