"""Building from pretrained parts: nothing pretrained is lost, nothing asked for is ignored."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    DECODERS,
    ENCODERS,
    TEXT_WIDTH,
    TOKENIZER_OF,
    audio,
    decoder_config,
    encoder_config,
    labels,
    randomize,
    save_decoder,
    save_encoder,
    tiny_model,
)
from tiny_tokenizers import tiny_tokenizer
from transformers import (
    AutoModel,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    GenerationConfig,
    GPT2Model,
    LlamaConfig,
    OPTConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    SpeechEncoderDecoderModel,
    T5Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from speechgraft import SpeechSeq2SeqCollator, SpeechSeq2SeqConfig, SpeechSeq2SeqModel, SpeechSeq2SeqProcessor

TOKEN_IDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
SHARING = ["bart", "mbart", "pegasus", "marian", "m2m_100"]  # full models keep one embedding for both halves
LAYOUTS = {
    "shared": ("model.shared.weight",),
    "decoder": ("model.decoder.embed_tokens.weight",),
    "head": ("model.shared.weight", "lm_head.weight"),
    "all": (
        "model.shared.weight",
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
        "lm_head.weight",
    ),
}


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wav2vec2")
    save_encoder(folder, "wav2vec2")
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_decoder(folder, "bert", tokenizer=True)
    return folder


def graft(encoder: Any, decoder: Any = None, **kwargs: Any) -> SpeechSeq2SeqModel:
    return SpeechSeq2SeqModel.from_encoder_decoder_pretrained(encoder, decoder, **kwargs)


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a checkpoint by name, or take them out."""
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def lay_out(folder: Path, layout: str, embeddings: torch.Tensor) -> None:
    """Store the embeddings of a full encoder-decoder text model under some of their names only."""
    names = dict.fromkeys(LAYOUTS["all"]) | dict.fromkeys(LAYOUTS[layout], embeddings)
    edit_weights(folder, **names)


# What the checkpoints hold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", SHARING)
def test_embeddings_and_head_are_the_checkpoints_whichever_copy_it_stores(family, layout, wav2vec2, tmp_path):
    source = save_decoder(tmp_path, family)
    embeddings = source.get_input_embeddings().weight.detach()
    lay_out(tmp_path, layout, embeddings)
    model = graft(wav2vec2, tmp_path)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert torch.equal(model.get_output_embeddings().weight, embeddings)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, "they stay tied"


@pytest.mark.parametrize("family", ["bart", "mbart"])
def test_the_native_class_loses_the_embeddings_that_we_keep(family, wav2vec2, tmp_path):
    source = save_decoder(tmp_path, family)
    lay_out(tmp_path, "shared", source.get_input_embeddings().weight.detach())
    native = SpeechEncoderDecoderModel.from_encoder_decoder_pretrained(str(wav2vec2), str(tmp_path))
    assert not torch.equal(native.decoder.get_input_embeddings().weight, source.get_input_embeddings().weight)


@pytest.mark.parametrize("family", SHARING)
def test_checkpoints_of_the_model_without_a_head_keep_their_embeddings(family, wav2vec2, tmp_path):
    """`BartModel` and its like store `shared.weight`, without the prefix `model.`."""
    config = decoder_config(family)
    source = randomize(AutoModel.from_config(config)).eval()
    source.save_pretrained(tmp_path)
    model = graft(wav2vec2, tmp_path)
    assert torch.equal(model.get_input_embeddings().weight, source.get_input_embeddings().weight)
    states = torch.randn(2, 7, TEXT_WIDTH)
    ids = labels(5, 5)
    with torch.no_grad():
        theirs = source(decoder_input_ids=ids, encoder_outputs=(states,)).last_hidden_state
        ours = model.decoder(input_ids=ids, encoder_hidden_states=states).logits
    assert torch.equal(ours, theirs @ source.get_input_embeddings().weight.T)


@pytest.mark.parametrize("family", [*SHARING, "whisper"])
def test_the_decoder_computes_what_it_computed_in_its_own_model(family, wav2vec2, tmp_path):
    """Cross-attention included: these checkpoints have it, so none of it may be new."""
    source = save_decoder(tmp_path, family)
    model = graft(wav2vec2, tmp_path)
    states, ids = torch.randn(2, 7, source.config.d_model), labels(5, 5)
    with torch.no_grad():
        theirs = source(decoder_input_ids=ids, encoder_outputs=(states,)).logits
        ours = model.decoder(input_ids=ids, encoder_hidden_states=states).logits
    assert torch.equal(ours, theirs)
    assert all(not name.startswith("decoder.") for name in model.config.newly_initialized)


@pytest.mark.parametrize("name", ["bart", "mbart", "pegasus", "marian"])
def test_the_output_bias_of_a_full_model_is_kept(name, wav2vec2, tmp_path):
    """Full models add `final_logits_bias` to the logits; their `...ForCausalLM` have no place for it."""
    source = save_decoder(tmp_path, name)
    bias = torch.randn_like(source.final_logits_bias)
    source.final_logits_bias.copy_(bias)
    source.save_pretrained(tmp_path)
    model = graft(wav2vec2, tmp_path)
    states, ids = torch.randn(2, 7, TEXT_WIDTH), labels(5, 5)
    with torch.no_grad():
        theirs = source(decoder_input_ids=ids, encoder_outputs=(states,)).logits
        ours = model.decoder(input_ids=ids, encoder_hidden_states=states).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    model.save_pretrained(tmp_path / "saved")
    again = SpeechSeq2SeqModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.decoder.final_logits_bias, bias)
    again.resize_token_embeddings(30)
    assert again(**audio("wav2vec2", 3000), decoder_input_ids=ids[:1]).logits.shape[-1] == 30
    assert (
        torch.equal(again.decoder.final_logits_bias[:, :20], bias)
        and not again.decoder.final_logits_bias[:, 20:].any()
    )
    with pytest.raises(ValueError, match="output bias"):
        model.to_native()


def test_marian_with_a_vocabulary_of_its_own_for_the_decoder(wav2vec2, tmp_path):
    fields = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 17, "vocab_size": 20}
    source = save_decoder(tmp_path, "marian", **fields)
    model = graft(wav2vec2, tmp_path)
    assert model.config.vocab_size == 17
    states, ids = torch.randn(2, 7, TEXT_WIDTH), labels(5, 5)
    with torch.no_grad():
        theirs = source(decoder_input_ids=ids, encoder_outputs=(states,)).logits
        ours = model.decoder(input_ids=ids, encoder_hidden_states=states).logits
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", [name for name in DECODERS if name not in (*SHARING, "whisper")])
def test_every_tensor_of_the_text_checkpoint_arrives(family, wav2vec2, tmp_path):
    """And what it does not hold, cross-attention, is named in the configuration for who trains adapters."""
    source = save_decoder(tmp_path, family)
    model = graft(wav2vec2, tmp_path)
    ours, theirs = dict(model.decoder.named_parameters()), dict(source.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())
    row = model.family
    for name in ours.keys() - theirs.keys():
        assert any(part in row.cross_attention for part in name.split(".")), name
        owners = [new for new in model.config.newly_initialized if f"decoder.{name}".startswith(f"{new}.")]
        assert len(owners) == 1, name
    assert not model.training


@pytest.mark.parametrize("family", [name for name in ENCODERS if "layer" not in name])
def test_every_tensor_of_the_speech_checkpoint_arrives(family, bert, tmp_path):
    source = save_encoder(tmp_path, family)
    model = graft(tmp_path, bert)
    ours = model.encoder.backbone.state_dict()
    theirs = source.state_dict()
    for name, tensor in ours.items():
        endings = [key for key in theirs if key == name or key.endswith(f".{name}")]
        assert any(torch.equal(theirs[key], tensor) for key in endings), name


@pytest.mark.parametrize(
    "family, tensor",
    [
        ("bart", "model.decoder.layers.1.fc1.weight"),
        ("bart", "model.decoder.layers.0.encoder_attn.k_proj.weight"),
        ("bert", "bert.encoder.layer.0.attention.self.query.weight"),
        ("bert", "cls.predictions.transform.dense.weight"),
        ("gpt2", "transformer.h.1.mlp.c_fc.weight"),
    ],
)
def test_a_tensor_that_the_text_checkpoint_lacks_is_not_made_up(family, tensor, wav2vec2, tmp_path):
    save_decoder(tmp_path, family)
    if tensor not in load_file(tmp_path / "model.safetensors"):
        pytest.fail("the test names no tensor of the checkpoint")
    edit_weights(tmp_path, **{tensor: None})
    with pytest.raises(ValueError, match="random"):
        graft(wav2vec2, tmp_path)


@pytest.mark.parametrize("family", SHARING)
def test_embeddings_stored_under_no_name_are_not_made_up(family, wav2vec2, tmp_path):
    save_decoder(tmp_path, family)
    edit_weights(tmp_path, **dict.fromkeys(LAYOUTS["all"]))
    with pytest.raises(ValueError, match="random"):
        graft(wav2vec2, tmp_path)


def test_a_tensor_that_the_speech_checkpoint_lacks_is_not_made_up(bert, tmp_path):
    save_encoder(tmp_path, "wav2vec2")
    edit_weights(tmp_path, **{"wav2vec2.encoder.layers.1.attention.q_proj.weight": None})
    with pytest.raises(ValueError, match="random"):
        graft(tmp_path, bert)


def test_weights_of_another_shape_are_not_made_up(wav2vec2, tmp_path):
    save_decoder(tmp_path, "bert")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 30}))
    with pytest.raises((ValueError, RuntimeError), match="intermediate|shape|size"):
        graft(wav2vec2, tmp_path)


def test_checkpoints_without_a_head_build_and_say_that_the_head_is_new(wav2vec2, tmp_path, caplog):
    """Sentence encoders are such; GPT-2's head is its embeddings, so nothing of it is new."""
    BertModel(decoder_config("bert")).save_pretrained(tmp_path / "bert")
    GPT2Model(decoder_config("gpt2")).save_pretrained(tmp_path / "gpt2")
    with_bert = graft(wav2vec2, tmp_path / "bert", **{name: index + 1 for index, name in enumerate(TOKEN_IDS)})
    assert any("cls" in name for name in with_bert.config.newly_initialized)
    assert "decoder.cls" in caplog.text
    assert not any("lm_head" in name for name in graft(wav2vec2, tmp_path / "gpt2").config.newly_initialized)


@pytest.mark.parametrize("family", DECODERS)
def test_tied_heads_stay_tied_and_equal_through_saving(family, tmp_path):
    model = tiny_model("wav2vec2", family)
    model.save_pretrained(tmp_path)
    again, info = SpeechSeq2SeqModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_untied_heads_stay_apart_through_saving(tmp_path):
    for family in ("bert", "bart", "marian", "m2m_100"):
        model = tiny_model("wav2vec2", decoder_config(family, tie_word_embeddings=False))
        assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
        model.save_pretrained(tmp_path / family)
        again = SpeechSeq2SeqModel.from_pretrained(tmp_path / family)
        assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)
        assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


# Sources ---------------------------------------------------------------------------------------------------------


def test_ready_modules_are_used_as_they_are(bert, wav2vec2):
    backbone = Wav2Vec2Model(encoder_config("wav2vec2"))
    decoder = graft(wav2vec2, bert).decoder
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model = graft(backbone, decoder, decoder_start_token_id=2, eos_token_id=3)
    assert model.encoder.backbone is backbone and model.decoder is decoder
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert torch.isfinite(model(**audio("wav2vec2", 3000), labels=labels(4)).loss)
    mixed = graft(wav2vec2, decoder)
    assert mixed.decoder is decoder


def test_a_ready_decoder_that_cannot_hear_is_refused(wav2vec2):
    deaf = BertLMHeadModel(BertConfig(**{**decoder_config("bert").to_dict(), "is_decoder": True}))
    with pytest.raises(ValueError, match="cross-attention"):
        graft(wav2vec2, deaf)


def test_the_configuration_of_a_part_may_be_given_whole_and_is_not_changed(wav2vec2, bert):
    config = decoder_config("bert", hidden_dropout_prob=0.25)
    before = config.to_dict()
    model = graft(wav2vec2, bert, decoder_config=config)
    assert model.config.decoder.hidden_dropout_prob == 0.25
    assert config.to_dict() == before


def test_weights_without_a_configuration_beside_them_load(tmp_path):
    model = tiny_model("wav2vec2", "bert")
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    again = SpeechSeq2SeqModel.from_pretrained(tmp_path, config=model.config)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_unknown_arguments_of_from_pretrained_are_refused(tmp_path):
    tiny_model("wav2vec2", "bert").save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="ctc_wieght"):
        SpeechSeq2SeqModel.from_pretrained(tmp_path, ctc_wieght=0.3)
    assert SpeechSeq2SeqModel.from_pretrained(tmp_path, layerdrop=0.25).config.layerdrop == 0.25


def test_models_build_from_configurations_alone():
    config = SpeechSeq2SeqConfig.from_encoder_decoder_configs(encoder_config("wav2vec2"), decoder_config("bart"))
    model = SpeechSeq2SeqModel(config).eval()
    assert torch.isfinite(model(**audio("wav2vec2", 3000), labels=labels(4)).loss)


@pytest.mark.parametrize(
    "encoder, decoder", [("bart", "bert"), ("wav2vec2", "opt"), ("wav2vec2", "t5"), ("wav2vec2", "llama")]
)
def test_families_outside_the_tables_are_refused_with_the_list_of_those_inside(encoder, decoder, tmp_path):
    foreign = {"opt": OPTConfig, "t5": T5Config, "llama": LlamaConfig}
    save_encoder(tmp_path / "wav2vec2", "wav2vec2")
    save_decoder(tmp_path / "bart", "bart")
    (foreign[decoder]() if decoder in foreign else decoder_config(decoder)).save_pretrained(tmp_path / decoder)
    with pytest.raises(ValueError, match=r"not a supported .*Supported: .*(gpt2|wavlm)"):
        graft(tmp_path / encoder, tmp_path / decoder)


# Token ids -------------------------------------------------------------------------------------------------------

EXPECTED_IDS = {
    "bert": (2, 3, 0),  # [CLS], [SEP], [PAD]
    "roberta": (0, 2, 1),
    "gpt2": (0, 0, 0),  # <|eot|> is everything
    "bart": (2, 2, 1),
    "mbart": (2, 2, 1),
    "marian": (2, 0, 2),  # starts from padding
    "m2m_100": (2, 2, 1),
    "whisper": (1, 0, 0),
    "xglm": (2, 2, 1),
    "trocr": (2, 2, 1),
}


def ids_of(model: Any) -> list[tuple[int, ...]]:
    """Start, end and padding as training, generation and the decoder's own configuration know them."""
    places = (model.config, model.generation_config, model.config.decoder)
    return [tuple(getattr(place, name) for name in TOKEN_IDS) for place in places]


def assert_agreed(model: Any, expected: tuple[int, ...]) -> None:
    assert ids_of(model) == [expected] * 3
    first_input = model.prepare_decoder_input_ids_from_labels(torch.tensor([[7, -100]]))
    assert first_input.tolist() == [[expected[0], 7]]
    key = model.main_input_name
    batch = audio("wav2vec2" if key == "input_values" else "whisper", 3000)
    tokens = model.generate(**batch, max_new_tokens=4, min_new_tokens=3)
    assert tokens[0, 0] == expected[0]
    assert tokens.shape[1] >= 4


@pytest.mark.parametrize("family", EXPECTED_IDS)
def test_training_and_generation_start_and_end_alike_from_build_to_reload(family, wav2vec2, tmp_path):
    save_decoder(tmp_path / "text", family, tokenizer=True)
    model = graft(wav2vec2, tmp_path / "text")
    assert_agreed(model, EXPECTED_IDS[family])
    model.save_pretrained(tmp_path / "saved")
    again = SpeechSeq2SeqModel.from_pretrained(tmp_path / "saved")
    assert_agreed(again, EXPECTED_IDS[family])
    pad = again.config.pad_token_id if again.family.positions_start_after_padding else 9
    again.config.decoder_start_token_id, again.config.eos_token_id, again.config.pad_token_id = 7, 8, pad
    assert_agreed_after_use(again, (7, 8, pad))
    again.save_pretrained(tmp_path / "edited")
    assert_agreed(SpeechSeq2SeqModel.from_pretrained(tmp_path / "edited"), (7, 8, pad))


def assert_agreed_after_use(model: Any, expected: tuple[int, ...]) -> None:
    model.generate(**audio("wav2vec2", 3000), max_new_tokens=2)
    assert_agreed(model, expected)


@pytest.mark.parametrize("family", ["bert", "mbart", "gpt2"])
def test_trainer_changes_no_token_id(family, wav2vec2, tmp_path):
    """Trainer aligns the model with the tokenizer: one that has no end token (BERT) must not take ours away."""
    save_decoder(tmp_path / "text", family, tokenizer=True)
    model = graft(wav2vec2, tmp_path / "text")
    processor = SpeechSeq2SeqProcessor(Wav2Vec2FeatureExtractor(), tiny_tokenizer(TOKENIZER_OF[family]))
    collator = SpeechSeq2SeqCollator(processor, model.config)
    noise = torch.randn(2, 3200).numpy()
    samples = [{"input_values": row, "labels": processor(text="hello world")["labels"]} for row in noise]
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path / "run"), max_steps=1, predict_with_generate=True, generation_max_length=6, report_to="none",
        remove_unused_columns=False, use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model, arguments, collator, train_dataset=samples, eval_dataset=samples, processing_class=processor
    )
    trainer.train()
    assert_agreed(model, EXPECTED_IDS[family])
    predictions = trainer.predict(samples).predictions
    assert predictions[:, 0].tolist() == [EXPECTED_IDS[family][0]] * 2
    trainer.save_model(str(tmp_path / "saved"))
    assert_agreed(SpeechSeq2SeqModel.from_pretrained(tmp_path / "saved"), EXPECTED_IDS[family])
    assert processor(text="hello")["labels"][-1] == model.config.eos_token_id


def test_an_id_set_for_generation_alone_is_refused():
    """The native class lets the two drift apart: mBART then trains from one token and decodes from another."""
    model = SpeechSeq2SeqModel(SpeechSeq2SeqConfig(encoder=encoder_config("wav2vec2"), decoder=decoder_config("bart")))
    model.generation_config.decoder_start_token_id = 5
    with pytest.raises(ValueError, match="set model.config.decoder_start_token_id"):
        model.generate(**audio("wav2vec2", 3000))


def test_a_start_token_for_one_call_is_followed():
    """As for translation into another language: it is asked for in so many words."""
    model = SpeechSeq2SeqModel(SpeechSeq2SeqConfig(encoder=encoder_config("wav2vec2"), decoder=decoder_config("bart")))
    tokens = model.eval().generate(**audio("wav2vec2", 3000), decoder_start_token_id=9, max_new_tokens=2)
    assert tokens[0, 0] == 9
    assert model.config.decoder_start_token_id == model.generation_config.decoder_start_token_id == 2


def test_a_generation_config_that_trainer_puts_in_has_the_models_ids():
    """Seq2SeqTrainer replaces the model's by the one of its arguments."""
    model = tiny_model("wav2vec2", "bert")
    model.generation_config = GenerationConfig(num_beams=2, max_new_tokens=3)
    assert_agreed_after_use(model, EXPECTED_IDS["bert"])
    assert model.generate(**audio("wav2vec2", 3000)).shape[1] <= 4


def test_several_end_tokens_all_end_the_text(tmp_path):
    model = tiny_model("wav2vec2", "bart")
    model.generation_config.eos_token_id = [2, 9]
    batch = audio("wav2vec2", 3000)
    first = int(model.generate(**batch, max_new_tokens=1)[0, 1])
    model.generation_config.eos_token_id = [2, first]
    assert model.generate(**batch, max_new_tokens=8).shape == (1, 2)
    model.save_pretrained(tmp_path)
    again = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    assert again.generation_config.eos_token_id == [2, first] and again.config.eos_token_id == 2
    assert again.generate(**batch, max_new_tokens=8).shape == (1, 2)


def test_without_any_start_token_generation_says_what_to_set(wav2vec2, tmp_path):
    save_decoder(tmp_path, "bert")  # no tokenizer beside it
    model = graft(wav2vec2, tmp_path)
    with pytest.raises(ValueError, match="decoder_start_token_id is not set.*tokenizer"):
        model.generate(**audio("wav2vec2", 3000))
    with pytest.raises(ValueError, match="decoder_start_token_id is not set.*tokenizer"):
        model(**audio("wav2vec2", 3000), labels=labels(4))


def test_a_tokenizer_given_as_such_or_by_its_folder_settles_the_ids(wav2vec2, tmp_path):
    save_decoder(tmp_path / "text", "bert")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "words")
    for tokenizer in (tiny_tokenizer("bert"), tmp_path / "words", str(tmp_path / "words")):
        assert_agreed(graft(wav2vec2, tmp_path / "text", tokenizer=tokenizer), EXPECTED_IDS["bert"])


def test_ids_given_at_the_build_come_first(wav2vec2, bert):
    model = graft(wav2vec2, bert, decoder_start_token_id=5, eos_token_id=6, pad_token_id=7)
    assert_agreed(model, (5, 6, 7))


def test_generate_fails_in_the_native_class_by_its_own_recipe_for_bert(wav2vec2, bert):
    native = SpeechEncoderDecoderModel.from_encoder_decoder_pretrained(str(wav2vec2), str(bert))
    native.config.decoder_start_token_id, native.config.pad_token_id = 2, 0
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        native.generate(audio("wav2vec2", 3000)["input_values"])


# Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "bfloat16"])
def test_dtype_reaches_every_part(dtype, wav2vec2, bert):
    model = graft(wav2vec2, bert, dtype=dtype, adapter_layers=1, ctc_weight=0.3)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert model.dtype == wanted
    output = model(**audio("wav2vec2", 3000), labels=labels(4))  # the audio comes in float32
    assert output.logits.dtype == wanted and torch.isfinite(output.loss)
    assert model.generate(**audio("wav2vec2", 3000), max_new_tokens=3).shape[0] == 1


@pytest.mark.parametrize(
    "encoder, decoder", [("whisper", "gpt2"), ("speech_to_text", "bart"), ("wav2vec2", "whisper")]
)
def test_half_precision_models_take_audio_as_it_comes(encoder, decoder, tmp_path):
    save_encoder(tmp_path / "speech", encoder)
    save_decoder(tmp_path / "text", decoder, tokenizer=True)
    model = graft(tmp_path / "speech", tmp_path / "text", dtype=torch.bfloat16)
    assert torch.isfinite(model(**audio(encoder, 3000, 4000), labels=labels(4, 4)).loss)
    model.save_pretrained(tmp_path / "saved")
    again = SpeechSeq2SeqModel.from_pretrained(tmp_path / "saved")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}


def test_halves_of_two_precisions_are_brought_together(wav2vec2, bert, caplog):
    """A checkpoint has one dtype: two would be lost in the next save, so asking for them is refused."""
    with pytest.raises(TypeError, match="share one dtype"):
        graft(wav2vec2, bert, encoder_dtype=torch.float16)
    model = graft(Wav2Vec2Model(encoder_config("wav2vec2")).half(), bert)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "torch.float16" in caplog.text
    model = graft(Wav2Vec2Model(encoder_config("wav2vec2")), bert, dtype="float16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_frozen_half_in_half_precision_runs(wav2vec2, bert):
    """Natively the projection stays as it was, and the first call crashes."""
    model = graft(wav2vec2, bert)
    for encoder, decoder in ((torch.float16, torch.float32), (torch.float16, torch.bfloat16)):
        model.encoder.to(encoder)
        model.decoder.to(decoder)
        assert torch.isfinite(model(**audio("wav2vec2", 3000), labels=labels(4)).loss)
        assert model.generate(**audio("wav2vec2", 3000), max_new_tokens=3).shape[0] == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_asked_for_reaches_both_parts(attention, wav2vec2, bert):
    model = graft(wav2vec2, bert, attn_implementation=attention)
    assert model.encoder.backbone.config._attn_implementation == attention
    assert model.decoder.config._attn_implementation == attention
    assert model.config.encoder._attn_implementation == model.config.decoder._attn_implementation == attention


def test_attention_by_part(wav2vec2, bert, tmp_path):
    wanted = {"encoder": "eager", "decoder": "sdpa"}
    model = graft(wav2vec2, bert, attn_implementation=wanted)
    model.save_pretrained(tmp_path)
    loaded = SpeechSeq2SeqModel.from_pretrained(tmp_path, attn_implementation=wanted)
    for one in (model, loaded):
        assert one.encoder.backbone.config._attn_implementation == "eager"
        assert one.decoder.config._attn_implementation == "sdpa"
    with pytest.raises(TypeError, match="encoder and decoder"):
        graft(wav2vec2, bert, attn_implementation={"speech": "eager"})


@pytest.mark.parametrize("attention", ["sdpa", {"encoder": "sdpa", "decoder": "sdpa"}, None, {"encoder": "eager"}])
def test_wavlm_which_has_no_sdpa_takes_the_attention_that_the_decoder_is_given(attention, bert, tmp_path):
    save_encoder(tmp_path, "wavlm")
    model = graft(tmp_path, bert, attn_implementation=attention)
    assert model.encoder.backbone.config._attn_implementation == "eager"
    assert model.decoder.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path / "saved")
    for options in ({}, {"attn_implementation": {"encoder": "eager", "decoder": "sdpa"}}):
        again = SpeechSeq2SeqModel.from_pretrained(tmp_path / "saved", **options)
        assert again.encoder.backbone.config._attn_implementation == "eager"
        assert again.decoder.config._attn_implementation == "sdpa"


def test_generation_settings_are_kept(wav2vec2, bert, tmp_path):
    model = graft(wav2vec2, bert, max_length=17, num_beams=2)
    assert (model.generation_config.max_length, model.generation_config.num_beams) == (17, 2)
    model.save_pretrained(tmp_path)
    again = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    assert (again.generation_config.max_length, again.generation_config.num_beams) == (17, 2)
    assert again.generate(**audio("wav2vec2", 3000), min_length=16).shape[1] <= 17


@pytest.mark.parametrize(
    "arguments", [{"ctc_wieght": 0.3}, {"encoder_layrs": 2}, {"decoder_nonsense": 1}, {"torch_device": "cpu"}]
)
def test_unknown_arguments_are_refused(arguments, wav2vec2, bert):
    with pytest.raises(TypeError, match=next(iter(arguments)).removeprefix("encoder_").removeprefix("decoder_")):
        graft(wav2vec2, bert, **arguments)


def test_prefixed_arguments_reach_their_part_alone(wav2vec2, bert):
    model = graft(
        wav2vec2, bert, encoder_hidden_dropout=0.25, decoder_hidden_dropout_prob=0.125, encoder_attention_dropout=0.5
    )
    assert model.config.encoder.hidden_dropout == model.encoder.backbone.config.hidden_dropout == 0.25
    assert model.config.decoder.hidden_dropout_prob == model.decoder.config.hidden_dropout_prob == 0.125
    assert model.encoder.backbone.encoder.layers[0].attention.dropout == 0.5


def test_fields_of_the_joint_configuration_are_taken(wav2vec2, bert):
    model = graft(wav2vec2, bert, adapter_layers=2, ctc_weight=0.3, mask_time_prob=0.1, layerdrop=0.05)
    assert len(model.encoder.adapter) == 2 and model.ctc_head is not None
    assert model.config.mask_time_prob == model.encoder.backbone.config.mask_time_prob == 0.1
    assert {"encoder.adapter", "encoder.projection", "ctc_head"} <= set(model.config.newly_initialized)


def test_prefixed_arguments_for_a_ready_module_are_refused_for_they_would_do_nothing(wav2vec2, bert):
    with pytest.raises(TypeError, match="ready module"):
        graft(Wav2Vec2Model(encoder_config("wav2vec2")), bert, encoder_hidden_dropout=0.1)


def test_parts_in_subfolders(tmp_path):
    save_encoder(tmp_path / "parts" / "speech", "wav2vec2")
    save_decoder(tmp_path / "parts" / "text", "bart", tokenizer=True)
    both = tmp_path / "parts"
    model = graft(both, both, encoder_subfolder="speech", decoder_subfolder="text")
    assert_agreed(model, EXPECTED_IDS["bart"])


# Whisper whole ---------------------------------------------------------------------------------------------------


def test_a_full_whisper_checkpoint_keeps_both_halves_and_their_join(tmp_path):
    source = save_encoder(tmp_path, "whisper")
    model = graft(tmp_path)
    assert model.config.newly_initialized == []
    batch, ids = audio("whisper", 3000, 4000, mask=False), labels(5, 5)
    with torch.no_grad():
        assert torch.equal(model(**batch, decoder_input_ids=ids).logits, source(**batch, decoder_input_ids=ids).logits)
    model.save_pretrained(tmp_path / "saved")
    again = SpeechSeq2SeqModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(**batch, decoder_input_ids=ids).logits, model(**batch, decoder_input_ids=ids).logits)
    model.config.encoder.encoder_layers = 7
    assert model.config.decoder.encoder_layers != 7, "two configurations, though they came from one file"
