"""Every family of speech encoders: trained, generated with, saved, warm-started, padded, short, frozen."""

from typing import Any

import pytest
import torch
import transformers
from tiny_models import (
    ENCODERS,
    MELS,
    SAMPLES_PER_FRAME,
    WIDTH,
    audio,
    decoder_config,
    encoder_config,
    every_encoder_type,
    family_name,
    input_name,
    labels,
    randomize,
    save_encoder,
    tiny_model,
)
from transformers import AutoModel, BertLMHeadModel, SpeechEncoderDecoderModel, Wav2Vec2ForCTC

from speechgraft.modeling import modeling_speech_encoder
from speechgraft.modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
from speechgraft.modeling.quick_inference import quick_inference

every_encoder = pytest.mark.parametrize("name", ENCODERS)
WAVEFORMS = [name for name in ENCODERS if input_name(name) == "input_values"]

# Encoders for which a clip in a padded batch cannot be what it is alone, and why. All others must.
OVER_TIME = "group norm over the whole clip, padding included: its processor must not give a mask"
NOT_INVARIANT = {
    **dict.fromkeys(["wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "sew", "sew-d"], OVER_TIME),
    "moonshine": OVER_TIME,
}


def native_encoder(native: Any, name: str) -> Any:
    """The encoder within a full checkpoint's model."""
    halves = getattr(native, "model", native)
    return halves.encoder if hasattr(halves, "encoder") else getattr(native, native.base_model_prefix)


def trained(model: Any) -> set[str]:
    """Names of the parameters that got a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_tiny_models_cover_the_whole_table():
    whole_checkpoints = {"parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"}
    assert {family_name(name) for name in ENCODERS} == every_encoder_type() - whole_checkpoints


@every_encoder
def test_every_family_trains_generates_and_reloads_as_it_was(name, tmp_path):
    model, masked = tiny_model(name), audio(name, 9600, 16000)
    unmasked = {key: value for key, value in masked.items() if key != "attention_mask"}
    model.train()(**masked, labels=labels(3, 5)).loss.backward()
    assert trained(model) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.eval().save_pretrained(tmp_path)
    reloaded = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    for inputs in (masked, unmasked):
        with torch.no_grad():
            logits, again = (each(**inputs, labels=labels(3, 5)).logits for each in (model, reloaded))
        assert torch.isfinite(logits).all()
        assert torch.equal(logits, again)
        tokens = model.generate(**inputs, max_length=4)
        assert tokens.shape[0] == 2 and tokens.shape[1] > 1
    assert torch.equal(tokens, reloaded.generate(**unmasked, max_length=4))


@every_encoder
def test_a_warm_start_hears_what_the_checkpoint_heard(name, tmp_path):
    native = native_encoder(save_encoder(tmp_path, name), name)
    decoder = tiny_model().decoder
    model: Any = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(tmp_path, decoder)
    ours = model.encoder.backbone.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in native.state_dict().items())
    inputs = audio(name, 9600, mask=False)
    with torch.no_grad():
        expected = native(**inputs).last_hidden_state
        heard = model.encoder(**inputs)
        assert torch.equal(model.encoder.backbone(**inputs).last_hidden_state, expected)
        assert torch.equal(heard.last_hidden_state, model.encoder.projection(expected))
    assert model.config.newly_initialized == ["encoder.projection"]


@pytest.mark.parametrize("kind", ["RNNT", "TDT"])
def test_transducers_of_parakeet_give_their_encoder_too(kind, tmp_path):
    encoder = encoder_config("parakeet").to_dict()
    config_class, model_class = (getattr(transformers, f"Parakeet{part}") for part in (f"{kind}Config", f"For{kind}"))
    native = model_class(config_class(encoder_config=encoder, vocab_size=20, blank_token_id=19, decoder_hidden_size=8))
    native.save_pretrained(tmp_path)
    model: Any = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(tmp_path, tiny_model().decoder)
    ours = model.encoder.backbone.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in native.encoder.state_dict().items())


@every_encoder
def test_layer_drop_and_masking_of_the_checkpoint_do_not_leave_parameters_untrained(name, tmp_path):
    settings: dict[str, Any] = {"layerdrop": 0.99, "encoder_layerdrop": 0.99, "mask_time_prob": 0.0}
    config = encoder_config(name)
    save_encoder(tmp_path, name, **{field: value for field, value in settings.items() if hasattr(config, field)})
    model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(
        tmp_path, tiny_model().decoder, apply_spec_augment=True, mask_time_prob=0.3, decoder_start_token_id=2
    )
    model.train()(**audio(name, 9600, 16000), labels=labels(3, 5)).loss.backward()
    assert trained(model) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@every_encoder
def test_frozen_encoders_stay_as_they_are(name):
    def train(freeze: str) -> set[str]:
        model = tiny_model(name).train()
        getattr(model, freeze)()
        model(**audio(name, 9600, 16000), labels=labels(3, 5)).loss.backward()
        return {name for name in trained(model) if name.startswith("encoder.")}

    model = tiny_model(name)
    reader = tuple(f"encoder.backbone.{part}." for part in model.encoder.family.feature_encoder)
    everything = {f"encoder.{name}" for name, value in model.encoder.named_parameters() if value.requires_grad}
    assert {name for name in everything if name.startswith(reader)}
    assert train("freeze_feature_encoder") == {name for name in everything if not name.startswith(reader)}
    assert train("freeze_encoder") == {"encoder.projection.weight", "encoder.projection.bias"}


@every_encoder
def test_audio_is_taken_by_position_and_under_its_own_name_alone(name):
    model, inputs = tiny_model(name), audio(name, 9600, mask=False)
    (key, values), other = *inputs.items(), {"input_values": "input_features"}
    wrong = other.get(key, "input_values")
    assert model.main_input_name == model.encoder.main_input_name == key
    by_name = model.generate(**inputs, max_length=5)
    assert torch.equal(by_name, model.generate(values, max_length=5))
    ids = torch.tensor([[2, 7]])
    assert torch.equal(model(values, decoder_input_ids=ids).logits, model(**inputs, decoder_input_ids=ids).logits)
    for mistaken in ({wrong: values.flatten(1)}, {key: values, wrong: values}, {}):
        with pytest.raises(ValueError, match=f"reads {key} and nothing else, got"):
            model(**mistaken, decoder_input_ids=ids)


def test_tokens_are_not_counted_by_the_native_class_because_its_input_has_no_such_name():
    assert SpeechEncoderDecoderModel.main_input_name == "inputs"  # Trainer logs num_input_tokens_seen of this key


@pytest.mark.parametrize("adapter_layers", [0, 2])
@every_encoder
def test_a_clip_in_a_padded_batch_is_heard_as_it_is_alone(name, adapter_layers):
    fixed = False if family_name(name) == "whisper" else None
    encoder = tiny_model(name, adapter_layers=adapter_layers, fixed_input_window=fixed).encoder
    clips = (9600, 5123, 1, 16000)
    batch = audio(name, *clips)
    if fixed is False:
        batch = {key: value[..., : 16000 // SAMPLES_PER_FRAME] for key, value in batch.items()}
    time_dim = encoder.family.time_dim
    farthest = 0.0
    with torch.no_grad():
        heard = encoder(**batch)
        for row in range(len(clips)):
            length = int(batch["attention_mask"][row].sum())
            alone = encoder(batch[input_name(name)][row : row + 1].narrow(time_dim, 0, length)).last_hidden_state[0]
            assert int(heard.attention_mask[row].sum()) == len(alone)
            farthest = max(farthest, (heard.last_hidden_state[row, : len(alone)] - alone).abs().max().item())
    assert (farthest > 1e-3) if name in NOT_INVARIANT else (farthest < 2e-5)
    assert torch.isfinite(heard.last_hidden_state).all()


@every_encoder
def test_long_clips_are_encoded_one_by_one_to_the_same_states(name, monkeypatch):
    fixed = False if family_name(name) == "whisper" else None
    encoder = tiny_model(name, adapter_layers=1, fixed_input_window=fixed).encoder
    batch = audio(name, 9600, 5123, 16000)
    if fixed is False:
        batch = {key: value[..., : 16000 // SAMPLES_PER_FRAME] for key, value in batch.items()}
    sizes = []
    encoder.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(args[0].shape[encoder.family.time_dim]), with_kwargs=True
    )
    with quick_inference(encoder):
        together = encoder(**batch)  # where gradients are wanted, clips stay together
    with torch.no_grad(), quick_inference(encoder):
        short = encoder(**batch)
        monkeypatch.setattr(modeling_speech_encoder, "LEAST_FRAMES_ALONE", 1)
        alone = encoder(**batch)
        equal = encoder(batch[input_name(name)])  # no mask: all of it is heard
        asked = encoder(**batch, output_hidden_states=True)
    lengths, size = batch["attention_mask"].sum(dim=1).tolist(), batch["attention_mask"].shape[1]
    one_by_one = [size] if name in NOT_INVARIANT else lengths
    assert sizes == [size, size, *one_by_one, *[size] * 3, size]
    real = together.attention_mask[..., None]
    assert alone.last_hidden_state.shape == together.last_hidden_state.shape == equal.last_hidden_state.shape
    assert torch.equal(alone.attention_mask, together.attention_mask) and asked.hidden_states is not None
    for states in (alone, short, asked):
        difference = (states.last_hidden_state - together.last_hidden_state).masked_fill(~real, 0).abs()
        assert difference.max() < 2e-5


@pytest.mark.parametrize("name", ["wav2vec2-conformer", "data2vec-audio", "speech_to_text"])
def test_padding_leaks_into_speech_in_the_native_classes_where_we_stop_it(name):
    backbone = tiny_model(name).encoder.backbone
    for module in backbone.modules():
        module._forward_pre_hooks.clear()
    batch = audio(name, 9600, 16000)
    length = int(batch["attention_mask"][0].sum())
    with torch.no_grad():
        alone = backbone(batch[input_name(name)][:1, :length]).last_hidden_state[0]
        batched = backbone(**batch).last_hidden_state[0, : len(alone)]
    assert (alone - batched).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["wav2vec2-conformer", "data2vec-audio", "wav2vec2-layer", "whisper"])
def test_gradient_checkpointing_changes_no_gradient(name):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = tiny_model(name).train()
        if checkpointing:
            model.encoder.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model(**audio(name, 9600, 16000), labels=labels(3, 5)).loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, checkpointed)


@every_encoder
def test_a_clip_of_one_sample_or_50_ms_does_not_end_the_training(name):
    masks = {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_feature_prob": 0.3, "mask_feature_length": 2}
    model = tiny_model(name, **masks)
    for clips, mask in (((1,), True), ((1,), False), ((800, 800), True), ((16000, 1), True)):
        inputs = audio(name, *clips, mask=mask)
        loss = model.train()(**inputs, labels=labels(*[3] * len(clips))).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert model.eval().generate(**inputs, max_length=3).shape[0] == len(clips)


def test_50_ms_of_audio_end_the_training_of_the_native_class():
    encoder = AutoModel.from_config(encoder_config("wav2vec2", mask_time_prob=0.5))
    decoder = BertLMHeadModel(decoder_config("bert", is_decoder=True, add_cross_attention=True))
    model = SpeechEncoderDecoderModel(encoder=encoder, decoder=decoder).train()
    model.config.decoder_start_token_id, model.config.pad_token_id = 2, 0
    with pytest.raises(ValueError, match="mask_length"):
        model(**audio("wav2vec2", 800, 800), labels=labels(3, 3))


@pytest.mark.parametrize(
    "name, adapter",
    [(name, (0, 3, 2)) for name in ENCODERS]
    + [(name, adapter) for name in ("wav2vec2-layer", "whisper") for adapter in ((1, 3, 2), (2, 4, 3), (1, 8, 4))],
    ids=str,
)
def test_lengths_by_arithmetic_are_those_that_come_out(name, adapter):
    fields = dict(zip(("adapter_layers", "adapter_kernel_size", "adapter_stride"), adapter, strict=True))
    fixed = False if family_name(name) == "whisper" else None
    encoder, key = tiny_model(name, fixed_input_window=fixed, **fields).encoder, input_name(name)
    for samples in (1, 720, 1234, 9601):
        inputs = audio(name, samples)
        if fixed is False:
            inputs = {key: value[..., : max(samples // SAMPLES_PER_FRAME, 1)] for key, value in inputs.items()}
        with torch.no_grad():
            heard = encoder(**inputs)
            unmasked = encoder(inputs[key]).last_hidden_state
        length = max(inputs["attention_mask"].shape[1], encoder.min_input_length())
        assert heard.last_hidden_state.shape[1] == encoder.output_lengths(torch.tensor([length])).item()
        assert heard.attention_mask.all()
        torch.testing.assert_close(heard.last_hidden_state, unmasked, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*ENCODERS, "add_adapter"])
def test_the_ratio_that_places_timestamps_is_the_real_one(name):
    config = encoder_config("wav2vec2", add_adapter=True) if name == "add_adapter" else name
    model = tiny_model(config, adapter_layers=1)
    ratio, start = model.config.inputs_to_logits_ratio, 5000
    lengths = model.encoder.output_lengths(torch.tensor([start, start + 24 * ratio]))
    assert lengths.diff().item() == 24


@pytest.mark.parametrize("output_size", [None, 10, 12], ids=lambda size: f"output{size}")
@pytest.mark.parametrize("add_adapter", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-conformer", "wav2vec2-bert"])
def test_the_projection_fits_the_encoder_with_an_adapter_and_an_output_size_of_its_own(
    name, add_adapter, output_size, tmp_path
):
    fields = {"output_hidden_size": output_size} if output_size else {}
    model = tiny_model(encoder_config(name, add_adapter=add_adapter, **fields))
    inputs = audio(name, 9600, 16000)
    with torch.no_grad():
        real_width = model.encoder.backbone(**inputs).last_hidden_state.shape[-1]
    assert real_width == (output_size or WIDTH if add_adapter else WIDTH)
    assert (model.encoder.projection is None) == (real_width == model.config.hidden_size)
    model.save_pretrained(tmp_path)
    reloaded = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    with torch.no_grad():
        logits, again = (each(**inputs, labels=labels(3, 5)).logits for each in (model, reloaded))
    assert torch.equal(logits, again)


@pytest.mark.parametrize(
    "fields", [{"output_hidden_size": 12}, {"add_adapter": True, "output_hidden_size": 10}], ids=str
)
def test_an_output_size_of_its_own_breaks_the_native_class(fields):
    encoder = AutoModel.from_config(encoder_config("wav2vec2", **fields))
    decoder = BertLMHeadModel(decoder_config("bert", is_decoder=True, add_cross_attention=True))
    native = SpeechEncoderDecoderModel(encoder=encoder, decoder=decoder)
    with pytest.raises(RuntimeError):
        native(**audio("wav2vec2", 9600), decoder_input_ids=torch.tensor([[2]]))


# Whisper -------------------------------------------------------------------------------------------------------------


def test_whisper_on_a_full_window_is_whisper_bit_for_bit(tmp_path):
    native = native_encoder(save_encoder(tmp_path, "whisper"), "whisper")
    window = audio("whisper", 19200, mask=False)["input_features"]
    for fixed in (None, True, False):
        model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(tmp_path, fixed_input_window=fixed)
        assert torch.equal(model.encoder(window).last_hidden_state, native(window).last_hidden_state)


def test_whisper_takes_short_audio_only_where_it_was_trained_so():
    short = torch.randn(1, MELS, 40)
    with pytest.raises(ValueError, match="needs a full window of 120 feature frames, got 40"):
        tiny_model("whisper").encoder(short)
    encoder = tiny_model("whisper", fixed_input_window=False).encoder
    assert encoder(short).last_hidden_state.shape[1] == 20
    with pytest.raises(ValueError, match="at most 120 feature frames, got 121"):
        encoder(torch.randn(1, MELS, 121))


def test_a_window_is_refused_where_the_encoder_has_none():
    with pytest.raises(ValueError, match="wav2vec2 encoders have no window"):
        tiny_model("wav2vec2", fixed_input_window=True)


# Refusals ------------------------------------------------------------------------------------------------------------


@every_encoder
def test_padding_before_the_audio_is_refused_for_it_would_be_heard(name):
    inputs = audio(name, 9600, 16000)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with pytest.raises(ValueError, match="padding at the end"):
        tiny_model(name).encoder(**inputs)


def test_a_ready_module_that_is_more_than_an_encoder_is_refused():
    with pytest.raises(ValueError, match="must be a Wav2Vec2Model, got a Wav2Vec2ForCTC"):
        SpeechSeq2SeqModel(encoder=Wav2Vec2ForCTC(encoder_config("wav2vec2")), decoder=tiny_model().decoder)


def test_masking_with_a_ready_encoder_that_has_no_mask_embedding_is_refused():
    encoder = AutoModel.from_config(encoder_config("wav2vec2", mask_time_prob=0.0))
    with pytest.raises(ValueError, match="mask_time_prob"):
        SpeechSeq2SeqModel.from_encoder_decoder_pretrained(encoder, tiny_model().decoder, mask_time_prob=0.1)


@pytest.mark.parametrize("name", ["whisper", "wav2vec2-layer", "parakeet"])
def test_ready_encoders_of_transformers_work_as_well(name):
    native = randomize(ENCODERS[name][1](ENCODERS[name][0]())).eval()
    encoder = native_encoder(native, name)
    inputs = audio(name, 9600, mask=False)
    expected = encoder(**inputs).last_hidden_state
    model = SpeechSeq2SeqModel(encoder=encoder, decoder=tiny_model().decoder).eval()
    assert torch.equal(model.encoder.backbone(**inputs).last_hidden_state, expected)
