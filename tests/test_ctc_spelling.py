"""A CTC head that tells characters apart has its say about the decoder's tokens: exactly, by what they spell."""

import itertools
from collections import defaultdict
from typing import Any, cast

import pytest
import torch
from lively_models import lively
from test_ctc_prefix_scoring import random_log_probs
from tiny_models import audio, tiny_model
from tiny_tokenizers import tiny_tokenizer
from tiny_training import arguments, repeatable_model, rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, Wav2Vec2FeatureExtractor

from speechgraft.modeling.ctc_prefix_scoring import IMPOSSIBLE, CtcPrefixLogitsProcessor, CtcPrefixScorer
from speechgraft.modeling.ctc_spelling import SpelledPrefixScorer, TokenSpelling, token_spelling
from speechgraft.modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer
from speechgraft.processing.collation_speech_seq2seq import SpeechSeq2SeqCollator
from speechgraft.processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor

LETTERS = " abcdehilnorstuwx'-."
TEXTS = ["hello world", "it's the twenty-one cats", "dogs tails. the end", "a  b\tc", "x"]


def word_piece() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "the", "it", "cat", "##s", "##or", "'", "-", "."]
    pieces += [prefix + letter for letter in "abcdefghilmnorstuwxy" for prefix in ("", "##")]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))})


def byte_pairs() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def sentence_pieces() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXTS * 3, trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "word pieces": word_piece,
    "byte pairs": byte_pairs,
    "sentence pieces": sentence_pieces,
    "words": lambda: tiny_tokenizer("bert"),
}


def spelled(spelling: TokenSpelling, tokens: list[int]) -> list[int]:
    text, glued = [], True
    for token in tokens:
        added, glued = spelling.added(token, glued)
        text += added
    return text


def targets(text: str, characters: str) -> list[int]:
    """Places in the alphabet, counted from 1, as in training."""
    return [characters.index(one) + 1 for one in " ".join(text.split()) if one in characters]


def check_spelling(tokenizer: Any, texts: list[str], characters: str) -> None:
    spelling = token_spelling(tokenizer, characters, len(tokenizer) + 2)
    assert set(spelling.never) >= {len(tokenizer), len(tokenizer) + 1}
    for text in texts:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert spelled(spelling, tokens) == targets(text, characters), text


@pytest.mark.parametrize("kind", ["word pieces", "byte pairs", "sentence pieces"])
def test_tokens_spell_the_text_that_they_were_made_of(kind):
    check_spelling(TOKENIZERS[kind](), TEXTS, LETTERS)


@pytest.mark.parametrize("name", ["minilm", "whisper-tiny.en"])
def test_tokens_of_real_tokenizers_spell_the_text_that_they_were_made_of(name, pretrained_folder):
    tokenizer = AutoTokenizer.from_pretrained(pretrained_folder(name))
    texts = ["it's a strange, well-known story: isn't it?", "mister quilter is the apostle of the middle classes"]
    check_spelling(tokenizer, texts, " abcdefghijklmnopqrstuvwxyz'-,:?")


def test_capitals_alone_are_spelled_by_a_decoder_without_capitals():
    tokenizer = word_piece()
    spelling = token_spelling(tokenizer, " ABCDEHILORSTW", len(tokenizer))
    tokens = tokenizer("HELLO WORLD", add_special_tokens=False)["input_ids"]
    assert spelled(spelling, tokens) == targets("HELLO WORLD", " ABCDEHILORSTW")
    assert spelling.added(tokenizer.unk_token_id, False) == ((), False)
    assert set(spelling.never) == set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


# The alphabet "ab " and tokens that spell one, two or no letters.
PIECES = ["<end>", "a", "b", "ab", " a", " ba", "", "<pad>"]
END, PAD = 0, 7
SPELLING = TokenSpelling(
    texts=[(), (1,), (2,), (1, 2), (1,), (2, 1), (), ()],
    spaced=[False, False, False, False, True, True, False, False],
    glues=[False] * 8,
    never=[END, PAD],
    space=3,
)


def text_of(tokens: tuple[int, ...]) -> str:
    return "".join("" if token in (END, PAD) else PIECES[token] for token in tokens).lstrip()


def transcripts(log_probs: torch.Tensor) -> dict[str, float]:
    """The probability of every text of one utterance [T, 4], by going through every path of frames."""
    found: dict[str, float] = defaultdict(float)
    for path in itertools.product(range(4), repeat=len(log_probs)):
        text = "".join("ab "[place - 1] for place, _ in itertools.groupby(path) if place != 0)
        found[text] += float(torch.exp(sum(log_probs[t, place] for t, place in enumerate(path))))
    return found


def spelled_scorer(log_probs: torch.Tensor, mask: torch.Tensor | None) -> SpelledPrefixScorer:
    return SpelledPrefixScorer(CtcPrefixScorer(log_probs, mask, 0, []), SPELLING, END)


@pytest.mark.parametrize("candidates", [None, [[3, 1, 0], [4, 7, 3], [6, 5, 2], [2, 5, 4]]])
def test_tokens_score_the_sum_over_all_alignments_of_what_they_spell(candidates):
    log_probs = random_log_probs(2, 6, 4)
    lengths = [6, 4]
    every = [transcripts(log_probs[row, :length]) for row, length in enumerate(lengths)]
    scorer = spelled_scorer(log_probs, torch.arange(6) < torch.tensor(lengths)[:, None])
    hypotheses = [(1, 1, 4), (3, 6, 5), (4, 2, 6), (5, 3, 3)]  # two of each utterance
    state = scorer.start(2)
    for step in zip(*hypotheses, strict=True):
        state = scorer.extend(state, torch.tensor(step))
    tokens = [list(range(8))] * 4 if candidates is None else candidates
    found = scorer.score(state, None if candidates is None else torch.tensor(candidates)).exp()
    for row, hypothesis in enumerate(hypotheses):
        texts = every[row // 2]
        begins = sum(p for text, p in texts.items() if text.startswith(text_of(hypothesis)))
        assert float(state.log_prefix[row].exp()) == pytest.approx(begins, rel=1e-4)
        for place, token in enumerate(tokens[row]):
            longer = text_of((*hypothesis, token))
            begins = sum(p for text, p in texts.items() if text.startswith(longer))
            expected = {END: texts.get(text_of(hypothesis), 0.0), PAD: 0.0}.get(token, begins)
            assert float(found[row, place]) == pytest.approx(expected, rel=1e-4, abs=1e-9), PIECES[token]


def test_frames_far_from_a_hypothesis_can_be_left_out_of_what_comes_next():
    """As of a head that knows: letters in few frames, silence between them, clips of two lengths."""
    generator = torch.Generator().manual_seed(0)
    spoken = torch.randint(1, 4, (2, 100), generator=generator)
    logits = torch.randn(2, 600, 4, generator=generator)
    logits[..., 0] += 8
    logits[:, 5::6].scatter_add_(2, spoken[..., None], torch.full((2, 100, 1), 16.0))
    mask = torch.arange(600) < torch.tensor([[600], [450]])
    scorer = CtcPrefixScorer(logits, mask, 0, [])
    state = scorer.start(2)
    for place in range(30):
        heard = spoken[:, place].repeat_interleave(2)
        heard[1::2] += torch.tensor([place % 7 == 0, place % 5 == 0]) * (1 - 3 * (heard[1::2] == 3))  # mistakes
        state = scorer.extend(state, heard)
    few, here = scorer.near(state)
    assert few.logits.shape[1] < 300
    for _ in range(12):
        every = torch.arange(1, 4).expand(4, -1)
        torch.testing.assert_close(few.score(here, every), scorer.score(state, every), rtol=0, atol=1e-6)
        best = scorer.score(state, every).argmax(dim=-1) + 1
        state, here = scorer.extend(state, best), few.extend(here, best)


def test_steps_of_a_search_that_reorders_its_beams_score_like_fresh_ones():
    log_probs, decoder = random_log_probs(2, 9, 4), random_log_probs(6, 8, seed=1)

    def processor() -> CtcPrefixLogitsProcessor:
        return CtcPrefixLogitsProcessor(spelled_scorer(log_probs, None), 0.4, prompt_length=1)

    searching = processor()
    steps: list[list[list[int]]] = [
        [[9]] * 6,
        [[9, 1], [9, 2], [9, 4], [9, 5], [9, 1], [9, 6]],
        [[9, 4, 1], [9, 1, 1], [9, 1, 6], [9, 6, 2], [9, 6, 4], [9, 5, 1]],
        [[9, 1, 1, 4], [9, 4, 1, 5], [9, 4, 1, 0], [9, 5, 1, 1], [9, 6, 2, 4], [9, 6, 2, 7]],
    ]
    for said in steps:
        found = searching(torch.tensor(said), decoder)
        torch.testing.assert_close(found, processor()(torch.tensor(said), decoder))
        assert (found[:, PAD] < IMPOSSIBLE / 10).all()


@pytest.mark.parametrize("spells", [False, True])
def test_the_best_candidates_score_as_if_all_were_scored_and_no_other_comes_before_them(spells):
    log_probs, decoder = random_log_probs(2, 9, 4 if spells else 8), random_log_probs(4, 8, seed=1)
    scorer: Any = spelled_scorer(log_probs, None) if spells else CtcPrefixScorer(log_probs, None, PAD, END)
    said = torch.tensor([[9, 1], [9, 4], [9, 5], [9, 3]])
    everything = CtcPrefixLogitsProcessor(scorer, 0.4, 1)(said, decoder)
    found = CtcPrefixLogitsProcessor(scorer, 0.4, 1, candidates=3)(said, decoder)
    scored = torch.zeros_like(decoder, dtype=torch.bool).scatter(1, decoder.topk(3).indices, True)
    scored[:, END] = scored[:, PAD] = True
    torch.testing.assert_close(found[scored], everything[scored], rtol=1e-4, atol=1e-4)
    possible = scored & (found > IMPOSSIBLE / 10)
    possible[:, END] = False
    for row in range(4):
        assert found[row][possible[row]].min() > found[row][~scored[row]].max()


CHARACTERS = " abcdehlnorstuw"


@pytest.fixture(scope="module")
def model() -> Any:
    return lively("wav2vec2-layer", "bert", ctc_weight=0.3, ctc_characters=CHARACTERS)


def exhaustive(model: Any, tokenizer: Any, inputs: dict[str, Any], weight: float) -> tuple[list[int], float]:
    """The best transcript of at most two tokens, by the joint score of all, with PyTorch's CTC loss of the text."""
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
        ctc = model.ctc_head(encoded.last_hidden_state).log_softmax(-1)[0]
    words = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
    best, best_score = (), float("-inf")
    for length in range(3):
        texts = list(itertools.product(words, repeat=length))
        labels = torch.tensor([[*text, model.config.eos_token_id] for text in texts])
        with torch.no_grad():
            logits = model(
                **{k: v.expand(len(texts), -1) for k, v in inputs.items()},
                decoder_input_ids=labels.roll(1, 1).index_fill(
                    1, torch.tensor(0), model.config.decoder_start_token_id
                ),
            ).logits
        of_decoder = logits.log_softmax(-1).gather(-1, labels[..., None]).sum(dim=(1, 2))
        for text, decoder_score in zip(texts, of_decoder.tolist(), strict=True):
            target = targets(tokenizer.decode(list(text)), CHARACTERS)
            loss = torch.nn.functional.ctc_loss(
                ctc[:, None], torch.tensor([target or [1]]), [len(ctc)], [len(target)], reduction="sum"
            )
            score = ((1 - weight) * decoder_score - weight * float(loss)) / (length + 1)
            best, best_score = max((best, best_score), (text, score), key=lambda pair: pair[1])
    return list(best), best_score


def test_a_wide_beam_finds_the_transcript_that_is_best_of_all(model):
    tokenizer = tiny_tokenizer("bert")
    inputs = {name: value[:1] for name, value in audio("wav2vec2-layer", 6400).items()}
    expected, score = exhaustive(model, tokenizer, inputs, 0.5)
    allowed = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
    end = model.config.eos_token_id
    found = model.generate(
        **inputs,
        tokenizer=tokenizer,
        num_beams=150,  # all hypotheses of two tokens
        max_new_tokens=3,
        prefix_allowed_tokens_fn=lambda _, ids: [end] if len(ids) == 3 else [end, *allowed],
        ctc_weight=0.5,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = found.sequences[0, 1:].tolist()
    assert best[: best.index(end)] == expected
    assert float(found.sequences_scores[0]) == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2, "top_k": 1}])
def test_a_batch_with_padding_decodes_as_its_rows_alone(model, options):
    inputs = audio("wav2vec2-layer", 9600, 6400)
    options = {**options, "max_new_tokens": 8, "ctc_weight": 0.4, "ctc_candidates": 6}
    together = model.generate(**inputs, **options, tokenizer=tiny_tokenizer("bert"))
    n_each = len(together) // 2
    for row, length in enumerate((9600, 6400)):
        alone = {name: value[row : row + 1, :length] for name, value in inputs.items()}
        found = model.generate(**alone, **options, tokenizer=tiny_tokenizer("bert"))
        assert torch.equal(found, together[row * n_each : (row + 1) * n_each, : found.shape[1]])


def test_what_nobody_can_spell_is_told():
    model = tiny_model(ctc_weight=0.3, ctc_characters="ab")
    inputs = {**audio("wav2vec2", 6400), "max_new_tokens": 2, "ctc_weight": 0.3}
    with pytest.raises(ValueError, match="give it tokenizer=processor.tokenizer"):
        model.generate(**inputs)
    first = model.generate(**inputs, tokenizer=tiny_tokenizer("bert"))
    assert torch.equal(model.generate(**inputs), first)  # it is remembered
    model.resize_token_embeddings(24)  # its tokens are others now
    with pytest.raises(ValueError, match="give it tokenizer=processor.tokenizer"):
        model.generate(**inputs)
    with pytest.raises(ValueError, match="ctc_candidates must be at least 1, got 0"):
        model.generate(**inputs, tokenizer=tiny_tokenizer("bert"), ctc_candidates=0)
    with pytest.raises(ValueError, match="nobody knows what it spells"):
        tiny_model(ctc_weight=0.3, ctc_vocab_size=9).generate(**inputs)


def test_a_loaded_model_asks_the_tokenizer_that_lies_with_it(model, tmp_path):
    inputs = {**audio("wav2vec2-layer", 6400), "max_new_tokens": 6, "ctc_weight": 0.6}
    expected = model.generate(**inputs, tokenizer=tiny_tokenizer("bert"))
    model.generation_config.ctc_weight = inputs.pop("ctc_weight")
    try:
        model.save_pretrained(tmp_path)
    finally:
        model.generation_config.ctc_weight = 0.0
    with pytest.raises(ValueError, match="give it tokenizer=processor.tokenizer"):
        type(model).from_pretrained(tmp_path).generate(**inputs)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).generate(**inputs), expected)


def test_an_evaluation_in_training_decodes_jointly(tmp_path):
    model = repeatable_model(ctc_weight=0.3, ctc_characters=CHARACTERS)
    model.generation_config.ctc_weight = 0.6
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    processor = SpeechSeq2SeqProcessor.from_parts(extractor, tiny_tokenizer("bert"), config=model.config)
    collate = SpeechSeq2SeqCollator(processor, model.config)
    trainer = SpeechSeq2SeqTrainer(
        model=model,
        args=arguments(tmp_path, predict_with_generate=True, per_device_eval_batch_size=2),
        data_collator=collate,
        processing_class=processor,
    )
    found = torch.tensor(trainer.predict(cast(Any, rows(2)), max_length=9).predictions)
    batch = collate(rows(2))
    inputs = {name: batch[name] for name in ("input_values", "attention_mask")}
    expected = model.generate(**inputs, max_length=9, tokenizer=processor.tokenizer)
    assert torch.equal(found[:, : expected.shape[1]], expected)


def test_strings_that_stop_transformers_search_still_get_their_tokenizer():
    model, tokenizer, inputs = tiny_model(), word_piece(), audio("wav2vec2", 6400)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    options = {**inputs, "max_new_tokens": 6, "suppress_tokens": tokenizer.all_special_ids}
    whole = model.generate(**options)
    stop = tokenizer.decode(whole[0, 1:2]).removeprefix("##")
    assert model.generate(**options, stop_strings=[stop], tokenizer=tokenizer).shape[1] < whole.shape[1]


@pytest.mark.cuda
@pytest.mark.parametrize("characters", [None, CHARACTERS])
def test_an_accelerator_decodes_as_the_cpu_does(characters):
    model = lively("wav2vec2-layer", "bert", ctc_weight=0.3, ctc_characters=characters)
    inputs = audio("wav2vec2-layer", 9600, 6400)
    options = {"num_beams": 3, "max_new_tokens": 8, "ctc_weight": 0.4, "ctc_candidates": 6}
    expected = model.generate(**inputs, **options, tokenizer=tiny_tokenizer("bert"))
    there = {name: value.cuda() for name, value in inputs.items()}
    assert torch.equal(model.cuda().generate(**there, **options, tokenizer=tiny_tokenizer("bert")).cpu(), expected)


def test_candidates_whose_beginning_is_not_heard_are_not_spelled_to_the_end():
    log_probs, decoder = random_log_probs(2, 9, 4).mul(3).log_softmax(-1), random_log_probs(4, 8, seed=1)
    said = torch.tensor([[9, 1], [9, 4], [9, 5], [9, 3]])
    scorer = spelled_scorer(log_probs, None)
    everything = CtcPrefixLogitsProcessor(scorer, 0.4, 1)(said, decoder)
    found = CtcPrefixLogitsProcessor(scorer, 0.4, 1, candidates=7, spelled=3)(said, decoder)
    state = scorer.start(2)
    for step in said[:, 1:].T:
        state = scorer.extend(state, step)
    tokens = decoder.topk(7).indices
    letters = scorer._score(state, tokens, 1)
    assert (letters >= scorer.score(state, tokens) - 1e-6).all(), "a beginning is at least as likely as the whole"
    of_decoder = decoder.log_softmax(-1).gather(1, tokens)
    best = (0.6 * of_decoder + 0.4 * (letters - state.log_prefix[:, None])).topk(3).indices
    spelled = torch.zeros_like(decoder, dtype=torch.bool).scatter(1, tokens.gather(1, best), True)
    spelled[:, END] = True
    torch.testing.assert_close(found[spelled], everything[spelled], rtol=1e-4, atol=1e-4)
    assert int((~spelled).sum()) > 0
