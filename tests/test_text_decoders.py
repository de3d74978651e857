"""Every family of text decoders: it hears the audio, keeps to its mask, its positions and its depth."""

from typing import Any

import pytest
import torch
from tiny_models import (
    DECODERS,
    TEXT_WIDTH,
    WIDTH,
    audio,
    decoder_config,
    encoder_config,
    every_decoder_type,
    labels,
    randomize,
    tiny_config,
    tiny_model,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertModel,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen2Config,
    SpeechEncoderDecoderModel,
    T5Config,
    T5ForConditionalGeneration,
    TrOCRForCausalLM,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from speechgraft.modeling.modeling_speech_encoder import SpeechEncoderOutput
from speechgraft.modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel

every_decoder = pytest.mark.parametrize("name", DECODERS)
START = torch.tensor([[2, 7, 9], [2, 8, 6]])
SMALL: dict[str, Any] = {"vocab_size": 20, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
# Their decoders do not attend to an encoder, T5's not without its own.
FOREIGN: dict[str, Any] = {
    "opt": OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=12, max_position_embeddings=40),
    "llama": LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SMALL, intermediate_size=24, num_key_value_heads=2),
    "t5": T5Config(vocab_size=20, d_model=12, d_kv=6, d_ff=24, num_layers=1, num_heads=2),
}


def foreign_module(name: str) -> PreTrainedModel:
    """A ready module of a family that is not supported."""
    config = FOREIGN[name]
    return T5ForConditionalGeneration(config) if name == "t5" else AutoModelForCausalLM.from_config(config)


def hear(model: Any, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Logits from encoder states [B, T, D] and their mask [B, T]."""
    encoded = SpeechEncoderOutput(last_hidden_state=states, attention_mask=mask)
    with torch.no_grad():
        return model(encoder_outputs=encoded, decoder_input_ids=START).logits


def test_the_tiny_models_cover_the_whole_table():
    assert {decoder_config(name).model_type for name in DECODERS} == every_decoder_type()


@every_decoder
def test_the_text_depends_on_the_audio(name):
    model = tiny_model("wav2vec2-layer", name)
    first, second = (audio("wav2vec2-layer", 9600, 9600, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        logits, others = (model(**inputs, decoder_input_ids=START).logits for inputs in (first, second))
        swapped = model(**{key: value.flip(0) for key, value in first.items()}, decoder_input_ids=START.flip(0)).logits
    assert (logits - others).abs().amax(dim=(1, 2)).min() > 1e-4  # in every row
    torch.testing.assert_close(swapped.flip(0), logits)  # and each row on its own clip


@every_decoder
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_text_depends_on_every_frame_that_is_heard_and_on_none_that_is_padding(name, attention):
    model = tiny_model("wav2vec2", name)
    model.set_attn_implementation({"encoder": "eager", "decoder": attention})
    states = torch.randn(2, 9, model.encoder.projection.out_features if model.encoder.projection else WIDTH)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    logits = hear(model, states, mask)
    changed = states.clone()
    changed[1, 5:] = 100.0
    torch.testing.assert_close(hear(model, changed, mask), logits)
    torch.testing.assert_close(hear(model, states[:, :5], None)[1], logits[1])  # as if they were not there
    assert (hear(model, states, None)[1] - logits[1]).abs().max() > 1e-3
    changed[1, 4] = 100.0
    assert (hear(model, changed, mask)[1] - logits[1]).abs().max() > 1e-3


@every_decoder
def test_what_is_saved_is_what_is_loaded(name, tmp_path):
    model, inputs = tiny_model("wav2vec2", name), audio("wav2vec2", 9600, 16000)
    model.save_pretrained(tmp_path)
    reloaded = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    with torch.no_grad():
        logits, again = (each(**inputs, decoder_input_ids=START).logits for each in (model, reloaded))
    assert torch.equal(logits, again)


@every_decoder
def test_a_transcript_that_does_not_fit_names_the_limit_before_the_embedding_fails(name):
    model = tiny_model("wav2vec2", name).train()
    limit = model.family.max_length(model.config.decoder)
    inputs = audio("wav2vec2", 3200)
    assert torch.isfinite(model(**inputs, labels=labels(limit or 60)).loss)
    if limit is not None:
        with pytest.raises(ValueError, match=f"text has {limit + 1} tokens, but .* positions for {limit}: shorten"):
            model(**inputs, labels=labels(limit + 1))


def test_a_transcript_that_does_not_fit_is_a_bare_index_error_in_the_native_class():
    native = tiny_model("wav2vec2", "bart").to_native()
    with pytest.raises(IndexError, match="index out of range in self"):
        native(**audio("wav2vec2", 3200), decoder_input_ids=torch.full((1, 43), 7))


# Where the configuration's depth is that of the encoder which the decoder was trained with.
ALIASES = ["bart", "mbart", "marian", "pegasus", "m2m_100", "whisper"]
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 2},
    "static beams": {"num_beams": 2, "cache_implementation": "static"},
}


def assert_caches_fit(model: Any, decoder_layers: int, ways: dict[str, dict[str, Any]]) -> None:
    inputs = {name: value.to(model.device) for name, value in audio("wav2vec2", 9600, 16000).items()}
    settings: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "return_dict_in_generate": True}
    for way, options in ways.items():
        uncached = model.generate(**inputs, **settings, use_cache=False, num_beams=options.get("num_beams", 1))
        output = model.generate(**inputs, **settings, **options)
        assert torch.equal(output.sequences, uncached.sequences), way
        assert len(output.past_key_values.self_attention_cache.layers) == decoder_layers, way


@pytest.mark.parametrize("layers", [(1, 3), (3, 1)], ids=["deeper", "shallower"])
@pytest.mark.parametrize("name", ALIASES)
def test_every_cache_has_the_depth_of_the_decoder_and_not_of_its_old_encoder(name, layers, tmp_path):
    encoder_layers, decoder_layers = layers
    config = decoder_config(name, encoder_layers=encoder_layers, decoder_layers=decoder_layers)
    model = tiny_model("wav2vec2", config)
    assert_caches_fit(model, decoder_layers, CACHES)
    model.save_pretrained(tmp_path)
    assert_caches_fit(SpeechSeq2SeqModel.from_pretrained(tmp_path), decoder_layers, {"dynamic": {}})


@pytest.mark.cuda
@pytest.mark.parametrize("layers", [(1, 3), (3, 1)], ids=["deeper", "shallower"])
@pytest.mark.parametrize("name", ALIASES)
def test_an_offloaded_cache_has_the_depth_of_the_decoder(name, layers):
    config = decoder_config(name, encoder_layers=layers[0], decoder_layers=layers[1])
    offloaded = {way: {"cache_implementation": way} for way in ("offloaded", "offloaded_static")}
    assert_caches_fit(tiny_model("wav2vec2", config).cuda(), layers[1], offloaded)


def test_a_decoder_deeper_than_its_old_encoder_crashes_the_native_class():
    config = decoder_config("bart", encoder_layers=1, decoder_layers=3)
    config.add_cross_attention = True
    encoder = AutoModel.from_config(encoder_config("wav2vec2"))
    native = SpeechEncoderDecoderModel(encoder=encoder, decoder=AutoModelForCausalLM.from_config(config)).eval()
    native.generation_config.decoder_start_token_id = 2
    with pytest.raises(IndexError):
        native.generate(**audio("wav2vec2", 9600), max_new_tokens=4)


def test_gpt2_whose_start_is_its_end_does_not_stop_at_once():
    model = tiny_model("wav2vec2", "gpt2")
    assert model.config.decoder_start_token_id == model.config.eos_token_id == model.config.pad_token_id
    inputs = audio("wav2vec2", 9600, 16000)
    ids = torch.full((2, 1), model.config.decoder_start_token_id)
    with torch.no_grad():
        for _ in range(5):
            logits = model(**inputs, decoder_input_ids=ids).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert (ids[:, 1:] != model.config.eos_token_id).all()  # or it would stop rightly
    assert torch.equal(model.generate(**inputs, max_new_tokens=5), ids)


def test_states_of_the_width_that_cross_attention_reads_are_not_projected():
    assert decoder_config("trocr").cross_attention_hidden_size == WIDTH != TEXT_WIDTH
    assert tiny_model("wav2vec2", "trocr").encoder.projection is None
    assert tiny_model("wav2vec2", "bart").encoder.projection.out_features == TEXT_WIDTH


def test_the_decoder_of_a_trocr_folder_comes_out_of_it(tmp_path):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = decoder_config("trocr")
    config.is_decoder = config.add_cross_attention = True
    whole = VisionEncoderDecoderModel(
        encoder=ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)), decoder=TrOCRForCausalLM(config)
    )
    randomize(whole).save_pretrained(tmp_path)
    model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(tiny_model().encoder.backbone, tmp_path)
    expected = whole.decoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.decoder.state_dict().items())
    assert model.config.newly_initialized == []


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOREIGN)
def test_decoders_that_cannot_hear_are_refused_with_the_list_of_those_that_can(name):
    listed = ".*".join(sorted(every_decoder_type()))
    with pytest.raises(ValueError, match=f"not a supported text decoder.*Supported: {listed}"):
        SpeechSeq2SeqModel(tiny_config("wav2vec2", FOREIGN[name]))
    with pytest.raises(ValueError, match=f"not a supported text decoder.*Supported: {listed}"):
        SpeechSeq2SeqModel(encoder=tiny_model().encoder.backbone, decoder=foreign_module(name))


@pytest.mark.parametrize("name", ["opt", "llama", "qwen2"])
def test_the_native_class_takes_decoders_that_cannot_hear_and_fails_later_or_ignores_the_audio(name):
    decoder = foreign_module(name)
    decoder.config.is_decoder = decoder.config.add_cross_attention = True
    native = SpeechEncoderDecoderModel(encoder=tiny_model().encoder.backbone, decoder=decoder).eval()
    try:
        first, second = (
            native(**audio("wav2vec2", 9600, seed=seed), decoder_input_ids=START[:1]).logits for seed in (0, 1)
        )
    except (AttributeError, TypeError):
        return
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "gpt2", "xglm"])
def test_a_ready_decoder_without_cross_attention_is_refused(name):
    config = decoder_config(name)
    config.is_decoder, config.add_cross_attention = True, False
    with pytest.raises(ValueError, match="without cross-attention"):
        SpeechSeq2SeqModel(encoder=tiny_model().encoder.backbone, decoder=AutoModelForCausalLM.from_config(config))


def test_a_ready_decoder_without_a_head_is_refused():
    decoder = BertModel(decoder_config("bert", is_decoder=True, add_cross_attention=True))
    with pytest.raises(ValueError, match="must be a BertLMHeadModel, got a BertModel"):
        SpeechSeq2SeqModel(encoder=tiny_model().encoder.backbone, decoder=decoder)


@pytest.mark.parametrize("name", [name for name in DECODERS if name not in ("m2m_100", "whisper")])
def test_ready_decoders_of_transformers_work_as_well(name):
    config = decoder_config(name)
    config.is_decoder = config.add_cross_attention = True
    decoder = AutoModelForCausalLM.from_config(config)
    model = SpeechSeq2SeqModel(encoder=tiny_model().encoder.backbone, decoder=decoder).eval()
    assert model(**audio("wav2vec2", 9600, 16000), decoder_input_ids=START).logits.shape == (2, 3, 20)


def test_a_ready_decoder_that_would_hear_padding_is_refused():
    decoder = AutoModelForCausalLM.from_config(decoder_config("whisper"))
    with pytest.raises(ValueError, match="must be a WhisperTextDecoder, got a WhisperForCausalLM"):
        SpeechSeq2SeqModel(encoder=tiny_model().encoder.backbone, decoder=decoder)
