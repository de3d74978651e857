"""Folders of the built-in `SpeechT5ForTextToSpeech`: they open here as they are, and can be written back."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_speech_synthesizers import (
    NO_DROPOUT,
    TTS_MELS,
    TTS_SIZES,
    VOICE,
    repeatable_synthesizer,
    tiny_native_synthesizer,
    tiny_tts_batch,
    without_prenet_dropout,
)
from torch import nn
from transformers import SpeechT5Config, SpeechT5ForSpeechToText, SpeechT5ForTextToSpeech

from speechgraft import TextToSpectrogramModel

ROWS = [(5, 8), (9, 8), (3, 8)]


def load(folder: Any, **options: Any) -> Any:
    """Our model from a folder, without the prenet's dropout."""
    model, info = TextToSpectrogramModel.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    model.config.speech_decoder_prenet_dropout = 0.0
    return model


@pytest.mark.parametrize("voice", [False, True], ids=["no-voice", "voice"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"reduction_factor": 1}, {"speech_decoder_prenet_layers": 3, "speech_decoder_postnet_layers": 1}],
    ids=["pairs", "single-frames", "other-depths"],
)
def test_a_folder_of_the_native_class_speaks_the_same(fields, voice, tmp_path):
    native = without_prenet_dropout(tiny_native_synthesizer(**fields))
    native.save_pretrained(tmp_path)
    ours = load(tmp_path)
    batch = tiny_tts_batch(ROWS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    inputs["decoder_input_values"] = torch.randn(3, 6, TTS_MELS)
    inputs["speaker_embeddings"] = torch.randn(3, VOICE) if voice else None
    asked = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        expected, found, plain = native(**inputs, **asked), ours(**inputs, **asked), ours(**inputs)
    names = ("spectrogram", "encoder_last_hidden_state")
    layers = ("encoder_hidden_states", "decoder_hidden_states", "decoder_attentions", "cross_attentions")
    for output in (found, plain):
        for name in names:
            torch.testing.assert_close(output[name], expected[name], atol=1e-5, rtol=0)
    for name in (*layers, "encoder_attentions"):
        assert len(found[name]) == len(expected[name])
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_texts_longer_than_the_relative_positions_reach_sound_the_same(tmp_path):
    native = without_prenet_dropout(tiny_native_synthesizer(encoder_max_relative_position=3))
    native.save_pretrained(tmp_path)
    ids, frames = torch.randint(3, 20, (1, 30)), torch.randn(1, 4, TTS_MELS)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_values": frames}
    with torch.no_grad():
        torch.testing.assert_close(
            load(tmp_path)(**inputs).spectrogram, native(**inputs).spectrogram, atol=1e-5, rtol=0
        )


def test_the_reconstruction_and_stop_losses_are_the_native_ones(tmp_path):
    """Where the built-in class is right: one row, no padding, an even length, no guided attention."""
    native = without_prenet_dropout(tiny_native_synthesizer(use_guided_attention_loss=False))
    native.save_pretrained(tmp_path)
    batch = tiny_tts_batch([(5, 8)])
    torch.testing.assert_close(load(tmp_path)(**batch).loss, native(**batch).loss, atol=1e-5, rtol=0)


def test_the_guided_attention_loss_is_the_native_one_for_a_row_alone(tmp_path):
    native = without_prenet_dropout(tiny_native_synthesizer(guided_attention_loss_num_heads=2))
    native.save_pretrained(tmp_path)
    ours, batch = load(tmp_path), tiny_tts_batch([(5, 8)])
    assert ours.config.guided_attention_loss_heads == [0, 1] and ours.config.guided_attention_loss_scale == 10
    torch.testing.assert_close(ours(**batch).loss, native(**batch).loss, atol=1e-5, rtol=0)


def test_teacher_forced_gradients_are_the_native_ones(tmp_path):
    fields = {**NO_DROPOUT, "use_guided_attention_loss": False}
    native = without_prenet_dropout(tiny_native_synthesizer(**fields)).train()
    native.save_pretrained(tmp_path)
    ours, batch = load(tmp_path).train(), tiny_tts_batch([(5, 8), (5, 8)])
    voice = torch.randn(2, VOICE)
    native(**batch, speaker_embeddings=voice).loss.backward()
    ours(**batch, speaker_embeddings=voice).loss.backward()
    expected = {name: value.grad for name, value in native.named_parameters()}
    with torch.no_grad():  # written over the weights, the gradients get the native names
        for parameter in ours.parameters():
            parameter.copy_(parameter.grad)
    for name, found in ours.to_native().named_parameters():
        torch.testing.assert_close(
            found, expected[name], atol=1e-4, rtol=1e-3, msg=lambda text, name=name: name + text
        )


def test_a_native_folder_survives_the_round_trip_bit_for_bit(tmp_path):
    """Loaded here, saved here, loaded again and exported: every tensor of the first folder is in the last."""
    native = tiny_native_synthesizer(reduction_factor=3)
    native.save_pretrained(tmp_path / "native")
    TextToSpectrogramModel.from_pretrained(tmp_path / "native").save_pretrained(tmp_path / "ours")
    TextToSpectrogramModel.from_pretrained(tmp_path / "ours").to_native().save_pretrained(tmp_path / "exported")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("native", "exported"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("native", "exported")]
    different = {
        name for name in configs[0].keys() | configs[1].keys() if configs[0].get(name) != configs[1].get(name)
    }
    assert different <= {"encoder_layerdrop", "decoder_layerdrop", "transformers_version"}


def test_what_is_exported_opens_in_the_native_class_and_speaks_the_same(tmp_path):
    ours = repeatable_synthesizer()
    ours.to_native().save_pretrained(tmp_path)
    native, info = SpeechT5ForTextToSpeech.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    native = without_prenet_dropout(native.eval())
    batch = tiny_tts_batch(ROWS)
    del batch["labels"]
    batch["decoder_input_values"], batch["speaker_embeddings"] = torch.randn(3, 6, TTS_MELS), torch.randn(3, VOICE)
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch).spectrogram, native(**batch).spectrogram, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"max_shard_size": "10KB"}, {}], ids=["shards", "pytorch_model.bin"])
def test_sharded_folders_and_those_of_the_years_of_pytorch_bin_load_whole(options, tmp_path):
    native = without_prenet_dropout(tiny_native_synthesizer())
    native.save_pretrained(tmp_path, **options)
    if not options:
        torch.save(native.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    batch = tiny_tts_batch([(5, 8)])
    with torch.no_grad():
        found, expected = load(tmp_path)(**batch), native(**batch)
    torch.testing.assert_close(found.spectrogram, expected.spectrogram, atol=1e-5, rtol=0)


def test_native_folders_load_in_half_precision(tmp_path):
    tiny_native_synthesizer().save_pretrained(tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16)
    exported = model.to_native().state_dict()
    before = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(exported[name], before[name].to(exported[name].dtype)) for name in before)
    assert model.dtype == torch.bfloat16 and torch.isfinite(model(**tiny_tts_batch(ROWS)).loss)


def test_fields_may_be_changed_while_a_native_folder_loads(tmp_path):
    tiny_native_synthesizer().save_pretrained(tmp_path)
    model = TextToSpectrogramModel.from_pretrained(tmp_path, guided_attention_loss_scale=1.0, hidden_dropout=0.3)
    assert model.config.guided_attention_loss_scale == 1.0
    assert {module.p for module in model.decoder.layers.modules() if isinstance(module, nn.Dropout)} == {0.1, 0.3}


def test_a_native_folder_of_another_task_is_refused(tmp_path):
    sizes = {name: value for name, value in TTS_SIZES.items() if not name.startswith("speaker")}
    convolutions = {"conv_dim": (4,), "conv_stride": (5,), "conv_kernel": (10,), "num_conv_pos_embeddings": 4}
    config = SpeechT5Config(**sizes, **convolutions, num_conv_pos_embedding_groups=2)
    SpeechT5ForSpeechToText(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a SpeechT5ForTextToSpeech checkpoint: it lacks"):
        TextToSpectrogramModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [({"speaker_embedding_dim": 0}, "speaker layer"), ({"speech_decoder_postnet_layers": 0}, "postnet")],
)
def test_what_the_native_class_cannot_express_is_not_exported(fields, message):
    with pytest.raises(ValueError, match=message):
        repeatable_synthesizer(**fields).to_native()
