"""`transcribe()`: of long audio each word once, at its time, in little memory; silence is silent, loops are undone."""

import csv
import itertools
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lively_models import lively
from tiny_models import encoder_config
from tiny_recognizers import RATE, noise
from tiny_tokenizers import tiny_tokenizer
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from speechgraft import AudioError, SpeechSeq2SeqModel, SpeechSeq2SeqProcessor
from speechgraft.modeling import long_audio
from speechgraft.modeling.confidence_calibration import ConfidenceCurve
from speechgraft.modeling.long_audio import DurationLimit, LongAudioTranscriber, TranscriptionOptions
from speechgraft.modeling.speech_chunks import SpeechChunk, cut_at_silence
from speechgraft.modeling.speech_timestamps import TimedWord
from speechgraft.modeling.transcript_merging import match_sequences, merge_words, right_words, segment_words
from speechgraft.processing.audio_files import load_audio
from speechgraft.processing.text_normalization import get_normalizer
from speechgraft.processing.transcription_errors import count_errors, pooled_errors

WORD_S, GAP_S = 0.3, 0.04  # of the tone that stands for a word, and of the silence behind it
TONES = {f"w{place}": 300 + 150 * place for place in range(30)}  # Hz


def spoken(words: list[str], pause_s: float = 0.0, hum: float = 0.0) -> np.ndarray:
    """A tone for each word, and a pause behind the last one, over a hum as of a room."""
    at = np.arange(round(WORD_S * RATE)) / RATE
    edge = np.minimum(1, np.minimum(at, at[::-1]) / 0.01)
    gap = np.zeros(round(GAP_S * RATE))
    parts = [part for word in words for part in (0.3 * edge * np.sin(2 * np.pi * TONES[word] * at), gap)]
    audio = np.concatenate([*parts, np.zeros(round(pause_s * RATE))])
    return (audio + hum * np.random.default_rng(0).standard_normal(len(audio))).astype(np.float32)


def sentences(counts: list[int], seed: int = 0) -> list[list[str]]:
    """Random words, of which some come twice in a row."""
    random = np.random.default_rng(seed)
    made = [[f"w{random.integers(len(TONES))}" for _ in range(count)] for count in counts]
    return [[word for w in words for word in [w] * (1 + (random.random() < 0.15))] for words in made]


def hear(samples: np.ndarray) -> list[tuple[str, float, float]]:
    """The words of tones, with their times; one of which the chunk has only a piece is taken for another."""
    width = round(0.02 * RATE)
    heard: list[tuple[str, float, float]] = []
    for place in range(len(samples) // width):
        frame = samples[place * width : (place + 1) * width]
        is_tone = np.sqrt(np.mean(frame**2)) > 0.08
        if not is_tone:
            heard.append(("", 0, 0))
            continue
        spectrum = np.abs(np.fft.rfft(frame * np.hanning(len(frame)), 4096))
        pitch = np.argmax(spectrum) * RATE / 4096
        name = min(TONES, key=lambda word: abs(TONES[word] - pitch))
        start = place * 0.02
        if heard and heard[-1][0] == name:
            heard[-1] = (name, heard[-1][1], start + 0.02)
        else:
            heard.append((name, start, start + 0.02))
    words = [one for one in heard if one[0] and one[2] - one[1] > 0.05]
    return [(name if end - start > 0.22 else f"cut{name}", start, end) for name, start, end in words]


class FakeProcessor:
    sampling_rate, window_samples = RATE, None

    def audio_blocks(self, audio: np.ndarray, block_s: float) -> Iterator[np.ndarray]:
        size = round(0.7 * RATE)
        yield from (audio[at : at + size] for at in range(0, len(audio), size))


class ScriptedTranscriber(LongAudioTranscriber):
    """Hears tones instead of asking a network."""

    def __init__(self, **options: Any):
        model: Any = SimpleNamespace(ctc_head=None, generation_config=SimpleNamespace(num_beams=1))
        model.agree_on_token_ids, model.modules = (lambda: None), (lambda: iter(()))
        super().__init__(model, FakeProcessor(), TranscriptionOptions(**options))
        self.chunks: list[SpeechChunk] = []

    def decode(self, chunks, prompt_ids=None):
        assert len(chunks) <= self.options.batch_size
        self.chunks += [replace(chunk, samples=np.zeros(0, np.float32)) for chunk in chunks]
        results = []
        for chunk in chunks:
            found = [TimedWord(w, chunk.start_s + a, chunk.start_s + b, 0.9) for w, a, b in hear(chunk.samples)]
            text = " ".join(word.text for word in found)
            results.append([long_audio._Heard(text, tuple(found), -0.1, -0.1, len(found) + 1, 0.0)])
        return results


def known_times(parts: list[tuple[list[str], float]]) -> list[tuple[str, float]]:
    times, at = [], 0.0
    for words, pause_s in parts:
        for word in words:
            times.append((word, at))
            at += WORD_S + GAP_S
        at += pause_s
    return times


@pytest.mark.parametrize(("hum", "seed"), [(0.0, 0), (0.0, 1), (0.005, 2)])
def test_every_word_of_a_long_recording_comes_once_and_at_its_time(hum, seed):
    parts = [(words, 0.5) for words in sentences([5, 12, 60, 3, 90, 20, 8, 40, 2, 33], seed)]
    audio = np.concatenate([spoken(words, pause_s, hum) for words, pause_s in parts])
    transcriber = ScriptedTranscriber(min_chunk_s=3, max_chunk_s=9, overlap_s=3, batch_size=3)
    (result,) = transcriber([audio])
    assert not isinstance(result, Exception)
    known = known_times(parts)
    assert [word.text for word in result.words] == [word for word, _ in known]
    assert max(abs(word.start_s - start) for word, (_, start) in zip(result.words, known, strict=True)) < 0.05
    assert result.text.split() == [word for word, _ in known]
    assert result.duration_s == pytest.approx(len(audio) / RATE)
    assert any(chunk.overlap_s for chunk in transcriber.chunks), "nothing was overlapped"
    assert any(not chunk.overlap_s and chunk.start_s for chunk in transcriber.chunks), "nothing was cut at silence"
    times = [time for segment in result.segments for time in (segment.start_s, segment.end_s)]
    assert times == sorted(times) and all(s.end_s - s.start_s <= 10 for s in result.segments)


def test_several_recordings_share_batches_and_keep_their_order():
    scripts = [sentences([count], count)[0] for count in (3, 40, 1, 7, 25)]
    transcriber = ScriptedTranscriber(min_chunk_s=2, max_chunk_s=5, overlap_s=1.5, batch_size=4)
    results = list(transcriber([spoken(words, 0.5) for words in scripts]))
    assert [result.text.split() for result in results if not isinstance(result, Exception)] == scripts


@pytest.mark.parametrize("hum", [0.0, 0.002])
def test_chunks_keep_their_bounds_end_in_silence_and_leave_no_speech_out(hum):
    parts = [(words, 0.4) for words in sentences([4, 9, 2, 17, 6, 11, 60, 5, 3], 3)]
    audio = np.concatenate([spoken(words, pause_s, hum) for words, pause_s in parts])
    chunks = list(cut_at_silence(FakeProcessor().audio_blocks(audio, 1), RATE, 2.5, 8, 2))
    for chunk, following in itertools.pairwise(chunks):
        assert chunk.duration_s <= 8 + 1e-9 and chunk.overlaps_next == bool(following.overlap_s)
        assert following.start_s + following.overlap_s >= chunk.end_s - 1e-9
        left_out = audio[round(chunk.end_s * RATE) : round(following.start_s * RATE)]
        assert len(left_out) == 0 or np.abs(left_out).max() < 0.05
        if chunk.overlaps_next:
            assert following.start_s == pytest.approx(chunk.end_s - 2) and chunk.duration_s == pytest.approx(
                8, abs=0.5
            )
        start = round(chunk.start_s * RATE)
        assert np.array_equal(chunk.samples, audio[start : start + len(chunk.samples)])
    assert any(chunk.overlaps_next for chunk in chunks) and not all(chunk.overlaps_next for chunk in chunks[:-1])


def test_short_recordings_are_one_chunk_and_silence_is_none():
    words = spoken(["w1", "w2"])
    (chunk,) = cut_at_silence([words], RATE)
    assert chunk.start_s == 0 and hear(chunk.samples) == hear(words)
    silence = np.zeros(45 * RATE, np.float32)
    assert list(cut_at_silence([silence], RATE)) == [] and list(cut_at_silence([], RATE)) == []
    (between,) = cut_at_silence([silence, words, silence], RATE, 5, 30, 3)
    assert between.duration_s == pytest.approx(len(words) / RATE, abs=0.5)
    assert between.start_s == pytest.approx(45, abs=0.25)
    quiet = 1e-3 * np.random.default_rng(0).standard_normal(60 * RATE).astype(np.float32)  # of the room, 50 dB lower
    loud_first = list(cut_at_silence([words, quiet], RATE, 5, 30, 3))
    assert len(loud_first) == 1 and loud_first[0].duration_s < 1.5
    (short,) = cut_at_silence([np.full(10, 0.1, np.float32)], RATE)
    assert len(short.samples) == 10
    steady = list(cut_at_silence([noise(70)], RATE, 5, 30, 4))
    assert [chunk.overlap_s for chunk in steady] == [0, 4, 4]


def test_memory_does_not_grow_with_the_recording(monkeypatch):
    block = np.concatenate([spoken(words, 0.5) for words in sentences([30, 30], 5)])
    read = 0
    monkeypatch.setitem(globals(), "hear", lambda samples: [("w1", 0.0, 0.1)])  # tones take longer than chunks

    def blocks(count: int) -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(count):
            read += len(block)
            yield block

    for chunk in cut_at_silence(blocks(20), RATE, 2, 10, 2):
        assert read - chunk.start_s * RATE <= (10 + 2) * RATE + len(block)

    def peak(count: int) -> float:
        transcriber = ScriptedTranscriber(min_chunk_s=3, max_chunk_s=10, overlap_s=2, batch_size=2)
        tracemalloc.start()
        (result,) = transcriber([blocks(count)])
        assert not isinstance(result, Exception) and len(result.words) > count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / 1e6

    assert peak(12) < peak(3) + 4  # MB; nine more blocks have 13 MB


def test_pairs_of_words_are_the_best_of_all_in_order():
    random = np.random.default_rng(0)
    for shape in ((0, 3), (1, 1), (3, 4), (4, 3)):
        scores = random.normal(size=shape)

        def total(pairs, scores=scores):
            return sum(scores[pair] for pair in pairs)

        every = [
            list(zip(rows, columns, strict=True))
            for count in range(min(shape) + 1)
            for rows in itertools.combinations(range(shape[0]), count)
            for columns in itertools.combinations(range(shape[1]), count)
        ]
        found = match_sequences(*shape, lambda i, j, scores=scores: scores[i, j])
        assert total(found) == pytest.approx(max(map(total, every)))


def timed(text: str, start_s: float, step_s: float = 0.5) -> list[TimedWord]:
    return [TimedWord(w, start_s + i * step_s, start_s + (i + 0.8) * step_s, 1.0) for i, w in enumerate(text.split())]


@pytest.mark.parametrize(
    ("before", "after", "merged"),
    [
        (("a b c d e f", 0), ("c d e f g h", 1), "a b c d e f g h"),
        (("a b c d e xx", 0), ("zz d e f g h", 1), "a b c d e f g h"),  # each cuts a word at its end
        (("a colour that Fits, he", 0), ("color that fits he said", 0.5), "a colour that fits he said"),
        (("no no no no", 0), ("no no no no", 1), "no no no no no no"),  # said six times, not four, nor eight
        (("a b c d", 0.1), ("c d e f", 0.95), "a b c d e f"),  # times that differ by a little
        (("a b c d", 0), ("p q r s", 1), "a b c q r s"),  # nothing in common: each has its half
        (("a b c d", 0), ("", 1), "a b c d"),
        (("", 0), ("a b", 1), "a b"),
    ],
)
def test_a_seam_repeats_and_loses_nothing(before, after, merged):
    end_s = max(after[1] + 0.5, before[1] + 0.5 * len(before[0].split()))
    words = merge_words(timed(*before), timed(*after), after[1], end_s)
    assert [word.text.lower().strip(",") for word in words] == merged.split()
    starts = [word.start_s for word in words]
    assert starts == sorted(starts)


def test_lines_end_with_sentences_at_pauses_and_before_they_grow_long():
    words = [*timed("it is. And it was", 0), *timed("then a pause", 4)]
    assert [line.text for line in segment_words(words)] == ["it is.", "And it was", "then a pause"]
    lines = segment_words(timed("a " * 60, 0))
    assert all(line.end_s - line.start_s <= 10 for line in lines) and sum(len(line.words) for line in lines) == 60


def test_right_words_are_those_of_the_best_alignment():
    assert right_words(["The", "cat", "cat", "sat,"], ["the", "cat", "sat", "down"]) in (
        [True, True, False, True],
        [True, False, True, True],
    )
    assert right_words([], ["a"]) == [] and right_words(["a"], []) == [False]


def test_words_that_differ_in_a_vowel_sign_are_different_words():
    assert right_words(["की,"], ["कि"]) == [False] and right_words(["कि,"], ["कि"]) == [True]


# With real networks


def recognizer(encoder: str = "wav2vec2-layer", **fields: Any) -> tuple[Any, SpeechSeq2SeqProcessor]:
    """A tiny model that writes words, and others for each of the clips."""
    extractor: Any = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    if encoder == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    part = encoder_config(encoder, **({"max_source_positions": 50} if encoder == "whisper" else {}))
    for seed in range(100):
        model = lively(part, "bert", volume=6, seed=seed, **fields)
        processor = SpeechSeq2SeqProcessor.from_parts(extractor, tiny_tokenizer("bert"), config=model.config)
        texts = []
        for clip in clips():
            tokens = model.generate(**processor(clip[:RATE], return_tensors="pt", sampling_rate=RATE), max_length=9)
            texts.append(processor.decode(tokens[0], skip_special_tokens=True).strip())
        if all(texts) and len(set(texts)) > 2:
            return model, processor
    pytest.fail("no seed gives a model that tells the clips apart")


SURE = {"temperatures": (0.0,), "max_new_tokens": 8}


def clips() -> list[np.ndarray]:
    return [spoken(words) for words in sentences([2, 1, 3, 2], 4)]


@pytest.mark.parametrize("fields", [{}, {"ctc_weight": 0.3}, {"encoder": "whisper"}])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_clip_gets_the_text_that_generate_gives_it_in_every_batch(fields, num_beams):
    model, processor = recognizer(**fields)
    recordings = [clip[:RATE] for clip in clips()]
    texts = []
    for clip in recordings:
        inputs = processor(audio=clip, sampling_rate=RATE, return_tensors="pt")
        tokens = model.generate(**inputs, num_beams=num_beams, max_length=9)
        texts.append(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
    for batch_size in (1, 4):
        found = model.transcribe(recordings, processor, num_beams=num_beams, batch_size=batch_size, **SURE)
        assert [one.text for one in found] == texts
    alone = model.transcribe(recordings[2], processor, num_beams=num_beams, timestamps="char", **SURE)
    assert alone.text == texts[2] and [word.text for word in alone.words] == texts[2].split()
    assert all("".join(c.text for c in word.characters) == word.text for word in alone.words)
    assert alone.words == () or 0 <= alone.words[0].start_s <= alone.words[-1].end_s <= alone.duration_s


def test_the_n_best_are_those_of_beam_search_and_of_several_chunks_the_likeliest_combinations():
    model, processor = recognizer()
    clip = clips()[0]
    inputs = processor(audio=clip, sampling_rate=RATE, return_tensors="pt")
    output = model.generate(
        **inputs,
        num_beams=3,
        num_return_sequences=3,
        max_length=9,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = model.transcribe(clip, processor, num_beams=3, n_best=3, **SURE).hypotheses
    assert [one.text for one in found] == processor.batch_decode(output.sequences, skip_special_tokens=True)
    assert [one.score for one in found] == pytest.approx(output.sequences_scores.tolist(), abs=1e-4)

    def heard(score: float, n_tokens: int) -> Any:
        return long_audio._Heard("", (), score, score, n_tokens, 0.0)

    choices = [[heard(-s, n) for s, n in ((0.1, 3), (0.5, 4), (0.7, 3))] for _ in range(3)]
    totals = sorted((sum(h.score * h.n_tokens for h in one) for one in itertools.product(*choices)), reverse=True)
    best = long_audio._best_combinations(choices, 4)
    assert [sum(h.score * h.n_tokens for h in one) for one in best] == pytest.approx(totals[:4])


def test_a_file_is_its_waveform_whatever_its_rate_and_faults_are_told(tmp_path):
    model, processor = recognizer()
    clip = spoken(sentences([9], 8)[0], 0.3)
    soundfile.write(tmp_path / "a.wav", clip, RATE, subtype="FLOAT")
    settings = {**SURE, "min_chunk_s": 0.5, "max_chunk_s": 1.2, "overlap_s": 0.4}
    from_file, from_array = model.transcribe([str(tmp_path / "a.wav"), clip], processor, **settings)
    assert from_file.text == from_array.text != "" and from_file.duration_s == pytest.approx(len(clip) / RATE)
    assert [word.start_s for word in from_file.words] == pytest.approx([word.start_s for word in from_array.words])
    with pytest.raises(AudioError, match="no such file"):
        model.transcribe(str(tmp_path / "b.wav"), processor)
    with pytest.raises(TypeError, match="has no beams; its options are batch_size"):
        model.transcribe(clip, processor, beams=3)
    silence = model.transcribe(np.zeros(3 * RATE, np.float32), processor)
    assert (silence.text, silence.segments, silence.words, silence.confidence) == ("", (), (), 0.0)
    assert silence.duration_s == 3


def test_recordings_beyond_the_window_are_cut_into_windows():
    model, processor = recognizer("whisper")
    found = model.transcribe(spoken(sentences([12], 2)[0]), processor, **SURE)
    assert found.duration_s > 3.5 and found.words[-1].end_s > 1
    assert LongAudioTranscriber(model, processor).options.max_chunk_s == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestamps": "letter"}, "timestamps is 'segment'"),
        ({"timing": "guess"}, "timing is one of"),
        ({"min_chunk_s": 20.0}, "the shortest must be at most half"),
        ({"overlap_s": 9.0}, "an overlap of 9 s"),
        ({"num_beams": 2, "n_best": 3}, "n_best=3 needs num_beams=3"),
        ({"temperatures": ()}, "temperatures are one or more"),
        ({"generate_kwargs": {"language": "de"}}, "model.set_language"),
    ],
)
def test_options_that_cannot_be_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        TranscriptionOptions(**options)


def test_a_transcript_is_no_longer_than_its_own_audio_allows():
    limit = DurationLimit([2, 4], prompt_length=1, end=[5, 6])
    scores = torch.zeros(4, 8)
    ids = torch.zeros(4, 3, dtype=torch.long)
    limited = limit(ids, scores)
    assert torch.equal(limited[2:], scores[2:]) and limited[:2].argmax(-1).tolist() == [5, 5]
    assert int(limited[0].isfinite().sum()) == 1
    model, processor = recognizer()
    model.config.eos_token_id = 19
    with torch.no_grad():
        model.decoder.cls.predictions.bias[19] = -1e4  # it never ends by itself
    generate, lengths = model.generate, []

    def counted(**arguments: Any) -> Any:
        output = generate(**arguments)
        lengths.extend(row.index(19) - 1 for row in output.sequences.tolist())
        return output

    model.generate = counted
    short, long = spoken(["w1"]), spoken(["w1", "w2", "w3", "w4"])
    settings: dict[str, Any] = {"temperatures": (0.0,), "tokens_per_second": 1.0}
    together = model.transcribe([short, long], processor, **settings)
    assert lengths == [12, 11]  # longest first
    assert together[0].text == model.transcribe(short, processor, **settings).text


class Fallible(ScriptedTranscriber):
    """Writes what it is told to at each temperature."""

    script: dict[float, tuple[str, float, float]] = {}

    def decode(self, chunks, prompt_ids=None):
        return LongAudioTranscriber.decode(self, chunks, prompt_ids)

    def _search(self, encoded, chunks, temperature, told):
        text, log_prob, no_speech = self.script[temperature]
        return [[long_audio._Heard(text, (), log_prob, log_prob, 1, no_speech)] for _ in chunks]


LOOP = "and so on " * 30


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ({0.0: ("fine", -0.3, 0.0)}, "fine"),
        ({0.0: (LOOP, -0.1, 0.0), 0.2: (LOOP, -0.1, 0.0), 0.4: ("better", -0.9, 0.0)}, "better"),
        ({0.0: ("unsure", -1.4, 0.0), 0.2: ("less unsure", -1.2, 0.0), 0.4: ("guess", -3.0, 0.0)}, "less unsure"),
        ({0.0: ("thanks for watching", -1.4, 0.9)}, ""),
        ({0.0: ("quiet but sure", -0.4, 0.9)}, "quiet but sure"),
    ],
)
def test_a_text_that_repeats_itself_or_is_unlikely_is_sampled_again_and_imagined_speech_is_none(
    script, text, monkeypatch
):
    monkeypatch.setattr(long_audio, "rows_of", lambda encoded, rows: encoded)
    transcriber = Fallible(temperatures=(0.0, 0.2, 0.4))
    transcriber.script = script
    fake: Any = transcriber
    fake.processor = type("P", (FakeProcessor,), {"__call__": lambda self, **_: torch.nn.ParameterDict()})()
    fake.model.device = torch.device("cpu")
    fake.model.get_encoder = lambda: lambda **_: None
    (heard,) = transcriber.decode([SpeechChunk(np.ones(10, np.float32), 0.0, RATE)])
    assert (heard[0].text if heard else "") == text


class StopsEarly(Fallible):
    """Hears one word of a long piece, as Whisper sometimes does, and all of a short one."""

    def _search(self, encoded, chunks, temperature, told):
        results = []
        for chunk in chunks:
            found = [TimedWord(w, chunk.start_s + a, chunk.start_s + b, 0.9) for w, a, b in hear(chunk.samples)]
            found = found[:1] if chunk.duration_s > self.too_long_s else found
            text = " ".join(word.text for word in found)
            results.append([long_audio._Heard(text, tuple(found), -0.1, -0.1, len(found) + 1, 0.0)])
        return results

    too_long_s = 6.0


@pytest.mark.parametrize(("least", "pause_s"), [(1.0, 0.5), (1.0, 0.0), (None, 0.5)])
def test_a_text_that_ends_long_before_the_speech_does_is_heard_again_in_halves(least, pause_s, monkeypatch):
    monkeypatch.setattr(long_audio, "rows_of", lambda encoded, rows: encoded)
    transcriber = StopsEarly(least_tokens_per_second=least, min_chunk_s=3, max_chunk_s=20, overlap_s=2)
    fake: Any = transcriber
    fake.processor = type("P", (FakeProcessor,), {"__call__": lambda self, **_: torch.nn.ParameterDict()})()
    fake.model.device, fake.model.config = torch.device("cpu"), SimpleNamespace(decoder_prompt_token_ids=[])
    fake.model.generation_config.max_length = 448
    fake.model.get_encoder = lambda: lambda **_: None
    scripts = sentences([9, 8, 8, 7], 6)
    audio = np.concatenate([spoken(words, pause_s) for words in scripts])
    assert 10 < len(audio) / RATE < 20
    (result,) = transcriber([audio])
    assert not isinstance(result, Exception)
    words = [word for script in scripts for word in script]
    assert [word.text for word in result.words] == (words if least else words[:1])
    starts = [word.start_s for word in result.words]
    assert starts == sorted(starts)


def test_what_is_sampled_depends_on_nothing_but_the_chunk_and_the_seed():
    model, processor = recognizer()
    settings: dict[str, Any] = {"temperatures": (0.0, 1.0), "max_new_tokens": 6, "log_prob_threshold": 0.0}
    recordings = [spoken(["w1", "w7"]), spoken(["w2", "w3", "w4"])]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    together = model.transcribe(recordings, processor, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert model.transcribe(recordings[1], processor, **settings).text == together[1].text
    model.transcribe(recordings[1], processor, seed=5, **settings)


def test_a_known_text_is_aligned_with_its_recording():
    model, processor = recognizer(ctc_weight=0.3)
    words = model.align(clips()[2], "the cat sat", processor)
    assert [word.text for word in words] == ["the", "cat", "sat"]
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges) and edges[-1] <= len(clips()[2]) / RATE
    with pytest.raises(ValueError, match="empty transcript"):
        model.align(clips()[2], " ", processor)


def test_confidences_are_calibrated_on_validation_data_and_stay_so(tmp_path):
    model, processor = recognizer()
    recordings = [clip[:RATE] for clip in clips()]
    found = model.transcribe(recordings, processor, **SURE)
    texts = [one.text if place % 2 else "d d d" for place, one in enumerate(found)]
    calibration = model.calibrate_confidence(recordings, texts, processor, **SURE)
    n_words = sum(len(one.words) for one in found)
    assert calibration.n_words == n_words and calibration.curve != ConfidenceCurve()
    again = model.transcribe(recordings, processor, **SURE)
    plain_ones, calibrated_ones = ([word.confidence for one in each for word in one.words] for each in (found, again))
    for plain, calibrated in zip(plain_ones, calibrated_ones, strict=True):
        doubtful, sure, bias = calibration.curve.numbers
        odds = doubtful * np.log(plain) - sure * np.log(1 - plain) + bias
        assert calibrated == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-6)
    with pytest.raises(ValueError, match="shorter|argument 2"):
        model.calibrate_confidence(recordings, texts[:1], processor, **SURE)
    assert ConfidenceCurve.of(model.generation_config) == calibration.curve
    model.save_pretrained(tmp_path)
    loaded: Any = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    assert loaded.generation_config.confidence_calibration == calibration.curve.numbers
    kept = loaded.transcribe(recordings, processor, **SURE)
    assert [one.confidence for one in kept] == pytest.approx([one.confidence for one in again], abs=1e-6)


def test_checkpoints_with_a_temperature_alone_keep_their_confidences(tmp_path):
    model, processor = recognizer()
    recordings = [clip[:RATE] for clip in clips()[:1]]
    plain = [word.confidence for word in model.transcribe(recordings, processor, **SURE)[0].words]
    model.generation_config.confidence_temperature = 2.0
    model.save_pretrained(tmp_path)
    loaded: Any = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    found = [word.confidence for word in loaded.transcribe(recordings, processor, **SURE)[0].words]
    expected = [1 / (1 + ((1 - sure) / sure) ** 0.5) for sure in plain]
    assert plain and found == pytest.approx(expected, abs=1e-6)
    loaded.calibrate_confidence(recordings, ["a b"], processor, **SURE)
    assert loaded.generation_config.confidence_temperature is None


@pytest.mark.slow
def test_a_long_recording_is_recognised_about_as_well_as_its_parts(pretrained_folder, recordings):
    folder = str(pretrained_folder("whisper-tiny.en"))
    model: Any = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(folder)
    processor = SpeechSeq2SeqProcessor.from_parts(folder, folder, config=model.config)
    with open(recordings / "validation" / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    np.random.default_rng(0).shuffle(rows)
    parts = [load_audio(recordings / "validation" / row["file_name"]) for row in rows]  # 13.6 minutes
    texts = [row["text"] for row in rows]
    normalize = get_normalizer("basic")
    heard = [normalize(one.text) for one in model.transcribe(parts, processor, timestamps=None)]
    of_parts = pooled_errors([normalize(text) for text in texts], heard)
    whole = model.transcribe(np.concatenate(parts), processor)
    assert whole.duration_s >= 800
    together = count_errors(normalize(" ".join(texts)), normalize(whole.text))
    assert together.rate <= 1.1 * of_parts.rate, f"{together.rate:.3f}, of the parts {of_parts.rate:.3f}"
