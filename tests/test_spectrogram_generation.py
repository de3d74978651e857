"""generate(): when speech ends, what is repeatable, what a batch changes (nothing), and what is refused."""

import logging
from typing import Any, cast

import pytest
import torch
from tiny_speech_synthesizers import (
    TTS_SIZES,
    VOICE,
    lively_weights,
    repeatable_synthesizer,
    tiny_hifigan,
    tiny_native_synthesizer,
    tiny_synthesizer,
    tiny_tts_batch,
    without_prenet_dropout,
)
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig

from speechgraft import (
    GriffinLimVocoder,
    SpectrogramGenerationConfig,
    SynthesisOutput,
    TextToSpectrogramModel,
    train_character_tokenizer,
)
from speechgraft.modeling.alignment_diagnostics import align_speech, focus_rates
from speechgraft.modeling.spectrogram_streams import change_speed

LOGGER = "speechgraft.modeling.spectrogram_generation"
SIZES = [(5, 1), (3, 1), (7, 1)]  # tokens of the rows of `texts`
STOPS = 0.5  # a threshold that the model of `speaker` reaches in one row of three
NEVER = 1.0  # one that it reaches in none


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def texts(sizes: Any = SIZES) -> dict[str, torch.Tensor]:
    batch = tiny_tts_batch(sizes)
    del batch["labels"]
    return batch


def alone(batch: dict[str, torch.Tensor], row: int) -> torch.Tensor:
    """Token ids [1, S] of a row without its padding."""
    return batch["input_ids"][row, batch["attention_mask"][row].bool()][None]


def vocoder() -> Any:
    return lively_weights(tiny_hifigan(), 0.2)


def with_sound(**fields: Any) -> Any:
    model = tiny_synthesizer(**{"max_speech_positions": 200, **fields})
    model.set_vocoder(vocoder())
    return model


@pytest.fixture(scope="module")
def speaker() -> Any:
    return with_sound()


@pytest.fixture(autouse=True)
def no_old_warnings(caplog):
    """Transformers' loggers keep to themselves unless asked."""
    logger = logging.getLogger("transformers")
    logger.propagate, before = True, logger.propagate
    ours = logging.getLogger("speechgraft")
    ours.propagate, ours_before = True, ours.propagate
    caplog.set_level(logging.WARNING)
    yield
    logger.propagate, ours.propagate = before, ours_before


def stops_with(model: Any, *probabilities: float, prefix: str = "decoder.stop_head") -> Any:
    """Every step of the model says that its frames are the last with these probabilities."""
    head = model.get_submodule(prefix)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.logit(torch.tensor(probabilities)))
    return model


def test_a_model_of_many_voices_that_is_given_none_says_what_to_give(caplog):
    model = tiny_synthesizer(speaker_embedding_dim=7)  # no other test has this width: the warning is given once
    settings = {"max_new_tokens": 4, "output_waveform": False}
    model.generate(**texts(), **settings, speaker_embeddings=torch.ones(7))
    assert "voice" not in caplog.text
    for _ in range(2):
        model.generate(**texts(), **settings)
    assert (
        caplog.text.count("several voices and stores none: give speaker_embeddings [7], or store one with set_") == 1
    )
    caplog.clear()
    model.set_default_speaker(torch.ones(7))
    model.generate(**texts(), **settings)
    assert "voice" not in caplog.text


# When speech ends.


def test_speech_goes_on_while_no_frame_is_likely_to_be_the_last():
    """The built-in class adds the frames' probabilities up, so speech ends too early."""
    model = stops_with(repeatable_synthesizer(), 0.26, 0.26)
    output = model.generate(alone(texts(), 0), max_new_tokens=8, output_waveform=False)
    assert output.stop_reasons == ["max_length"] and output.spectrogram_lengths.tolist() == [8]
    native = stops_with(tiny_native_synthesizer(), 0.26, 0.26, prefix="speech_decoder_postnet.prob_out")
    assert native.generate(alone(texts(), 0), speaker_embeddings=torch.ones(1, VOICE)).shape[0] == 2


@pytest.mark.parametrize("probabilities", [(0.6, 0.1), (0.1, 0.6), (0.5, 0.5)])
def test_speech_ends_with_the_first_frame_that_is_likely_to_be_the_last(probabilities):
    model = stops_with(repeatable_synthesizer(), *probabilities)
    output = model.generate(alone(texts(), 0), output_waveform=False)
    assert output.stop_reasons == ["stop"] and output.spectrogram_lengths.tolist() == [2]


def test_speech_that_was_cut_off_says_so_and_warns(speaker, caplog):
    output = speaker.generate(**texts(), generator=seeded(2, 3, 4), stop_threshold=STOPS)
    assert sorted(set(output.stop_reasons)) == ["max_length", "stop"]
    cut = [f"row {row}" for row, reason in enumerate(output.stop_reasons) if reason == "max_length"]
    assert ", ".join(cut) in caplog.text and "cut off" in caplog.text
    caplog.clear()
    speaker.generate(**texts(), max_new_tokens=4, min_new_tokens=4)
    assert not caplog.text, "that length was asked for"


def test_each_row_is_capped_by_its_own_text():
    """The built-in class takes the padded text: 3 tokens among 7 speak as long as 7."""
    model = stops_with(repeatable_synthesizer(max_speech_positions=200), 0.1, 0.1)
    output = model.generate(**texts(), output_waveform=False)
    assert output.spectrogram_lengths.tolist() == [100, 60, 140]
    native = stops_with(
        tiny_native_synthesizer(max_speech_positions=200), 0.1, 0.1, prefix="speech_decoder_postnet.prob_out"
    )
    _, lengths = native.generate(**texts(), speaker_embeddings=torch.ones(3, VOICE), return_output_lengths=True)
    assert lengths == [140, 140, 140]
    assert model.generate(**texts(), output_waveform=False, max_frames_per_token=1.5).spectrogram_lengths.tolist() == [
        7,
        4,
        10,
    ]


def test_the_text_does_not_cap_speech_whose_length_was_asked_for(speaker):
    output = speaker.generate(**texts(), max_new_tokens=90, stop_threshold=NEVER)
    assert output.spectrogram_lengths.tolist() == [90, 90, 90]


@pytest.mark.parametrize("frames", [1, 7, 8])
def test_the_most_frames_are_kept_to_exactly(speaker, frames):
    output = speaker.generate(**texts(), max_new_tokens=frames, stop_threshold=NEVER)
    assert output.spectrogram_lengths.tolist() == [frames] * 3
    assert output.spectrogram.shape[1] == frames
    assert output.waveform_lengths.tolist() == [frames * 256] * 3 == [len(one) for one in output.waveform]


def test_speech_does_not_end_before_its_fewest_frames():
    model = stops_with(repeatable_synthesizer(), 0.9, 0.9)
    for settings, lengths in (
        ({"min_new_tokens": 7}, [8, 8, 8]),
        ({"min_frames_per_token": 2.0}, [10, 6, 14]),
        ({}, [2, 2, 2]),
    ):
        output = model.generate(**texts(), output_waveform=False, **settings)
        assert output.spectrogram_lengths.tolist() == lengths and set(output.stop_reasons) == {"stop"}


# A batch, and the rows alone.


@pytest.mark.parametrize("reduction_factor", [1, 2, 3])
@pytest.mark.parametrize("side", ["right", "left"])
def test_each_row_of_a_batch_is_what_it_is_alone(side, reduction_factor):
    """Mel, sound, length, reason and attention, although rows end at different times."""
    model, batch = with_sound(reduction_factor=reduction_factor), texts()
    settings = {"stop_threshold": STOPS, "output_attentions": True, "output_alignments": True, "max_new_tokens": 70}
    singles = [model.generate(alone(batch, row), generator=seeded(row), **settings) for row in range(len(SIZES))]
    if side == "left":
        for name, padding in (("input_ids", 1), ("attention_mask", 0)):
            rows = [row[mask.bool()] for row, mask in zip(batch[name], texts()["attention_mask"], strict=True)]
            padded = [torch.nn.functional.pad(row, (7 - len(row), 0), value=padding) for row in rows]
            batch[name] = torch.stack(padded)
    together = model.generate(**batch, generator=seeded(0, 1, 2), **settings)
    for row, single in enumerate(singles):
        frames = int(single.spectrogram_lengths)
        assert together.spectrogram_lengths[row] == frames and together.stop_reasons[row] == single.stop_reasons[0]
        torch.testing.assert_close(together.spectrogram[row, :frames], single.spectrogram[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.waveform[row], single.waveform[0], atol=1e-4, rtol=0)
        assert single.waveform[0].std() > 0.1, "a sound, not a constant"
        torch.testing.assert_close(together.alignments[row].weights, single.alignments[0].weights, atol=1e-5, rtol=0)
        columns = batch["attention_mask"][row].bool()
        for layer, own in zip(together.cross_attentions, single.cross_attentions, strict=True):
            steps = own.shape[2]
            torch.testing.assert_close(layer[row][:, :steps, columns], own[0], atol=1e-5, rtol=0)
            assert not layer[row][:, steps:].any() and not layer[row][..., ~columns].any()


def test_rows_of_the_batch_end_at_different_times(speaker):
    output = speaker.generate(**texts(), generator=seeded(0, 1, 2), stop_threshold=STOPS, max_new_tokens=70)
    assert len(set(output.spectrogram_lengths.tolist())) > 1, "or the test above would show little"


def test_the_native_vocoder_speaks_the_padding(speaker):
    """Zero, with which the built-in class pads, is loud in a logarithmic spectrogram: valid samples change."""
    mels = [torch.randn(12, 8) - 5, torch.randn(30, 8) - 5]
    native = speaker.vocoder.to_native().eval()
    padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
    with torch.no_grad():
        assert (native(padded)[0, : 12 * 256] - native(mels[0])).abs().max() > 0.1
        ours = speaker.vocoder(padded, lengths=[12, 30])
    torch.testing.assert_close(ours[0], native(mels[0]), atol=1e-5, rtol=0)


def test_padding_of_the_spectrogram_is_silence(speaker):
    output = speaker.generate(**texts(), max_frames_per_token=2.0, stop_threshold=NEVER)
    assert output.spectrogram_lengths.tolist() == [10, 6, 14]
    assert (output.spectrogram[1, 6:] == -10).all(), "log10 of the floor"


def test_finished_rows_leave_the_batch(speaker):
    """The built-in class decodes every row until the longest ends."""
    rows: list[int] = []
    hook = speaker.decoder.mel_head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    speaker.generate(**texts(), max_frames_per_token=4.0, stop_threshold=NEVER)
    hook.remove()
    assert rows == [3] * 6 + [2] * 4 + [1] * 4


# Randomness.


def test_a_seed_gives_the_same_bits_and_leaves_the_global_randomness_alone(speaker):
    batch, state = texts(), torch.get_rng_state()
    first, again = (speaker.generate(**batch, generator=seeded(5)[0], max_new_tokens=20) for _ in range(2))
    other = speaker.generate(**batch, generator=seeded(6)[0], max_new_tokens=20)
    assert torch.equal(torch.get_rng_state(), state)
    for one, same, different in zip(first.waveform, again.waveform, other.waveform, strict=True):
        assert torch.equal(one, same) and not torch.equal(one, different)


def test_without_a_generator_the_global_seed_decides(speaker):
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(speaker.generate(**texts(), max_new_tokens=20).spectrogram)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_rows_of_one_text_have_dropout_of_their_own(speaker):
    twice = alone(texts(), 0).repeat(2, 1)
    output = speaker.generate(twice, generator=seeded(5)[0], max_new_tokens=20, stop_threshold=NEVER)
    assert not torch.equal(*output.spectrogram)


def test_one_generator_means_the_same_for_the_first_rows_of_any_batch(speaker):
    batch = texts()
    few = {name: tensor[:2] for name, tensor in batch.items()}
    settings = {"max_new_tokens": 20, "stop_threshold": NEVER}
    whole = speaker.generate(**batch, generator=seeded(5)[0], **settings).spectrogram
    torch.testing.assert_close(
        speaker.generate(**few, generator=seeded(5)[0], **settings).spectrogram, whole[:2], atol=1e-4, rtol=0
    )


def test_the_prenet_s_dropout_can_be_switched_off(speaker):
    batch = texts()
    first, again = (speaker.generate(**batch, prenet_dropout=False, max_new_tokens=20) for _ in range(2))
    assert torch.equal(first.spectrogram, again.spectrogram)
    assert not torch.equal(speaker.generate(**batch, max_new_tokens=20).spectrogram, first.spectrogram)


def test_as_many_generators_as_rows(speaker):
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        speaker.generate(**texts(), generator=seeded(1, 2))


def test_dropout_drawn_ahead_is_that_of_each_step(speaker):
    """What generate() writes is what decode_step() writes with the same seeds, beyond one draw of masks."""
    batch, frames = texts(), 80
    settings = {"max_new_tokens": frames, "stop_threshold": NEVER, "output_waveform": False}
    output = speaker.generate(**batch, generator=seeded(7, 8, 9), **settings)
    with torch.no_grad():
        state, generators = speaker.start_decoding(speaker.encode(**batch)), seeded(7, 8, 9)
        last, written = None, []
        for _ in range(frames // 2):
            written.append(speaker.decode_step(last, state, generator=generators).frames)
            last = written[-1][:, -1]
        expected = speaker.postnet(torch.cat(written, dim=1))
    torch.testing.assert_close(output.spectrogram, expected, atol=1e-4, rtol=0)


# Work.


def test_a_step_costs_the_same_however_much_was_said():
    """But for attention over the prefix. The built-in class reads the whole prefix with its prenet again."""
    model = repeatable_synthesizer(attn_implementation="eager")
    flops = {}
    with torch.no_grad():
        state, last = model.start_decoding(model.encode(alone(texts(), 0))), None
        for steps in range(41):
            with FlopCounterMode(display=False) as counter:
                last = model.decode_step(last, state).frames[:, -1]
            flops[steps] = counter.get_total_flops()
    config = model.config
    of_attention = config.decoder_layers * 2 * 2 * config.hidden_size  # a product with a key and one with a value
    assert flops[40] - flops[10] == 30 * of_attention
    assert flops[40] < 1.35 * flops[10]


def test_text_is_read_once_and_frames_are_read_once(speaker):
    read: list[str] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: read.extend([name] * output.shape[1]))
        for name, module in (
            ("frame", speaker.decoder.prenet.final_layer),
            ("text", speaker.decoder.layers[0].encoder_attn.k_proj),
            ("encoder", speaker.encoder.backbone.layers[0].final_layer_norm),
        )
    ]
    speaker.generate(alone(texts(), 0), max_new_tokens=40, min_new_tokens=40)
    for hook in hooks:
        hook.remove()
    assert {name: read.count(name) for name in set(read)} == {"frame": 20, "text": 5, "encoder": 5}
    native, frames = tiny_native_synthesizer(), []
    native.speecht5.decoder.prenet.final_layer.register_forward_hook(lambda _, __, out: frames.append(out.shape[1]))
    native.generate(alone(texts(), 0), speaker_embeddings=torch.ones(1, VOICE), threshold=3.0, maxlenratio=8.0)
    assert sum(frames) == 20 * 21 // 2


def test_what_is_generated_is_what_the_whole_would_be():
    """Teacher forcing on the generated spectrogram before the postnet gives it back, without dropout."""
    model = repeatable_synthesizer()
    ids = alone(texts(), 2)
    output = model.generate(ids, max_new_tokens=40, min_new_tokens=40, output_attentions=True, output_waveform=False)
    read = torch.zeros(1, 1, 8)
    for _ in range(20):
        with torch.no_grad():
            whole = model(ids, decoder_input_values=read, output_attentions=True)
        read = torch.cat([torch.zeros(1, 1, 8), whole.spectrogram_before_postnet[:, 1::2]], dim=1)
    torch.testing.assert_close(output.spectrogram, whole.spectrogram, atol=1e-5, rtol=1e-5)
    for found, expected in zip(output.cross_attentions, whole.cross_attentions, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_our_speech_is_native_speech_where_the_built_in_class_is_right():
    """One row, dropout off, a length that is forced: the same spectrogram and the same sound."""
    native, ids = without_prenet_dropout(tiny_native_synthesizer()), alone(texts(), 0)
    model = repeatable_synthesizer()
    native.load_state_dict(model.to_native().state_dict())
    voice = torch.randn(1, VOICE)
    expected = native.generate(ids, speaker_embeddings=voice, threshold=3.0, maxlenratio=8.0, vocoder=vocoder())
    output = model.generate(
        ids, speaker_embeddings=voice, max_new_tokens=40, min_new_tokens=40, vocoder=vocoder(), max_length=120
    )
    torch.testing.assert_close(output.waveform[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"static_cache": True}])
def test_eager_and_sdpa_speak_alike(settings):
    model, batch = with_sound(), texts()
    found = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        found.append(model.generate(**batch, generator=seeded(1, 2, 3), stop_threshold=STOPS, **settings))
    assert found[0].spectrogram_lengths.tolist() == found[1].spectrogram_lengths.tolist()
    torch.testing.assert_close(found[0].spectrogram, found[1].spectrogram, atol=1e-4, rtol=0)


def test_a_vocoder_does_not_refuse_the_attention_that_its_model_is_loaded_with(speaker, tmp_path):
    speaker.save_pretrained(tmp_path)
    for attention in ("eager", "sdpa"):
        model: Any = TextToSpectrogramModel.from_pretrained(tmp_path, attn_implementation=attention)
        assert model.config._attn_implementation == attention
        mel = torch.randn(5, 8)
        torch.testing.assert_close(model.vocoder.to_native()(mel), model.vocoder(mel))


def test_a_static_cache_changes_nothing_but_memory(speaker):
    grown, fixed = (
        speaker.generate(**texts(), generator=seeded(1, 2, 3), stop_threshold=STOPS, static_cache=static)
        for static in (False, True)
    )
    assert grown.spectrogram_lengths.tolist() == fixed.spectrogram_lengths.tolist()
    torch.testing.assert_close(grown.spectrogram, fixed.spectrogram, atol=1e-4, rtol=0)


def test_a_compiled_step_needs_a_graph_for_each_number_of_rows_and_none_as_speech_grows():
    model, counter = with_sound(), CompileCounter()
    settings: dict[str, Any] = {"max_frames_per_token": 8.0, "stop_threshold": NEVER, "static_cache": True}
    expected = model.generate(**texts(), generator=seeded(1, 2, 3), **settings)
    torch.compiler.reset()
    model.decode_step = torch.compile(model.decode_step, backend=counter, fullgraph=True, dynamic=False)
    for _ in range(2):
        output = model.generate(**texts(), generator=seeded(1, 2, 3), **settings)
        torch.testing.assert_close(output.spectrogram, expected.spectrogram, atol=1e-4, rtol=0)
    torch.compiler.reset()
    assert counter.frame_count == 3, "with three rows, two and one"


# Settings.


@pytest.mark.parametrize(
    "argument",
    [
        {"num_beams": 4},
        {"do_sample": True},
        {"temperature": 0.7},
        {"cache_implementation": "static"},
        {"streamer": object()},
        {"nonsense": 1},
        {"threshold": 0.4},
        {"labels": torch.zeros(1)},
    ],
    ids=lambda argument: next(iter(argument)),
)
@pytest.mark.parametrize("way", ["generate", "stream"])
def test_an_argument_without_effect_is_refused_by_its_name(speaker, way, argument):
    with pytest.raises(ValueError, match=next(iter(argument))):
        getattr(speaker, way)(alone(texts(), 0), **argument)


def test_native_generate_takes_anything_without_a_word():
    native = tiny_native_synthesizer()
    native.generate(
        alone(texts(), 0), speaker_embeddings=torch.ones(1, VOICE), maxlenratio=1.0, num_beams=4, nonsense=True
    )


@pytest.mark.parametrize(
    "setting",
    [
        {"stop_threshold": 0.0},
        {"stop_threshold": 1.1},
        {"speed": 0.0},
        {"speed": 9.0},
        {"max_frames_per_token": 0},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"min_new_tokens": -1},
        {"min_new_tokens": 11, "max_new_tokens": 10},
        {"attention_window": -1},
        {"attention_window": (1, 0)},
        {"attention_window": "wide"},
        {"max_new_tokens": 401},
        {"max_length": 401},
        {"pad_token_id": 7},
    ],
    ids=str,
)
def test_a_setting_out_of_its_range_is_refused(speaker, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        speaker.generate(alone(texts(), 0), **setting)


def test_a_text_beyond_the_positions_is_refused(speaker):
    """The built-in class crashes with an error about tensor sizes."""
    with pytest.raises(ValueError, match="41 tokens.*positions for 40.*sentences"):
        speaker.generate(torch.full((1, 41), 5))


def test_settings_of_the_checkpoint_are_saved_and_used(speaker, tmp_path):
    speaker.save_pretrained(tmp_path)
    model: Any = TextToSpectrogramModel.from_pretrained(tmp_path)
    assert model.generation_config.to_dict() == speaker.generation_config.to_dict()
    model.generation_config.max_new_tokens = 6
    model.generation_config.attention_window = (1, 3)
    model.save_pretrained(tmp_path)
    again: Any = TextToSpectrogramModel.from_pretrained(tmp_path)
    assert type(again.generation_config) is SpectrogramGenerationConfig
    assert again.generation_config.window == (1, 3)
    assert again.generate(**texts(), stop_threshold=NEVER).spectrogram_lengths.tolist() == [6, 6, 6]
    assert again.generate(**texts(), stop_threshold=NEVER, max_new_tokens=8).spectrogram_lengths.tolist() == [8, 8, 8]
    longest = again.generate(**texts(), stop_threshold=NEVER, max_new_tokens=None)
    assert longest.spectrogram_lengths.tolist() == [100, 60, 140], "None: as many as the text wants"


def test_what_a_native_folder_says_of_tokens_is_not_taken_for_frames(tmp_path):
    native = tiny_native_synthesizer()
    native.generation_config.max_length = 3
    native.save_pretrained(tmp_path)
    model: Any = TextToSpectrogramModel.from_pretrained(tmp_path)
    assert model.generation_config.max_length == TTS_SIZES["max_speech_positions"] * 2


def test_a_generation_config_may_be_given_and_is_checked(speaker):
    batch = texts()
    few = GenerationConfig(max_new_tokens=6)
    assert speaker.generate(**batch, generation_config=few, stop_threshold=NEVER).spectrogram.shape[1] == 6
    both = speaker.generate(**batch, generation_config=few, max_new_tokens=4, stop_threshold=NEVER)
    assert both.spectrogram.shape[1] == 4
    with pytest.raises(ValueError, match="generation_config.*num_beams"):
        speaker.generate(**batch, generation_config=GenerationConfig(num_beams=3))


def test_a_tuple_where_no_dict_is_wanted(speaker):
    output = speaker.generate(alone(texts(), 0), max_new_tokens=4, return_dict_in_generate=False)
    assert isinstance(output, tuple) and len(output[0][0]) == 4 * 256 and output[1].tolist() == [1024]


def test_a_model_in_training_speaks_as_if_it_were_not_and_goes_on_training(speaker):
    model = with_sound().train()
    model.vocoder.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model.generate(**texts(), generator=seeded(1, 2, 3), max_new_tokens=20)
    expected = speaker.generate(**texts(), generator=seeded(1, 2, 3), max_new_tokens=20)
    assert torch.equal(output.spectrogram, expected.spectrogram)
    assert model.training and model.postnet.training and not model.vocoder.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_half_precision_speaks(speaker):
    model = with_sound().to(torch.bfloat16)
    output = model.generate(**texts(), generator=seeded(1, 2, 3), max_new_tokens=20, output_alignments=True)
    assert all(one.dtype == torch.float32 and one.isfinite().all() for one in output.waveform)


# Voices and vocoders.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(VOICE,), (1, VOICE), (3, VOICE)])
def test_a_voice_may_have_any_shape_and_dtype(speaker, shape, dtype):
    voice = torch.ones(shape, dtype=dtype)
    settings = {"generator": seeded(1, 2, 3), "max_new_tokens": 10, "stop_threshold": NEVER}
    found = speaker.generate(**texts(), speaker_embeddings=voice, **settings).spectrogram
    expected = speaker.generate(
        **texts(), speaker_embeddings=torch.ones(3, VOICE), **{**settings, "generator": seeded(1, 2, 3)}
    ).spectrogram
    torch.testing.assert_close(found, expected, atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)


def test_the_default_voice_speaks_where_none_is_given():
    model, voice = with_sound(), torch.randn(VOICE)
    settings = {"max_new_tokens": 10, "prenet_dropout": False}
    expected = model.generate(**texts(), speaker_embeddings=voice, **settings).spectrogram
    assert not torch.equal(model.generate(**texts(), **settings).spectrogram, expected)
    model.set_default_speaker(voice)
    torch.testing.assert_close(model.generate(**texts(), **settings).spectrogram, expected)


@pytest.mark.parametrize("voice", [torch.ones(VOICE + 1), torch.ones(2, VOICE), torch.full((VOICE,), torch.nan)])
def test_a_voice_that_is_none_is_refused(speaker, voice):
    with pytest.raises(ValueError, match="speaker_embeddings"):
        speaker.generate(**texts(), speaker_embeddings=voice)


def test_a_checkpoint_without_a_vocoder_still_makes_sound(caplog):
    model = repeatable_synthesizer(max_speech_positions=200)
    output = model.generate(**texts(), max_new_tokens=6)
    assert output.waveform_lengths.tolist() == [1536] * 3
    assert all(one.isfinite().all() for one in output.waveform)
    expected = GriffinLimVocoder(model.config)(output.spectrogram[0])
    torch.testing.assert_close(output.waveform[0], expected)


def test_a_vocoder_may_be_given_as_a_module_or_a_folder(speaker, tmp_path):
    other = lively_weights(tiny_hifigan(seed=3), 0.2)
    other.save_pretrained(tmp_path)
    settings = {"max_new_tokens": 10, "prenet_dropout": False}
    by_module = speaker.generate(alone(texts(), 0), vocoder=other, **settings)
    by_folder = speaker.generate(alone(texts(), 0), vocoder=tmp_path, **settings)
    own = speaker.generate(alone(texts(), 0), **settings)
    assert torch.equal(by_module.waveform[0], by_folder.waveform[0])
    assert not torch.equal(by_module.waveform[0], own.waveform[0])


def test_a_vocoder_of_other_spectrograms_is_refused(speaker):
    with pytest.raises(ValueError, match="hop_length is 256 in the model and 128"):
        speaker.generate(
            alone(texts(), 0), vocoder=tiny_hifigan(upsample_rates=[16, 8], upsample_kernel_sizes=[32, 16])
        )
    with pytest.raises(ValueError, match="sampling_rate"):
        speaker.generate(alone(texts(), 0), vocoder=GriffinLimVocoder(with_sound(sampling_rate=22_050).config))
    with pytest.raises(FileNotFoundError, match="no such vocoder"):
        speaker.generate(alone(texts(), 0), vocoder="/nowhere/at/all")


def test_no_sound_is_made_where_none_is_wanted(speaker):
    output = speaker.generate(**texts(), max_new_tokens=6, output_waveform=False)
    assert output.waveform is None and output.waveform_lengths is None and output.spectrogram.shape == (3, 6, 8)


# Speed.


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.0, 1.3, 2.0])
def test_speed_changes_the_length_and_not_the_sounds(speaker, speed):
    settings = {"prenet_dropout": False, "max_new_tokens": 40, "min_new_tokens": 40}
    normal = speaker.generate(alone(texts(), 0), **settings).spectrogram[0]
    output = speaker.generate(alone(texts(), 0), speed=speed, **settings)
    assert int(output.spectrogram_lengths) == round(40 / speed)
    assert int(output.waveform_lengths) == round(40 / speed) * 256
    places = ((torch.arange(round(40 / speed)) + 0.5) * speed - 0.5).clamp(0, 39)
    whole = places.floor().long()
    expected = torch.lerp(normal[whole], normal[(whole + 1).clamp(max=39)], (places - whole)[:, None])
    torch.testing.assert_close(output.spectrogram[0], expected, atol=1e-4, rtol=1e-4)


def test_speech_of_one_frame_has_a_speed_too():
    frame = torch.randn(1, 8)
    assert torch.equal(change_speed(frame, 4.0), frame)
    assert torch.equal(change_speed(frame, 0.5), frame.repeat(2, 1))


# Attention.


def test_a_window_keeps_attention_near_and_never_lets_it_go_back():
    model = repeatable_synthesizer(guided_attention_loss_heads=[0, 2], max_speech_positions=200)
    batch = texts([(20, 1), (12, 1)])
    settings = {"max_new_tokens": 80, "min_new_tokens": 80, "output_attentions": True, "output_waveform": False}
    free = model.generate(**batch, **settings)
    bound = model.generate(**batch, attention_window=(1, 2), **settings)
    followed = torch.stack(bound.cross_attentions)[:, :, [0, 2]]  # [L, B, 2, N, S]
    place = torch.zeros(2, dtype=torch.long)
    for step in range(40):
        seen = followed[:, :, :, step] > 0  # [L, B, 2, S]
        for row in range(2):
            tokens = seen[:, row].any(dim=0).any(dim=0).nonzero().flatten()
            assert tokens.min() >= place[row] - 1 and tokens.max() <= place[row] + 2
        place = torch.maximum(place, followed[:, :, :, step].mean(dim=(0, 2)).argmax(dim=-1))
    assert not torch.equal(free.spectrogram, bound.spectrogram)
    others = torch.stack(bound.cross_attentions)[:, 0, [1, 3]]
    assert (others > 0).all(), "heads that were not trained to be diagonal see the whole text"


def test_a_window_as_wide_as_the_text_is_none(speaker):
    settings = {"generator": seeded(1, 2, 3), "max_new_tokens": 30, "stop_threshold": NEVER}
    free = speaker.generate(**texts(), **settings)
    bound = speaker.generate(**texts(), attention_window=99, **{**settings, "generator": seeded(1, 2, 3)})
    torch.testing.assert_close(free.spectrogram, bound.spectrogram, atol=1e-4, rtol=0)


def test_a_window_is_the_same_in_a_batch_as_alone(speaker):
    settings = {"attention_window": (1, 2), "stop_threshold": STOPS, "max_new_tokens": 60}
    together = speaker.generate(**texts(), generator=seeded(0, 1, 2), **settings)
    for row in range(3):
        single = speaker.generate(alone(texts(), row), generator=seeded(row), **settings)
        torch.testing.assert_close(together.waveform[row], single.waveform[0], atol=1e-4, rtol=0)


def test_durations_add_up_to_the_length_and_the_focus_rate_is_espnet_s(speaker):
    output = speaker.generate(
        **texts(),
        generator=seeded(0, 1, 2),
        stop_threshold=STOPS,
        max_new_tokens=61,
        output_alignments=True,
        output_attentions=True,
    )
    attentions = torch.stack(output.cross_attentions, dim=1)  # [B, L, H, N, S]
    for row, alignment in enumerate(output.alignments):
        frames, tokens = int(output.spectrogram_lengths[row]), SIZES[row][0]
        own = attentions[row, ..., : -(-frames // 2), :tokens]
        assert alignment.focus_rate == pytest.approx(float(own.max(-1)[0].mean(-1).max()))
        chosen = own[alignment.layer, alignment.head]
        torch.testing.assert_close(alignment.weights, chosen)
        last = 2 if frames % 2 == 0 else 1
        expected = [0] * tokens
        for step, token in enumerate(chosen.argmax(-1).tolist()):
            expected[token] += last if step == len(chosen) - 1 else 2
        assert alignment.durations.tolist() == expected and sum(expected) == frames
        assert float(alignment.durations_s.sum()) == pytest.approx(frames * 256 / 16_000)
        assert alignment.coverage == sum(map(bool, expected)) / tokens


def test_durations_of_fast_speech_are_those_of_its_sound(speaker):
    output = speaker.generate(alone(texts(), 0), max_new_tokens=50, speed=1.7, output_alignments=True)
    assert float(output.alignments[0].durations_s.sum()) == pytest.approx(int(output.waveform_lengths) / 16_000)


def diagonal(steps_of_each: list[int]) -> torch.Tensor:
    """Attention [1, 1, N, S] that stays at each token for so many steps."""
    path = torch.repeat_interleave(torch.arange(len(steps_of_each)), torch.tensor(steps_of_each))
    return torch.nn.functional.one_hot(path, len(steps_of_each)).float()[None, None]


def test_the_most_focused_head_is_the_one_that_is_read():
    blurred = torch.full((2, 3, 10, 4), 0.25)
    blurred[1, 2] = diagonal([2, 3, 1, 4])[0, 0]
    alignment = align_speech(blurred, 20, 2, 0.016)
    assert (alignment.layer, alignment.head, alignment.focus_rate) == (1, 2, 1.0)
    assert alignment.durations.tolist() == [4, 6, 2, 8]
    assert align_speech(blurred, 20, 2, 0.016, heads=[0, 1]).focus_rate == 0.25
    assert focus_rates(blurred).tolist() == [[0.25] * 3, [0.25, 0.25, 1.0]]


def test_the_word_table_says_when_each_word_is_spoken():
    tokenizer = train_character_tokenizer(["a cat, sat."])
    ids = tokenizer("A cat, sat.")["input_ids"]  # 11 characters and the end
    alignment = align_speech(diagonal([1] * 12), 12, 1, 0.5)
    table = [(row.word, row.start_s, row.end_s) for row in alignment.word_timings(ids, tokenizer)]
    assert table == [("a", 0.0, 0.5), ("cat", 1.0, 2.5), ("sat", 3.5, 5.0)]
    with pytest.raises(ValueError, match="12 tokens, input_ids 11"):
        alignment.word_timings(ids[:-1], tokenizer)


def test_the_output_has_what_it_says(speaker):
    output = speaker.generate(**texts(), max_new_tokens=6, stop_threshold=NEVER)
    assert isinstance(output, SynthesisOutput)
    assert list(output.keys()) == [
        "waveform",
        "waveform_lengths",
        "spectrogram",
        "spectrogram_lengths",
        "stop_reasons",
    ]
    assert cast(Any, output).cross_attentions is None and output.alignments is None
