"""Low-rank adapters: what is trained is saved, and comes back on a base that was built anew."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import DECODERS, ENCODERS, audio, labels, randomize, save_decoder, save_encoder, tiny_model
from tiny_training import collator, gradients, repeatable_model, train

from speechgraft.modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
from speechgraft.modeling.parameter_efficient import lora_config
from speechgraft.modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer


def adapted(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, lora_config(model, **options))


def rebuilt(folder: Path, seed: int, decoder: str = "bert") -> Any:
    """A model from checkpoints: what they do not supply is random, in a way that depends on the seed."""
    if not folder.exists():
        save_encoder(folder / "encoder", "wav2vec2-layer")
        save_decoder(folder / "decoder", decoder)
    torch.manual_seed(seed)
    ids = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0} if decoder == "bert" else {}
    fields = {"ctc_weight": 0.3, "adapter_layers": 1, "apply_spec_augment": False, **ids}
    model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(folder / "encoder", folder / "decoder", **fields)
    for name in model.config.newly_initialized or ():
        randomize(model.get_submodule(name))
    return model


@pytest.mark.parametrize("decoder", ["bert", "gpt2", "bart"])
def test_a_trained_adapter_gives_the_same_output_on_a_base_that_was_built_anew(tmp_path: Path, decoder: str) -> None:
    peft = pytest.importorskip("peft")
    model = adapted(rebuilt(tmp_path / "parts", seed=1, decoder=decoder))
    batch = audio("wav2vec2-layer", 9600, 12800)
    transcripts = labels(3, 5, end=model.config.eos_token_id)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    for _ in range(2):
        model.train()(**batch, labels=transcripts).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "adapter")

    base = rebuilt(tmp_path / "parts", seed=2, decoder=decoder)
    model.eval()
    with torch.no_grad():
        expected = model(**batch, labels=transcripts)
        assert not torch.equal(base(**batch, labels=transcripts).logits, expected.logits)
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        found = loaded(**batch, labels=transcripts)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.ctc_logits, expected.ctc_logits)


def test_an_adapter_without_the_helper_loses_the_new_parts(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    usual = peft.LoraConfig(target_modules=["query", "value", "q_proj", "v_proj"])
    model = peft.get_peft_model(rebuilt(tmp_path / "parts", seed=1), usual)
    model.save_pretrained(tmp_path / "adapter")
    batch = {**audio("wav2vec2-layer", 9600), "labels": labels(4)}
    loaded = peft.PeftModel.from_pretrained(rebuilt(tmp_path / "parts", seed=2), tmp_path / "adapter")
    with torch.no_grad():
        assert not torch.allclose(loaded(**batch).logits, model(**batch).logits, atol=1e-2)


def test_everything_new_is_saved_whole_and_nothing_of_it_is_adapted_as_well(tmp_path: Path) -> None:
    model = rebuilt(tmp_path / "parts", seed=1)
    config = lora_config(model)
    new = set(config.modules_to_save or ())
    assert {"encoder.projection", "ctc_head", "encoder.adapter.0"} <= new
    assert sum("crossattention" in name for name in new) == model.config.num_hidden_layers
    targets = set(config.target_modules or ())
    assert any(name.startswith("encoder.backbone.") for name in targets)
    assert any(name.startswith("decoder.") for name in targets)
    assert not any(target.startswith(saved) for target in targets for saved in new)
    model = adapted(model)
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trainable)
    own = [name for name in new if not any(f"{name}.modules_to_save" in parameter for parameter in trainable)]
    assert not own


def test_arguments_of_the_adapter_are_kept() -> None:
    model = tiny_model()
    config = lora_config(model, r=4, lora_alpha=9, target_modules=["query"], modules_to_save=["encoder.projection"])
    assert (config.r, config.lora_alpha) == (4, 9)
    assert config.target_modules == {"query"}
    assert config.modules_to_save == ["encoder.projection"]


def test_a_task_type_that_would_drop_the_audio_is_refused() -> None:
    with pytest.raises(ValueError, match="task_type"):
        lora_config(tiny_model(), task_type="SEQ_2_SEQ_LM")


def test_without_peft_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"speechgraft\[peft\]"):
        lora_config(tiny_model())


@pytest.mark.parametrize(
    ("encoder", "decoder"), [(name, "bert") for name in ENCODERS] + [("wav2vec2", name) for name in DECODERS]
)
def test_every_adapter_weight_is_trained(encoder: str, decoder: str) -> None:
    """WavLM reads the weights of its attention past the adapters: there they would do nothing."""
    model = adapted(tiny_model(encoder, decoder)).train()
    found = gradients(model, **audio(encoder, 9600, 12800), labels=labels(3, 5, end=model.config.eos_token_id))
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trainable and trainable == found.keys()
    assert all(value.any() for name, value in found.items() if "lora_B" in name)


@pytest.mark.parametrize("encoder", ["wav2vec2", "whisper"])
def test_generation_takes_the_audio_by_position_under_peft(encoder: str) -> None:
    model = tiny_model(encoder)
    inputs = audio(encoder, 9600, mask=False)
    expected = model.generate(**inputs, max_new_tokens=5)
    (sound,) = inputs.values()
    wrapped = adapted(model).eval()  # an untrained adapter changes nothing
    assert torch.equal(wrapped.generate(sound, max_new_tokens=5), expected)
    assert torch.equal(wrapped.generate(**inputs, max_new_tokens=5), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_trains_evaluates_and_saves_an_adapter(tmp_path: Path, checkpointing: bool) -> None:
    peft = pytest.importorskip("peft")
    model = adapted(repeatable_model(ctc_weight=0.3))
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    options: dict[str, Any] = {"per_device_train_batch_size": 2, "learning_rate": 0.1}
    trainer, logged = train(
        SpeechSeq2SeqTrainer,
        model,
        tmp_path,
        gradient_checkpointing=checkpointing,
        label_smoothing_factor=0.1,
        **options,
    )
    for entry in logged:
        assert entry["loss"] == pytest.approx(0.7 * entry["decoder_loss"] + 0.3 * entry["ctc_loss"], rel=1e-3)
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_parameters() if name in frozen)
    assert trainer.evaluate(eval_dataset=trainer.train_dataset)["eval_loss"] > 0
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = peft.PeftModel.from_pretrained(repeatable_model(ctc_weight=0.3), tmp_path / "adapter").eval()
    with torch.no_grad():
        batch = collator(loaded)(trainer.train_dataset)
        assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)
