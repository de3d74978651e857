"""Decoding: every way of it gives the text that the slow, plain way gives, and encodes each utterance once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from lively_models import lively
from tiny_models import DECODERS, audio, decoder_config, labels, tiny_config, tiny_model
from transformers import (
    GenerationConfig,
    SpeechEncoderDecoderConfig,
    SpeechEncoderDecoderModel,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.modeling_outputs import BaseModelOutput

from speechgraft import SpeechSeq2SeqModel, load_audio

STEPS = 10  # tokens to generate
SETTINGS: dict[str, Any] = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 3},
    "no cache": {"use_cache": False},
}


def generate(model: Any, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
    return model.generate(**inputs, **{**SETTINGS, **options})


def scored(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, S], and the scores of all tokens at every step [S, B, V]: they tell more than the best token."""
    options = {"return_dict_in_generate": True, "output_logits": True, **options}
    output = cast(Any, generate(model, inputs, **options))
    return output.sequences, torch.stack(output.logits)


def assert_same(found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)  # of logits around 5


def by_hand(model: Any, inputs: dict[str, Any], steps: int = STEPS) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy decoding as its definition says it: the whole forward pass again for each token."""
    ids = torch.full((len(next(iter(inputs.values()))), 1), model.config.decoder_start_token_id)
    history = []
    for _ in range(steps):
        with torch.no_grad():
            history.append(model(**inputs, decoder_input_ids=ids, use_cache=False).logits[:, -1])
        allowed = history[-1].clone()
        allowed[:, model.config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, allowed.argmax(-1, keepdim=True)], dim=1)
    assert (history[0][0] - history[0][1]).abs().max() > 2e-3, "the audio must matter, or the test tells nothing"
    return ids, torch.stack(history)


# How often things are computed -------------------------------------------------------------------------------------


@contextmanager
def counted(model: Any) -> Iterator[Counter]:
    """Count the calls of the projection, the backbone, and the computation of masks."""
    calls: Counter = Counter()
    native = isinstance(model, SpeechEncoderDecoderModel)
    backbone = model.encoder if native else model.encoder.backbone
    projection = model.enc_to_dec_proj if native else model.encoder.projection
    hooks = [
        projection.register_forward_hook(lambda *_: calls.update(["projection"])),
        backbone.register_forward_hook(lambda *_: calls.update(["backbone"])),
    ]
    original = backbone._get_feat_extract_output_lengths

    def lengths(*args: Any, **kwargs: Any) -> Any:
        calls.update(["mask"])
        return original(*args, **kwargs)

    backbone._get_feat_extract_output_lengths = lengths
    try:
        yield calls
    finally:
        del backbone._get_feat_extract_output_lengths
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("way", WAYS)
def test_each_utterance_is_encoded_projected_and_masked_once(way):
    model = tiny_model("wav2vec2", "bert")
    batch = audio("wav2vec2", 3000, 4800)
    with counted(model) as alone:
        model.get_encoder()(**batch)
    with counted(model) as calls:
        generate(model, batch, **WAYS[way])
    assert alone["projection"] == alone["backbone"] == 1
    assert calls == alone


@pytest.mark.parametrize("way", WAYS)
def test_encoder_outputs_that_are_given_are_not_computed_again(way):
    model = tiny_model("wav2vec2", "bert")
    batch = audio("wav2vec2", 3000, 4800)
    with torch.no_grad():
        ours = model.get_encoder()(**batch)
        bare = model.encoder.backbone(batch["input_values"], attention_mask=batch["attention_mask"])
    with counted(model) as calls:
        generate(model, {"encoder_outputs": ours}, **WAYS[way])
    assert calls == {}
    with counted(model) as calls:
        given = {"encoder_outputs": BaseModelOutput(bare.last_hidden_state), "attention_mask": batch["attention_mask"]}
        generate(model, given, **WAYS[way])
    assert calls == {"projection": 1, "mask": 1}


def test_the_native_class_projects_and_masks_at_every_step():
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        tiny_config("wav2vec2", "bart").encoder, decoder_config("bart")
    )
    native = SpeechEncoderDecoderModel(config).eval()
    with counted(native) as calls:
        generate(native, audio("wav2vec2", 3000, 4800))
    assert calls["projection"] == STEPS and calls["mask"] > STEPS


@pytest.mark.parametrize("way", ["greedy", "beams", "sampling", "no cache"])
def test_hypotheses_of_an_utterance_share_the_keys_that_cross_attention_reads(way):
    model = tiny_model("wav2vec2", "bert")
    heard: Counter[str] = Counter()
    layers = [layer.crossattention.self.key for layer in model.decoder.bert.encoder.layer]
    hooks = [layer.register_forward_hook(lambda _, inputs, __: heard.update(rows=len(inputs[0]))) for layer in layers]
    generate(model, audio("wav2vec2", 3000, 4800), **WAYS[way])
    for hook in hooks:
        hook.remove()
    once = len(layers) * 2  # utterances
    assert heard["rows"] == (once * STEPS if way == "no cache" else once)


# One result, many ways -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_with_and_without_a_cache_the_text_is_that_of_whole_forward_passes(decoder):
    model = lively("wav2vec2-layer", decoder)
    batch = audio("wav2vec2-layer", 3000, 4800)
    expected = by_hand(model, batch)
    assert_same(scored(model, batch), expected)
    assert_same(scored(model, batch, use_cache=False), expected)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_static_cache_changes_no_token(decoder):
    model = lively("wav2vec2-layer", decoder)
    batch = audio("wav2vec2-layer", 3000, 4800)
    for beams in (1, 3):
        static = scored(model, batch, cache_implementation="static", num_beams=beams)
        assert_same(static, scored(model, batch, num_beams=beams))


@pytest.mark.parametrize("layers", [(1, 3), (3, 1)], ids=["deeper decoder", "deeper encoder"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_a_decoder_need_not_be_as_deep_as_the_encoder_it_was_trained_with(layers, cache):
    model = lively("wav2vec2", decoder_config("bart", encoder_layers=layers[0], decoder_layers=layers[1]))
    batch = audio("wav2vec2", 3000, 3000)
    for beams in (1, 2):
        expected = scored(model, batch, num_beams=beams, use_cache=False)
        assert_same(scored(model, batch, cache_implementation=cache, num_beams=beams), expected)


@pytest.mark.parametrize("encoder", ["wav2vec2-layer", "data2vec-audio", "wav2vec2-bert", "speech_to_text"])
def test_a_clip_gives_the_same_text_alone_and_beside_longer_ones(encoder):
    """Encoders with group norm hear the padding by nature, and get none; Whisper hears its whole window."""
    model = lively(encoder, "bart")
    batch = audio(encoder, 1700, 4800, 3000)
    for beams in (1, 2):
        tokens, scores = scored(model, batch, num_beams=beams)
        for row, steps in enumerate(batch["attention_mask"].sum(-1).tolist()):
            alone = scored(
                model, {name: value[row : row + 1, :steps] for name, value in batch.items()}, num_beams=beams
            )
            assert_same(alone, (tokens[row : row + 1], scores[:, beams * row : beams * (row + 1)]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("adapter_layers", [0, 1])
@pytest.mark.parametrize("encoder", ["wav2vec2-layer", "whisper", "speech_to_text"])
def test_given_encoder_outputs_lead_to_the_text_of_the_audio_itself(encoder, adapter_layers, way):
    """Of `get_encoder()`, or of its bare backbone with the mask of the audio; neither is changed by it."""
    model = lively(encoder, "bart", adapter_layers=adapter_layers)
    # The bare backbone of speech_to_text lets padding into its convolutions, which ours keeps out.
    batch = audio(encoder, *((4800, 4800) if encoder == "speech_to_text" else (3000, 4800)))
    torch.manual_seed(1)
    expected = scored(model, batch, **WAYS[way])
    with torch.no_grad():
        ours = model.get_encoder()(**batch)
        heard = None if encoder == "whisper" else batch["attention_mask"]
        bare = model.encoder.backbone(batch[model.main_input_name], attention_mask=heard).last_hidden_state
    for given in (
        {"encoder_outputs": ours},
        {"encoder_outputs": ours, "attention_mask": batch["attention_mask"]},
        {"encoder_outputs": BaseModelOutput(bare), "attention_mask": batch["attention_mask"]},
        {"encoder_outputs": (bare,), "attention_mask": batch["attention_mask"]},
    ):
        before = given["encoder_outputs"][0].clone()
        torch.manual_seed(1)
        assert_same(scored(model, given, **WAYS[way]), expected)
        assert torch.equal(given["encoder_outputs"][0], before)
        with torch.no_grad():
            text = labels(4, 4)
            logits = model(**given, decoder_input_ids=text).logits
            torch.testing.assert_close(logits, model(**batch, decoder_input_ids=text).logits, rtol=1e-5, atol=1e-5)


def test_encoder_outputs_whose_adapter_may_have_run_already_are_refused():
    """Where the backbone is as wide as the decoder, nothing tells its frames from shortened ones."""
    model = tiny_model("wav2vec2", "trocr", adapter_layers=1)
    assert model.encoder.projection is None
    bare = model.encoder.backbone(audio("wav2vec2", 4800)["input_values"]).last_hidden_state
    with pytest.raises(ValueError, match="get_encoder"):
        generate(model, {"encoder_outputs": BaseModelOutput(bare)})
    tokens = generate(model, {"encoder_outputs": model.get_encoder()(**audio("wav2vec2", 4800))})
    assert torch.equal(tokens, generate(model, audio("wav2vec2", 4800)))


def test_sampling_repeats_under_the_same_seed_and_differs_under_another():
    model, batch = tiny_model("wav2vec2", "bert"), audio("wav2vec2", 3000, 4800)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(generate(model, batch, do_sample=True, top_k=0))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("shares_encoder", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_assisted_decoding_gives_the_text_of_the_model_itself(shares_encoder, masked):
    model = lively("wav2vec2-layer", "bart")
    assistant = lively("wav2vec2-layer" if shares_encoder else "wav2vec2", "bart", seed=1)
    if shares_encoder:
        assistant.encoder = model.encoder
    batch = audio("wav2vec2-layer", 4800, mask=masked)
    expected = generate(model, batch)
    assert torch.equal(generate(model, batch, assistant_model=assistant), expected)
    assert torch.equal(generate(model, batch, prompt_lookup_num_tokens=2), expected)
    given = {"encoder_outputs": model.get_encoder()(**batch)}
    assert torch.equal(generate(model, given, assistant_model=assistant), expected)


@pytest.mark.parametrize("options", [{"num_beams": 4}, {"do_sample": True, "top_k": 0}], ids=["beams", "sampling"])
def test_several_hypotheses_for_each_clip_stay_with_their_clip(options):
    model, batch = lively("wav2vec2-layer", "bart"), audio("wav2vec2-layer", 3000, 4800)
    output = cast(
        Any,
        model.generate(
            **batch,
            **{**SETTINGS, **options},
            num_return_sequences=3,
            return_dict_in_generate=True,
            output_scores=True,
        ),
    )
    assert output.sequences.shape == (6, 1 + STEPS)
    rows = {name: value.repeat_interleave(3, dim=0) for name, value in batch.items()}
    with torch.no_grad():
        logits = model(**rows, decoder_input_ids=output.sequences[:, :-1]).logits
    sampled = "num_beams" not in options
    if sampled:  # the least length takes the end token out, for beams after the scores are normalised
        logits[..., model.config.eos_token_id] = -torch.inf
    expected = logits.log_softmax(-1).gather(-1, output.sequences[:, 1:, None])[..., 0]
    found = model.compute_transition_scores(
        output.sequences, output.scores, output.get("beam_indices"), normalize_logits=sampled
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if "num_beams" in options:
        scores = output.sequences_scores.view(2, 3)
        assert torch.equal(scores, scores.sort(descending=True).values)
        assert torch.equal(output.sequences.view(2, 3, -1)[:, 0], generate(model, batch, num_beams=4))
        assert len(output.sequences.unique(dim=0)) == 6


def test_attentions_and_hidden_states_come_with_generation_when_asked_for():
    model, batch = tiny_model("wav2vec2", "bart"), audio("wav2vec2", 3000, 4800)
    output = cast(
        Any,
        model.generate(
            **batch, **SETTINGS, return_dict_in_generate=True, output_attentions=True, output_hidden_states=True
        ),
    )
    frames = output.encoder_hidden_states[-1].shape[1]
    assert [len(step) for step in output.cross_attentions] == [2] * STEPS
    assert all(step[0].shape[-1] == frames for step in output.cross_attentions)
    assert len(output.decoder_hidden_states) == STEPS
    weights = torch.stack([step[0].sum(-1) for step in output.cross_attentions[1:]])
    torch.testing.assert_close(weights, torch.ones_like(weights))
    padding = ~model.get_encoder()(**batch).attention_mask[0]
    assert padding.any() and not output.cross_attentions[0][0][0, ..., padding].any(), "padding is not attended to"


# Length --------------------------------------------------------------------------------------------------------------


def test_by_default_the_text_is_not_cut_after_twenty_tokens():
    model = tiny_model("wav2vec2", "gpt2")
    assert model.generate(**audio("wav2vec2", 3000), min_length=40).shape == (1, 40), "as far as there are positions"
    assert tiny_model("wav2vec2", "m2m_100").generation_config.max_length == 448


@pytest.mark.filterwarnings("ignore:Unfeasible length")
@pytest.mark.parametrize("decoder", ["bert", "roberta", "gpt2", "bart", "whisper"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_more_tokens_than_the_decoder_has_positions_are_cut_and_not_a_crash(decoder, options):
    model = tiny_model("wav2vec2", decoder)
    limit = {"bert": 40, "roberta": 40 - 2, "gpt2": 40, "bart": 40, "whisper": 32}[decoder]
    for length in ({"max_new_tokens": 200, "min_new_tokens": 150}, {"max_length": 200, "min_length": 150}):
        assert model.generate(**audio("wav2vec2", 3000), **length, **options).shape == (1, limit)


def test_a_prompt_that_fills_the_positions_leaves_a_clear_message():
    model = tiny_model("wav2vec2", "bert")
    with pytest.raises(ValueError, match="40"):
        model.generate(**audio("wav2vec2", 3000), decoder_input_ids=torch.full((1, 45), 7))


def test_rows_stop_at_their_end_token_and_are_padded():
    model = lively("wav2vec2", "pegasus")
    batch = audio("wav2vec2", 3000, 4800, 4000)
    model.config.eos_token_id = 19
    free = generate(model, batch).tolist()
    ends = [token for row in free for token in row[2:-2] if not all(token in other for other in free)]
    end = model.config.eos_token_id = ends[0]
    expected = [row[: row.index(end) + 1] if end in row else row for row in free]
    longest = max(map(len, expected))
    padded = [row + [model.config.pad_token_id] * (longest - len(row)) for row in expected]
    assert generate(model, batch, min_new_tokens=0).tolist() == padded
    assert len({len(row) for row in expected}) > 1


# Prompts and configurations -----------------------------------------------------------------------------------------


def test_the_prompt_of_the_configuration_follows_the_start_token():
    model = tiny_model("wav2vec2", "bart", decoder_prompt_token_ids=[7, 8])
    batch = audio("wav2vec2", 3000, 4800)
    tokens = generate(model, batch, num_beams=2, num_return_sequences=2)
    assert tokens[:, :3].tolist() == [[model.config.decoder_start_token_id, 7, 8]] * 4
    assert tokens.shape[1] == 3 + STEPS
    given = generate(model, {**batch, "decoder_input_ids": torch.tensor([[2, 9]] * 2)})
    assert given[:, :3].tolist() != [[2, 9, 7]] * 2 and given[:, :2].tolist() == [[2, 9]] * 2


def test_a_generation_config_given_by_the_caller_is_used_with_the_models_own_ids():
    model, batch = tiny_model("wav2vec2", "bert"), audio("wav2vec2", 3000)
    settings = GenerationConfig(max_new_tokens=4, min_new_tokens=4)
    tokens = model.generate(**batch, generation_config=settings)
    assert tokens.shape == (1, 5) and tokens[0, 0] == model.config.decoder_start_token_id


def test_unknown_arguments_of_generate_are_refused():
    with pytest.raises((ValueError, TypeError), match="max_nwe_tokens"):
        tiny_model("wav2vec2", "bert").generate(**audio("wav2vec2", 3000), max_nwe_tokens=4)


def test_audio_given_by_position_is_found():
    for encoder in ("wav2vec2", "speech_to_text"):
        model, batch = tiny_model(encoder, "bert"), audio(encoder, 3000, mask=False)
        (inputs,) = batch.values()
        assert torch.equal(model.generate(inputs, **SETTINGS), generate(model, batch))


# Export and real models --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_exported_graph_takes_audio_and_text_of_any_length():
    model = tiny_model("wav2vec2-layer", "bart")
    sample = {**audio("wav2vec2-layer", 3000, 4800), "decoder_input_ids": torch.full((2, 5), 7)}
    batch = torch.export.Dim("batch")
    samples = torch.export.Dim("samples", min=720)  # of one frame behind the convolution for positions
    tokens = torch.export.Dim("tokens", max=40)  # positions of the decoder
    shapes = {
        "input_values": {0: batch, 1: samples},
        "attention_mask": {0: batch, 1: samples},
        "decoder_input_ids": {0: batch, 1: tokens},
    }
    names = dict.fromkeys(sample)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_values, attention_mask, decoder_input_ids):
            values = dict(zip(names, (input_values, attention_mask, decoder_input_ids), strict=True))
            return self.model(**values, use_cache=False).logits

    exported = torch.export.export(Logits(), (), kwargs=sample, dynamic_shapes=shapes, strict=False)
    for lengths, steps in (((3000, 4800), 5), ((9000, 7000, 8000), 9)):
        other = {
            **audio("wav2vec2-layer", *lengths, seed=5),
            "decoder_input_ids": torch.randint(6, 15, (len(lengths), steps)),
        }
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(**other), model(**other).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, clips, options",
    [
        ("whisper-tiny.en", 1, {"max_new_tokens": 40}),
        pytest.param("whisper-tiny.en", 3, {"num_beams": 2}, marks=pytest.mark.slow),
        pytest.param("whisper-base", 2, {}, marks=pytest.mark.slow),
    ],
)
def test_whisper_transcribes_real_speech_as_its_own_class_does(name, clips, options, pretrained_folder, recordings):
    folder = pretrained_folder(name)
    processor = cast(Any, WhisperProcessor.from_pretrained(folder))
    files = sorted((recordings / "validation").glob("*.flac"), key=lambda file: -file.stat().st_size)
    waveforms = [load_audio(file) for file in files[:clips]]
    features = processor(waveforms, sampling_rate=16_000, return_tensors="pt").input_features
    theirs = WhisperForConditionalGeneration.from_pretrained(folder)
    ours = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(folder)
    language = {} if name.endswith(".en") else {"language": "en", "task": "transcribe"}
    expected = [text_tokens(row) for row in cast(Any, theirs.generate(features, **language, **options)).tolist()]
    found = [text_tokens(row) for row in ours.generate(features, **options).tolist()]
    assert found == expected and min(map(len, found)) > 10


def text_tokens(row: list[int]) -> list[int]:
    """Whisper's tokens up to its special ones, which its own class returns in part."""
    return [token for token in row if token < 50256]
