"""Mask-CTC keeps what the CTC head is sure of, and fills in the rest as published, in batches as alone."""

import itertools
from typing import Any

import pytest
import torch
from lively_models import lively
from test_processing_speech_seq2seq import make
from tiny_models import audio, decoder_config, labels, tiny_model
from tiny_recognizers import noise
from transformers import BertForMaskedLM

from speechgraft import SpeechSeq2SeqModel
from speechgraft.modeling.mask_ctc import greedy_with_confidence
from speechgraft.modeling.publishing import model_card
from speechgraft.modeling.speech_timestamps import score_texts
from speechgraft.processing.mask_ctc_collation import MaskCtcCollator, mask_transcripts

MASK = 1  # the tiny BERT tokenizer's unknown token: it has no mask


@pytest.fixture(scope="module")
def model() -> Any:
    return lively("wav2vec2-layer", "bert", ctc_weight=0.3, mask_token_id=MASK)


def reference(model: Any, inputs: dict[str, torch.Tensor], threshold: float, passes: int) -> list[int]:
    """One clip, token by token, as the paper has it."""
    config = model.config
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
        probs = model.ctc_head(encoded.last_hidden_state)[0].softmax(-1)
    frames = [(int(frame.argmax()), float(frame.max())) for frame in probs]
    runs = [(token, list(run)) for token, run in itertools.groupby(frames, key=lambda frame: frame[0])]
    said = [(token, max(p for _, p in run)) for token, run in runs if token != model.ctc_blank]
    tokens = [
        config.decoder_start_token_id,
        *(MASK if p < threshold else token for token, p in said),
        config.eos_token_id,
    ]
    places = {place for place, (_, p) in enumerate(said, start=1) if p < threshold}
    share = max(len(places) // passes, 1)
    for left in reversed(range(passes)):
        with torch.no_grad():
            logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([tokens])).logits[0].softmax(-1)
        for special in (MASK, config.pad_token_id, config.decoder_start_token_id, config.eos_token_id):
            logits[:, special] = 0
        surest = sorted(places, key=lambda place: -float(logits[place].max()))
        for place in surest[: share if left else None]:
            tokens[place] = int(logits[place].argmax())
            places.remove(place)
    return tokens


@pytest.mark.parametrize(("threshold", "passes"), [(1.1, 1), (1.1, 3), (0.9, 2), (0.9, 50), (0.6, 4)])
def test_a_batch_fills_in_as_the_paper_does_each_row(model, threshold, passes):
    inputs = audio("wav2vec2-layer", 9600, 6400, 4000)
    found = model.generate_masked(**inputs, threshold=threshold, passes=passes)
    for row, length in enumerate((9600, 6400, 4000)):
        alone = {name: value[row : row + 1, :length] for name, value in inputs.items()}
        expected = reference(model, alone, threshold, passes)
        assert found[row, : len(expected)].tolist() == expected
        assert (found[row, len(expected) :] == model.config.pad_token_id).all()
    assert MASK not in found


def test_without_a_doubt_or_a_pass_the_text_is_that_of_the_ctc_head(model):
    inputs = audio("wav2vec2-layer", 9600, 6400)
    sure = model.generate_masked(**inputs, threshold=0.0)
    assert torch.equal(sure, model.generate_masked(**inputs, passes=0))
    assert not torch.equal(sure, model.generate_masked(**inputs, threshold=1.1, passes=1))
    runs: list[int] = []
    hook = model.decoder.register_forward_hook(lambda *_: runs.append(1))
    model.generate_masked(**inputs, threshold=1.1, passes=3)
    hook.remove()
    assert len(runs) == 3


def test_a_transcript_that_is_too_long_is_cut_and_not_an_error():
    """Before it has learned to be silent, a CTC head may say more than the decoder has positions for."""
    short = decoder_config("bert", max_position_embeddings=6)
    model = lively("wav2vec2-layer", short, ctc_weight=0.3, mask_token_id=MASK)
    inputs = audio("wav2vec2-layer", 9600, 6400)
    longest = model.generate_masked(**inputs)
    assert longest.shape == (2, 6) and (longest[:, -1] == model.config.eos_token_id).all()
    cut = model.generate_masked(**inputs, max_new_tokens=2, threshold=0.0)
    assert (cut[:, 3] == model.config.eos_token_id).all() and cut.shape == (2, 4)


@pytest.mark.parametrize("with_attentions", [False, True])
def test_each_token_of_a_text_is_scored_while_it_is_hidden(model, with_attentions):
    config, inputs = model.config, audio("wav2vec2-layer", 9600, 6400)
    tokenizer = make("wav2vec2", "bert").tokenizer
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
    start, end = config.decoder_start_token_id, config.eos_token_id
    texts = [[7, 8, 9, 10, 11], [12, 5]]
    sequences = torch.tensor([[start, *texts[0], end], [start, *texts[1], end, 0, 0, 0]])
    scored = score_texts(model, tokenizer, encoded, sequences, with_attentions)
    for row, (text, found) in enumerate(zip(texts, scored, strict=True)):
        alone = {name: value[row : row + 1, : (9600, 6400)[row]] for name, value in inputs.items()}
        expected, attentions = [], []
        for place, token in enumerate(text):
            hidden = [MASK if other % 2 == place % 2 else token_id for other, token_id in enumerate(text)]
            with torch.no_grad():
                told = model(**alone, decoder_input_ids=torch.tensor([[start, *hidden, end]]), output_attentions=True)
            expected.append(float(told.logits[0, 1 + place].log_softmax(-1)[token]))
            attentions.append(torch.cat([layer[0, :, 1 + place] for layer in told.cross_attentions[1:]]))
        assert found.token_ids == text
        assert found.log_probs == pytest.approx(expected, abs=1e-4)
        assert found.mean_log_prob == pytest.approx(sum(expected) / len(expected), abs=1e-4)
        if with_attentions:
            frames = attentions[0].shape[-1]
            torch.testing.assert_close(
                found.attentions[:, :-1, :frames], torch.stack(attentions, 1), rtol=1e-3, atol=1e-5
            )


def test_recordings_of_any_length_are_filled_in_and_what_does_not_apply_is_told(model):
    processor = make("wav2vec2", "bert")
    clips = [noise(length_s, seed) for seed, length_s in enumerate((2.3, 0.5, 1.1))]
    settings = {"min_chunk_s": 0.4, "max_chunk_s": 0.8, "overlap_s": 0.1, "generate_kwargs": {"passes": 3}}
    together = model.transcribe(clips, processor, batch_size=4, **settings)
    for clip, found in zip(clips, together, strict=True):
        alone = model.transcribe(clip, processor, batch_size=1, **settings)
        assert alone.text == found.text and len(found.text) > 0
        assert [word.start_s for word in found.words] == pytest.approx([word.start_s for word in alone.words])
    words = model.align(clips[0], "hello world", processor)
    assert [word.text for word in words] == ["hello", "world"] and all(0 <= word.confidence <= 1 for word in words)
    for refused in (
        {"num_beams": 2},
        {"n_best": 2, "num_beams": 2},
        {"ctc_weight": 0.2},
        {"temperatures": (0.0, 0.5)},
        {"initial_prompt": "a"},
        {"generate_kwargs": {"hot_words": [[5]]}},
    ):
        name = next(iter(refused.get("generate_kwargs", refused)))
        with pytest.raises(ValueError, match=rf"{name}.*: the decoder fills in masked tokens"):
            model.transcribe(clips[0], processor, **refused)


def test_a_token_is_as_sure_as_its_surest_frame():
    probs = torch.full((1, 6, 4), 0.01)
    for frame, (token, p) in enumerate(((1, 0.5), (1, 0.8), (0, 0.9), (1, 0.6), (2, 0.7), (3, 0.9))):
        probs[0, frame, token] = p
    assert greedy_with_confidence(probs.log(), None, 0)[0] == ([1, 1, 2, 3], pytest.approx([0.8, 0.6, 0.7, 0.9]))
    mask = torch.arange(6)[None] < 4
    assert greedy_with_confidence(probs.log(), mask, 0)[0] == ([1, 1], pytest.approx([0.8, 0.6]))


def test_the_decoder_sees_both_sides_as_the_masked_language_model_that_it_was():
    """With cross-attention that says nothing, a BERT decoder is BertForMaskedLM on the same weights."""
    torch.manual_seed(0)
    native = BertForMaskedLM(decoder_config("bert", is_decoder=False)).eval()
    model = tiny_model("wav2vec2-layer", "bert", mask_token_id=MASK)
    model.decoder.load_state_dict(native.state_dict(), strict=False)
    with torch.no_grad():
        for layer in model.decoder.bert.encoder.layer:
            layer.crossattention.output.dense.weight.zero_()
            for bias in (layer.crossattention.output.dense.bias, layer.crossattention.output.LayerNorm.bias):
                bias.zero_()
    ids, mask = torch.tensor([[2, 7, MASK, 9, 3], [2, 8, MASK, 3, 0]]), torch.tensor([[1] * 5, [1] * 4 + [0]])
    inputs = audio("wav2vec2-layer", 6400, 6400)
    with torch.no_grad():
        found = model(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask).logits
        expected = native(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("decoder", "attention"),
    [*itertools.product(["roberta", "gpt2", "bart", "whisper", "m2m_100"], ["eager", "sdpa"]), ("xglm", None)],
)
def test_every_family_sees_what_comes_later_and_no_padding(decoder, attention):
    model = lively("wav2vec2-layer", decoder, mask_token_id=6)
    if attention is not None:
        model.decoder.set_attn_implementation(attention)
    inputs = audio("wav2vec2-layer", 6400)
    start = model.config.decoder_start_token_id

    def read(*ids: int, real: int) -> torch.Tensor:
        mask = (torch.arange(len(ids)) < real).long()[None]
        with torch.no_grad():
            return model(**inputs, decoder_input_ids=torch.tensor([ids]), decoder_attention_mask=mask).logits[0, :real]

    one = read(start, 7, 6, 9, real=4)
    assert (one[:3] - read(start, 7, 6, 8, real=4)[:3]).abs().amax(dim=-1).min() > 1e-3
    torch.testing.assert_close(one, read(start, 7, 6, 9, 11, 12, real=4), rtol=1e-4, atol=1e-4)


def test_what_is_masked_is_learned_and_nothing_else(model):
    config = model.config
    given = labels(6, 3, 9, end=config.eos_token_id)
    counts = []
    for seed in range(300):
        batch = mask_transcripts(given, config, torch.Generator().manual_seed(seed))
        told = batch["labels"] != -100
        assert (batch["decoder_input_ids"][told] == MASK).all()
        assert torch.equal(batch["labels"][told], given[told[:, 1:]])
        unmasked = torch.where(told, batch["labels"], batch["decoder_input_ids"])[:, 1:]
        assert torch.equal(unmasked, given.masked_fill(given == -100, config.pad_token_id))
        assert torch.equal(batch["decoder_attention_mask"].sum(dim=1), torch.tensor([7, 4, 10]))
        assert torch.equal(batch["ctc_targets"][given == config.eos_token_id], torch.tensor([-100] * 3))
        counts.append(told.sum(dim=1))
    drawn = torch.stack(counts)
    for row, length in enumerate((5, 2, 8)):  # each number of tokens as often as the others
        share = torch.bincount(drawn[:, row], minlength=length + 1)[1:] / 300
        assert (share - 1 / length).abs().max() < 0.1
        assert len(share) == length


def test_a_model_learns_to_fill_in(tmp_path):
    """On two clips, from batches of the collator, with the CTC loss beside; and it is loaded as it was."""
    model = tiny_model("wav2vec2-layer", "bert", scale=1.0, ctc_weight=0.3, mask_token_id=MASK)
    processor = make("wav2vec2", "bert")
    collate = MaskCtcCollator(processor, model.config, generator=torch.Generator().manual_seed(0))
    rows = [{"audio": noise(0.2, seed), "text": text} for seed, text in enumerate(("hello world", "one two three"))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    outputs = []
    for _ in range(60):
        outputs.append(model(**collate(rows)))
        outputs[-1].loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert outputs[-1].ctc_loss < 0.5 * outputs[0].ctc_loss
    assert sum(output.decoder_loss for output in outputs[-10:]) / 10 < 0.5 * outputs[0].decoder_loss
    model.save_pretrained(tmp_path)
    loaded = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    inputs = {name: value for name, value in collate(rows).items() if name in ("input_values", "attention_mask")}
    assert torch.equal(loaded.generate_masked(**inputs), model.generate_masked(**inputs))


def test_the_card_of_a_published_model_tells_how_it_is_used(model):
    card = str(model_card(model))
    assert "tokens = model.generate_masked(**processor(" in card and "which fills in masked tokens" in card
    assert "model.generate(**processor(" in str(model_card(tiny_model("wav2vec2-layer")))


def test_what_cannot_work_is_told(model):
    inputs = audio("wav2vec2-layer", 6400)
    with pytest.raises(ValueError, match=r"call generate_masked\(\)"):
        model.generate(**inputs)
    with pytest.raises(ValueError, match="needs decoder_input_ids: use MaskCtcCollator"):
        model(**inputs, labels=labels(4, end=3))
    with pytest.raises(ValueError, match="the decoder writes from left to right"):
        tiny_model("wav2vec2-layer", ctc_weight=0.3).generate_masked(**inputs)
    with pytest.raises(ValueError, match="needs a CTC head on the decoder's vocabulary"):
        tiny_model("wav2vec2-layer", mask_token_id=MASK).generate_masked(**inputs)
    with pytest.raises(TypeError, match="does not know num_beams"):
        model.generate_masked(**inputs, num_beams=3)
    with pytest.raises(ValueError, match="mask_token_id is not set"):
        MaskCtcCollator(make("wav2vec2", "bert"), tiny_model("wav2vec2-layer").config)
