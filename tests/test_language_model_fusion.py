"""Language models have the say that the formula gives them, with a cache as without one, in every search."""

import itertools
from typing import Any

import pytest
import torch
from lively_models import lively
from tiny_models import VOCABULARY, audio, randomize
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    MambaConfig,
    MambaForCausalLM,
)

from speechgraft.modeling.ctc_decoding import prefix_beam_search
from speechgraft.modeling.language_model_fusion import CausalLanguageModel, InternalLanguageModel

START, END = 2, 3  # of the BERT decoder
LAYERS: dict[str, Any] = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "hidden_size": 16}


def gpt2(**options: Any) -> GPT2LMHeadModel:
    torch.manual_seed(5)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=32, **options)
    return randomize(GPT2LMHeadModel(config)).eval()


def llama() -> Any:
    config = LlamaConfig(**LAYERS, num_attention_heads=2, intermediate_size=24, bos_token_id=START, eos_token_id=END)
    return LlamaForCausalLM(config)


def bert() -> Any:
    return BertLMHeadModel(BertConfig(**LAYERS, num_attention_heads=2, intermediate_size=24, is_decoder=True))


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(**LAYERS, state_size=4, bos_token_id=START, eos_token_id=END))


class NaiveLanguageModel(LogitsProcessor):
    """Reads the whole of every hypothesis at every step; `end` is what the language model says at the end."""

    def __init__(self, model: Any, weight: float, start: int, end: int = END):
        self.model, self.weight, self.start, self.end = model, weight, start, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        text = input_ids.clone()
        text[:, 0] = self.start  # in place of the decoder's own
        with torch.no_grad():
            log_probs = self.model(text, use_cache=False).logits[:, -1].log_softmax(-1)
        log_probs[:, END] = log_probs[:, self.end]
        return scores + self.weight * log_probs


class NaiveInternal(LogitsProcessor):
    """The decoder on zeros as long as the encoder's output, without a cache."""

    def __init__(self, model: Any, weight: float, frames: int):
        self.model, self.weight, self.frames = model, weight, frames

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        silence = torch.zeros(len(input_ids), self.frames, self.model.config.decoder.hidden_size)
        with torch.no_grad():
            output = self.model.decoder(input_ids, encoder_hidden_states=silence, use_cache=False)
        return scores - self.weight * output.logits[:, -1].log_softmax(-1)


@pytest.fixture(scope="module")
def model() -> Any:
    return lively("wav2vec2-layer", "bert", ctc_weight=0.3)


SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 4},
    {"num_beams": 3, "ctc_weight": 0.4, "num_return_sequences": 3},
    {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
]


@pytest.mark.parametrize("options", SEARCHES, ids=str)
def test_beams_that_trade_places_score_as_without_a_cache(model, options):
    inputs = audio("wav2vec2-layer", 9600, 6400)
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, **options}
    lm = gpt2(bos_token_id=1, eos_token_id=4)
    found = model.generate(
        **inputs, **options, language_model=lm, language_model_weight=0.7, internal_language_model_weight=0.4
    )
    naive = [NaiveLanguageModel(lm, 0.7, start=1, end=4), NaiveInternal(model, 0.4, frames=29)]
    expected = model.generate(**inputs, **options, logits_processor=naive)
    assert torch.equal(found.sequences, expected.sequences)
    assert not torch.equal(found.sequences, model.generate(**inputs, **options).sequences)
    if "num_beams" in options:
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [llama, bert, mamba])
def test_language_models_of_any_class(model, make):
    torch.manual_seed(7)
    lm = randomize(make()).eval()
    inputs = audio("wav2vec2-layer", 9600, 6400)
    options = {"max_new_tokens": 6, "num_beams": 3}
    found = model.generate(**inputs, **options, language_model=lm, language_model_weight=1.5)
    start = START if lm.config.bos_token_id is None else lm.config.bos_token_id
    end = END if lm.config.eos_token_id is None else lm.config.eos_token_id
    naive = NaiveLanguageModel(lm, 1.5, start=start, end=end)
    assert torch.equal(found, model.generate(**inputs, **options, logits_processor=[naive]))


def test_the_cache_is_found_again_however_hypotheses_move():
    lm = gpt2(bos_token_id=1, eos_token_id=4)
    scorer = CausalLanguageModel(lm)
    reads: list[int] = []
    lm.register_forward_pre_hook(lambda _, __, kwargs: reads.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    steps = [
        [[]] * 3,
        [[5], [6], [7]],
        [[7, 5], [7, 7], [5, 6]],
        [[7, 7, 5], [5, 6, 6], [7, 7, 5]],  # twice the same
        [[7, 7, 5, 9], [7, 7, 5, 8], [5, 6, 6, 5], [5, 6, 6, 4]],  # one more than before
        [[8, 8], [9, 9]],  # begun anew
        [[8, 8], [9, 9]],
    ]
    for step in steps:
        said = torch.tensor(step, dtype=torch.long).reshape(len(step), -1)
        text = torch.cat([torch.ones(len(step), 1, dtype=torch.long), said], dim=1)
        with torch.no_grad():
            expected = lm(input_ids=text, use_cache=False).logits[:, -1].log_softmax(-1)
        torch.testing.assert_close(scorer(said), expected, rtol=1e-4, atol=1e-5)
    assert reads[1::2] == [1, 1, 1, 1, 1, 3, 3]  # after each full reading by the test, the scorer's own


def test_a_wide_beam_finds_the_transcript_that_is_best_of_all(model):
    """By the sum of all three, over every transcript of up to two tokens."""
    inputs = {name: value[:1] for name, value in audio("wav2vec2-layer", 2400).items()}
    lm, end = gpt2(bos_token_id=START, eos_token_id=END), model.config.eos_token_id
    best, best_score = (), float("-inf")
    for length in range(3):
        texts = [t for t in itertools.product(range(VOCABULARY), repeat=length) if end not in t]
        labels = torch.tensor([[*text, end] for text in texts])
        decoder_inputs = torch.tensor([[START, *text] for text in texts])
        copies = {name: value.expand(len(texts), -1) for name, value in inputs.items()}
        with torch.no_grad():
            heard = model(**copies, labels=labels).logits.log_softmax(-1)
            read = lm(decoder_inputs).logits.log_softmax(-1)
            silence = torch.zeros(len(texts), 1, 12)
            expected = model.decoder(decoder_inputs, encoder_hidden_states=silence).logits.log_softmax(-1)
        scores = (heard + 0.6 * read - 0.2 * expected).gather(-1, labels[..., None]).sum(dim=(1, 2)) / (length + 1)
        if float(scores.max()) > best_score:
            best, best_score = texts[int(scores.argmax())], float(scores.max())
    everything = list(range(VOCABULARY))
    found = model.generate(
        **inputs,
        num_beams=400,
        max_new_tokens=3,
        prefix_allowed_tokens_fn=lambda _, ids: [end] if len(ids) == 3 else everything,
        language_model=lm,
        language_model_weight=0.6,
        internal_language_model_weight=0.2,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = found.sequences[0, 1:].tolist()
    assert tuple(tokens[: tokens.index(end)]) == best
    assert float(found.sequences_scores[0]) == pytest.approx(best_score, abs=1e-3)


def test_silence_is_silence_however_long(model):
    said = torch.tensor([[START, 7, 8], [START, 9, 7]])
    found = InternalLanguageModel(model.decoder)(said)
    with torch.no_grad():
        output = model.decoder(said, encoder_hidden_states=torch.zeros(2, 50, 12))
    torch.testing.assert_close(found, output.logits[:, -1].log_softmax(-1), rtol=1e-4, atol=1e-5)


def test_ctc_search_takes_a_neural_language_model():
    lm = gpt2(bos_token_id=1, eos_token_id=4)
    log_probs = torch.randn(1, 4, VOCABULARY, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(-1)
    scorer = CausalLanguageModel(lm)

    def naive(prefixes: list[tuple[int, ...]], ended: bool) -> list[float]:
        scores = []
        for prefix in prefixes:
            with torch.no_grad():
                steps = lm(torch.tensor([[1, *prefix]])).logits[0].log_softmax(-1)
            targets = [*prefix, 4] if ended else prefix
            scores.append(float(sum(steps[place, token] for place, token in enumerate(targets))))
        return scores

    options: dict[str, Any] = {"num_beams": 6, "language_model_weight": 0.8, "tokens_per_frame": 5}
    found = prefix_beam_search(log_probs, None, 0, language_model=scorer.prefix_scores, **options)[0]
    expected = prefix_beam_search(log_probs, None, 0, language_model=naive, **options)[0]
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_faults_are_told_in_a_line(model, caplog):
    inputs = audio("wav2vec2-layer", 6400)
    small = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=7, bos_token_id=1, eos_token_id=4))
    with pytest.raises(ValueError, match="the language model tells 7 tokens apart, the decoder 20"):
        model.generate(**inputs, max_new_tokens=3, language_model=small.eval())
    lm = gpt2(bos_token_id=1, eos_token_id=4)
    lm.config.n_positions = 3
    with pytest.raises(ValueError, match="positions for 3 tokens"):
        model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, language_model=lm)
    with pytest.raises(ValueError, match="names no token that starts or ends"):
        CausalLanguageModel(bert())
