"""Mask-Predict writes texts from their lengths, as published; lengths are learned; a batch is as each clip alone."""

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from lively_models import lively
from test_processing_speech_seq2seq import make
from tiny_models import audio, labels, save_decoder, save_encoder, tiny_config, tiny_model
from tiny_recognizers import noise
from tiny_tokenizers import tiny_tokenizer
from tiny_training import arguments, gradients, repeatable_model, rows
from transformers import Wav2Vec2FeatureExtractor

from speechgraft import SpeechSeq2SeqConfig, SpeechSeq2SeqModel, SpeechSeq2SeqProcessor
from speechgraft.modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer
from speechgraft.processing.mask_ctc_collation import MaskCtcCollator, mask_transcripts

MASK = 1  # the tiny BERT tokenizer's unknown token: it has no mask
LONGEST = 7
FILLS_IN = {"mask_token_id": MASK, "max_predicted_length": LONGEST}
LENGTHS = 9600, 6400, 4000, 12800  # samples


def talkative(**fields: Any) -> Any:
    """A model whose tokens depend on where they stand, on each other, and on what is heard."""
    model: Any = lively("wav2vec2-layer", "bert", volume=10, **FILLS_IN, **fields)
    with torch.no_grad():
        model.decoder.bert.embeddings.position_embeddings.weight.normal_()
        for layer in model.decoder.bert.encoder.layer:
            for parameter in layer.attention.parameters():
                parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return talkative()


def alone(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {name: value[row : row + 1, : LENGTHS[row]] for name, value in inputs.items()}


def length_logits(model: Any, encoded: Any) -> list[float]:
    """Of one clip without padding."""
    frames = [frame.tolist() for frame in encoded.last_hidden_state[0]]
    totals = [sum(values) for values in zip(*frames, strict=True)]
    read = [total / len(frames) for total in totals] + [total / LONGEST for total in totals]
    weights, biases = model.length_head.out.weight.tolist(), model.length_head.out.bias.tolist()
    return [
        sum(w * x for w, x in zip(row, read, strict=True)) + bias for row, bias in zip(weights, biases, strict=True)
    ]


def fill_in(model: Any, encoded: Any, length: int, passes: int) -> tuple[list[int], float]:
    """Of one clip, a text of this length, token by token, and the mean log probability of a token."""
    config = model.config
    special = {MASK, config.pad_token_id, config.decoder_start_token_id, config.eos_token_id}
    tokens, sure, hidden = [MASK] * length, [0.0] * length, list(range(length))
    for done in range(1, passes + 1):
        ids = torch.tensor([[config.decoder_start_token_id, *tokens, config.eos_token_id]])
        log_probs = model(encoder_outputs=encoded, decoder_input_ids=ids).logits[0, 1:].log_softmax(-1).tolist()
        for place in hidden:
            told = [token for token in range(config.vocab_size) if token not in special]
            tokens[place] = max(told, key=lambda token, place=place: log_probs[place][token])
            sure[place] = log_probs[place][tokens[place]]
        hidden = sorted(range(length), key=lambda place: sure[place])[: length * (passes - done) // passes]
        for place in hidden:
            tokens[place] = MASK
    return tokens, sum(sure) / length


@torch.no_grad()
def reference(model: Any, inputs: dict[str, torch.Tensor], candidates: int, passes: int) -> list[int]:
    """One clip, as the paper has it."""
    encoded = model.get_encoder()(**inputs)
    logits = length_logits(model, encoded)
    ranked = sorted(range(LONGEST + 1), key=lambda length: -logits[length])
    tried = [] if ranked[0] == 0 else [length for length in ranked if length > 0][:candidates]
    texts = [fill_in(model, encoded, length, passes) for length in tried]
    best = max(texts, key=lambda text: text[1])[0] if texts else []
    return [model.config.decoder_start_token_id, *best, model.config.eos_token_id]


@pytest.mark.parametrize(("candidates", "passes"), [(1, 1), (1, 4), (3, 3), (5, 10), (50, 2)])
def test_a_batch_is_written_as_the_paper_writes_each_clip(model, candidates, passes):
    inputs = audio("wav2vec2-layer", *LENGTHS)
    found = model.generate_masked(**inputs, length_candidates=candidates, passes=passes)
    texts = [reference(model, alone(inputs, row), candidates, passes) for row in range(len(LENGTHS))]
    assert len({*map(tuple, texts)}) > 1, "the model says the same of everything"
    for row, expected in zip(found, texts, strict=True):
        assert row[: len(expected)].tolist() == expected
        assert (row[len(expected) :] == model.config.pad_token_id).all()
    assert MASK not in found and found.shape[1] == max(map(len, texts))


def test_five_lengths_are_tried_unless_told_otherwise_and_none_is_longer_than_allowed(model):
    inputs = audio("wav2vec2-layer", *LENGTHS)
    assert torch.equal(
        model.generate_masked(**inputs), model.generate_masked(**inputs, length_candidates=5, passes=10)
    )
    assert not torch.equal(model.generate_masked(**inputs), model.generate_masked(**inputs, length_candidates=1))
    assert not torch.equal(model.generate_masked(**inputs), model.generate_masked(**inputs, passes=1))
    short = model.generate_masked(**inputs, max_new_tokens=2)
    assert short.shape[1] <= 4 and MASK not in short


def test_where_no_token_is_likeliest_the_text_is_empty():
    model = talkative()
    inputs = audio("wav2vec2-layer", *LENGTHS)
    start, end, pad = (getattr(model.config, f"{name}_token_id") for name in ("decoder_start", "eos", "pad"))
    told = model.generate_masked(**inputs)
    with torch.no_grad():  # silent below the median of what the head makes of no token at all
        encoded = model.get_encoder()(**inputs)
        logits = model.length_head(encoded.last_hidden_state, encoded.attention_mask)
        margin = logits[:, 1:].amax(dim=1) - logits[:, 0]
        model.length_head.out.bias[0] += margin.sort().values[1:3].mean()
    found = model.generate_masked(**inputs)
    silent = margin <= margin.sort().values[1]
    assert silent.sum() == 2
    for row, text, before in zip(silent, found, told, strict=True):
        expected = [start, end] if row else [token for token in before.tolist() if token != pad]
        assert [token for token in text.tolist() if token != pad] == expected
    with torch.no_grad():
        model.length_head.out.bias[0] += 1000
    assert model.generate_masked(**inputs).tolist() == [[start, end]] * 4


def test_with_a_ctc_head_its_transcripts_are_mended_unless_lengths_are_asked_for():
    both = talkative(ctc_weight=0.3)
    inputs = audio("wav2vec2-layer", *LENGTHS)
    mended = both.generate_masked(**inputs)
    assert torch.equal(mended, both.generate_masked(**inputs, threshold=0.999))
    both.length_head = None
    assert torch.equal(mended, both.generate_masked(**inputs))
    spelled = talkative(ctc_weight=0.3, ctc_characters="ab")
    from_length = spelled.generate_masked(**inputs, length_candidates=2, passes=3)
    for row, found in enumerate(from_length):
        expected = reference(spelled, alone(inputs, row), 2, 3)
        assert found[: len(expected)].tolist() == expected


def batch_of(model: Any, count: int = 8) -> dict[str, torch.Tensor]:
    parts = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True), tiny_tokenizer("bert")
    processor = SpeechSeq2SeqProcessor.from_parts(*parts, config=model.config)
    return MaskCtcCollator(processor, model.config, generator=torch.Generator().manual_seed(3))(rows(count))


@pytest.mark.parametrize("fields", [{}, {"ctc_weight": 0.3}, {"ctc_weight": 0.3, "ctc_characters": "abcdehlnorstuw "}])
def test_accumulated_gradients_are_those_of_the_whole_batch(fields):
    model = repeatable_model(**FILLS_IN, **fields).train()
    batch = batch_of(model)
    whole, loss = gradients(model, **batch), model(**batch)
    assert "length_head.out.weight" in whole
    count = (batch["labels"] != -100).sum()
    for size in (2, 1):
        model.zero_grad(set_to_none=True)
        parts = [
            model(**{name: value[first : first + size] for name, value in batch.items()}, num_items_in_batch=count)
            for first in range(0, 8, size)
        ]
        sum(part.loss for part in parts).backward()
        for name in ("loss", "length_loss", "decoder_loss"):
            assert sum(part[name].item() for part in parts) == pytest.approx(loss[name].item(), rel=1e-4)
        for name, parameter in model.named_parameters():
            if name in whole:
                torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_length_loss_is_the_cross_entropy_of_each_length_over_all_labels(model):
    batch = batch_of(model)
    lengths = [len(row["text"].split()) for row in rows()]
    assert batch["transcript_lengths"].tolist() == lengths
    with torch.no_grad():
        found = model(**batch)
        total = 0.0
        for row, length in enumerate(lengths):
            one = {"input_values": batch["input_values"][row : row + 1, : 3200 + 640 * row]}
            logits = torch.tensor(length_logits(model, model.get_encoder()(**one)))
            total -= float(logits.log_softmax(-1)[length])
    n_labels = int((batch["labels"] != -100).sum())
    assert float(found.length_loss) == pytest.approx(total / n_labels, rel=1e-3)
    assert float(found.loss) == pytest.approx(float(found.decoder_loss + found.length_loss), rel=1e-5)


def test_the_trainer_logs_the_length_loss_however_a_step_is_divided(tmp_path):
    logged = []
    for size in (8, 2, 1):
        model = repeatable_model(**FILLS_IN)
        batch = batch_of(model)
        dataset = [{name: value[row] for name, value in batch.items()} for row in range(8)]
        trainer = SpeechSeq2SeqTrainer(
            model=model,
            args=arguments(
                tmp_path,
                num_train_epochs=1,
                learning_rate=0.0,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
            ),
            train_dataset=dataset,
            data_collator=lambda some: {name: torch.stack([row[name] for row in some]) for name in some[0]},
        )
        trainer.train()
        logged.append(trainer.state.log_history[0])
    for name in ("loss", "length_loss", "decoder_loss", "grad_norm"):
        for entry in logged:
            assert entry[name] == pytest.approx(logged[0][name], rel=1e-4), name
    assert logged[0]["loss"] == pytest.approx(logged[0]["decoder_loss"] + logged[0]["length_loss"], rel=1e-4)


def test_silence_has_a_length_to_learn_and_a_row_without_labels_has_none(model):
    end = model.config.eos_token_id
    given = torch.tensor([[5, 6, end], [end, -100, -100], [-100, -100, -100]])
    batch = mask_transcripts(given, model.config)
    assert batch["transcript_lengths"].tolist() == [2, 0, -100]
    inputs = audio("wav2vec2-layer", 6400, 6400, 6400)
    output = model(**inputs, **{name: value for name, value in batch.items() if name != "ctc_targets"})
    expected = -output.length_logits.log_softmax(-1)[[0, 1], [2, 0]].sum() / (batch["labels"] != -100).sum()
    torch.testing.assert_close(output.length_loss, expected)


def test_four_clips_are_learned_by_heart_and_decoded_exactly(tmp_path):
    model = tiny_model("wav2vec2-layer", "bert", scale=1.0, **FILLS_IN)
    processor = make("wav2vec2", "bert")
    collate = MaskCtcCollator(processor, model.config, generator=torch.Generator().manual_seed(0))
    texts = ["hello world", "one two three", "the cat sat the cat", "a b c d"]
    clips = [{"audio": noise(0.2 + 0.05 * seed, seed), "text": text} for seed, text in enumerate(texts)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        model(**collate(clips)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    loaded = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    inputs = {name: value for name, value in collate(clips).items() if name in ("input_values", "attention_mask")}
    for one in (model, loaded):
        assert processor.batch_decode(one.generate_masked(**inputs), skip_special_tokens=True) == texts
    assert processor.batch_decode(loaded.generate_masked(**inputs, length_candidates=1, passes=1)) == [
        f"[CLS] {text} [SEP]" + " [PAD]" * (5 - len(text.split())) for text in texts
    ]


def test_the_head_is_new_in_a_warm_start_kept_when_saved_and_known_to_whoever_saves_adapters(tmp_path):
    save_encoder(tmp_path / "encoder", "wav2vec2-layer")
    save_decoder(tmp_path / "decoder", "bert", tokenizer=True)
    parts = tmp_path / "encoder", tmp_path / "decoder"
    model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(*parts, **FILLS_IN)
    assert "length_head" in model.config.newly_initialized
    assert not model.length_head.out.bias.any() and 0.01 < model.length_head.out.weight.std().item() < 0.04
    model.save_pretrained(tmp_path / "model")
    loaded = SpeechSeq2SeqModel.from_pretrained(tmp_path / "model")
    assert loaded.config.max_predicted_length == LONGEST
    assert torch.equal(loaded.length_head.out.weight, model.length_head.out.weight)
    more = SpeechSeq2SeqModel.from_pretrained(tmp_path / "model", ctc_weight=0.3)
    assert torch.equal(more.length_head.out.weight, model.length_head.out.weight) and more.ctc_head is not None


def test_recordings_of_any_length_are_written_and_their_words_timed_by_attention(model):
    processor = make("wav2vec2", "bert")
    clips = [noise(length_s, seed) for seed, length_s in enumerate((2.3, 0.5, 1.1))]
    settings = {"min_chunk_s": 0.4, "max_chunk_s": 0.8, "overlap_s": 0.1, "generate_kwargs": {"passes": 3}}
    together = model.transcribe(clips, processor, batch_size=4, **settings)
    for clip, found in zip(clips, together, strict=True):
        alone = model.transcribe(clip, processor, batch_size=1, **settings)
        assert alone.text == found.text and len(found.text) > 0
        times = [time for word in found.words for time in (word.start_s, word.end_s)]
        assert times == sorted(times) and times[-1] <= found.duration_s + 1e-6
    with pytest.raises(ValueError, match=r"threshold=0\.5 is of what the CTC head hears"):
        model.transcribe(clips[0], processor, generate_kwargs={"threshold": 0.5})


def test_what_cannot_work_is_told(model):
    inputs = audio("wav2vec2-layer", 6400)
    with pytest.raises(ValueError, match="no place for a length head or a decoder that fills in masked tokens"):
        model.to_native()
    with pytest.raises(ValueError, match=r"call generate_masked\(\)"):
        model.generate(**inputs)
    with pytest.raises(ValueError, match=r"threshold=0\.5 is of what the CTC head hears"):
        model.generate_masked(**inputs, threshold=0.5)
    with pytest.raises(ValueError, match="passes=0: without a run"):
        model.generate_masked(**inputs, passes=0)
    with pytest.raises(ValueError, match="length_candidates is at least 1, not 0"):
        model.generate_masked(**inputs, length_candidates=0)
    heard = tiny_model("wav2vec2-layer", mask_token_id=MASK, ctc_weight=0.3)
    with pytest.raises(ValueError, match="length_candidates=3: the model has no length head"):
        heard.generate_masked(**inputs, length_candidates=3)
    with pytest.raises(StrictDataclassError, match="max_predicted_length must be at least 1, got 0"):
        SpeechSeq2SeqConfig(mask_token_id=MASK, max_predicted_length=0)
    with pytest.raises(StrictDataclassError, match="max_predicted_length=5: a decoder that writes from left to right"):
        tiny_config("wav2vec2-layer", "bert", max_predicted_length=5)
    batch = mask_transcripts(labels(LONGEST + 2, end=model.config.eos_token_id), model.config)
    with pytest.raises(
        ValueError, match=f"a transcript has {LONGEST + 1} tokens, but max_predicted_length is {LONGEST}"
    ):
        model(**inputs, **batch)
    del batch["transcript_lengths"]
    with pytest.raises(ValueError, match="needs transcript_lengths: use MaskCtcCollator"):
        model(**inputs, **batch)
    collate = MaskCtcCollator(make("wav2vec2", "bert"), model.config)
    collate([{"audio": noise(0.3), "text": "a " * LONGEST}])
    with pytest.raises(
        ValueError, match=f"row 0 of the batch.*: {LONGEST + 2} label tokens, but the limit is {LONGEST + 1}"
    ):
        collate([{"audio": noise(0.3), "text": "a " * (LONGEST + 1)}])
