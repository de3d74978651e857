"""Training a speech-to-text model, by hand and with Transformers' trainers, against independent computations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import audio, labels, tiny_model
from tiny_training import arguments, collator, gradients, repeatable_model, rows, train
from transformers import Seq2SeqTrainer, SpeechEncoderDecoderModel, Trainer

from speechgraft.modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer

LAYOUTS = [(8, 1), (2, 4), (1, 8)]  # batch, accumulation: always the same 8 clips in one optimiser step
AS_EQUAL = {"rel": 1e-4}


def layout(batch: int, accumulation: int) -> dict[str, int]:
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}


def mean_cross_entropy(model: Any, batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> float:
    """Per label, from the logits alone: -(1 - smoothing) log p(label) - smoothing * mean over the vocabulary."""
    with torch.no_grad():
        log_probs = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.log_softmax(-1)
    terms = [
        -(1 - smoothing) * float(log_probs[row, place, label]) - smoothing * float(log_probs[row, place].mean())
        for row, line in enumerate(batch["labels"].tolist())
        for place, label in enumerate(line)
        if label != -100
    ]
    return sum(terms) / len(terms)


# Gradient accumulation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_gradient_accumulation_changes_neither_loss_nor_gradient_norm(tmp_path: Path, ctc_weight: float) -> None:
    logged = []
    for batch, accumulation in LAYOUTS:
        model = repeatable_model(ctc_weight=ctc_weight)
        logged.append(train(SpeechSeq2SeqTrainer, model, tmp_path, **layout(batch, accumulation))[1][0])
    parts = ["loss", "grad_norm", "decoder_loss"] + (["ctc_loss"] if ctc_weight else [])
    for other in logged[1:]:
        for name in parts:
            assert other[name] == pytest.approx(logged[0][name], **AS_EQUAL), name
    model = repeatable_model(ctc_weight=ctc_weight)
    assert logged[0]["decoder_loss"] == pytest.approx(mean_cross_entropy(model, collator(model)(rows())), **AS_EQUAL)
    if ctc_weight:
        assert logged[0]["loss"] == pytest.approx(0.7 * logged[0]["decoder_loss"] + 0.3 * logged[0]["ctc_loss"])


def test_native_class_multiplies_loss_and_gradients_by_accumulation(tmp_path: Path) -> None:
    losses = []
    for batch, accumulation in LAYOUTS[:2]:
        ours = repeatable_model()
        native = ours.to_native()
        native.config.decoder_start_token_id, native.config.pad_token_id = 2, 0
        trainer = Seq2SeqTrainer(
            model=native,
            args=arguments(tmp_path, num_train_epochs=1, **layout(batch, accumulation)),
            train_dataset=rows(),
            data_collator=collator(ours),
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] / losses[0] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_a_loop_by_hand_accumulates_the_same_gradients(ctc_weight: float) -> None:
    model = repeatable_model(ctc_weight=ctc_weight).train()
    collate, dataset = collator(model), rows()
    whole = gradients(model, **collate(dataset))
    count = (collate(dataset)["labels"] != -100).sum()
    model.zero_grad(set_to_none=True)
    for first in range(0, 8, 2):
        model(**collate(dataset[first : first + 2]), num_items_in_batch=count).loss.backward()
    for name, parameter in model.named_parameters():
        if name in whole:
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_a_batch_without_any_label_gives_zero_and_no_nan(ctc_weight: float) -> None:
    model = repeatable_model(ctc_weight=ctc_weight).train()
    ignored = torch.full((2, 4), -100)
    for items in (None, torch.tensor(0), torch.tensor(5)):
        model.zero_grad()
        loss = model(**audio("wav2vec2", 8000, 6000), labels=ignored, num_items_in_batch=items).loss
        loss.backward()
        assert float(loss.detach()) == 0
        assert not any(value.grad.any() for value in model.parameters() if value.grad is not None)


def test_a_clip_without_labels_does_not_change_the_step() -> None:
    model = repeatable_model(ctc_weight=0.5)
    batch = audio("wav2vec2", 8000, 6000)
    transcripts = labels(4, 3, end=model.config.eos_token_id)
    alone = model(**{name: value[:1] for name, value in batch.items()}, labels=transcripts[:1])
    transcripts[1] = -100
    both = model(**batch, labels=transcripts)
    torch.testing.assert_close(both.decoder_loss, alone.decoder_loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.ctc_loss, alone.ctc_loss, rtol=1e-4, atol=1e-5)


def test_loss_parts_are_logged_in_the_unit_of_the_total_however_often(tmp_path: Path) -> None:
    dataset, options = rows(8), layout(1, 2)
    each = train(SpeechSeq2SeqTrainer, repeatable_model(ctc_weight=0.3), tmp_path, dataset, **options)[1]
    pairs = train(
        SpeechSeq2SeqTrainer, repeatable_model(ctc_weight=0.3), tmp_path, dataset, logging_steps=2, **options
    )[1]
    assert len(each) == 4 and len(pairs) == 2
    for name in ("loss", "decoder_loss", "ctc_loss"):
        for index, entry in enumerate(pairs):
            expected = (each[2 * index][name] + each[2 * index + 1][name]) / 2
            assert entry[name] == pytest.approx(expected, rel=1e-3)
    for entry in each + pairs:
        assert entry["loss"] == pytest.approx(0.7 * entry["decoder_loss"] + 0.3 * entry["ctc_loss"], rel=1e-3)
