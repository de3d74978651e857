"""Configurations: what is written is read back, what is edited takes effect, what is mistyped is refused."""

import copy
import json
import pickle
from typing import Any, cast

import pytest
from tiny_models import DECODERS, ENCODERS, audio, decoder_config, encoder_config, tiny_config, tiny_model
from transformers import AutoConfig, BertConfig, GPT2Config, SpeechEncoderDecoderConfig, Wav2Vec2Config, WhisperConfig

from speechgraft import SpeechEncoderConfig, SpeechSeq2SeqConfig, SpeechSeq2SeqModel

TOKEN_IDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")


@pytest.mark.parametrize("config_class", [SpeechSeq2SeqConfig, SpeechEncoderConfig])
def test_a_mistyped_field_is_refused_with_the_one_that_was_meant(config_class):
    with pytest.raises(ValueError, match=r"'adapter_layres' \(did you mean 'adapter_layers'\?\)"):
        config_class(adapter_layres=1)


def test_a_setting_of_generation_is_sent_where_it_belongs():
    """In the configuration it would have no effect."""
    with pytest.raises(ValueError, match="num_beams.*generation_config"):
        SpeechSeq2SeqConfig(**cast(Any, {"num_beams": 4}))


def test_a_file_of_a_newer_version_is_refused_with_what_to_do(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"diffusion_steps": 3}))
    for load in (SpeechSeq2SeqConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match="diffusion_steps.*newer version.*pip install --upgrade speechgraft"):
            load(tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"ctc_weight": 1.5}, "ctc_weight"),
        ({"ctc_weight": -0.1}, "ctc_weight"),
        ({"ctc_vocab_size": 1}, "ctc_vocab_size"),
        ({"ctc_characters": "aba"}, "ctc_characters"),
        ({"ctc_characters": "ab", "ctc_vocab_size": 9}, "ctc_vocab_size=9, but 2 ctc_characters and the blank are 3"),
        ({"adapter_layers": -1}, "adapter_layers"),
        ({"adapter_stride": 0}, "adapter_stride"),
        ({"adapter_kernel_size": 0}, "adapter_kernel_size"),
        ({"layerdrop": 2}, "layerdrop"),
        ({"mask_time_prob": -0.5}, "mask_time_prob"),
        ({"mask_feature_prob": 1.5}, "mask_feature_prob"),
        ({"adapter_layers": "two"}, "adapter_layers"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(Exception, match=message):  # TypeErrors come wrapped, by a class that is not public
        tiny_config(**fields)


def test_whole_numbers_are_taken_where_fractions_are_meant():
    config = tiny_config(ctc_weight=1, layerdrop=0, mask_time_prob=0)
    assert (config.ctc_weight, config.layerdrop) == (1, 0)
    assert SpeechSeq2SeqConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", ["wav2vec2", "whisper", "parakeet"])
def test_what_is_saved_is_what_was_there(encoder, decoder, tmp_path):
    config = tiny_config(
        encoder, decoder, ctc_weight=0.25, adapter_layers=2, decoder_prompt_token_ids=[5, 6], newly_initialized=["a.b"]
    )
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 4, [5, 6], 7
    config.save_pretrained(tmp_path)
    for load in (SpeechSeq2SeqConfig.from_pretrained, AutoConfig.from_pretrained):
        again = load(tmp_path)
        assert type(again) is SpeechSeq2SeqConfig
        assert again.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        assert type(again.encoder) is type(config.encoder) and type(again.decoder) is type(config.decoder)
        assert (again.decoder_start_token_id, again.eos_token_id, again.pad_token_id) == (4, [5, 6], 7)
    assert SpeechSeq2SeqConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and twin.decoder is not config.decoder


def test_edits_of_the_parts_survive_and_take_effect(tmp_path):
    config = tiny_config("wav2vec2", "bert")
    config.encoder.num_hidden_layers, config.decoder.num_hidden_layers = 1, 3
    config.decoder.hidden_dropout_prob = 0.25
    config.save_pretrained(tmp_path)
    again = SpeechSeq2SeqConfig.from_pretrained(tmp_path)
    model = SpeechSeq2SeqModel(again)
    assert len(model.encoder.backbone.encoder.layers) == 1
    assert again.num_hidden_layers == len(model.decoder.bert.encoder.layer) == 3
    assert model.decoder.bert.embeddings.dropout.p == 0.25


def test_token_ids_have_one_place():
    config = tiny_config("wav2vec2", "bart")
    for number, name in enumerate(TOKEN_IDS):
        setattr(config, name, number + 3)
        assert getattr(config.decoder, name) == getattr(config.get_text_config(), name) == number + 3
        setattr(config.decoder, name, number + 8)
        assert getattr(config, name) == number + 8
    assert not set(TOKEN_IDS) & set(config.to_dict()), "a second copy could disagree"


def test_token_ids_may_be_given_to_the_constructor():
    config = SpeechSeq2SeqConfig(
        encoder=encoder_config("wav2vec2"),
        decoder=decoder_config("bert"),
        **dict(zip(TOKEN_IDS, range(4), strict=True)),
    )
    assert [getattr(config.decoder, name) for name in TOKEN_IDS] == [0, 1, 2, 3]
    unset = SpeechSeq2SeqConfig(encoder=encoder_config("wav2vec2"), decoder=decoder_config("bart"), eos_token_id=None)
    assert unset.eos_token_id is None, "None given is None meant"


def test_the_vocabulary_has_one_place():
    config = tiny_config("wav2vec2", "gpt2")
    config.vocab_size = 33
    assert config.decoder.vocab_size == config.vocab_size == 33
    assert config.hidden_size == config.decoder.n_embd and config.num_attention_heads == config.decoder.n_head


def test_building_from_two_configurations_leaves_them_alone():
    speech, text = encoder_config("wav2vec2"), decoder_config("bert")
    before = speech.to_dict(), text.to_dict()
    config = SpeechSeq2SeqConfig.from_encoder_decoder_configs(speech, text, ctc_weight=0.5, eos_token_id=3)
    config.encoder.hidden_dropout = 0.9
    assert (speech.to_dict(), text.to_dict()) == before
    assert config.ctc_weight == 0.5 and config.eos_token_id == 3
    assert config.decoder.is_decoder and config.decoder.add_cross_attention


def test_parts_may_be_dictionaries():
    config = SpeechSeq2SeqConfig(
        encoder={"model_type": "hubert", "hidden_size": 24}, decoder={"model_type": "gpt2", "n_embd": 8, "n_head": 2}
    )
    assert config.encoder.model_type == "hubert" and config.encoder.hidden_size == 24
    assert isinstance(config.decoder, GPT2Config) and config.hidden_size == 8


def test_without_arguments_there_are_default_parts():
    config = SpeechSeq2SeqConfig()
    assert isinstance(config.encoder, Wav2Vec2Config) and isinstance(config.decoder, BertConfig)
    assert type(AutoConfig.for_model("speech_seq2seq")) is SpeechSeq2SeqConfig


def test_one_whisper_configuration_for_both_halves_becomes_two():
    whisper = cast(WhisperConfig, ENCODERS["whisper"][0]())
    config = SpeechSeq2SeqConfig(encoder=whisper, decoder=whisper)
    config.decoder.decoder_layers = 5
    assert config.encoder.decoder_layers == 2


def test_a_decoder_of_another_depth_than_its_encoder_is_counted_right():
    """`num_hidden_layers` of BART and its like is the encoder's; caches are built from it."""
    for layers in ((1, 3), (3, 1)):
        text = decoder_config("bart", encoder_layers=layers[0], decoder_layers=layers[1])
        config = SpeechSeq2SeqConfig(encoder=encoder_config("wav2vec2"), decoder=text)
        assert config.num_hidden_layers == config.decoder.num_hidden_layers == layers[1]
        again = SpeechSeq2SeqConfig.from_dict(config.to_dict())
        assert again.decoder.num_hidden_layers == layers[1]


def test_the_attention_of_each_part_is_kept_through_copies_but_not_files(tmp_path):
    """A file that asked for flash attention would not open where there is none: Transformers leaves it out."""
    config = tiny_config("wav2vec2", "bert")
    model = SpeechSeq2SeqModel._from_config(config, attn_implementation={"encoder": "eager", "decoder": "sdpa"})
    assert model.config.encoder._attn_implementation == "eager" and model.config.decoder._attn_implementation == "sdpa"
    assert model.encoder.backbone.config._attn_implementation == "eager"
    model.config.save_pretrained(tmp_path)
    assert "attn_implementation" not in (tmp_path / "config.json").read_text()


def native_dict(**top: Any) -> dict[str, Any]:
    native = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder_config("wav2vec2"), decoder_config("bert")
    )
    return native.to_dict() | top


def test_a_native_configuration_reads_as_ours(tmp_path):
    top = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(native_dict(**top)))
    config = SpeechSeq2SeqConfig.from_pretrained(tmp_path)
    assert config.model_type == "speech_seq2seq"
    assert {name: getattr(config, name) for name in top} == top
    assert config.encoder.to_dict() == encoder_config("wav2vec2").to_dict() | {
        "layerdrop": 0.0  # off unless asked for
    }
    SpeechSeq2SeqModel(config)


def test_what_people_have_put_into_native_configurations_does_not_keep_them_from_opening(tmp_path):
    """The native class takes any key; scripts of several years have set these."""
    clutter = {
        "architectures": ["SpeechEncoderDecoderModel"],
        "gradient_checkpointing": True,
        "encoder_hidden_size": 16,
        "max_length": 60,
        "num_beams": 5,
        "forced_bos_token_id": 7,
        "processor_class": "Wav2Vec2Processor",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": False,
        "transformers_version": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(native_dict(**clutter)))
    config = SpeechSeq2SeqConfig.from_pretrained(tmp_path)
    assert config.architectures is None
    config.save_pretrained(tmp_path / "ours")
    assert SpeechSeq2SeqConfig.from_pretrained(tmp_path / "ours").to_dict().keys() == config.to_dict().keys()


def test_ids_that_a_native_file_leaves_open_are_those_of_its_decoder(tmp_path):
    native = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder_config("wav2vec2"), decoder_config("bart")
    )
    content = native.to_dict()
    for name in TOKEN_IDS:
        content[name] = None
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = SpeechSeq2SeqConfig.from_pretrained(tmp_path)
    bart = decoder_config("bart")
    assert all(getattr(config, name) == getattr(bart, name) is not None for name in TOKEN_IDS)


def test_the_ratio_of_samples_to_frames_is_that_of_the_layers():
    for name, fields in (("wav2vec2", {}), ("wav2vec2", {"adapter_layers": 2}), ("whisper", {}), ("moonshine", {})):
        config = tiny_config(name, **fields)
        model = tiny_model(name, "bert", **fields)
        (inputs,) = audio(name, 20_000, mask=False).values()
        frames = model.get_encoder()(inputs).last_hidden_state.shape[1]
        steps = inputs.shape[model.encoder.family.time_dim]
        assert abs(frames - steps / config.inputs_to_logits_ratio) < 3, name


def test_a_masking_probability_turns_spec_augment_on_where_the_backbone_has_it_off() -> None:
    whisper = {"model_type": "whisper", "apply_spec_augment": False}
    assert tiny_config(encoder=whisper, mask_time_prob=0.1).apply_spec_augment
    assert tiny_config(encoder=whisper, mask_feature_prob=0.1).apply_spec_augment
    assert not tiny_config(encoder=whisper).apply_spec_augment
    assert not tiny_config(encoder=whisper, mask_time_prob=0.1, apply_spec_augment=False).apply_spec_augment


def test_spec_augment_set_while_loading_reaches_the_backbone(tmp_path) -> None:
    tiny_config(apply_spec_augment=False, mask_time_prob=0.05).save_pretrained(tmp_path)
    loaded = SpeechSeq2SeqConfig.from_pretrained(tmp_path, mask_feature_prob=0.2, layerdrop=0.1)
    for config in (loaded, loaded.encoder):
        assert (config.apply_spec_augment, config.mask_feature_prob, config.layerdrop) == (True, 0.2, 0.1)
    unchanged = SpeechSeq2SeqConfig.from_pretrained(tmp_path)
    assert (unchanged.apply_spec_augment, unchanged.encoder.apply_spec_augment) == (False, False)
