"""Pretrained text encoders under a spectrogram decoder: every family of the table, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny_speech_synthesizers import TTS_MELS, TTS_SIZES, VOICE, row_alone, tiny_tts_batch, tiny_tts_config

from speechgraft import TextToSpectrogramModel
from speechgraft.modeling.text_encoders import TEXT_ENCODER_FAMILIES

WIDTH, POSITIONS = 16, 24
LAYERS: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 20,
    "max_position_embeddings": POSITIONS,
}
DISTILBERT: dict[str, Any] = {
    "dim": WIDTH,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "vocab_size": 20,
    "max_position_embeddings": POSITIONS,
}
IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
T5: dict[str, Any] = {"d_model": WIDTH, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 24, "vocab_size": 20}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
MODERN = {"cls_token_id": 0, "sep_token_id": 2, "global_attn_every_n_layers": 2, "local_attention": 8}

# model type: (configuration, class of the full checkpoint that people have)
FAMILIES: dict[str, tuple[Any, Any]] = {
    "bert": (hf.BertConfig(**LAYERS, **IDS), hf.BertForMaskedLM),
    "albert": (hf.AlbertConfig(**LAYERS, **IDS, embedding_size=8), hf.AlbertForMaskedLM),
    "roberta": (hf.RobertaConfig(**LAYERS, **IDS), hf.RobertaForMaskedLM),
    "xlm-roberta": (hf.XLMRobertaConfig(**LAYERS, **IDS), hf.XLMRobertaForMaskedLM),
    "camembert": (hf.CamembertConfig(**LAYERS, **IDS), hf.CamembertForMaskedLM),
    "mpnet": (hf.MPNetConfig(**LAYERS, **IDS), hf.MPNetForMaskedLM),
    "distilbert": (hf.DistilBertConfig(**DISTILBERT, pad_token_id=1), hf.DistilBertForMaskedLM),
    "electra": (hf.ElectraConfig(**LAYERS, **IDS, embedding_size=8), hf.ElectraForPreTraining),
    "deberta-v2": (hf.DebertaV2Config(**LAYERS, **IDS, **RELATIVE), hf.DebertaV2ForMaskedLM),
    "modernbert": (hf.ModernBertConfig(**LAYERS, **IDS, **MODERN), hf.ModernBertForMaskedLM),
    "t5": (hf.T5Config(**T5, pad_token_id=1, eos_token_id=2), hf.T5ForConditionalGeneration),
    "mt5": (hf.MT5Config(**T5, pad_token_id=1, eos_token_id=2), hf.MT5ForConditionalGeneration),
    "umt5": (hf.UMT5Config(**T5, pad_token_id=1, eos_token_id=2), hf.UMT5ForConditionalGeneration),
}
DECODER = {
    name: value
    for name, value in TTS_SIZES.items()
    if not name.startswith("encoder_") and name not in ("vocab_size", "max_text_positions", "hidden_size")
}
ROWS = [(5, 9), (8, 4), (3, 7)]


def save_text_checkpoint(folder: Path, family: str) -> Any:
    config, model_class = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(config).eval()
    model.save_pretrained(folder)
    return model


def warm(source: Any, **options: Any) -> Any:
    """A model that starts from a text checkpoint, without the prenet's dropout."""
    options = {**DECODER, "decoder_attention_heads": 2, "speech_decoder_prenet_dropout": 0.0, **options}
    return TextToSpectrogramModel.from_text_encoder_pretrained(source, **options)


def test_every_family_of_the_table_is_tested():
    assert {name for family in TEXT_ENCODER_FAMILIES for name in family.model_types} == FAMILIES.keys()


@pytest.mark.parametrize("width", [WIDTH, 12], ids=["same-width", "projected"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_encoder_is_taken_whole_and_reads_as_it_did(family, width, tmp_path):
    source = save_text_checkpoint(tmp_path, family)
    model = warm(tmp_path, hidden_size=width)
    batch = tiny_tts_batch(ROWS)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    whole = source.get_encoder() if source.config.is_encoder_decoder else getattr(source, source.base_model_prefix)
    with torch.no_grad():
        expected = whole(**text).last_hidden_state
        found = model.encoder.backbone(**text).last_hidden_state
        encoded = model.encode(**text).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    assert encoded.shape == (3, 8, width) and (model.encoder.projection is None) == (width == WIDTH)
    new = ["decoder", "postnet"] if width == WIDTH else ["decoder", "encoder.projection", "postnet"]
    assert model.config.newly_initialized == new and not model.training
    assert model.config.pad_token_id == 1 and model.config.vocab_size == 20


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_a_batch_equals_the_row_alone(family, tmp_path):
    save_text_checkpoint(tmp_path, family)
    model, batch = warm(tmp_path), tiny_tts_batch(ROWS)
    together = model(**batch)
    for index, (_, frames) in enumerate(ROWS):
        alone = model(**row_alone(batch, index))
        torch.testing.assert_close(together.spectrogram[index, :frames], alone.spectrogram[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_trained_is_what_speaks_again(family, tmp_path):
    save_text_checkpoint(tmp_path / "text", family)
    model, batch = warm(tmp_path / "text"), tiny_tts_batch(ROWS)
    model.train()
    model(**batch, speaker_embeddings=torch.ones(VOICE)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not without, "every weight learns"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)
    model.eval().save_pretrained(tmp_path / "speech")
    loaded, info = TextToSpectrogramModel.from_pretrained(tmp_path / "speech", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(**batch).spectrogram, model(**batch).spectrogram)


@pytest.mark.parametrize("family", FAMILIES)
def test_attentions_and_hidden_states_of_a_pretrained_encoder_come_back(family, tmp_path):
    save_text_checkpoint(tmp_path, family)
    model, batch = warm(tmp_path), tiny_tts_batch(ROWS)
    asked = model(**batch, output_attentions=True, output_hidden_states=True)
    assert [tuple(each.shape) for each in asked.encoder_attentions] == [(3, 2, 8, 8)] * 2
    assert [tuple(each.shape) for each in asked.encoder_hidden_states] == [(3, 8, WIDTH)] * 3
    torch.testing.assert_close(asked.spectrogram, model(**batch).spectrogram, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert"])
def test_text_beyond_the_positions_is_refused_with_limit_and_length(family, tmp_path):
    save_text_checkpoint(tmp_path, family)
    model = warm(tmp_path)
    limit = POSITIONS - 2 if family in ("roberta", "mpnet") else POSITIONS  # positions count from the padding's id
    assert model.encode(torch.full((1, limit), 4)).last_hidden_state.shape[1] == limit
    with pytest.raises(
        ValueError, match=f"the text has {limit + 1} tokens, but the encoder has positions for {limit}"
    ):
        model.encode(torch.full((1, limit + 1), 4))


def test_steps_over_a_pretrained_encoder_equal_decoding_at_once(tmp_path):
    save_text_checkpoint(tmp_path, "bert")
    model, batch, frames = warm(tmp_path, hidden_size=12), tiny_tts_batch(ROWS), torch.randn(3, 5, TTS_MELS)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        whole = model(**text, decoder_input_values=frames).spectrogram_before_postnet
        state = model.start_decoding(model.encode(**text))
        written = torch.cat([model.decode_step(frames[:, step], state).frames for step in range(5)], dim=1)
    torch.testing.assert_close(written, whole, atol=1e-5, rtol=0)


def test_token_types_are_read_by_encoders_that_have_them(tmp_path):
    save_text_checkpoint(tmp_path, "bert")
    model, batch = warm(tmp_path), tiny_tts_batch(ROWS)
    types = torch.ones_like(batch["input_ids"])
    assert not torch.allclose(model(**batch, token_type_ids=types).spectrogram, model(**batch).spectrogram)


def test_a_checkpoint_that_lacks_weights_is_refused_with_their_names(tmp_path):
    save_text_checkpoint(tmp_path, "bert")
    file = tmp_path / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if "layer.1.attention" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not supply these weights.*encoder\.layer\.1\.attention"):
        warm(tmp_path)


def test_a_family_that_is_not_in_the_table_is_refused_with_those_that_are(tmp_path):
    hf.GPT2Model(hf.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'gpt2' is not a supported text encoder. Supported: albert, bert"):
        warm(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"redction_factor": 1}, "does not know redction_factor"),
        ({"encoder_layers": 3}, "SpeechT5's own text encoder"),
        ({"encoder_no_such_field": 3}, "configuration does not know no_such_field"),
    ],
)
def test_arguments_without_effect_are_refused(options, message, tmp_path):
    save_text_checkpoint(tmp_path, "bert")
    with pytest.raises(TypeError, match=message):
        warm(tmp_path, **options)


def test_a_ready_encoder_may_be_given_and_keeps_its_attention(tmp_path):
    config = hf.BertConfig(**LAYERS, **IDS)
    encoder = hf.BertModel(config, add_pooling_layer=False).eval()
    encoder.set_attn_implementation("eager")
    model = warm(encoder)
    assert model.encoder.backbone is encoder and model.config.encoder._attn_implementation == "eager"
    with pytest.raises(TypeError, match="no effect: hidden_size, revision"):
        warm(encoder, revision="main", encoder_hidden_size=3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_and_dtype_are_those_that_were_asked_for(attention, tmp_path):
    save_text_checkpoint(tmp_path, "bert")
    model = warm(tmp_path, attn_implementation=attention, dtype="bfloat16", encoder_attention_probs_dropout_prob=0.4)
    assert model.config._attn_implementation == model.config.encoder._attn_implementation == attention
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.encoder.attention_probs_dropout_prob == 0.4
    assert torch.isfinite(model(**tiny_tts_batch(ROWS)).loss)


def test_new_tokens_can_be_added_to_a_pretrained_encoder(tmp_path):
    save_text_checkpoint(tmp_path / "text", "bert")
    model = warm(tmp_path / "text")
    model.resize_token_embeddings(23)
    assert (model.config.vocab_size, model.config.encoder.vocab_size) == (23, 23)
    model.save_pretrained(tmp_path / "speech")
    loaded = TextToSpectrogramModel.from_pretrained(tmp_path / "speech")
    assert loaded.encode(torch.tensor([[4, 22]])).last_hidden_state.shape == (1, 2, WIDTH)


def test_freezing_the_encoder_leaves_what_is_new_to_learn(tmp_path):
    save_text_checkpoint(tmp_path, "bert")
    model = warm(tmp_path, hidden_size=12)
    model.freeze_encoder()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("encoder.backbone.")}


def test_a_configuration_alone_builds_the_same_model():
    config = tiny_tts_config(encoder=hf.BertConfig(**LAYERS, **IDS), hidden_size=16)
    model = TextToSpectrogramModel(config).eval()
    assert type(model.encoder.backbone) is hf.BertModel and model.encoder.backbone.pooler is None
    assert torch.isfinite(model(**tiny_tts_batch(ROWS)).loss)


def test_a_real_checkpoint_starts_a_model(pretrained_folder):
    """MiniLM, a BERT: its 6 layers of 384 units, and a decoder of one layer."""
    folder = pretrained_folder("minilm")
    model = TextToSpectrogramModel.from_text_encoder_pretrained(folder, decoder_layers=1, speaker_embedding_dim=0)
    ids = hf.AutoTokenizer.from_pretrained(folder)("Hello world.", return_tensors="pt")
    output = model(**ids, labels=torch.zeros(1, 7, 80))
    assert model.config.hidden_size == 384 and model.encoder.projection is None and torch.isfinite(output.loss)
