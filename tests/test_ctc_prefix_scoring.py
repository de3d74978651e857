"""Joint CTC/attention decoding scores what the definition says, whatever way a search takes through hypotheses."""

import itertools
from collections import defaultdict
from typing import Any

import pytest
import torch
from lively_models import lively
from tiny_models import audio, tiny_model

from speechgraft.modeling import ctc_prefix_scoring
from speechgraft.modeling.ctc_prefix_scoring import (
    IMPOSSIBLE,
    CtcPrefixLogitsProcessor,
    CtcPrefixScorer,
    logits_of_ctc_head,
)

BLANK, END = 0, 3


def random_log_probs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(2).log_softmax(-1)


def transcripts(log_probs: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every transcript of one utterance [T, V], by going through every path of frames."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = tuple(token for token, _ in itertools.groupby(path) if token != BLANK)
        found[text] += float(torch.exp(sum(log_probs[t, token] for t, token in enumerate(path))))
    return found


def brute_force(log_probs: torch.Tensor, prefix: tuple[int, ...]) -> list[float]:
    """Probability that the transcript begins with prefix and each token; in place of END, that it is the prefix."""
    every = transcripts(log_probs)
    scores = []
    for token in range(log_probs.shape[1]):
        longer = (*prefix, token)
        begins = sum(p for text, p in every.items() if text[: len(longer)] == longer)
        scores.append({BLANK: 0.0, END: every.get(prefix, 0.0)}.get(token, begins))
    return scores


@pytest.mark.parametrize("prefix", [(), (1,), (1, 1), (2, 1), (1, 2, 1), (2, 2, 2)])
def test_prefix_scores_are_the_sum_over_all_alignments(prefix):
    log_probs = random_log_probs(2, 6, 4)
    log_probs[..., END] = -1e4  # the CTC head never says the end token
    log_probs = log_probs.log_softmax(-1)
    lengths = [6, 5]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    scorer = CtcPrefixScorer(log_probs, mask, BLANK, END)
    state = scorer.start()
    for token in prefix:
        state = scorer.extend(state, torch.full((2,), token))
    found = scorer.score(state).exp()
    for row, length in enumerate(lengths):
        expected = torch.tensor(brute_force(log_probs[row, :length], prefix))
        torch.testing.assert_close(found[row].float(), expected, rtol=1e-4, atol=1e-7)
        begins = sum(p for text, p in transcripts(log_probs[row, :length]).items() if text[: len(prefix)] == prefix)
        assert float(state.log_prefix[row].exp()) == pytest.approx(begins, rel=1e-4)


def test_each_of_several_end_tokens_ends_the_transcript():
    log_probs = random_log_probs(2, 6, 6)
    one, several = (CtcPrefixScorer(log_probs, None, BLANK, ends) for ends in (END, [END, 5]))
    found, expected = several.score(several.start()), one.score(one.start())
    torch.testing.assert_close(found[:, 5], expected[:, END])
    torch.testing.assert_close(found[:, :5], expected[:, :5])


def test_thousands_of_frames_neither_overflow_nor_lose_precision():
    log_probs = random_log_probs(1, 3000, 5).mul(8).log_softmax(-1)
    scorer = CtcPrefixScorer(log_probs, None, BLANK, END)
    state = scorer.start()
    for token in [1, 2, 2, 4] * 5:
        before = scorer.score(state)[0, token]
        state = scorer.extend(state, torch.tensor([token]))
        assert torch.isfinite(state.ends_in_token[0, 100:]).all()
        assert float(state.log_prefix) == pytest.approx(float(before), abs=1e-3)


def test_steps_of_a_search_that_reorders_its_beams_score_like_fresh_ones():
    log_probs = random_log_probs(2, 9, 6)
    decoder = random_log_probs(6, 6, seed=1)

    def processor() -> CtcPrefixLogitsProcessor:
        return CtcPrefixLogitsProcessor(CtcPrefixScorer(log_probs, None, BLANK, END), 0.4, prompt_length=1)

    searching = processor()
    steps: list[list[list[int]]] = [
        [[9]] * 6,
        [[9, 1], [9, 2], [9, 4], [9, 5], [9, 1], [9, 2]],
        [[9, 4, 1], [9, 1, 1], [9, 1, 2], [9, 2, 2], [9, 2, 4], [9, 5, 1]],
        [[9, 1, 1, 4], [9, 4, 1, 5], [9, 4, 1, 1], [9, 5, 1, 1], [9, 2, 2, 4], [9, 2, 2, 1]],
        [[9, 2]] * 3 + [[9, 4]] * 3,  # begun anew, as assisted decoding does when it takes tokens back
    ]
    for said in steps:
        found = searching(torch.tensor(said), decoder)
        torch.testing.assert_close(found, processor()(torch.tensor(said), decoder))
        assert (found[:, BLANK] < IMPOSSIBLE / 10).all()


def exhaustive(model: Any, inputs: dict[str, Any], weight: float, max_tokens: int) -> tuple[list[int], float]:
    """The best transcript of all, by the joint score of every one that is not longer."""
    config = model.config
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
        ctc = model.ctc_head(encoded.last_hidden_state).log_softmax(-1)
    every = transcripts_up_to(ctc[0], max_tokens, model.ctc_blank)
    texts = [text for text in every if config.eos_token_id not in text]
    best, best_score = (), float("-inf")
    for length in range(max_tokens + 1):
        ones = [text for text in texts if len(text) == length]
        labels = torch.tensor([[*text, config.eos_token_id] for text in ones])
        with torch.no_grad():
            copies = {name: value.expand(len(ones), -1) for name, value in inputs.items()}
            logits = model(**copies, labels=labels).logits.log_softmax(-1)
        of_decoder = logits.gather(-1, labels[..., None]).sum(dim=(1, 2))
        for text, decoder_score in zip(ones, of_decoder.tolist(), strict=True):
            score = ((1 - weight) * decoder_score + weight * every[text]) / (length + 1)
            best, best_score = max((best, best_score), (text, score), key=lambda pair: pair[1])
    return list(best), best_score


def transcripts_up_to(log_probs: torch.Tensor, max_tokens: int, blank: int) -> dict[tuple[int, ...], float]:
    """Log probabilities of all transcripts of at most `max_tokens` tokens, by PyTorch's CTC loss."""
    n_frames, n_tokens = log_probs.shape
    tokens = [token for token in range(n_tokens) if token != blank]
    found = {}
    for length in range(max_tokens + 1):
        texts = list(itertools.product(tokens, repeat=length))
        losses = torch.nn.functional.ctc_loss(
            log_probs[:, None].expand(-1, len(texts), -1),
            torch.tensor([text or (0,) for text in texts]),
            [n_frames] * len(texts),
            [length] * len(texts),
            blank=blank,
            reduction="none",
        )
        found.update(zip(texts, (-losses).tolist(), strict=True))
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    return lively("wav2vec2-layer", "bert", ctc_weight=0.3)


def test_a_wide_beam_finds_the_transcript_that_is_best_of_all(model):
    inputs = audio("wav2vec2-layer", 2400)
    inputs = {name: value[:1] for name, value in inputs.items()}
    expected, score = exhaustive(model, inputs, 0.5, 2)
    end, everything = model.config.eos_token_id, list(range(model.config.vocab_size))
    found = model.generate(
        **inputs,
        num_beams=400,  # all hypotheses of two tokens
        max_new_tokens=3,
        prefix_allowed_tokens_fn=lambda _, ids: [end] if len(ids) == 3 else everything,
        ctc_weight=0.5,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = found.sequences[0, 1:].tolist()
    assert best[: best.index(end)] == expected
    assert float(found.sequences_scores[0]) == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_batch_with_padding_decodes_as_its_rows_alone(model, options):
    inputs = audio("wav2vec2-layer", 9600, 6400)
    options = {**options, "max_new_tokens": 8, "ctc_weight": 0.4}
    if "do_sample" in options:  # sampling draws for the whole batch: of one token it is the best
        options["top_k"] = 1
    together = model.generate(**inputs, **options)
    n_each = len(together) // 2
    for row, length in enumerate((9600, 6400)):
        alone = {name: value[row : row + 1, :length] for name, value in inputs.items()}
        found = model.generate(**alone, **options)
        expected = together[row * n_each : (row + 1) * n_each, : found.shape[1]]
        assert torch.equal(found, expected)


def test_the_weight_goes_from_the_decoder_alone_to_ctc_alone(model):
    inputs = {name: value[:1] for name, value in audio("wav2vec2-layer", 9600).items()}
    plain = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, ctc_weight=0.0), plain)
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
        log_probs = model.ctc_head(encoded.last_hidden_state).log_softmax(-1)
    scorer = CtcPrefixScorer(log_probs, None, model.ctc_blank, model.config.eos_token_id)
    state, expected = scorer.start(), []
    for _ in range(6):
        token = scorer.score(state).argmax(-1)
        expected.append(int(token))
        if int(token) == model.config.eos_token_id:
            break
        state = scorer.extend(state, token)
    found = model.generate(**inputs, max_new_tokens=6, ctc_weight=1.0)[0, 1:].tolist()
    assert found[: len(expected)] == expected


def test_what_cannot_be_scored_is_refused(model):
    inputs = audio("wav2vec2-layer", 6400)
    with pytest.raises(ValueError, match="ctc_weight is a share between 0 and 1, got 1.5"):
        model.generate(**inputs, max_new_tokens=2, ctc_weight=1.5)
    with pytest.raises(ValueError, match="the model has no CTC head"):
        tiny_model().generate(**inputs, max_new_tokens=2, ctc_weight=0.3)
    unnamed = tiny_model(ctc_weight=0.3, ctc_vocab_size=9)
    with pytest.raises(ValueError, match="vocabulary of its own"):
        unnamed.generate(**inputs, max_new_tokens=2, ctc_weight=0.3)


def test_the_weight_can_be_kept_in_the_checkpoint(model, tmp_path):
    inputs = audio("wav2vec2-layer", 6400)
    wanted = model.generate(**inputs, max_new_tokens=6, ctc_weight=0.9)
    model.generation_config.ctc_weight = 0.9
    try:
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert torch.equal(loaded.generate(**inputs, max_new_tokens=6), wanted)
    finally:
        model.generation_config.ctc_weight = 0.0


@pytest.mark.parametrize("bias", [True, False])
def test_a_large_head_is_laid_out_by_tokens_with_the_same_logits(bias, monkeypatch):
    head, states = torch.nn.Linear(8, 50, bias=bias), torch.randn(3, 7, 8)[::2]
    with torch.no_grad():
        plain, none = logits_of_ctc_head(head, states)
        monkeypatch.setattr(ctc_prefix_scoring, "TOKENS_AT_ONCE", 16)
        logits, totals = logits_of_ctc_head(head, states)
        frames = logits_of_ctc_head(torch.nn.Sequential(head), states)[0]
    assert none is None and logits.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(logits, plain)
    torch.testing.assert_close(frames, plain)
    torch.testing.assert_close(totals, plain.logsumexp(-1))
    assert logits_of_ctc_head(head, states)[1] is None  # where gradients are wanted


def test_tokens_that_nobody_hears_are_scored_exactly_too():
    log_probs = random_log_probs(2, 40, 12).mul(60).log_softmax(-1)  # hundreds of nats between tokens
    scorer = CtcPrefixScorer(log_probs, torch.arange(40) < torch.tensor([[40], [31]]), BLANK, END)
    state = scorer.extend(scorer.start(2), torch.tensor([1, 2, 4, 4]))
    tokens = torch.tensor([[1, 2, 4, 5, 11]] * 4)
    for row, (of_tokens, last) in enumerate(zip(scorer.score(state, tokens).tolist(), [1, 2, 4, 4], strict=True)):
        before = {True: state.ends_in_blank, False: torch.logaddexp(state.ends_in_token, state.ends_in_blank)}
        for token, score in zip(tokens[row].tolist(), of_tokens, strict=True):
            heard = scorer._of_tokens(state.utterance[row : row + 1], torch.tensor([token]))[0].double()
            exact = torch.logsumexp(before[token == last][row, :-1] + heard, dim=-1)
            assert score == pytest.approx(float(exact), rel=1e-6)
