"""Text to speech, the model: what it computes, whatever the padding, the cache, the dropout, the way of attending."""

import copy
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from tiny_speech_synthesizers import (
    NO_DROPOUT,
    TTS_MELS,
    TTS_VOCABULARY,
    VOICE,
    repeatable_synthesizer,
    row_alone,
    tiny_hifigan,
    tiny_native_synthesizer,
    tiny_synthesizer,
    tiny_tts_batch,
    tiny_tts_config,
    without_prenet_dropout,
)
from tiny_training import arguments
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForTextToSpectrogram,
    AutoModelForTextToWaveform,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    Seq2SeqTrainer,
    Trainer,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING

from speechgraft import SpeechSeq2SeqTrainer, TextToSpectrogramModel, publish_pretrained
from speechgraft.modeling.transformer_layers import Attention

ROWS = [(5, 9), (8, 4), (3, 7)]  # tokens and frames
LOSSES = ("l1_loss", "postnet_l1_loss", "stop_loss", "guided_attention_loss")


def rows(count: int = 6) -> list[dict[str, torch.Tensor]]:
    """Rows as a dataset has them: token ids [S] and a spectrogram [T, M], each of another length."""
    batch = tiny_tts_batch([(3 + index, 9 - index) for index in range(count)])
    singles = [row_alone(batch, index) for index in range(count)]
    return [{name: row[name][0] for name in ("input_ids", "labels")} for row in singles]


def collate(features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    pad = nn.utils.rnn.pad_sequence
    ids = pad([row["input_ids"] for row in features], batch_first=True, padding_value=1)
    labels = pad([row["labels"] for row in features], batch_first=True, padding_value=-100.0)
    return {"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": labels}


def repeatable_training(**fields: Any) -> Any:
    """A model whose training step depends on nothing but its batch.

    The statistics of batch normalisation are those of a micro-batch, which no accumulation makes whole again: frozen.
    """
    model = repeatable_synthesizer(**fields)
    model.postnet.train = lambda mode=True: model.postnet
    return model.train()


def gradients(model: Any, *batches: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    for batch in batches:
        model(**batch, **options).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=1e-4, msg=lambda text, name=name: name + text)


def test_dropout_of_zero_is_no_dropout():
    prenet = tiny_synthesizer(speech_decoder_prenet_dropout=0).decoder.prenet
    frames = torch.randn(2, 3, TTS_MELS)
    assert prenet.draw_masks(2, 3) == []
    hidden = frames
    for layer in prenet.layers:
        hidden = layer(hidden).relu()
    expected = prenet.encode_positions(prenet.final_layer(hidden), slice(0, 3))
    assert torch.equal(prenet(frames, slice(0, 3)), expected)


def test_native_dropout_of_zero_silences_the_prenet():
    prenet = tiny_native_synthesizer(speech_decoder_prenet_dropout=0.0).speecht5.decoder.prenet
    hidden = torch.rand(1, 3, 12) + 1
    assert not prenet._consistent_dropout(hidden, 0.0).any()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_keeps_the_mean_and_the_share_that_was_asked_for(p):
    prenet = tiny_synthesizer(speech_decoder_prenet_dropout=p).decoder.prenet
    for mask in prenet.draw_masks(40, 100):
        assert mask.shape == (40, 100, 12)
        assert float((mask > 0).float().mean()) == pytest.approx(1 - p, abs=0.01)
        assert float(mask.mean()) == pytest.approx(1, abs=0.03)


def test_native_dropout_keeps_what_it_should_drop():
    prenet = tiny_native_synthesizer().speecht5.decoder.prenet
    kept = prenet._consistent_dropout(torch.ones(1, 1000, 12), 0.1)
    assert float((kept > 0).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_every_row_and_layer_has_a_mask_of_its_own():
    masks = tiny_synthesizer().decoder.prenet.draw_masks(2, 20)
    assert not torch.equal(masks[0][0], masks[0][1]) and not torch.equal(masks[0], masks[1])


def test_native_rows_share_one_mask():
    prenet = tiny_native_synthesizer().speecht5.decoder.prenet
    kept = prenet._consistent_dropout(torch.ones(2, 20, 12), 0.5)
    assert torch.equal(kept[0], kept[1])


def test_a_generator_repeats_the_output_and_leaves_the_global_one_alone():
    model, batch = tiny_synthesizer(), tiny_tts_batch(ROWS)
    state = torch.get_rng_state()
    first, second = (model(**batch, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.spectrogram, second.spectrogram)
    other = model(**batch, generator=torch.Generator().manual_seed(6))
    assert not torch.equal(first.spectrogram, other.spectrogram)


def test_with_a_generator_for_each_row_a_batch_equals_its_rows():
    model, batch = tiny_synthesizer(), tiny_tts_batch(ROWS)

    def generators(seeds: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = model(**batch, generator=generators([3, 4, 5])).spectrogram
    for index, (_, frames) in enumerate(ROWS):
        alone = model(**row_alone(batch, index), generator=generators([3 + index])).spectrogram
        torch.testing.assert_close(alone[0], together[index, :frames], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        model(**batch, generator=generators([1, 2]))


def test_dropout_can_be_switched_off_after_loading():
    model, batch = tiny_synthesizer(), tiny_tts_batch(ROWS)
    model.config.speech_decoder_prenet_dropout = 0.0
    assert torch.equal(model(**batch).spectrogram, model(**batch).spectrogram)


class OpaqueLinear(nn.Module):
    """A linear layer that shows no weight, as those with packed or quantised weights."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.compute = [linear]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.compute[0](states)


def decode_all(
    model: Any, frames: torch.Tensor, encoded: Any, generator: Any = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    state = model.start_decoding(encoded, **options)
    steps = [model.decode_step(frames[:, index], state, generator) for index in range(frames.shape[1])]
    return torch.cat([one.frames for one in steps], 1), torch.cat([one.stop_logits for one in steps], 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("max_steps", [None, 12], ids=["growing", "static"])
def test_decoding_step_by_step_equals_decoding_at_once(max_steps, attention):
    model, batch = repeatable_synthesizer(attn_implementation=attention), tiny_tts_batch(ROWS)
    frames, voice = torch.randn(3, 12, TTS_MELS), torch.randn(3, VOICE)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        whole = model(**text, decoder_input_values=frames, speaker_embeddings=voice)
        encoded = model.encode(**text)
        written, stops = decode_all(model, frames, encoded, speaker_embeddings=voice, max_steps=max_steps)
    torch.testing.assert_close(written, whole.spectrogram_before_postnet, atol=1e-5, rtol=0)
    torch.testing.assert_close(stops, whole.stop_logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("each", [False, True], ids=["one-generator", "one-for-each-row"])
def test_a_seed_means_the_same_dropout_step_by_step_as_at_once(each):
    model, batch, frames = tiny_synthesizer(), tiny_tts_batch(ROWS), torch.randn(3, 6, TTS_MELS)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def generator() -> Any:
        return [torch.Generator().manual_seed(i) for i in range(3)] if each else torch.Generator().manual_seed(7)

    with torch.no_grad():
        whole = model(**text, decoder_input_values=frames, generator=generator()).spectrogram_before_postnet
        written, _ = decode_all(model, frames, model.encode(**text), generator())
    torch.testing.assert_close(written, whole, atol=1e-5, rtol=0)


def test_a_long_utterance_outgrows_the_first_room_of_the_cache_and_loses_nothing():
    model = repeatable_synthesizer(max_speech_positions=200)
    frames, ids = torch.randn(1, 150, TTS_MELS), torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        whole = model(ids, decoder_input_values=frames).spectrogram_before_postnet
        written, _ = decode_all(model, frames, model.encode(ids))
    torch.testing.assert_close(written, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cuts", [(12,), (1,) * 12, (5, 4, 3), (1, 11)])
@pytest.mark.parametrize("cache", [None, "dynamic"])
def test_a_cached_forward_equals_the_whole(cuts, cache):
    model, ids, frames = repeatable_synthesizer(), torch.tensor([[4, 5, 6, 7]]), torch.randn(1, 12, TTS_MELS)
    past: Cache | None = None if cache is None else EncoderDecoderCache(DynamicCache(), DynamicCache())
    parts, start = [], 0
    with torch.no_grad():
        whole = model(ids, decoder_input_values=frames).spectrogram_before_postnet
        for cut in cuts:
            part = frames[:, start : start + cut]
            output = model(ids, decoder_input_values=part, past_key_values=past, use_cache=True)
            past, start = output.past_key_values, start + cut
            parts.append(output.spectrogram_before_postnet)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


def test_native_cached_forward_forgets_where_it_is():
    native = without_prenet_dropout(tiny_native_synthesizer(speech_decoder_postnet_layers=0))
    ids, frames = torch.tensor([[4, 5, 6, 7]]), torch.randn(1, 6, TTS_MELS)
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": True}
    with torch.no_grad():
        whole = native(**options, decoder_input_values=frames).spectrogram
        first = native(**options, decoder_input_values=frames[:, :3])
        rest = native(**options, decoder_input_values=frames[:, 3:], past_key_values=first.past_key_values)
    assert float((rest.spectrogram - whole[:, 6:]).abs().max()) > 0.01


def test_backward_through_a_cached_forward_is_right():
    model, ids, frames = repeatable_synthesizer(), torch.tensor([[4, 5, 6, 7]]), torch.randn(1, 6, TTS_MELS)
    found = []
    for cuts in ((6,), (2, 4)):
        model.zero_grad()
        past, start, total = None, 0, torch.zeros(())
        for cut in cuts:
            part = frames[:, start : start + cut]
            output = model(ids, decoder_input_values=part, past_key_values=past, use_cache=True)
            past, start = output.past_key_values, start + cut
            total = total + output.spectrogram_before_postnet.pow(2).sum()
        total.backward()
        found.append(
            {name: value.grad.clone() for name, value in model.decoder.named_parameters() if value.grad is not None}
        )
    close(found[1], found[0], atol=1e-4)


def test_a_step_reads_one_frame_and_projects_no_text():
    """The built-in class runs its prenet over the whole prefix at every step."""
    model, read, projected = repeatable_synthesizer(), [], []
    model.decoder.prenet.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    for layer in model.decoder.layers:
        layer.encoder_attn.k_proj.register_forward_hook(lambda *_: projected.append(1))
    with torch.no_grad():
        decode_all(model, torch.randn(1, 7, TTS_MELS), model.encode(torch.tensor([[4, 5]])))
    assert read == [1] * 7 and len(projected) == len(model.decoder.layers)


@pytest.mark.parametrize("max_steps", [None, 12], ids=["growing", "static"])
def test_rows_that_are_finished_leave_and_the_others_do_not_notice(max_steps):
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    frames, voice = torch.randn(3, 8, TTS_MELS), torch.randn(3, VOICE)
    with torch.no_grad():
        encoded = model.encode(batch["input_ids"], batch["attention_mask"])
        whole, _ = decode_all(model, frames, encoded, speaker_embeddings=voice)
        state = model.start_decoding(encoded, voice, max_steps=max_steps)
        for step in range(8):
            if step == 3:
                state.select_rows(torch.tensor([0, 2]))
                frames = frames[[0, 2]]
            written = model.decode_step(frames[:, step], state).frames
            expected = whole[:, 2 * step : 2 * step + 2]
            torch.testing.assert_close(written, expected[[0, 2]] if step >= 3 else expected, atol=1e-5, rtol=0)


def test_speech_starts_from_silence():
    model = repeatable_synthesizer()
    with torch.no_grad():
        encoded = model.encode(torch.tensor([[4, 5]]))
        first = model.decode_step(None, model.start_decoding(encoded)).frames
        zeros = model.decode_step(torch.zeros(1, TTS_MELS), model.start_decoding(encoded)).frames
    assert torch.equal(first, zeros)


def test_cross_attentions_of_steps_are_those_of_the_whole():
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    frames = torch.randn(3, 5, TTS_MELS)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        whole = model(**text, decoder_input_values=frames, output_attentions=True).cross_attentions
        state = model.start_decoding(model.encode(**text))
        steps = [model.decode_step(frames[:, i], state, output_attentions=True).cross_attentions for i in range(5)]
    for layer, expected in enumerate(whole):
        torch.testing.assert_close(torch.cat([step[layer] for step in steps], 2), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_compiled_step_needs_one_graph_however_long_speech_gets():
    from torch._dynamo.testing import CompileCounter

    model, counter, ids = tiny_synthesizer(), CompileCounter(), torch.tensor([[4, 5, 6], [7, 8, 1]])
    step = torch.compile(model.decode_step, backend=counter, fullgraph=True)
    with torch.no_grad():
        encoded, voice = model.encode(ids), torch.randn(VOICE)
        compiled, plain = model.start_decoding(encoded, voice, max_steps=30), model.start_decoding(encoded, voice)
        last = torch.zeros(2, TTS_MELS)
        for _ in range(30):
            masks = model.decoder.prenet.draw_masks(2, 1)
            found = step(last, compiled, prenet_masks=masks).frames
            torch.testing.assert_close(found, model.decode_step(last, plain, prenet_masks=masks).frames)
            last = found[:, -1].clone()
        step(last, model.start_decoding(encoded, voice, max_steps=30), prenet_masks=masks)  # the next utterance
    assert counter.frame_count == 1


def test_sdpa_equals_eager():
    batch, voice = tiny_tts_batch(ROWS), torch.randn(3, VOICE)
    outputs = []
    for attention in ("sdpa", "eager"):
        model = repeatable_synthesizer(attn_implementation=attention)
        assert model.config._attn_implementation == attention
        outputs.append(model(**batch, speaker_embeddings=voice))
    for name in ("spectrogram", "stop_logits", "encoder_last_hidden_state", "loss"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name], atol=1e-5, rtol=0)


def test_the_way_of_attending_can_be_changed_later():
    model, batch = repeatable_synthesizer(attn_implementation="sdpa"), tiny_tts_batch(ROWS)
    expected = model(**batch).spectrogram
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**batch).spectrogram, expected, atol=1e-5, rtol=0)
    assert {module.config._attn_implementation for module in model.modules() if isinstance(module, Attention)} == {
        "eager"
    }


def test_linear_layers_can_be_given_other_kernels():
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    expected = model(**batch, speaker_embeddings=torch.ones(VOICE)).spectrogram
    frames, voice = torch.zeros(3, 4, TTS_MELS), torch.ones(VOICE)
    for name, module in list(model.decoder.named_modules()):
        if isinstance(module, nn.Linear):
            model.decoder.set_submodule(name, OpaqueLinear(module))
    found = model(**batch, speaker_embeddings=voice).spectrogram
    assert torch.equal(found, expected)
    with torch.no_grad():
        decode_all(model, frames, model.encode(batch["input_ids"]), speaker_embeddings=voice)


def test_native_class_has_no_sdpa():
    with pytest.raises(ValueError, match="sdpa|scaled_dot_product"):
        tiny_native_synthesizer(attn_implementation="sdpa")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_frame_sees_the_future(attention):
    model, ids, frames = (
        repeatable_synthesizer(attn_implementation=attention),
        torch.tensor([[4, 5]]),
        torch.randn(1, 8, 8),
    )
    changed = frames.clone()
    changed[:, 5:] += 1
    before, after = (model(ids, decoder_input_values=one).spectrogram_before_postnet for one in (frames, changed))
    torch.testing.assert_close(before[:, :10], after[:, :10], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 10:], after[:, 10:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attentions_come_in_the_shapes_of_transformers_and_change_nothing(attention):
    model, batch = repeatable_synthesizer(attn_implementation=attention), tiny_tts_batch([(5, 9), (8, 4)])
    plain = model(**batch)
    asked = model(**batch, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(asked.spectrogram, plain.spectrogram, atol=1e-5, rtol=0)
    assert plain.cross_attentions is None and plain.decoder_hidden_states is None
    assert [tuple(each.shape) for each in asked.encoder_attentions] == [(2, 2, 8, 8)] * 2
    assert [tuple(each.shape) for each in asked.decoder_attentions] == [(2, 4, 5, 5)] * 2
    assert [tuple(each.shape) for each in asked.cross_attentions] == [(2, 4, 5, 8)] * 2
    assert [tuple(each.shape) for each in asked.decoder_hidden_states] == [(2, 5, 16)] * 3
    assert [tuple(each.shape) for each in asked.encoder_hidden_states] == [(2, 8, 16)] * 3
    assert torch.allclose(asked.cross_attentions[0].sum(-1), torch.ones(2, 4, 5))
    assert not asked.cross_attentions[0][0, :, :, 5:].any(), "padding tokens are not looked at"
    if attention == "eager":  # elsewhere Transformers refuses the setting
        model.config.output_attentions = True
        assert len(model(**batch).cross_attentions) == 2


def test_cross_attentions_of_a_row_are_those_that_it_has_alone():
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    together = model(**batch, output_attentions=True).cross_attentions
    for index, (tokens, frames) in enumerate(ROWS):
        alone = model(**row_alone(batch, index), output_attentions=True).cross_attentions
        for layer, expected in zip(together, alone, strict=True):
            found = layer[index : index + 1, :, : -(-frames // 2), :tokens]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_native_cross_attentions_of_a_batch_are_scrambled():
    native = without_prenet_dropout(tiny_native_synthesizer())
    batch, voice = tiny_tts_batch([(5, 4), (5, 4)]), torch.randn(1, VOICE)
    options = {"threshold": 2.0, "maxlenratio": 1.0, "output_cross_attentions": True, "return_output_lengths": True}
    ids = batch["input_ids"]
    *_, together = native.generate(ids, speaker_embeddings=voice.expand(2, -1), **options)
    singles = [native.generate(ids[i : i + 1], speaker_embeddings=voice, **options)[-1] for i in range(2)]
    assert not torch.allclose(together[0], singles[0].reshape(together[0].shape), atol=1e-3)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_more_padding_changes_neither_loss_nor_frames_nor_statistics(training):
    found = []
    for text, speech in ((0, 0), (4, 0), (0, 6), (3, 5)):
        model, batch = repeatable_synthesizer().train(training), tiny_tts_batch(ROWS)
        batch["input_ids"] = nn.functional.pad(batch["input_ids"], (0, text), value=1)
        batch["attention_mask"] = nn.functional.pad(batch["attention_mask"], (0, text))
        batch["labels"] = nn.functional.pad(batch["labels"], (0, 0, 0, speech), value=-100.0)
        output = model(**batch)
        mask = output.spectrogram_mask
        statistics = {name: value for name, value in model.named_buffers() if "running" in name}
        found.append(
            {"loss": output.loss, "frames": output.spectrogram[mask], "stops": output.stop_logits[mask], **statistics}
        )
    for other in found[1:]:
        close(other, found[0], atol=1e-5)


def test_native_padding_leaks_into_frames_and_statistics():
    native = without_prenet_dropout(tiny_native_synthesizer(**NO_DROPOUT, use_guided_attention_loss=False))
    batch, found = row_alone(tiny_tts_batch([(5, 8)]), 0), []
    for speech in (0, 6):
        model = copy.deepcopy(native).train()
        labels = nn.functional.pad(batch["labels"], (0, 0, 0, speech), value=-100.0)
        output = model(**{**batch, "labels": labels})
        found.append(
            (output.spectrogram[:, :8].detach(), model.speech_decoder_postnet.layers[0].batch_norm.running_mean)
        )
    assert float((found[0][0] - found[1][0]).abs().max()) > 0.01
    assert not torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_every_row_of_a_batch_equals_the_row_alone():
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    together = model(**batch)
    weighted = torch.zeros(())
    for index, (_, frames) in enumerate(ROWS):
        alone = model(**row_alone(batch, index))
        torch.testing.assert_close(together.spectrogram[index, :frames], alone.spectrogram[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.stop_logits[index, :frames], alone.stop_logits[0], atol=1e-5, rtol=0)
        weighted = weighted + alone.loss * frames
    torch.testing.assert_close(together.loss, weighted / sum(frames for _, frames in ROWS), atol=1e-5, rtol=1e-5)


def test_batch_normalisation_of_whole_batches_is_pytorch_s():
    model = repeatable_synthesizer().train()
    ours = model.postnet.layers[0].batch_norm
    theirs = nn.BatchNorm1d(ours.num_features).train()
    theirs.load_state_dict(ours.state_dict())
    values = torch.randn(4, ours.num_features, 9) * 3 + 1
    for mask in (None, torch.ones(4, 1, 9, dtype=torch.bool)):
        torch.testing.assert_close(ours(values, mask), theirs(values), atol=1e-5, rtol=1e-5)
        close(ours.state_dict(), theirs.state_dict(), atol=1e-5)


def test_the_tokens_of_a_new_model_are_heard_beside_their_positions():
    """With SpeechT5's small weights positions are ten times as loud, and a new model does not learn to read."""
    model = TextToSpectrogramModel(tiny_tts_config(hidden_size=64))
    encoder = model.encoder.backbone
    tokens, places = encoder.embed_tokens.weight, encoder.encode_positions.table[:20]
    assert tokens[3:].std() > places.std() and not tokens[1].any(), "padding stays silent"
    assert tokens[3:].std() < 3 * places.std()


def test_a_new_postnet_adds_nothing_until_it_has_learned_what():
    model, batch = TextToSpectrogramModel(tiny_tts_config(speaker_embedding_dim=0)).train(), tiny_tts_batch(ROWS)
    output = model(**batch)
    assert torch.equal(output.spectrogram, output.spectrogram_before_postnet)
    optimizer = torch.optim.SGD(model.postnet.parameters(), 0.1)
    for _ in range(2):
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
    assert not torch.equal(output.spectrogram, output.spectrogram_before_postnet)
    assert all(bool(parameter.grad.any()) for parameter in model.postnet.parameters())


def test_the_postnet_sees_as_far_as_it_says():
    model, frames = repeatable_synthesizer(), torch.randn(1, 40, TTS_MELS)
    changed = frames.clone()
    changed[:, 20] += 1
    moved = (model.postnet(frames) != model.postnet(changed)).any(-1)[0].nonzero().flatten()
    context = model.postnet.context_frames
    assert (int(moved[0]), int(moved[-1])) == (20 - context, 20 + context)


def test_text_without_a_mask_is_masked_by_its_padding_tokens():
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    masked = model(**batch).loss
    del batch["attention_mask"]
    torch.testing.assert_close(model(**batch).loss, masked)


def test_text_padded_on_the_left_sounds_the_same():
    model, batch = repeatable_synthesizer(), row_alone(tiny_tts_batch([(5, 8)]), 0)
    expected = model(**batch)
    batch["input_ids"] = nn.functional.pad(batch["input_ids"], (3, 0), value=1)
    batch["attention_mask"] = nn.functional.pad(batch["attention_mask"], (3, 0))
    found = model(**batch)
    torch.testing.assert_close(found.spectrogram, expected.spectrogram, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reduction_factor", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7])
def test_speech_of_any_length_has_a_finite_loss(frames, reduction_factor):
    model = tiny_synthesizer(reduction_factor=reduction_factor).train()
    batch = tiny_tts_batch([(4, frames), (2, max(1, frames - 3))])
    output = model(**batch)
    output.loss.backward()
    assert output.spectrogram.shape == (2, frames, TTS_MELS) and output.stop_logits.shape == (2, frames)
    values = [output[name] for name in LOSSES] + [value.grad for value in model.parameters() if value.grad is not None]
    assert all(torch.isfinite(value).all() for value in values)


def test_native_class_crashes_at_odd_lengths():
    batch = tiny_tts_batch([(4, 7)])
    with pytest.raises(RuntimeError):
        tiny_native_synthesizer()(**batch)


def test_the_losses_add_up_and_each_has_a_name():
    model, batch = tiny_synthesizer(guided_attention_loss_scale=3), tiny_tts_batch(ROWS)
    output = model(**batch)
    torch.testing.assert_close(output.loss, sum(output[name] for name in LOSSES))
    model.config.use_guided_attention_loss = False
    assert model(**batch).guided_attention_loss is None


def test_a_batch_without_any_frame_gives_zero_and_no_nan():
    model = tiny_synthesizer().train()
    batch = tiny_tts_batch([(4, 5), (3, 5)])
    batch["labels"] = torch.full_like(batch["labels"], -100.0)
    output = model(**batch)
    output.loss.backward()
    assert output.loss == 0
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_guided_attention_pulls_the_chosen_heads_alone():
    model = repeatable_synthesizer(guided_attention_loss_heads=[1])
    output = model(**tiny_tts_batch(ROWS))
    output.guided_attention_loss.backward()
    width = model.config.hidden_size // model.config.decoder_attention_heads
    gradient = model.decoder.layers[-1].encoder_attn.q_proj.weight.grad.unflatten(0, (-1, width))
    assert [bool(head.any()) for head in gradient] == [False, True, False, False]


def test_gold_inputs_are_the_last_frame_of_every_step_behind_a_silent_one():
    model = tiny_synthesizer(reduction_factor=3)
    labels = torch.arange(1, 9).float()[None, :, None].expand(2, -1, TTS_MELS).clone()
    labels[1, 5:] = -100
    inputs = model.prepare_decoder_input_values_from_labels(labels)
    assert inputs[..., 0].tolist() == [[0, 3, 6], [0, 3, 0]]


def decoder_inputs_in_training(model: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the decoder reads in each of its passes."""
    read: list[torch.Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    model.train()(**batch)
    hook.remove()
    return read


def test_scheduled_sampling_reads_what_the_model_wrote_as_generation_does():
    batch = tiny_tts_batch(ROWS)
    model = repeatable_synthesizer(reduction_factor=2, scheduled_sampling_rate=1.0)
    first, second = decoder_inputs_in_training(model, batch)
    assert torch.equal(first, model.prepare_decoder_input_values_from_labels(batch["labels"]))
    written = model(**batch, decoder_input_values=first).spectrogram_before_postnet
    assert not second[:, 0].any(), "speech starts from silence"
    torch.testing.assert_close(second[:, 1:], written[:, 1::2][:, : first.shape[1] - 1])
    assert len(decoder_inputs_in_training(repeatable_synthesizer(), batch)) == 1, "off by default"
    model.config.scheduled_sampling_rate = 0.5
    first, second = decoder_inputs_in_training(model, batch)
    own = (first != second).any(dim=-1)[:, 1:]
    assert own.any() and not own.all()


def test_scheduled_sampling_is_for_training_alone_and_lets_every_weight_learn():
    batch = tiny_tts_batch(ROWS)
    model = tiny_synthesizer(scheduled_sampling_rate=0.5, has_default_speaker=True)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    plain = tiny_synthesizer(has_default_speaker=True)
    losses = [one.eval()(**batch, generator=seed).loss for one, seed in zip((model, plain), seeds, strict=True)]
    assert losses[0] == losses[1]
    with torch.autocast("cpu", torch.bfloat16):  # whose copies of the weights outlive a pass without gradients
        model.train()(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("reduction_factor", [1, 2])
def test_accumulating_micro_batches_gives_the_gradients_of_one_batch(reduction_factor):
    model = repeatable_training(reduction_factor=reduction_factor)
    batch = tiny_tts_batch([(5, 9), (8, 4), (3, 7), (6, 6)])
    whole = gradients(model, batch)
    items = int((batch["labels"] != -100).sum())
    parts = [{name: value[start : start + 2] for name, value in batch.items()} for start in (0, 2)]
    close(gradients(model, *parts, num_items_in_batch=torch.tensor(items)), whole)
    singles = [row_alone(batch, index) for index in range(4)]
    close(gradients(model, *singles, num_items_in_batch=items), whole)


@pytest.mark.parametrize("trainer_class", [Trainer, SpeechSeq2SeqTrainer])
def test_a_trainer_that_accumulates_logs_the_same_losses_and_norms(trainer_class, tmp_path):
    logs = []
    for size, steps in ((6, 1), (2, 3), (1, 6)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "learning_rate": 0.0}
        trainer = trainer_class(
            model=repeatable_training(),
            args=arguments(tmp_path, num_train_epochs=1, train_sampling_strategy="sequential", **options),
            train_dataset=rows(),
            data_collator=collate,
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for other in logs[1:]:
        for name in logs[0].keys() & {"loss", "grad_norm", *LOSSES}:
            assert other[name] == pytest.approx(logs[0][name], rel=1e-4)
    if trainer_class is SpeechSeq2SeqTrainer:
        assert sum(logs[0][name] for name in LOSSES) == pytest.approx(logs[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("trainer_class", [Trainer, Seq2SeqTrainer, SpeechSeq2SeqTrainer])
def test_evaluate_reports_the_loss_with_default_arguments(trainer_class, tmp_path):
    trainer = trainer_class(
        model=tiny_synthesizer(), args=arguments(tmp_path), eval_dataset=rows(), data_collator=collate
    )
    assert trainer.evaluate()["eval_loss"] > 0


def test_native_evaluate_loses_the_loss(tmp_path):
    model = tiny_native_synthesizer(reduction_factor=1)
    trainer = Trainer(model=model, args=arguments(tmp_path), eval_dataset=rows(), data_collator=collate)
    assert "eval_loss" not in trainer.evaluate()


def test_nothing_but_labels_is_called_a_label():
    names = inspect.signature(TextToSpectrogramModel.forward).parameters
    assert [name for name in names if "label" in name] == ["labels"]


def test_prediction_returns_the_spectrogram_alone(tmp_path):
    trainer = Trainer(model=tiny_synthesizer(), args=arguments(tmp_path), data_collator=collate)
    predicted = trainer.predict(rows(3))
    assert predicted.predictions.shape == (3, 9, TTS_MELS)


def test_losses_fall_in_training(tmp_path):
    model = repeatable_synthesizer(scale=0.02)
    options = {"num_train_epochs": 30, "learning_rate": 1e-2, "per_device_train_batch_size": 6}
    trainer = SpeechSeq2SeqTrainer(
        model=model, args=arguments(tmp_path, **options), train_dataset=rows(), data_collator=collate
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(history[-1][name] < 0.8 * history[0][name] for name in ("l1_loss", "postnet_l1_loss", "stop_loss"))
    assert set(LOSSES) <= history[0].keys()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    model, batch = repeatable_training(), tiny_tts_batch(ROWS)
    plain = gradients(model, batch, speaker_embeddings=torch.ones(VOICE))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert all(layer.gradient_checkpointing for layer in [*model.decoder.layers, *model.encoder.backbone.layers])
    close(gradients(model, batch, speaker_embeddings=torch.ones(VOICE)), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_a_finite_loss(dtype):
    model = tiny_synthesizer().to(dtype).train()
    output = model(**tiny_tts_batch(ROWS), speaker_embeddings=torch.randn(VOICE, dtype=torch.float64))
    output.loss.backward()
    assert torch.isfinite(output.loss) and output.spectrogram.dtype == dtype
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


def test_autocast_gives_nearly_the_same_loss():
    model, batch = repeatable_synthesizer().train(), tiny_tts_batch(ROWS)
    expected = model(**batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch).loss
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=0.05)


def test_every_parameter_learns():
    model = tiny_synthesizer().train()
    found = gradients(model, tiny_tts_batch(ROWS), speaker_embeddings=torch.randn(3, VOICE))
    assert {name for name, _ in model.named_parameters()} == found.keys()
    single = tiny_synthesizer(speaker_embedding_dim=0).train()
    assert {name for name, _ in single.named_parameters()} == gradients(single, tiny_tts_batch(ROWS)).keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", ["one", "one-row", "rows", "list", "numpy"])
def test_a_voice_may_come_in_any_shape_and_dtype(shape, dtype):
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    voice = torch.randn(VOICE).to(dtype)
    expected = model(**batch, speaker_embeddings=voice.float()[None].expand(3, -1)).spectrogram
    given: Any = {
        "one": voice,
        "one-row": voice[None],
        "rows": voice.expand(3, -1),
        "list": voice.tolist(),
        "numpy": voice.float().numpy(),
    }[shape]
    torch.testing.assert_close(model(**batch, speaker_embeddings=given).spectrogram, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(model(**batch).spectrogram, expected), "a voice is heard"


def test_a_voice_is_optional_and_its_loudness_does_not_matter():
    model, batch, voice = repeatable_synthesizer(), tiny_tts_batch(ROWS), torch.randn(VOICE)
    assert torch.isfinite(model(**batch).loss)
    quiet, loud = (model(**batch, speaker_embeddings=voice * size).spectrogram for size in (1, 100))
    torch.testing.assert_close(quiet, loud, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "voice, message",
    [
        (torch.full((VOICE,), float("nan")), "not finite"),
        (torch.full((3, VOICE), float("inf")), "not finite"),
        (torch.zeros(VOICE + 1), r"must be \[6\] or \[3, 6\]"),
        (torch.zeros(2, VOICE), r"must be \[6\] or \[3, 6\], got \[2, 6\]"),
        (torch.zeros(1, 3, VOICE), r"got \[1, 3, 6\]"),
    ],
)
def test_a_voice_that_cannot_speak_is_refused(voice, message):
    model, batch = tiny_synthesizer(), tiny_tts_batch(ROWS)
    with pytest.raises(ValueError, match=message):
        model(**batch, speaker_embeddings=voice)
    with pytest.raises(ValueError, match=message):
        model.start_decoding(model.encode(batch["input_ids"], batch["attention_mask"]), voice)


def test_a_model_of_one_voice_refuses_another():
    with pytest.raises(ValueError, match="one voice"):
        tiny_synthesizer(speaker_embedding_dim=0)(**tiny_tts_batch(ROWS), speaker_embeddings=torch.zeros(VOICE))


def test_a_default_voice_travels_with_the_checkpoint(tmp_path):
    model, batch, voice = repeatable_synthesizer(), tiny_tts_batch(ROWS), torch.randn(VOICE)
    expected = model(**batch, speaker_embeddings=voice).spectrogram
    model.set_default_speaker(voice)
    assert torch.equal(model(**batch).spectrogram, expected)
    other = torch.randn(VOICE)
    assert not torch.allclose(model(**batch, speaker_embeddings=other).spectrogram, expected)
    model.save_pretrained(tmp_path)
    loaded, info = TextToSpectrogramModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and torch.equal(loaded(**batch).spectrogram, expected)
    loaded.set_default_speaker(None)
    loaded.save_pretrained(tmp_path / "again")
    silent = TextToSpectrogramModel.from_pretrained(tmp_path / "again")
    assert silent.default_speaker_embedding is None
    with pytest.raises(ValueError, match="not finite"):
        silent.set_default_speaker(torch.full((VOICE,), float("nan")))


def test_text_beyond_the_positions_is_refused_with_limit_and_length():
    model = tiny_synthesizer()
    with pytest.raises(ValueError, match="the text has 41 tokens, but the encoder has positions for 40"):
        model.encode(torch.full((1, 41), 4))
    assert model.encode(torch.full((1, 40), 4)).last_hidden_state.shape == (1, 40, 16)


def test_native_text_beyond_the_positions_crashes():
    with pytest.raises(RuntimeError, match="must match the size"):
        tiny_native_synthesizer().speecht5.encoder(torch.full((1, 41), 4))


@pytest.mark.parametrize("way", ["labels", "steps", "static"])
def test_speech_beyond_the_positions_is_refused_with_limit_and_length(way):
    model, ids = tiny_synthesizer(max_speech_positions=3), torch.tensor([[4, 5]])
    with torch.no_grad():
        if way == "labels":
            assert torch.isfinite(model(ids, labels=torch.zeros(1, 6, TTS_MELS)).loss)
            with pytest.raises(ValueError, match=r"8 frames \(4 decoder steps of 2\).*positions for 6"):
                model(ids, labels=torch.zeros(1, 7, TTS_MELS))
        elif way == "steps":
            state = model.start_decoding(model.encode(ids))
            for _ in range(3):
                model.decode_step(None, state)
            with pytest.raises(ValueError, match=r"8 frames \(4 decoder steps of 2\)"):
                model.decode_step(None, state)
        else:
            with pytest.raises(ValueError, match="max_steps=4 exceeds.*max_speech_positions=3"):
                model.start_decoding(model.encode(ids), max_steps=4)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "without any token"),
        ({"input_ids": torch.tensor([[4, 5], [1, 1]])}, "without any token"),
        ({"input_ids": torch.tensor([[4, TTS_VOCABULARY]])}, "token id 20 lies outside the vocabulary of 20"),
        ({}, "give the text"),
    ],
)
def test_text_that_cannot_be_spoken_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_synthesizer().encode(**inputs)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"labels": torch.zeros(1, 4, 5)}, r"must be \[batch, frames, 8\], got \[1, 4, 5\]"),
        ({"labels": torch.zeros(4, 8)}, r"got \[4, 8\]"),
        ({"labels": torch.zeros(1, 4, 8), "decoder_input_values": torch.zeros(1, 3, 8)}, "need 2 decoder steps"),
        ({"labels": torch.zeros(1, 0, 8)}, "without any frame"),
        ({}, "generate"),
        ({"decoder_input_values": torch.zeros(1, 3, 8), "past_key_values": DynamicCache()}, "EncoderDecoderCache"),
    ],
)
def test_spectrograms_of_the_wrong_shape_are_refused(inputs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_synthesizer()(torch.tensor([[4, 5]]), **inputs)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="stop_targets"):
        tiny_synthesizer()(**tiny_tts_batch(ROWS), stop_targets=torch.zeros(1))


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "10KB"}], ids=["one-file", "shards"])
def test_what_is_saved_is_what_speaks_again(options, tmp_path):
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    model.set_vocoder(tiny_hifigan())
    model.save_pretrained(tmp_path, **options)
    for auto in (AutoModel, AutoModelForTextToSpectrogram, AutoModelForTextToWaveform, TextToSpectrogramModel):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is TextToSpectrogramModel
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)
        assert torch.equal(loaded.vocoder(torch.zeros(3, TTS_MELS)), model.vocoder(torch.zeros(3, TTS_MELS)))


def test_loading_in_half_precision_restores_the_positions_too(tmp_path):
    model = repeatable_synthesizer()
    model.save_pretrained(tmp_path)
    loaded = TextToSpectrogramModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    found, expected = (one.decoder.prenet.encode_positions.table for one in (loaded, model))
    torch.testing.assert_close(found, expected.to(found.dtype))
    output = loaded(**tiny_tts_batch(ROWS))
    assert torch.isfinite(output.loss) and output.spectrogram.dtype == torch.bfloat16


def test_the_pipeline_does_not_find_a_class_for_which_it_would_download_a_vocoder():
    assert TextToSpectrogramModel not in MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING.values()


def test_a_vocoder_that_is_missing_or_does_not_fit_is_refused(tmp_path):
    model = tiny_synthesizer()
    with pytest.raises(FileNotFoundError, match="no such vocoder"):
        model.set_vocoder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="sampling_rate is 16000 in the model and 22050"):
        model.set_vocoder(tiny_hifigan(sampling_rate=22050))
    assert model.vocoder is None and model.config.vocoder is None
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vocoder"] = tiny_hifigan().config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not hold the vocoder"):
        TextToSpectrogramModel.from_pretrained(tmp_path)


def test_the_vocoder_is_not_trained_with_the_model():
    model = tiny_synthesizer()
    model.set_vocoder(tiny_hifigan())
    assert not any(parameter.requires_grad for parameter in model.vocoder.parameters())
    model.vocoder.apply_weight_norm()
    with pytest.raises(ValueError, match="weight norm"):
        model.save_pretrained("unused")


def test_a_resumed_training_continues_where_it_stopped(tmp_path):
    def train(folder: Path, resume: bool, **options: Any) -> Any:
        torch.manual_seed(0)
        trainer = SpeechSeq2SeqTrainer(
            model=repeatable_synthesizer(),
            args=arguments(folder, max_steps=4, save_strategy="steps", save_steps=2, learning_rate=1e-2, **options),
            train_dataset=rows(8),
            data_collator=collate,
        )
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
        return trainer.model.state_dict()

    once = train(tmp_path, resume=False)
    again = train(tmp_path, resume=True)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_new_tokens_can_be_added():
    model = repeatable_synthesizer()
    before = model.encode(torch.tensor([[4, 5]])).last_hidden_state
    model.resize_token_embeddings(TTS_VOCABULARY + 3)
    assert model.config.vocab_size == TTS_VOCABULARY + 3
    torch.testing.assert_close(model.encode(torch.tensor([[4, 5]])).last_hidden_state, before)
    assert model.encode(torch.tensor([[4, TTS_VOCABULARY + 2]])).last_hidden_state.shape == (1, 2, 16)


STRANGER = """
import sys
sys.modules["speechgraft"] = None
import torch
from transformers import AutoModelForTextToSpectrogram, AutoModelForTextToWaveform

given = torch.load(sys.argv[2])
for auto in (AutoModelForTextToSpectrogram, AutoModelForTextToWaveform):
    model = auto.from_pretrained(sys.argv[1], trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
    with torch.no_grad():
        assert torch.equal(model(**given["batch"]).spectrogram, given["spectrogram"])
        assert torch.equal(model.vocoder(given["spectrogram"][0]), given["waveform"])
model.save_pretrained(sys.argv[3])
print("spoken")
"""


@pytest.mark.slow
def test_a_published_folder_speaks_without_this_package_and_can_be_passed_on(tmp_path):
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    model.set_vocoder(tiny_hifigan())
    model.set_default_speaker(torch.randn(VOICE))
    model.save_pretrained(tmp_path / "published")
    model.publish_code(tmp_path / "published")
    with torch.no_grad():
        spectrogram = model(**batch).spectrogram
        given = {"batch": batch, "spectrogram": spectrogram, "waveform": model.vocoder(spectrogram[0])}
    torch.save(given, tmp_path / "given.pt")
    folder = tmp_path / "published"
    for again in ("first", "second"):
        command = [sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "given.pt"), str(tmp_path / again)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "spoken" in done.stdout, done.stderr[-3000:]
        folder = tmp_path / again


def test_the_card_of_a_published_folder_says_what_it_is(tmp_path):
    model = tiny_synthesizer()
    model.set_vocoder(tiny_hifigan())
    publish_pretrained(model, tmp_path, metrics={"wer": 0.25})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "text-to-speech" and "speechgraft" in card.data.tags
    assert "SpeechT5's text encoder" in card.text and "HiFi-GAN" in card.text and "25.00 %" in card.text
    assert (tmp_path / "modeling_text_to_spectrogram.py").is_file()


def test_encoded_text_may_be_used_again():
    model, batch = repeatable_synthesizer(), tiny_tts_batch(ROWS)
    expected = model(**batch).loss
    encoded = model.encode(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(model(encoder_outputs=encoded, labels=batch["labels"]).loss, expected)
    plain = BaseModelOutput(last_hidden_state=encoded.last_hidden_state)
    del batch["input_ids"]
    torch.testing.assert_close(model(encoder_outputs=plain, **batch).loss, expected)


def test_the_saved_files_say_where_each_class_is(tmp_path):
    model = tiny_synthesizer()
    model.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    model.publish_code(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    place = "modeling_text_to_spectrogram.TextToSpectrogramModel"
    assert auto_map == {
        "AutoConfig": "configuration_text_to_spectrogram.TextToSpectrogramConfig",
        "AutoModel": place,
        "AutoModelForTextToSpectrogram": place,
        "AutoModelForTextToWaveform": place,
    }
    assert not [file.name for file in tmp_path.glob("*speech_seq2seq*") if file.name.startswith("modeling")]


@pytest.mark.slow
def test_a_training_step_compiles_into_one_graph():
    model, batch = repeatable_synthesizer().train(), tiny_tts_batch(ROWS)
    torch._dynamo.reset()
    expected = model(**batch).loss
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    loss = compiled(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def test_a_new_model_has_the_weights_that_its_configuration_asks_for():
    torch.manual_seed(0)
    model = TextToSpectrogramModel(tiny_tts_config(initializer_range=0.05, hidden_size=64))
    prenet = model.decoder.prenet
    assert model.decoder.layers[0].self_attn.q_proj.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert prenet.encode_positions.alpha == 1 and prenet.encode_positions.table[0, :4].tolist() == [0, 1, 0, 1]
    assert not model.decoder.mel_head.bias.any()
