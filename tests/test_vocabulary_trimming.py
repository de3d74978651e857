"""A trimmed vocabulary spells every transcript with pieces that are heard often, and keeps the tokens' meaning."""

from collections import Counter

import pytest
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoTokenizer, BertTokenizer

from speechgraft.processing.vocabulary_trimming import trim_vocabulary

SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdeinorst", *(f"##{letter}" for letter in "abcdeinorst")]
PIECES = ["station", "rest", "##ation", "##est", "sta", "st", "##ing", "##tion", "in", "zebra", "nation"]
TEXTS = ["Station"] * 2 + ["rest"] * 9 + ["nation"] * 2 + ["resting"] * 3 + ["sti"]


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={piece: i for i, piece in enumerate([*SPECIAL, *LETTERS, *PIECES])})


def test_rare_pieces_leave_and_what_spells_them_instead_is_counted_anew(tokenizer):
    trimmed, kept = trim_vocabulary(tokenizer, TEXTS, 3)
    left = set(trimmed.get_vocab())
    assert {"rest", "##tion"} <= left  # "station" and "nation" are rare, their common end is not
    assert not {"station", "nation", "zebra", "in"} & left
    assert trimmed.tokenize("station nation") == ["st", "##a", "##tion", "n", "##a", "##tion"]
    uses = Counter(piece for text in TEXTS for piece in trimmed.tokenize(text))
    assert all(uses[piece] >= 3 for piece in left - set(SPECIAL) if len(piece.removeprefix("##")) > 1)
    assert "[UNK]" not in uses
    assert kept == sorted(kept) and tokenizer.convert_ids_to_tokens(kept) == trimmed.convert_ids_to_tokens(
        range(len(trimmed))
    )


def test_a_trimmed_tokenizer_is_saved_and_loaded_like_any_other(tokenizer, tmp_path):
    trimmed, _ = trim_vocabulary(tokenizer, TEXTS, 3)
    trimmed.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded("Resting station")["input_ids"]
    assert ids == trimmed("resting station")["input_ids"]
    assert (ids[0], ids[-1]) == (trimmed.cls_token_id, trimmed.sep_token_id)
    assert loaded.decode(ids, skip_special_tokens=True) == "resting station"
    assert loaded.pad_token_id == 0


def test_a_trimmed_tokenizer_keeps_the_settings_of_the_old_one(tokenizer):
    tokenizer.model_max_length, tokenizer.clean_up_tokenization_spaces = 77, True  # as a processor sets it
    trimmed, _ = trim_vocabulary(tokenizer, TEXTS, 3)
    assert (trimmed.model_max_length, trimmed.clean_up_tokenization_spaces) == (77, True)


def test_vocabularies_whose_pieces_depend_on_each_other_are_refused(tokenizer):
    with pytest.raises(ValueError, match="only the vocabulary of a WordPiece tokenizer"):
        trim_vocabulary(tiny_tokenizer("gpt2"), TEXTS, 3)
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        trim_vocabulary(tokenizer, TEXTS, 0)
