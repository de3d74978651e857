"""Training a speech-to-text model, by hand and with Transformers' trainers, against independent computations."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import DECODERS, ENCODERS, VOCABULARY, audio, decoder_config, encoder_config, labels, tiny_model
from tiny_training import arguments, collator, gradients, repeatable_model, rows, train
from torch._dynamo.exc import Unsupported
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from speechgraft.modeling.speech_trainer import ShuffledLengthGroups
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


def test_loss_parts_stay_right_after_resuming_and_in_a_second_training(tmp_path: Path) -> None:
    model, options = repeatable_model(ctc_weight=0.3), layout(2, 1)
    trainer, _ = train(SpeechSeq2SeqTrainer, model, tmp_path, save_steps=2, save_strategy="steps", **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    resumed = [entry for entry in trainer.state.log_history if "loss" in entry]
    trainer.args.logging_steps = trainer.state.logging_steps = 3  # the last step is not logged
    trainer.train()
    trainer.train()
    again = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in resumed + again:
        assert entry["loss"] == pytest.approx(0.7 * entry["decoder_loss"] + 0.3 * entry["ctc_loss"], rel=1e-3)


# Label smoothing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer_class", [Seq2SeqTrainer, SpeechSeq2SeqTrainer])
def test_label_smoothing_works_with_the_shipped_collator_and_accumulation(tmp_path: Path, trainer_class: Any) -> None:
    model = repeatable_model()
    expected = mean_cross_entropy(model, collator(model)(rows()), smoothing=0.2)
    for batch, accumulation in LAYOUTS:
        options = {"label_smoothing_factor": 0.2, **layout(batch, accumulation)}
        logged = train(trainer_class, repeatable_model(), tmp_path, **options)[1]
        assert logged[0]["loss"] == pytest.approx(expected, **AS_EQUAL)


def test_label_smoothing_crashes_the_native_class_with_labels_alone(tmp_path: Path) -> None:
    ours = repeatable_model()
    native, collate = ours.to_native(), collator(ours)
    native.config.decoder_start_token_id, native.config.pad_token_id = 2, 0

    def usual_collator(features: list) -> dict[str, torch.Tensor]:
        return {name: value for name, value in collate(features).items() if name != "decoder_input_ids"}

    options = arguments(tmp_path, label_smoothing_factor=0.2)
    trainer = Seq2SeqTrainer(model=native, args=options, train_dataset=rows(), data_collator=usual_collator)
    with pytest.raises(ValueError, match="input_ids"):
        trainer.train()


def test_label_smoothing_keeps_the_ctc_loss_and_leaves_it_unsmoothed(tmp_path: Path) -> None:
    plain = train(SpeechSeq2SeqTrainer, repeatable_model(ctc_weight=0.3), tmp_path, **layout(4, 2))[1][0]
    options = {"label_smoothing_factor": 0.2, **layout(4, 2)}
    smoothed = train(SpeechSeq2SeqTrainer, repeatable_model(ctc_weight=0.3), tmp_path, **options)[1][0]
    model = repeatable_model(ctc_weight=0.3)
    expected = mean_cross_entropy(model, collator(model)(rows()), smoothing=0.2)
    assert smoothed["decoder_loss"] == pytest.approx(expected, **AS_EQUAL)
    assert smoothed["ctc_loss"] == pytest.approx(plain["ctc_loss"])
    assert smoothed["loss"] == pytest.approx(0.7 * expected + 0.3 * plain["ctc_loss"], **AS_EQUAL)


def test_plain_trainer_refuses_to_drop_the_ctc_loss_for_label_smoothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SpeechSeq2SeqTrainer"):
        train(Seq2SeqTrainer, repeatable_model(ctc_weight=0.3), tmp_path, label_smoothing_factor=0.2)


# Evaluation ---------------------------------------------------------------------------------------------------------


def evaluator(trainer_class: Any, model: Any, folder: Path, **options: Any) -> Any:
    with_metrics = options.pop("compute_metrics", None)
    return trainer_class(
        model=model,
        args=arguments(folder, per_device_eval_batch_size=4, **options),
        eval_dataset=rows(4),
        data_collator=collator(model),
        compute_metrics=with_metrics,
    )


@pytest.mark.parametrize("trainer_class", [Trainer, Seq2SeqTrainer, SpeechSeq2SeqTrainer])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_evaluate_reports_the_loss_with_default_arguments(
    tmp_path: Path, trainer_class: Any, ctc_weight: float
) -> None:
    model = repeatable_model(ctc_weight=ctc_weight)
    with torch.no_grad():
        expected = model(**collator(model)(rows(4))).loss
    assert evaluator(trainer_class, model, tmp_path).evaluate()["eval_loss"] == pytest.approx(float(expected))


@pytest.mark.parametrize("generate", [False, True])
def test_label_smoothing_does_not_change_the_evaluation_loss(tmp_path: Path, generate: bool) -> None:
    model = repeatable_model(ctc_weight=0.3)
    with torch.no_grad():
        expected = model(**collator(model)(rows(4))).loss
    options = {"label_smoothing_factor": 0.2, "predict_with_generate": generate, "generation_max_length": 8}
    metrics = {"compute_metrics": lambda prediction: {}} if generate else {}
    trainer = evaluator(SpeechSeq2SeqTrainer, model, tmp_path, **options, **metrics)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected))


def test_predict_with_generate_gives_what_generate_gives_and_the_loss(tmp_path: Path) -> None:
    model = repeatable_model(ctc_weight=0.3)
    trainer = evaluator(SpeechSeq2SeqTrainer, model, tmp_path, predict_with_generate=True, generation_num_beams=2)
    output = trainer.predict(rows(4), max_length=9)
    batch = collator(model)(rows(4))
    inputs = {name: batch[name] for name in ("input_values", "attention_mask")}
    expected = model.generate(**inputs, num_beams=2, max_length=9)
    found = torch.tensor(output.predictions)[:, : expected.shape[1]]
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert output.metrics["test_loss"] == pytest.approx(float(model(**batch).loss))


def test_prediction_without_generation_returns_nothing_but_logits(tmp_path: Path) -> None:
    """Hidden states, CTC logits and parts of the loss, gathered over a data set, would fill the memory."""
    model = repeatable_model(ctc_weight=0.3)
    output = evaluator(Trainer, model, tmp_path).predict(rows(4))
    batch = collator(model)(rows(4))
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(output.predictions), model(**batch).logits)
    assert torch.equal(torch.tensor(output.label_ids), batch["labels"])


# Resume -------------------------------------------------------------------------------------------------------------


def final_state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("origin", ["fresh", "native folder"])
def test_a_resumed_training_continues_bit_for_bit(tmp_path: Path, origin: str) -> None:
    def start() -> Any:
        model = repeatable_model()
        if origin == "fresh":
            return repeatable_model(ctc_weight=0.3)
        model.to_native().save_pretrained(tmp_path / "native")
        return type(model).from_pretrained(tmp_path / "native", apply_spec_augment=False)

    options = {**layout(2, 1), "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
    whole, _ = train(SpeechSeq2SeqTrainer, start(), tmp_path / "whole", **options)
    expected = final_state(whole.model)

    other = start()
    with torch.no_grad():
        for parameter in other.parameters():  # whatever is not restored shows
            parameter.add_(1.0)
    resumed = SpeechSeq2SeqTrainer(
        model=other,
        args=arguments(tmp_path / "resumed", learning_rate=1e-3, **options),
        train_dataset=rows(),
        data_collator=collator(other),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, value in final_state(resumed.model).items():
        assert torch.equal(value, expected[name]), name


def test_the_best_checkpoint_comes_back_at_the_end(tmp_path: Path) -> None:
    model = repeatable_model()
    trainer = SpeechSeq2SeqTrainer(
        model=model,
        args=arguments(
            tmp_path,
            save_strategy="steps",
            eval_strategy="steps",
            save_steps=1,
            eval_steps=1,
            max_steps=3,
            learning_rate=1.0,  # every step makes it worse
            load_best_model_at_end=True,
        ),
        train_dataset=rows(),
        eval_dataset=rows(4),
        data_collator=collator(model),
    )
    trainer.train()
    best = type(model).from_pretrained(trainer.state.best_model_checkpoint)
    for name, value in best.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


# Precision, sampling, token ids -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("encoder", ["wav2vec2-layer", "whisper"])
def test_autocast_trains_with_finite_gradients_near_the_full_precision_loss(encoder: str, dtype: torch.dtype) -> None:
    model = repeatable_model(encoder, ctc_weight=0.3).train()
    batch = {**audio(encoder, 9600, 16000), "labels": labels(3, 5, end=model.config.eos_token_id)}
    full = model(**batch).loss
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        loss = model(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(full), rel=0.05)
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_trainer_with_bf16_logs_nearly_the_full_precision_loss(tmp_path: Path) -> None:
    full = train(SpeechSeq2SeqTrainer, repeatable_model(ctc_weight=0.3), tmp_path, **layout(8, 1))[1][0]
    half = train(SpeechSeq2SeqTrainer, repeatable_model(ctc_weight=0.3), tmp_path, bf16=True, **layout(8, 1))[1][0]
    for name in ("loss", "decoder_loss", "ctc_loss"):
        assert half[name] == pytest.approx(full[name], rel=0.05)


@pytest.mark.parametrize("length_column", [None, "length"])
def test_group_by_length_puts_clips_of_like_length_together(tmp_path: Path, length_column: str | None) -> None:
    model = repeatable_model()
    collate = collator(model)
    dataset = [{**row, "input_values": row["audio"], "length": len(row["audio"])} for row in rows(64)]
    dataset = [dataset[place] for place in torch.randperm(64).tolist()]
    options = {"length_column_name": length_column} if length_column else {}
    trainer = SpeechSeq2SeqTrainer(
        model=model,
        args=arguments(tmp_path, per_device_train_batch_size=2, train_sampling_strategy="group_by_length", **options),
        train_dataset=dataset,
        data_collator=collate,
        processing_class=collate.processor,
    )
    apart = [float(batch["attention_mask"].sum(dim=-1).diff().abs()) for batch in trainer.get_train_dataloader()]
    spread = max(row["length"] for row in dataset) - min(row["length"] for row in dataset)
    assert len(apart) == 32
    assert sum(apart) / 32 < 0.15 * spread  # a third of it by chance


@pytest.mark.parametrize(
    ("decoder", "tokenizer"),
    [("bert", "bert"), ("gpt2", "gpt2"), ("bart", "bart"), ("marian", "marian"), ("mbart", "mbart")],
)
def test_trainer_leaves_token_ids_of_training_and_generation_in_agreement(
    tmp_path: Path, decoder: str, tokenizer: str
) -> None:
    """Trainer writes the tokenizer's special tokens into both configurations: neither may lose its own."""
    model = repeatable_model(decoder=decoder)
    names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
    before = {name: getattr(model.config, name) for name in names}
    collate = collator(model, tokenizer)
    trainer = SpeechSeq2SeqTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=rows(),
        data_collator=collate,
        processing_class=collate.processor,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    for trained in (model, type(model).from_pretrained(tmp_path / "saved")):
        for name in names:
            assert getattr(trained.config, name) == before[name]
            assert getattr(trained.generation_config, name) == before[name]
        trained.eval().generate(**audio("wav2vec2", 8000), max_new_tokens=3)


def test_an_end_token_that_trainer_takes_from_the_tokenizer_ends_generation_too(tmp_path: Path) -> None:
    model = repeatable_model(decoder="bart")
    collate = collator(model, "bart")
    collate.processor.tokenizer.eos_token = "three"  # no transcript has it
    new = collate.processor.tokenizer.eos_token_id
    trainer = SpeechSeq2SeqTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=rows(),
        data_collator=collate,
        processing_class=collate.processor,
    )
    trainer.train()
    model.agree_on_token_ids()
    assert model.config.eos_token_id == new
    ends = model.generation_config.eos_token_id
    assert new in (ends if isinstance(ends, list) else [ends])


# Parameters without a gradient --------------------------------------------------------------------------------------

TIME = {"apply_spec_augment": True, "mask_time_prob": 0.3, "mask_time_length": 3}
CHANNELS = {"apply_spec_augment": True, "mask_feature_prob": 0.3, "mask_feature_length": 3}
AUGMENTS = {
    "off": {"apply_spec_augment": False, "mask_time_prob": 0.3},
    "none": {"apply_spec_augment": True, "mask_time_prob": 0.0},
    "time": TIME,
    "channels": {"mask_time_prob": 0.0, **CHANNELS},
    "both": {**TIME, **CHANNELS},
}
FREEZES = ["freeze_feature_encoder", "freeze_encoder", "freeze_decoder"]


def without_gradient(model: Any, encoder: str) -> list[str]:
    """Trainable parameters that a training step leaves without a gradient: DistributedDataParallel stops at those."""
    model.train()
    found = gradients(model, **audio(encoder, 9600, 12800), labels=labels(3, 5, end=model.config.eos_token_id))
    assert found
    return [name for name, value in model.named_parameters() if value.requires_grad and name not in found]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_trainable_parameter_gets_a_gradient_whatever_spec_augment_masks(encoder: str) -> None:
    for name, fields in AUGMENTS.items():
        model = tiny_model(encoder, ctc_weight=0.3, **fields)
        assert without_gradient(model, encoder) == [], name
        if name in ("none", "both"):
            model.gradient_checkpointing_enable()
            assert without_gradient(model, encoder) == [], f"{name}, checkpointed"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_trainable_parameter_gets_a_gradient_whatever_is_frozen(encoder: str) -> None:
    for freezes in [FREEZES[:1], FREEZES[1:2], FREEZES[::2]]:
        model = tiny_model(encoder, **AUGMENTS["both"])
        for freeze in freezes:
            getattr(model, freeze)()
        model.gradient_checkpointing_enable()
        assert without_gradient(model, encoder) == [], freezes


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_trainable_decoder_parameter_gets_a_gradient(decoder: str) -> None:
    for frozen in (False, True):
        for checkpointing in (False, True):
            model = tiny_model(decoder=decoder)
            if frozen:
                model.freeze_decoder()
            if checkpointing:
                model.gradient_checkpointing_enable()
            assert without_gradient(model, "wav2vec2") == [], (frozen, checkpointing)


def test_native_class_leaves_the_mask_embedding_without_a_gradient() -> None:
    native = tiny_model(mask_time_prob=0.3, apply_spec_augment=True).to_native().train()
    native.encoder.config.apply_spec_augment = False
    native.config.decoder_start_token_id, native.config.pad_token_id = 2, 0
    found = gradients(native, **audio("wav2vec2", 9600), labels=labels(3))
    assert "encoder.masked_spec_embed" not in found


def test_frozen_parts_stay_frozen_and_the_new_parts_learn() -> None:
    model = tiny_model(ctc_weight=0.3)
    model.freeze_encoder()
    model.freeze_decoder()
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert any("crossattention" in name for name in trainable)
    assert {"encoder.projection.weight", "ctc_head.weight"} <= trainable
    assert all("crossattention" in name for name in trainable if name.startswith("decoder."))
    assert not any(name.startswith("encoder.backbone.") for name in trainable)


def test_freezing_the_decoder_leaves_a_head_that_no_checkpoint_supplied_to_learn() -> None:
    model = tiny_model()
    model.config.newly_initialized = ["decoder.cls.predictions.transform", "decoder.cls.predictions.bias"]
    model.freeze_decoder()
    trainable = {name for name, value in model.decoder.named_parameters() if value.requires_grad}
    assert {name for name in trainable if "crossattention" not in name} == {
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    }
    assert without_gradient(model, "wav2vec2") == []


# Gradient checkpointing ---------------------------------------------------------------------------------------------


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("wav2vec2-layer", "bert"),
        ("hubert", "gpt2"),
        ("wavlm", "bart"),
        ("data2vec-audio", "roberta"),
        ("whisper", "whisper"),
        ("speech_to_text", "marian"),
        ("wav2vec2-bert", "xglm"),
        ("sew-d", "m2m_100"),
        ("moonshine", "trocr"),
        ("parakeet", "pegasus"),
    ],
)
def test_gradient_checkpointing_changes_no_gradient(encoder: str, decoder: str) -> None:
    model = repeatable_model(encoder, decoder, ctc_weight=0.3).train()
    batch = {**audio(encoder, 9600, 12800), "labels": labels(3, 5, end=model.config.eos_token_id)}
    expected = gradients(model, **batch)
    model.gradient_checkpointing_enable()
    assert_same_gradients(gradients(model, **batch), expected)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call returns, unless it takes longer: reentrant checkpointing has been seen to hang."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"no end after {seconds} s"
    return found[0]


@pytest.mark.parametrize(
    "encoder", ["wav2vec2-layer", "hubert", "whisper", "wavlm", "wavlm-layer", "sew-d", "wav2vec2-conformer"]
)
@pytest.mark.parametrize("frozen", [False, True])
def test_reentrant_checkpointing_loses_no_gradient(encoder: str, frozen: bool) -> None:
    """PyTorch's older kind gives none to layers whose input needs none, as after a frozen or a first layer; and it
    does not end where layers hand each other, by name, something with a gradient.
    """
    model = repeatable_model(encoder, ctc_weight=0.3).train()
    if frozen:
        model.freeze_feature_encoder()
        model.freeze_decoder()
    batch = {**audio(encoder, 9600, 12800), "labels": labels(3, 5, end=model.config.eos_token_id)}
    expected = gradients(model, **batch)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert_same_gradients(within(60, lambda: gradients(model, **batch)), expected)


@pytest.mark.parametrize("encoder", ["wav2vec2-conformer", "data2vec-audio", "speech_to_text"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_batches_heard_before_one_backward_pass_keep_their_own_padding(encoder: str, reentrant: bool) -> None:
    """Layers that are computed again in the backward pass must not take the last batch's lengths for their own."""
    model = repeatable_model(encoder, ctc_weight=0.3).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()  # its running statistics would otherwise see each batch again
    ids = {"labels": labels(3, 5, end=model.config.eos_token_id)}
    batches = [
        {**audio(encoder, *lengths, seed=seed), **ids} for seed, lengths in enumerate([(9600, 16000), (3200, 16000)])
    ]
    separate = [gradients(model, **batch) for batch in batches]
    expected = {name: separate[0][name] + separate[1][name] for name in separate[0]}
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.zero_grad(set_to_none=True)
    within(60, sum(model(**batch).loss for batch in batches).backward)
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert_same_gradients(found, expected)


def test_gradient_checkpointing_through_trainer_logs_the_same_losses(tmp_path: Path) -> None:
    plain = train(SpeechSeq2SeqTrainer, repeatable_model(ctc_weight=0.3), tmp_path, **layout(2, 2))[1]
    options = {"gradient_checkpointing": True, **layout(2, 2)}
    saving = train(SpeechSeq2SeqTrainer, repeatable_model(ctc_weight=0.3), tmp_path, **options)[1]
    for one, other in zip(plain, saving, strict=True):
        for name in ("loss", "grad_norm", "decoder_loss", "ctc_loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-4)


@pytest.mark.parametrize("encoder", ["wav2vec2-layer", "whisper", "wav2vec2-bert"])
def test_a_batch_has_the_loss_of_its_clips_one_by_one(encoder: str) -> None:
    model = repeatable_model(encoder, ctc_weight=0.3)
    end = model.config.eos_token_id
    transcripts, sizes = labels(3, 6, end=end), (9600, 12800)
    both = audio(encoder, *sizes)
    together = model(**both, labels=transcripts, num_items_in_batch=9).loss
    apart = 0.0
    for row in range(len(sizes)):
        frames = int(both["attention_mask"][row].sum())
        alone = {name: value[row : row + 1] for name, value in both.items()}
        if encoder != "whisper":  # its window stays
            alone = {name: value[:, :frames] for name, value in alone.items()}
        apart += model(**alone, labels=transcripts[row : row + 1, : (3, 6)[row]], num_items_in_batch=9).loss
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


# Resizing the vocabulary --------------------------------------------------------------------------------------------

IDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


@pytest.mark.parametrize("decoder", DECODERS)
def test_new_tokens_can_be_added_and_old_ones_keep_their_meaning(tmp_path: Path, decoder: str) -> None:
    model = tiny_model(decoder=decoder, ctc_weight=0.3)
    before = {name: getattr(model.config, name) for name in IDS}
    batch = {**audio("wav2vec2-layer", 9600), "labels": labels(4, end=model.config.eos_token_id)}
    with torch.no_grad():
        old = model(**batch)
        embeddings = model.resize_token_embeddings(VOCABULARY + 3)
        new = model(**batch)
    torch.testing.assert_close(new.logits[..., :VOCABULARY], old.logits)
    torch.testing.assert_close(new.ctc_logits[..., :VOCABULARY], old.ctc_logits)
    sizes = {embeddings.num_embeddings, new.logits.shape[-1], new.ctc_logits.shape[-1], model.config.vocab_size}
    assert sizes == {VOCABULARY + 3} == {model.config.decoder.vocab_size, model.get_input_embeddings().num_embeddings}
    assert {name: getattr(model.config, name) for name in IDS} == before

    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, new.logits, rtol=0, atol=0)
        torch.testing.assert_close(loaded(**batch).ctc_logits, new.ctc_logits, rtol=0, atol=0)
    assert {name: getattr(loaded.generation_config, name) for name in IDS} == before


@pytest.mark.parametrize("decoder", DECODERS)
def test_heads_that_were_tied_stay_tied_after_resizing(decoder: str) -> None:
    model = tiny_model(decoder=decoder)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = inputs.weight is outputs.weight
    model.resize_token_embeddings(VOCABULARY + 3)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    assert (inputs.weight is outputs.weight) == tied
    assert outputs.weight.shape[0] == VOCABULARY + 3


def test_resized_models_train_on_the_new_tokens() -> None:
    model = repeatable_model(ctc_weight=0.3).train()
    model.resize_token_embeddings(pad_to_multiple_of=8)
    assert model.config.vocab_size == 24
    found = gradients(model, **audio("wav2vec2", 12800), labels=torch.tensor([[22, 23, 3]]))
    assert found["ctc_head.weight"][22:].any() and found["decoder.bert.embeddings.word_embeddings.weight"][22:].any()


def test_resizing_leaves_a_ctc_vocabulary_of_its_own_alone() -> None:
    model = tiny_model(ctc_weight=0.3, ctc_vocab_size=9)
    model.resize_token_embeddings(VOCABULARY + 3)
    assert model.ctc_head.out_features == 9 == model.config.ctc_vocab_size


@pytest.mark.parametrize("name", ["eos_token_id", "ctc_blank_token_id", "decoder_prompt_token_ids"])
def test_shrinking_below_a_token_in_use_is_refused(name: str) -> None:
    fields = {name: [15] if name == "decoder_prompt_token_ids" else 15}
    model = tiny_model(ctc_weight=0.3, **fields)
    with pytest.raises(ValueError, match=name):
        model.resize_token_embeddings(12)
    assert model.config.vocab_size == VOCABULARY


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_smaller_vocabulary_keeps_what_was_learned_of_its_tokens(tmp_path: Path, decoder: str) -> None:
    model = tiny_model(decoder=decoder, ctc_weight=0.3)
    with torch.no_grad():
        for rows in model._rows_by_token():  # biases too, which begin as zeros
            rows.normal_()
    pad = model.config.pad_token_id
    named = {pad, model.config.eos_token_id, model.config.decoder_start_token_id, *range(pad + 1)}
    kept = [*range(pad + 1), *sorted((named | set(range(8, VOCABULARY))) - set(range(pad + 1)))]
    text = torch.tensor([[kept[-1], kept[-3], kept[-2], model.config.eos_token_id]])
    renamed = torch.tensor([[kept.index(int(token_id)) for token_id in text[0]]])
    with torch.no_grad():
        old = model(**audio("wav2vec2-layer", 9600), labels=text)
        model.select_tokens(kept)
        new = model(**audio("wav2vec2-layer", 9600), labels=renamed)
    torch.testing.assert_close(new.logits, old.logits[..., kept], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new.ctc_logits, old.ctc_logits[..., kept], rtol=1e-5, atol=1e-5)
    assert kept[model.config.eos_token_id] == text[0, -1]
    assert {name: getattr(model.generation_config, name) for name in IDS} == {
        name: getattr(model.config, name) for name in IDS
    }
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        again = loaded(**audio("wav2vec2-layer", 9600), labels=renamed)
    torch.testing.assert_close(again.logits, new.logits, rtol=0, atol=0)


def test_fields_changed_while_loading_do_not_become_settings_of_generation(tmp_path: Path) -> None:
    """A share of the loss would become the CTC head's share in decoding."""
    model = tiny_model(ctc_weight=0.3)
    model.save_pretrained(tmp_path / "plain")
    changed = type(model).from_pretrained(tmp_path / "plain", ctc_weight=0.5, mask_time_prob=0.1)
    assert changed.config.ctc_weight == 0.5
    assert not hasattr(changed.generation_config, "mask_time_prob")
    assert getattr(changed.generation_config, "ctc_weight", 0.0) == 0.0
    model.generation_config.ctc_weight = 0.2
    model.save_pretrained(tmp_path / "joint")
    assert type(model).from_pretrained(tmp_path / "joint", ctc_weight=0.5).generation_config.ctc_weight == 0.2


def test_token_0_moves_like_any_other() -> None:
    model = tiny_model(decoder="gpt2", ctc_weight=0.3, ctc_blank_token_id=0)  # GPT-2 has no padding in its embeddings
    model.config.pad_token_id = 0
    model.generation_config.suppress_tokens = [0, 7, 9]
    kept = [*range(1, 9), 0]
    model.select_tokens(kept)
    assert model.config.pad_token_id == model.config.ctc_blank_token_id == model.ctc_blank == 8
    assert model.generation_config.pad_token_id == 8
    assert model.generation_config.suppress_tokens == [8, 6]


def test_tokens_in_use_cannot_be_left_out_of_a_smaller_vocabulary() -> None:
    model = tiny_model(ctc_weight=0.3)
    end = model.config.eos_token_id
    with pytest.raises(ValueError, match=f"eos_token_id is {end}: keep token {end} too"):
        model.select_tokens([token_id for token_id in range(VOCABULARY) if token_id != end])
    with pytest.raises(ValueError, match="different ids below"):
        model.select_tokens([0, 0])
    with pytest.raises(ValueError, match="padding token 0 must keep its place, but goes to 1"):
        model.select_tokens([1, 0, *range(2, VOCABULARY)])
    assert model.config.vocab_size == VOCABULARY


def test_labels_of_another_vocabulary_are_named_before_the_embedding_fails() -> None:
    with pytest.raises(ValueError, match=f"label 30000 is no token of the decoder's vocabulary of {VOCABULARY}"):
        tiny_model()(**audio("wav2vec2-layer", 9600), labels=torch.tensor([[5, 30000]]))


def test_batches_grouped_by_length_do_not_sweep_from_long_to_short() -> None:
    lengths = torch.randint(1, 1000, (803,), generator=torch.Generator().manual_seed(0)).tolist()
    grouped = LengthGroupedSampler(8, lengths=lengths, generator=torch.Generator().manual_seed(0))
    indices = list(ShuffledLengthGroups(grouped))
    assert sorted(indices) == list(range(803))
    batches = [[lengths[i] for i in indices[start : start + 8]] for start in range(0, 803, 8)]
    assert max(lengths) in batches[0] and len(batches[-1]) == 3
    spread = sum(max(batch) - min(batch) for batch in batches) / len(batches)
    assert spread < 60  # of 1000: alike within a batch
    falls = sum(max(after) <= max(before) for before, after in zip(batches, batches[1:], strict=False))
    assert 35 < falls < 65, "of 100 neighbours, about half fall in random order, nearly all in a sweep"


def test_native_class_cannot_resize() -> None:
    with pytest.raises(NotImplementedError):
        tiny_model().to_native().resize_token_embeddings(VOCABULARY + 3)


# Compilation and attentions -----------------------------------------------------------------------------------------


def compiled_step(encoder: str, decoder: str = "bert") -> None:
    """A training step with SpecAugment, CTC and smoothing in one graph, against the same step without compilation."""
    shallow = encoder_config(encoder), decoder_config(decoder)
    for part in shallow:
        part.num_hidden_layers = 1
    model = tiny_model(*shallow, ctc_weight=0.3, **AUGMENTS["both"]).train()
    transcripts = labels(3, 5, end=model.config.eos_token_id)
    batch = {**audio(encoder, 9600, 12800), "labels": transcripts, "smoothing": 0.1, "num_items_in_batch": 8}
    torch.manual_seed(0)
    expected = gradients(model, **batch)
    loss = {}
    torch.compiler.reset()
    for name, step in (("eager", model), ("compiled", torch.compile(model, backend="eager", fullgraph=True))):
        torch.manual_seed(0)
        loss[name] = step(**batch).loss
    torch.testing.assert_close(loss["compiled"], loss["eager"])
    model.zero_grad(set_to_none=True)
    loss["compiled"].backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert_same_gradients(found, expected)


draws_layers = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="before Transformers 5.23 wav2vec 2.0 and its kin draw which layers to skip even where none is skipped",
)


@draws_layers
def test_a_training_step_with_masks_and_ctc_compiles_into_one_graph() -> None:
    compiled_step("wav2vec2")


@draws_layers
@pytest.mark.slow
@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "wav2vec2"])
def test_a_training_step_of_every_encoder_compiles_into_one_graph(encoder: str) -> None:
    compiled_step(encoder)


@draws_layers
@pytest.mark.slow
@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "bert"])
def test_a_training_step_of_every_decoder_compiles_into_one_graph(decoder: str) -> None:
    compiled_step("hubert", decoder)


def test_native_training_step_breaks_the_graph() -> None:
    native = tiny_model().to_native().train()
    native.encoder.feature_extractor._requires_grad = True  # as built
    native.config.decoder_start_token_id, native.config.pad_token_id = 2, 0
    torch.compiler.reset()
    with pytest.raises(Unsupported):
        torch.compile(native, backend="eager", fullgraph=True)(**audio("wav2vec2", 9600), labels=labels(3))


@pytest.mark.parametrize("decoder", DECODERS)
def test_attentions_asked_for_come_back_and_change_nothing(decoder: str) -> None:
    model = tiny_model("wav2vec2-layer", decoder)
    batch = {**audio("wav2vec2", 9600, 12800), "labels": labels(3, 5)}
    with torch.no_grad():
        plain = model(**batch)
        output = model(**batch, output_attentions=True)
        again = model(**batch)
    layers, frames = model.config.num_hidden_layers, output.encoder_last_hidden_state.shape[1]
    assert plain.cross_attentions is None or not any(value is not None for value in plain.cross_attentions)
    assert [tuple(value.shape) for value in output.cross_attentions] == layers * [(2, 2, 5, frames)]
    assert [tuple(value.shape) for value in output.decoder_attentions] == layers * [(2, 2, 5, 5)]
    assert [tuple(value.shape) for value in output.encoder_attentions] == 2 * [(2, 2, frames, frames)]
    for weights in output.cross_attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 5))
        assert not weights[~output.encoder_attention_mask[:, None, None].expand_as(weights)].any()
    torch.testing.assert_close(output.logits, plain.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.logits, plain.logits, rtol=0, atol=0)
    eager = tiny_model("wav2vec2-layer", decoder)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        reference = eager(**batch, output_attentions=True)
    for ours, theirs in zip(output.cross_attentions, reference.cross_attentions, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attentions_and_hidden_states_come_when_the_configuration_asks_and_from_the_encoder_alone() -> None:
    model, batch = tiny_model("wav2vec2-layer"), audio("wav2vec2", 9600)
    weights = model.get_encoder()(**batch, output_attentions=True).attentions
    assert len(weights) == 2
    torch.testing.assert_close(weights[0].sum(dim=-1), torch.ones(weights[0].shape[:-1]))
    model.config.output_hidden_states = True
    assert len(model(**batch, labels=labels(3)).encoder_hidden_states) == 3
    assert model(**batch, labels=labels(3), output_hidden_states=False).decoder_hidden_states is None
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    assert len(model(**batch, labels=labels(3)).cross_attentions) == 2


def test_native_class_gives_no_cross_attentions_under_sdpa() -> None:
    native = tiny_model().to_native()
    native.config.decoder_start_token_id, native.config.pad_token_id = 2, 0
    output = native(**audio("wav2vec2", 9600), labels=labels(3), output_attentions=True)
    assert not output.cross_attentions or any(value is None for value in output.cross_attentions)


def test_int8_weights_survive_saving(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: nothing else here needs it")
    from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore[reportMissingImports]
    from transformers import TorchAoConfig

    model = tiny_model(ctc_weight=0.3)
    model.save_pretrained(tmp_path / "full")
    quantized = type(model).from_pretrained(
        tmp_path / "full", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    quantized.save_pretrained(tmp_path / "int8")
    loaded = type(model).from_pretrained(tmp_path / "int8")
    batch = {**audio("wav2vec2", 9600), "labels": labels(4)}
    with torch.no_grad():
        logits = [each(**batch).logits for each in (model, quantized, loaded)]
    torch.testing.assert_close(logits[2], logits[1], rtol=0, atol=0)
    torch.testing.assert_close(logits[1], logits[0], rtol=0.1, atol=0.05)
    assert not torch.equal(logits[1], logits[0])


@pytest.mark.parametrize("decoder", ["roberta", "xlm-roberta", "m2m_100"])
def test_a_padding_token_that_would_move_all_positions_after_saving_is_refused(tmp_path: Path, decoder: str) -> None:
    """These decoders count positions from the padding token that they were built with."""
    model = tiny_model(decoder=decoder)
    model.config.pad_token_id = 5
    for use in (model.agree_on_token_ids, lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="pad_token_id must stay 1"):
            use()
