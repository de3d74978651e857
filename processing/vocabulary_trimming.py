"""A vocabulary cut down to what the transcripts teach.

A pretrained text decoder brings tens of thousands of word pieces. Hours of speech hold most of them never, or a few
times, which is not enough to learn how they sound: every word that they write is an error. Spelled with shorter pieces
that are heard often, the same words can be learned, and the output layer costs a fraction.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers.models import WordPiece

CONTINUATION = "##"  # before pieces inside a word


def trim_vocabulary(tokenizer: Any, texts: Iterable[str], min_count: int) -> tuple[Any, list[int]]:
    """Keep the special tokens, the single characters, and the word pieces that the texts hold `min_count` times.

    Longer pieces go first: what they leave behind is counted with the pieces that remain, until none is too rare.

    Args:
        tokenizer: a WordPiece tokenizer, such as BERT's.
        texts: transcripts of the training data.
        min_count: least number of times that a piece must occur.

    Returns:
        A tokenizer with the kept tokens, and their ids in the old one, in the new one's order: what
        `SpeechSeq2SeqModel.select_tokens` takes.

    Raises:
        ValueError: it is no WordPiece tokenizer, or `min_count` is less than 1.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, WordPiece):
        raise ValueError(
            f"{type(tokenizer).__name__}: only the vocabulary of a WordPiece tokenizer (BERT, ELECTRA) can be "
            "trimmed; in others the pieces depend on each other"
        )
    vocabulary = tokenizer.get_vocab()
    words = _count_words(backend, texts)
    special = set(tokenizer.all_special_tokens)
    spelled = {character for word in words for character in word}
    spelled |= {CONTINUATION + character for character in spelled}
    kept = (_frequent_pieces(words, set(vocabulary) - special, spelled, min_count) | special) & set(vocabulary)
    old_ids = sorted(vocabulary[piece] for piece in kept)
    pieces = {piece: old_id for piece, old_id in vocabulary.items() if piece in kept}
    new_ids = {old_id: new_id for new_id, old_id in enumerate(old_ids)}
    options = {name: value for name, value in tokenizer.init_kwargs.items() if name not in ("vocab", "tokenizer_file")}
    trimmed = type(tokenizer)(vocab={piece: new_ids[old_id] for piece, old_id in pieces.items()}, **options)
    for name in ("model_max_length", "clean_up_tokenization_spaces"):  # may have been set since it was loaded
        setattr(trimmed, name, getattr(tokenizer, name))
    return trimmed, old_ids


def _count_words(backend: Any, texts: Iterable[str]) -> Counter[str]:
    """The words that the tokenizer splits into pieces."""
    counts: Counter[str] = Counter()
    for text in texts:
        normalized = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized))
    return counts


def _frequent_pieces(words: Counter[str], pieces: set[str], spelled: set[str], min_count: int) -> set[str]:
    """The pieces that are left when those too rare are taken away, round by round."""
    unknown = "[UNK]"
    while True:
        model = WordPiece({unknown: 0} | {piece: i for i, piece in enumerate(pieces, start=1)}, unk_token=unknown)
        uses: Counter[str] = Counter()
        for word, count in words.items():
            for token in model.tokenize(word):
                uses[token.value] += count
        rare = {piece for piece, count in uses.items() if count < min_count} - spelled - {unknown}
        if not rare:
            return (set(uses) | spelled) & pieces
        # The longest alone: a shorter one may become frequent by what a longer one leaves.
        longest = max(map(_length, rare))
        pieces = pieces - {piece for piece in rare if _length(piece) == longest}


def _length(piece: str) -> int:
    return len(piece.removeprefix(CONTINUATION))
