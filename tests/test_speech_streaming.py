"""Sound comes early, and what comes is what would have come at once; texts of any length are spoken."""

from typing import Any

import pytest
import torch
from test_spectrogram_generation import NEVER, STOPS, alone, seeded, texts, with_sound
from tiny_speech_synthesizers import repeatable_synthesizer, tiny_native_synthesizer

from speechgraft import GriffinLimVocoder, TextToSpectrogramProcessor, train_character_tokenizer
from speechgraft.modeling.spectrogram_streams import PostnetStream, SpeedStream, change_speed, sped_up_length

SENTENCE = "The quick brown fox sat."
LONG_TEXT = " ".join(f"Fox number {name} sat there, and it was quick!" for name in ("one", "two", "three") * 20)


@pytest.fixture(scope="module")
def speaker() -> Any:
    return with_sound()


@pytest.fixture(scope="module")
def reader() -> tuple[Any, TextToSpectrogramProcessor]:
    """A model that reads letters, and its processor."""
    tokenizer = train_character_tokenizer([SENTENCE.lower() + LONG_TEXT.lower(), "abcdefghijklmnopqrstuvwxyz,.!?'-"])
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = with_sound(vocab_size=len(tokenizer), max_text_positions=60, **ids)
    return model, TextToSpectrogramProcessor.from_parts(tokenizer, config=model.config)


def assert_same_sound(chunks: Any, waveform: torch.Tensor) -> None:
    chunks = list(chunks)
    assert len(chunks) > 1 and all(len(chunk) for chunk in chunks)
    torch.testing.assert_close(torch.cat(chunks), waveform, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk_frames", [1, 5, 16, 1000])
@pytest.mark.parametrize("kind", ["hifigan", "griffin-lim"])
def test_the_chunks_of_a_stream_are_the_waveform(speaker, kind, chunk_frames):
    settings: dict[str, Any] = {"stop_threshold": NEVER, "max_new_tokens": 81}
    settings["vocoder"] = None if kind == "hifigan" else GriffinLimVocoder(speaker.config)
    offline = speaker.generate(alone(texts(), 2), generator=seeded(4), **settings)
    stream = speaker.stream(alone(texts(), 2), generator=seeded(4), chunk_frames=chunk_frames, **settings)
    assert stream.sampling_rate == 16_000
    assert_same_sound(stream, offline.waveform[0])
    assert stream.stop_reasons == ["max_length"] and stream.spectrogram_lengths == [81]


@pytest.mark.parametrize("speed", [0.5, 0.77, 1.3, 2.6])
def test_a_stream_has_the_speed_that_was_asked_for(speaker, speed):
    settings: dict[str, Any] = {"stop_threshold": NEVER, "max_new_tokens": 90, "speed": speed}
    offline = speaker.generate(alone(texts(), 2), generator=seeded(4), **settings)
    stream = speaker.stream(alone(texts(), 2), generator=seeded(4), chunk_frames=4, **settings)
    assert_same_sound(stream, offline.waveform[0])
    assert stream.spectrogram_lengths == offline.spectrogram_lengths.tolist() == [sped_up_length(90, speed)]


@pytest.mark.parametrize("settings", [{}, {"attention_window": (1, 2)}, {"static_cache": True}], ids=str)
def test_texts_follow_each_other_with_pauses_and_end_where_each_stops(speaker, settings):
    settings = {"stop_threshold": STOPS, "max_new_tokens": 70, **settings}
    offline = speaker.generate(**texts(), generator=seeded(0, 1, 2), **settings)
    assert len(set(offline.spectrogram_lengths.tolist())) > 1
    pause = torch.zeros(800)
    expected = torch.cat([offline.waveform[0], pause, offline.waveform[1], pause, offline.waveform[2]])
    stream = speaker.stream(**texts(), generator=seeded(0, 1, 2), pause_s=0.05, chunk_frames=6, **settings)
    assert_same_sound(stream, expected)
    assert stream.stop_reasons == offline.stop_reasons
    assert stream.spectrogram_lengths == offline.spectrogram_lengths.tolist()


def test_one_generator_gives_a_stream_the_seeds_of_the_batch(speaker):
    offline = speaker.generate(**texts(), generator=seeded(3)[0], max_new_tokens=40)
    state = torch.get_rng_state()
    assert_same_sound(
        speaker.stream(**texts(), generator=seeded(3)[0], max_new_tokens=40), torch.cat(offline.waveform)
    )
    assert torch.equal(torch.get_rng_state(), state)


def count_steps(model: Any, prefix: str) -> list[int]:
    steps: list[int] = []
    model.get_submodule(prefix).register_forward_hook(lambda *_: steps.append(1))
    return steps


def test_the_first_sound_comes_long_before_the_last_frame_is_written():
    """The built-in class has no stream: its only sound comes after every step."""
    model = with_sound(max_speech_positions=400)
    steps = count_steps(model, "decoder.mel_head")
    stream = model.stream(alone(texts(), 0), min_new_tokens=400, max_new_tokens=400, chunk_frames=16)
    assert not steps, "nothing is written before it is asked for"
    next(stream)
    context = model.postnet.context_frames + model.vocoder.lookahead_frames
    assert len(steps) == -(-(4 + context) // 2) <= 200 / 8
    native = tiny_native_synthesizer(max_speech_positions=400)
    steps = count_steps(native, "speech_decoder_postnet.feat_out")
    native.generate(alone(texts(), 0), speaker_embeddings=torch.ones(1, 6), threshold=3.0, maxlenratio=80.0)
    assert len(steps) == 200


def test_a_stream_that_nobody_listens_to_does_no_more_work(speaker):
    steps = count_steps(speaker, "decoder.mel_head")
    stream = speaker.stream(alone(texts(), 2), stop_threshold=NEVER, chunk_frames=4)
    for _ in range(2):
        next(stream)
    before = len(steps)
    del stream
    assert len(steps) == before < 35


@pytest.mark.parametrize(
    "arguments",
    [
        {"chunk_frames": 0},
        {"pause_s": -1.0},
        {"output_attentions": True},
        {"output_alignments": True},
        {"output_waveform": False},
        {"max_new_tokens": 401},
        {"speaker_embeddings": torch.ones(7)},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_stream_refuses_what_it_cannot_do_before_any_sound(speaker, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        speaker.stream(alone(texts(), 0), **arguments)


def test_a_text_that_cannot_be_spoken_is_refused_before_any_sound(speaker):
    batch = texts()
    batch["attention_mask"][2] = 0
    with pytest.raises(ValueError, match="without any token"):
        speaker.stream(**batch)
    with pytest.raises(ValueError, match="positions for 40"):
        speaker.stream(torch.full((1, 41), 5))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        speaker.stream(torch.tensor([[5, 99]]))


def test_a_model_in_training_is_in_training_between_the_chunks():
    model = with_sound().train()
    offline = with_sound().generate(alone(texts(), 2), generator=seeded(1), max_new_tokens=60)
    chunks = []
    for chunk in model.stream(alone(texts(), 2), generator=seeded(1), max_new_tokens=60, chunk_frames=8):
        chunks.append(chunk)
        assert model.training and model.postnet.training and not chunk.requires_grad
    assert_same_sound(chunks, offline.waveform[0])


@pytest.mark.parametrize("sizes", [(30,), (1,) * 30, (7, 0, 3, 20), (2, 28)])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_postnet_that_sees_chunks_gives_what_it_gives_of_the_whole(layers, sizes):
    postnet = repeatable_synthesizer(speech_decoder_postnet_layers=layers).postnet
    frames = torch.randn(30, 8)
    stream = PostnetStream(postnet)
    with torch.no_grad():
        parts = [stream.push(part, last=place == len(sizes) - 1) for place, part in enumerate(frames.split(sizes))]
        expected = postnet(frames[None])[0]
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 3.3, 4.0])
def test_chunks_of_any_size_are_sped_up_as_the_whole(speed):
    for length in range(1, 24):
        frames = torch.randn(length, 3)
        expected = change_speed(frames, speed)
        assert len(expected) == sped_up_length(length, speed)
        for size in (1, 2, 5):
            stream = SpeedStream(speed)
            parts = [stream.push(part) for part in frames.split(size)]
            parts.append(stream.push(frames[:0], last=True))
            torch.testing.assert_close(torch.cat(parts), expected)


# Texts of any length.


def test_two_thousand_characters_are_spoken_by_sentence(reader):
    """The built-in class crashes beyond its positions: it has 450, and no way to go on."""
    model, processor = reader
    assert len(LONG_TEXT) > 2_000
    with pytest.raises(ValueError, match="positions for 60.*split it into sentences"):
        model.generate(**processor(LONG_TEXT, return_tensors="pt"))
    spoken = model.synthesize(
        LONG_TEXT, processor, generator=seeded(1)[0], stop_threshold=NEVER, max_frames_per_token=0.5, pause_s=0.1
    )
    assert len(spoken.sentences) == 60 and spoken.sampling_rate == 16_000
    said = " ".join(str(sentence.text) for sentence in spoken.sentences)
    assert said.split() == LONG_TEXT.split(), "every word, in order"
    end = 0.0
    for sentence in spoken.sentences:
        assert sentence.start_s == pytest.approx(end + (0.1 if end else 0))
        samples = spoken.waveform[round(sentence.start_s * 16_000) : round(sentence.end_s * 16_000)]
        assert len(samples) == 256 * len(sentence.spectrogram) and samples.abs().max() > 0.1
        if end:
            assert not spoken.waveform[round(end * 16_000) : round(sentence.start_s * 16_000)].any()
        end = sentence.end_s
    assert len(spoken.waveform) == round(end * 16_000)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_how_many_sentences_are_spoken_at_once_changes_nothing(reader, batch_size):
    model, processor = reader
    text = "The fox sat. It was quick! Was it? It was, it was."
    settings: dict[str, Any] = {"stop_threshold": STOPS, "max_frames_per_token": 2.0, "pause_s": 0.1}
    expected = model.synthesize(text, processor, generator=seeded(1)[0], **settings)
    found = model.synthesize(text, processor, generator=seeded(1)[0], batch_size=batch_size, **settings)
    torch.testing.assert_close(found.waveform, expected.waveform, atol=1e-4, rtol=0)
    assert [one.stop_reason for one in found.sentences] == [one.stop_reason for one in expected.sentences]
    stream = model.stream_text(text, processor, generator=seeded(1)[0], **settings)
    assert_same_sound(stream, expected.waveform)


def test_a_sentence_in_a_long_text_is_what_it_is_alone(reader):
    model, processor = reader
    settings: dict[str, Any] = {"stop_threshold": NEVER, "max_frames_per_token": 2.0}
    spoken = model.synthesize("The fox sat. It was quick!", processor, generator=seeded(1, 2), pause_s=0, **settings)
    single = [
        model.generate(**processor(text, return_tensors="pt"), generator=seeded(seed), **settings).waveform[0]
        for text, seed in (("The fox sat.", 1), ("It was quick!", 2))
    ]
    torch.testing.assert_close(spoken.waveform, torch.cat(single), atol=1e-4, rtol=0)


def test_each_word_of_a_long_text_has_its_time(reader):
    model, processor = reader
    text = "The fox sat. It was quick!"
    settings: dict[str, Any] = {"stop_threshold": NEVER, "max_frames_per_token": 3.0, "output_alignments": True}
    spoken = model.synthesize(text, processor, **settings)
    table = spoken.word_timings(processor.tokenizer)
    assert [row.word for row in table] == ["the", "fox", "sat", "it", "was", "quick"]
    assert all(row.start_s <= row.end_s for row in table)
    second = spoken.sentences[1]
    assert all(row.end_s <= spoken.sentences[0].end_s for row in table[:3])
    assert all(second.start_s <= row.start_s and row.end_s <= second.end_s for row in table[3:])
    with pytest.raises(ValueError, match="output_alignments"):
        model.synthesize(text, processor).word_timings(processor.tokenizer)


def test_token_ids_are_spoken_without_a_processor(reader):
    model, processor = reader
    ids = processor(["the fox sat.", "it was quick!"])["input_ids"]
    settings: dict[str, Any] = {"stop_threshold": NEVER, "max_frames_per_token": 2.0}
    spoken = model.synthesize(ids, generator=seeded(1, 2), **settings)
    expected = model.synthesize("The fox sat. It was quick!", processor, generator=seeded(1, 2), **settings)
    torch.testing.assert_close(spoken.waveform, expected.waveform)
    assert [sentence.text for sentence in spoken.sentences] == [None, None]


def test_a_text_without_its_processor_is_refused(reader):
    model, processor = reader
    with pytest.raises(ValueError, match="processor"):
        model.synthesize("The fox sat.")
    with pytest.raises(ValueError, match="nothing to say"):
        model.synthesize([])
    with pytest.raises(ValueError, match="nothing to say"):
        model.synthesize("...", processor)


def test_the_sentence_that_was_cut_off_is_named(reader, monkeypatch):
    model, processor = reader
    warnings: list[str] = []
    monkeypatch.setattr("speechgraft.modeling.spectrogram_generation.logger.warning", warnings.append)
    model.synthesize("The fox sat. It was quick!", processor, stop_threshold=NEVER, batch_size=1)
    assert ["sentence 0" in text for text in warnings] == [True, False]
    assert ["sentence 1" in text for text in warnings] == [False, True]


def test_a_stream_says_when_speech_was_cut_off(monkeypatch):
    model, warnings = with_sound(), list[str]()
    monkeypatch.setattr("speechgraft.modeling.spectrogram_generation.logger.warning", warnings.append)
    list(model.stream(alone(texts(), 0), stop_threshold=NEVER, max_new_tokens=20))
    assert len(warnings) == 1 and "max_new_tokens=20" in warnings[0]
