"""Expected phrases gain, only whole ones, however they overlap and whatever way a search takes."""

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from lively_models import lively
from test_processing_speech_seq2seq import make
from tiny_models import audio
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LogitsProcessor, PreTrainedTokenizerFast

from speechgraft.modeling.ctc_decoding import prefix_beam_search
from speechgraft.modeling.phrase_biasing import PhraseBiasLogitsProcessor, PhraseTrie
from speechgraft.processing.hot_words import WeightedHotWords, WordJoints, hot_word_ids


def bonus(phrases: dict[tuple[int, ...], float], said: tuple[int, ...], ended: bool, joints: Any = None) -> float:
    """By the definition: each token counts the largest weight among the phrases, whole or begun, that it is in.

    With joints, no phrase counts that begins or ends inside a word.
    """
    counted = [0.0] * len(said)
    cuts_word = [
        joints is not None and 0 < place < len(said) and joints.right[said[place - 1]] and joints.left[said[place]]
        for place in range(len(said) + 1)
    ]
    for phrase, weight in phrases.items():
        for start in range(len(said)):
            there = said[start : start + len(phrase)]
            if cuts_word[start] or cuts_word[start + len(there)]:
                continue
            if there == phrase or (not ended and there == phrase[: len(there)]):
                for place in range(start, start + len(there)):
                    counted[place] = max(counted[place], weight)
    return sum(counted)


def random_phrases(rng: random.Random) -> dict[tuple[int, ...], float]:
    lengths = [rng.randint(1, 5) for _ in range(rng.randint(1, 7))]
    return {tuple(rng.choices(range(3), k=length)): rng.choice([0.5, 1.0, 2.25]) for length in lengths}


@pytest.mark.parametrize("seed", range(20))
def test_overlapping_and_nested_phrases_count_as_defined(seed):
    rng = random.Random(seed)
    phrases = random_phrases(rng)
    processor = PhraseBiasLogitsProcessor(phrases, prompt_length=1)
    trie, vocabulary, end = PhraseTrie(phrases), 5, 4
    for _ in range(10):
        said = tuple(rng.choices(range(4), weights=[3, 3, 3, 1], k=rng.randint(0, 9)))
        assert trie.bonus(said, ended=True) == pytest.approx(bonus(phrases, said, True))
        assert trie.bonus(said, ended=False) == pytest.approx(bonus(phrases, said, False))
        found = processor(torch.tensor([[9, *said]]), torch.zeros(1, vocabulary))[0].tolist()
        before = bonus(phrases, said, False)
        expected = [bonus(phrases, (*said, token), False) - before for token in range(end)]
        assert found == pytest.approx([*expected, bonus(phrases, said, True) - before])


@pytest.mark.parametrize("seed", range(40))
def test_phrases_inside_longer_words_count_for_nothing(seed):
    rng, random_bits = random.Random(seed), np.random.default_rng(seed)
    vocabulary, end = 6, 5
    joints = WordJoints(random_bits.random(vocabulary) < 0.5, random_bits.random(vocabulary) < 0.7)
    joints.left[end] = False
    phrases = random_phrases(rng)
    trie = PhraseTrie(phrases, joints)
    processor = PhraseBiasLogitsProcessor(WeightedHotWords(phrases, joints), prompt_length=1)
    for _ in range(10):
        rows = [tuple(rng.choices(range(5), weights=[3, 3, 3, 1, 1], k=7)) for _ in range(3)]
        for said in rows:
            for ended in (True, False):
                assert trie.bonus(said, ended) == pytest.approx(bonus(phrases, said, ended, joints)), (said, phrases)
        found = processor(torch.tensor([[9, *said] for said in rows]), torch.zeros(3, vocabulary + 2))
        for said, scores in zip(rows, found.tolist(), strict=True):
            before = bonus(phrases, said, False, joints)
            expected = [bonus(phrases, (*said, token), False, joints) - before for token in range(end)]
            ending = bonus(phrases, said, True, joints) - before
            padding = bonus(phrases, (*said, end), False, joints) - before  # the network's logits may be more than ids
            assert scores == pytest.approx([*expected, ending, padding, padding])


def test_what_a_phrase_earned_is_given_back_when_it_is_left():
    processor = PhraseBiasLogitsProcessor([[1, 2, 3]], weight=2.0, prompt_length=0)
    steps = [processor(torch.tensor([said], dtype=torch.long), torch.zeros(1, 6))[0] for said in ([], [1], [1, 2])]
    assert steps[0].tolist() == [0, 2, 0, 0, 0, 0]
    assert steps[1].tolist() == [-2, 0, 2, -2, -2, -2]  # 1 again begins the phrase anew
    assert steps[2].tolist() == [-4, -2, -4, 2, -4, -4]
    done = processor(torch.tensor([[1, 2, 3]]), torch.zeros(1, 6))[0]
    assert done.tolist() == [0, 2, 0, 0, 0, 0]  # and nothing is taken from a phrase that was said


class NaiveBias(LogitsProcessor):
    """Every token of every hypothesis by the definition, from the beginning."""

    def __init__(self, phrases: dict[tuple[int, ...], float], end: int, joints: Any = None):
        self.phrases, self.end, self.joints = phrases, end, joints

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = [tuple(row[1:]) for row in input_ids.tolist()]
        changes = [
            [
                bonus(self.phrases, row if token == self.end else (*row, token), token == self.end, self.joints)
                - bonus(self.phrases, row, False, self.joints)
                for token in range(scores.shape[-1])
            ]
            for row in rows
        ]
        return scores + torch.tensor(changes)


@pytest.fixture(scope="module")
def model() -> Any:
    return lively("wav2vec2-layer", "bert", ctc_weight=0.3)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 4}, {"num_beams": 3, "ctc_weight": 0.4}, {"do_sample": True, "top_k": 1}], ids=str
)
def test_searches_that_reorder_their_beams_score_as_defined(model, options):
    inputs = audio("wav2vec2-layer", 9600, 6400)
    phrases = {(7, 9): 3.0, (9, 7, 7): 2.0, (12,): 1.0, (5, 6, 8): 4.0}
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, **options}
    plain = model.generate(**inputs, **options)
    found = model.generate(**inputs, **options, hot_words=phrases)
    naive = model.generate(**inputs, **options, logits_processor=[NaiveBias(phrases, model.config.eos_token_id)])
    assert torch.equal(found.sequences, naive.sequences)
    assert not torch.equal(found.sequences, plain.sequences)
    if "num_beams" in options:
        torch.testing.assert_close(found.sequences_scores, naive.sequences_scores)


def test_a_phrase_that_is_hardly_misheard_is_written(model):
    inputs = {name: value[:1] for name, value in audio("wav2vec2-layer", 9600).items()}
    plain = model.generate(**inputs, max_new_tokens=6, num_beams=4)
    phrase = [11, 13, 14]
    assert phrase not in plain[0].unfold(0, 3, 1).tolist()
    found = model.generate(**inputs, max_new_tokens=6, num_beams=4, hot_words=[phrase], hot_word_weight=30.0)
    assert phrase in found[0].unfold(0, 3, 1).tolist()


def test_ctc_search_takes_phrases_too():
    log_probs = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    phrases = {(1, 2): 1.5, (2, 3, 1): 2.0}
    plain = {h.token_ids: h.ctc_score for h in prefix_beam_search(log_probs, None, 0, num_beams=5000)[0]}
    trie = PhraseTrie(phrases)
    biased = prefix_beam_search(
        log_probs, None, 0, num_beams=5000, language_model=trie.prefix_scores, language_model_weight=1.0
    )[0]
    best = max(plain, key=lambda text: plain[text] + bonus(phrases, text, True))
    assert biased[0].token_ids == best
    assert biased[0].score == pytest.approx(plain[best] + bonus(phrases, best, True))


def test_faults_are_told_in_a_line(model):
    inputs = audio("wav2vec2-layer", 6400)
    for phrases, message in (
        ([], "no phrases"),
        ([[]], "a phrase is empty"),
        ([[3, 99]], "token 99 of a phrase is not in the vocabulary of 20"),
        ({(3, 4): -1.0}, "positive number, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, max_new_tokens=2, hot_words=phrases)


def byte_level() -> PreTrainedTokenizerFast:
    """Tokens of characters, with a space in front of words as a sign of its own, and one whole word."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: index for index, token in enumerate(["Ġ", *letters, "ca", "cat", "Ġc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("c", "a"), ("ca", "t"), ("Ġ", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!")


def test_phrases_come_in_every_case_with_and_without_space():
    tokenizer = byte_level()
    found = [tokenizer.convert_ids_to_tokens(ids) for ids in hot_word_ids(tokenizer, ["cat"])]
    assert found == [
        ["Ġ", "cat"],
        ["cat"],
        ["Ġ", "C", "A", "T"],
        ["C", "A", "T"],
        ["Ġ", "C", "a", "t"],
        ["C", "a", "t"],
    ]
    written = [tokenizer.decode(ids).strip() for ids in hot_word_ids(tokenizer, ["new  york", "McKay"])]
    assert set(written) == {"new york", "NEW YORK", "New york", "New York", "McKay", "mckay", "MCKAY", "Mckay"}


def word_pieces() -> PreTrainedTokenizerFast:
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["[UNK]", "[SEP]", "cat", "con", "##cat", "##egory", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", sep_token="[SEP]")


def sentence_pieces() -> PreTrainedTokenizerFast:
    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -3.0), ("▁cat", -1.0), ("cat", -2.0), ("egory", -1.5)]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -9.0) for letter in letters)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def whole_words() -> PreTrainedTokenizerFast:
    texts = ["[UNK]", "cat", "category", "concat", "cats", "cat's", "cat-like", "ducat,", "cat.", "a"]
    tokenizer = Tokenizer(models.WordLevel({token: place for place, token in enumerate(texts)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def ends_of_words() -> PreTrainedTokenizerFast:
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat", "cat</w>"]
    merges = [("c", "a"), ("ca", "t"), ("ca", "t</w>")]
    vocabulary = {token: place for place, token in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


WORDS_OF_CATS = ["cat", "category", "concat", "cats", "cat's", "cat-like", "ducat,", "cat.", "a"]


@pytest.mark.parametrize("make_tokenizer", [byte_level, word_pieces, sentence_pieces, whole_words, ends_of_words])
def test_a_name_gains_nothing_inside_another_word_whatever_the_tokenizer(make_tokenizer):
    tokenizer, rng = make_tokenizer(), random.Random(0)
    ids = hot_word_ids(tokenizer, ["cat"])
    trie, phrases = PhraseTrie({tuple(way): 1.0 for way in ids}, ids.joints), {tuple(way): 1.0 for way in ids}
    whole = {"cat"} if make_tokenizer is whole_words else {"cat", "cat's", "cat-like", "cat."}
    for _ in range(60):
        texts = rng.choices(WORDS_OF_CATS, k=3)
        said = tuple(tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"])
        found = trie.bonus(said)
        assert (found > 0) == any(text in whole for text in texts), texts
        assert found == bonus(phrases, said, True, ids.joints)


@pytest.mark.parametrize("name", ["whisper-tiny.en", "minilm"])
def test_a_name_gains_nothing_inside_another_word_of_real_tokenizers(name, pretrained_folder):
    tokenizer = AutoTokenizer.from_pretrained(pretrained_folder(name))
    ids = hot_word_ids(tokenizer, ["cat", "Kubernetes"])
    trie = PhraseTrie({tuple(way): 1.0 for way in ids}, ids.joints)
    for text in ("cat", " cat", "a cat.", "the cat's", 'said "cat"', "kubernetes", "KUBERNETES, too"):
        assert trie.bonus(tokenizer(text, add_special_tokens=False)["input_ids"]) > 0, text
    for text in ("category", "concat", "concatenate", "a bobcat", "cats", "kubernetesy", "scat"):
        assert trie.bonus(tokenizer(text, add_special_tokens=False)["input_ids"]) == 0, text


def test_words_without_spaces_may_follow_each_other():
    tokens = {token: place for place, token in enumerate(["[UNK]", "##s", "東", "京", "タ", "ไ", "é", "cat", "7"])}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    joints = WordJoints.of_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"))
    assert joints.right.tolist() == [False, True, False, False, False, False, True, True, True]
    assert joints.left.tolist() == [False, True, *[False] * 7]
    byte_tokens = byte_level()
    byte_tokens.add_tokens(["æĿ", "±", "Ã©"])  # the first two bytes of a Han character, its last; a Latin letter
    assert WordJoints.of_tokenizer(byte_tokens).left[-3:].tolist() == [False, False, True]


def test_search_writes_the_whole_word_and_not_a_longer_one(model):
    inputs = {name: value[:1] for name, value in audio("wav2vec2-layer", 9600).items()}
    joints = WordJoints(np.arange(20) >= 10, np.ones(20, dtype=bool))  # tokens 10 to 19 carry words on
    anywhere = {(7, 11): 4.0}
    options = {"max_new_tokens": 8, "num_beams": 4, "return_dict_in_generate": True, "output_scores": True}
    found = model.generate(**inputs, **options, hot_words=WeightedHotWords(anywhere, joints))
    naive = NaiveBias(anywhere, model.config.eos_token_id, joints)
    expected = model.generate(**inputs, **options, logits_processor=[naive])
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


def test_weights_stay_with_their_phrases_and_unknown_phrases_are_named():
    processor = make("wav2vec2", "bert")
    hello, cat = (tuple(processor.tokenizer(word, add_special_tokens=False)["input_ids"]) for word in ("hello", "cat"))
    assert processor.hot_word_ids({"hello": 2.0, "cat": 1.0}) == {hello: 2.0, cat: 1.0}
    assert processor.hot_word_ids(["hello", "hello"]) == [list(hello)]
    with pytest.raises(ValueError, match="no tokens for the phrase 'zebra'"):
        processor.hot_word_ids(["zebra"])
    with pytest.raises(TypeError, match="not one string"):
        processor.hot_word_ids("hello")
    with pytest.raises(ValueError, match="a phrase is empty"):
        processor.hot_word_ids([" "])


def test_all_pairs_of_short_phrases_agree_with_the_definition():
    """Exhaustive where chance could miss a failure link: two phrases of up to three tokens of two, all hypotheses."""
    short = [phrase for length in (1, 2, 3) for phrase in itertools.product((0, 1), repeat=length)]
    said = [text for length in range(6) for text in itertools.product((0, 1), repeat=length)]
    for one, two in itertools.combinations(short, 2):
        phrases = {one: 1.0, two: 1.75}
        trie = PhraseTrie(phrases)
        for text in said:
            for ended in (True, False):
                assert trie.bonus(text, ended) == bonus(phrases, text, ended), (phrases, text)
