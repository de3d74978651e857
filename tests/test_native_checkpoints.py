"""Folders of the built-in `SpeechEncoderDecoderModel`: they open here as they are, and can be written back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import WIDTH, audio, decoder_config, encoder_config, input_name, randomize, tiny_model
from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, SpeechEncoderDecoderConfig, SpeechEncoderDecoderModel

from speechgraft import SpeechSeq2SeqConfig, SpeechSeq2SeqModel

IDS = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 1}
ENCODERS = ["wav2vec2", "wav2vec2-layer", "hubert", "hubert-layer"]
DECODERS = ["bert", "gpt2", "bart", "mbart", "marian"]
PARTS = [(ENCODERS[0], name) for name in DECODERS] + [(name, "bert") for name in ENCODERS[1:]]
TEXT = torch.tensor([[2, 7, 8, 9], [2, 9, 6, 10]])


def native_model(encoder: str, decoder: str, projected: bool = True, **encoder_fields: Any) -> Any:
    """A `SpeechEncoderDecoderModel` whose two halves have different widths, or the same."""
    width = "n_embd" if decoder == "gpt2" else "d_model" if decoder in ("bart", "mbart", "marian") else "hidden_size"
    fields = {} if projected else {width: WIDTH}
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder_config(encoder, **encoder_fields), decoder_config(decoder, **fields), **IDS
    )
    torch.manual_seed(0)
    model = randomize(SpeechEncoderDecoderModel(config), scale=8.0).eval()
    for name, value in IDS.items():  # the class reads them from two places, and users must fill both
        setattr(model.generation_config, name, value)
    assert hasattr(model, "enc_to_dec_proj") == projected
    return model


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, decoder_input_ids=TEXT).logits


@pytest.mark.parametrize("projected", [True, False], ids=["projected", "same-width"])
@pytest.mark.parametrize("encoder, decoder", PARTS)
def test_a_folder_of_the_native_class_gives_the_same_logits_and_text(encoder, decoder, projected, tmp_path):
    native = native_model(encoder, decoder, projected)
    native.save_pretrained(tmp_path)
    ours, info = SpeechSeq2SeqModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    batch = audio(encoder, 3000, 4800)
    assert torch.equal(logits(ours, batch), logits(native, batch))
    assert torch.equal(
        logits(ours, audio(encoder, 4000, 4000, mask=False)), logits(native, audio(encoder, 4000, 4000, mask=False))
    )
    for options in ({"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5}):
        settings = {"max_new_tokens": 12, "do_sample": False, **options}
        assert torch.equal(ours.generate(**batch, **settings), native.generate(**batch, **settings))


@pytest.mark.parametrize("encoder, decoder", PARTS)
def test_what_is_exported_opens_in_the_native_class_with_the_same_logits(encoder, decoder, tmp_path):
    ours = tiny_model(encoder, decoder)
    ours.to_native().save_pretrained(tmp_path)
    native, info = SpeechEncoderDecoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    batch = audio(encoder, 3000, 4800)
    assert torch.equal(logits(native.eval(), batch), logits(ours, batch))
    settings = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(native.generate(**batch, **settings), ours.generate(**batch, **settings))


@pytest.mark.parametrize("decoder", ["bert", "bart"])
def test_a_native_folder_survives_the_round_trip_bit_for_bit(decoder, tmp_path):
    """Loaded here, saved here, loaded again and exported: every tensor of the first folder is in the last."""
    native = native_model("wav2vec2-layer", decoder)
    native.save_pretrained(tmp_path / "native")
    SpeechSeq2SeqModel.from_pretrained(tmp_path / "native").save_pretrained(tmp_path / "ours")
    SpeechSeq2SeqModel.from_pretrained(tmp_path / "ours").to_native().save_pretrained(tmp_path / "exported")
    before = load_file(tmp_path / "native" / "model.safetensors")
    after = load_file(tmp_path / "exported" / "model.safetensors")
    assert sorted(before) == sorted(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_sharded_folders_load_whole(tmp_path):
    native = native_model("wav2vec2", "bart")
    native.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours, info = SpeechSeq2SeqModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    batch = audio("wav2vec2", 4000, 4000)
    assert torch.equal(logits(ours, batch), logits(native, batch))
    ours.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    assert torch.equal(logits(SpeechSeq2SeqModel.from_pretrained(tmp_path / "ours"), batch), logits(native, batch))


def test_folders_of_the_years_of_pytorch_bin_load(tmp_path):
    native = native_model("hubert", "bert")
    native.save_pretrained(tmp_path)
    torch.save(native.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    ours = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    batch = audio("hubert", 4000, 4000)
    assert torch.equal(logits(ours, batch), logits(native, batch))


@pytest.mark.parametrize("native_folder", [True, False])
def test_weight_norm_under_its_old_names_is_not_lost(native_folder, tmp_path):
    """Checkpoints from before PyTorch 2.1 keep `weight_g` and `weight_v`; unread, the positions would be random."""
    model: Any = native_model("wav2vec2", "bert") if native_folder else tiny_model("wav2vec2", "bert")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    legacy = dict(tensors)
    for new, old in names.items():
        for name in [name for name in tensors if name.endswith(new)]:
            legacy[name.replace(new, old)] = legacy.pop(name)
    assert legacy.keys() != tensors.keys()
    save_file(legacy, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, info = SpeechSeq2SeqModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    batch = audio("wav2vec2", 4000, 4000)
    assert torch.equal(logits(ours, batch), logits(model, batch))


@pytest.mark.parametrize("projected", [True, False])
def test_the_adapter_of_wav2vec2_is_not_taken_for_ours(projected, tmp_path):
    """Both name their tensors `encoder.adapter.…`; taken for ours, theirs would be random."""
    native = native_model("wav2vec2", "bert", projected, add_adapter=True, num_adapter_layers=1, adapter_stride=2)
    native.save_pretrained(tmp_path)
    ours, info = SpeechSeq2SeqModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    batch = audio("wav2vec2", 4000, 4000)
    assert torch.equal(logits(ours, batch), logits(native, batch))


def test_a_native_folder_opens_through_the_auto_class_of_our_config(tmp_path):
    native = native_model("wav2vec2", "bert")
    native.save_pretrained(tmp_path)
    config = SpeechSeq2SeqConfig.from_pretrained(tmp_path)
    ours = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path, config=config)
    assert isinstance(ours, SpeechSeq2SeqModel)
    batch = audio("wav2vec2", 4000, 4000)
    assert torch.equal(logits(ours, batch), logits(native, batch))
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SpeechEncoderDecoderConfig), "theirs stays theirs"


def test_exporting_what_the_native_class_cannot_hold_says_so():
    for model, part in (
        (tiny_model("wav2vec2", "bert", adapter_layers=1), "an adapter"),
        (tiny_model("wav2vec2", "bert", ctc_weight=0.3), "a CTC head"),
        (tiny_model("whisper", "bert"), "a whisper encoder"),
        (tiny_model("wav2vec2", "m2m_100"), "a m2m_100 decoder"),
    ):
        with pytest.raises(ValueError, match=part):
            model.to_native()


def test_the_announced_width_of_an_encoder_without_adapter_changes_nothing(tmp_path):
    native = native_model("wav2vec2", "bert", output_hidden_size=WIDTH + 4)
    native.save_pretrained(tmp_path)
    ours = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    batch = audio("wav2vec2", 4000, 4000)
    assert torch.equal(logits(ours, batch), logits(native, batch))


def test_a_native_projection_between_equal_widths_is_not_dropped_in_silence(tmp_path):
    """The native class adds one where the encoder announces a width that it does not have."""
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder_config("wav2vec2", output_hidden_size=WIDTH + 4), decoder_config("bert", hidden_size=WIDTH)
    )
    SpeechEncoderDecoderModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="projects between equal widths"):
        SpeechSeq2SeqModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("where", ["top", "decoder", "generation"])
def test_token_ids_are_read_from_every_place_where_native_folders_keep_them(where, tmp_path):
    """Only config.json's top, only its decoder, or only generation_config.json: documents have taught all three."""
    native_model("wav2vec2", "bert").save_pretrained(tmp_path)
    edit_ids(tmp_path / "config.json", None, IDS if where == "top" else {})
    edit_ids(tmp_path / "config.json", "decoder", IDS if where == "decoder" else {})
    edit_ids(tmp_path / "generation_config.json", None, IDS if where == "generation" else {})
    ours = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    for name in IDS:
        assert getattr(ours.config, name) == getattr(ours.generation_config, name) == IDS[name], name


def edit_ids(file: Path, part: str | None, ids: dict[str, int]) -> None:
    """Leave in one JSON file (or one part of it) these token ids and no others."""
    data = json.loads(file.read_text())
    place = data if part is None else data[part]
    for name in IDS:
        place.pop(name, None)
    place.update(ids)
    file.write_text(json.dumps(data))


def test_a_native_folder_whose_two_files_disagree_decodes_as_it_was_trained(tmp_path, caplog):
    """Native training reads config.json and native generation the other file: mBART's fault, and it is told."""
    native_model("wav2vec2", "mbart").save_pretrained(tmp_path)
    edit_ids(tmp_path / "generation_config.json", None, {**IDS, "decoder_start_token_id": 9})
    ours = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    assert "decoder_start_token_id is 2 in config.json, for training, but 9" in caplog.text
    assert ours.config.decoder_start_token_id == ours.generation_config.decoder_start_token_id == 2
    assert ours.generate(**audio("wav2vec2", 4000), max_new_tokens=3)[0, 0] == 2


def test_inputs_of_the_native_class_have_the_same_names():
    assert input_name("wav2vec2") == SpeechSeq2SeqModel.main_input_name == "input_values"
