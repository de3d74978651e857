"""Words have the times at which they were said, and the probability that the decoder gave, in a batch as alone."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import encoder_config, tiny_model
from tiny_recognizers import RATE, noise
from tiny_tokenizers import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.models.whisper import generation_whisper

from speechgraft import SpeechSeq2SeqModel, SpeechSeq2SeqProcessor
from speechgraft.modeling.attention_alignment import align_attention, first_frames, median_filter, warping_path
from speechgraft.modeling.speech_timestamps import (
    MOST_BLANK_S,
    characters_of_tokens,
    score_texts,
    seconds_per_frame,
    time_words,
    timing_method,
    words_of,
)

SENTENCES = [
    "hello world how are you today",
    "please open the door and come in",
    "one two three four five six seven eight",
]
CHARACTERS = " abcdehlortsn"
KINDS: dict[str, dict[str, Any]] = {
    "ctc on tokens": {"encoder": "wav2vec2-layer", "ctc_weight": 0.3},
    "ctc that spells": {"encoder": "wav2vec2-layer", "ctc_weight": 0.3, "ctc_characters": CHARACTERS},
    "ctc behind an adapter": {"encoder": "wav2vec2-layer", "ctc_weight": 0.3, "adapter_layers": 1},
    "ctc of features": {"encoder": "whisper", "ctc_weight": 0.3},
    "attention": {"encoder": "wav2vec2-layer"},
    "attention of features": {"encoder": "whisper", "fixed_input_window": False},
}


def recognizer(encoder: str, **fields: Any) -> tuple[Any, SpeechSeq2SeqProcessor]:
    extractor = (
        WhisperFeatureExtractor(feature_size=8, chunk_length=1)
        if encoder == "whisper"
        else Wav2Vec2FeatureExtractor(return_attention_mask=True)
    )
    part = encoder_config(encoder, **({"max_source_positions": 50} if encoder == "whisper" else {}))
    model = tiny_model(part, "bert", scale=20, seed=1, **fields)
    return model, SpeechSeq2SeqProcessor.from_parts(extractor, tiny_tokenizer("bert"), config=model.config)


def encode(model: Any, processor: Any, *waveforms: np.ndarray) -> Any:
    return model.get_encoder()(**processor(audio=list(waveforms), sampling_rate=RATE, return_tensors="pt"))


class ScriptedHead(nn.Module):
    """A CTC head that hears what it is told to: unit `script[t]` in frame t."""

    def __init__(self, script: list[int], size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.script, self.size = torch.tensor(script), size

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 9.0 * nn.functional.one_hot(self.script[: hidden_states.shape[-2]], self.size).float()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (3, 4), (4, 3)])
def test_the_path_is_the_cheapest_of_all(shape):
    cost = np.random.default_rng(0).standard_normal(shape)

    def paths(cell: tuple[int, int]) -> Any:
        if cell == (shape[0] - 1, shape[1] - 1):
            yield [cell]
        for step in ((1, 0), (0, 1), (1, 1)):
            there = cell[0] + step[0], cell[1] + step[1]
            if there[0] < shape[0] and there[1] < shape[1]:
                yield from ([cell, *rest] for rest in paths(there))

    best = min(paths((0, 0)), key=lambda path: sum(cost[cell] for cell in path))
    assert [tuple(cell) for cell in warping_path(cost)] == best


def test_attention_is_aligned_as_whisper_does_it():
    weights = torch.rand(3, 12, 40, generator=torch.Generator().manual_seed(0)).softmax(-1)
    spread, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    normal = (weights - mean) / spread
    theirs = generation_whisper._median_filter(normal, 7)
    np.testing.assert_allclose(median_filter(normal.numpy(), 7), theirs.numpy(), rtol=1e-5, atol=1e-6)
    rows, columns = generation_whisper._dynamic_time_warping(-theirs.mean(0).double().numpy())
    jumps = np.diff(rows, prepend=-1) > 0
    assert align_attention(weights).tolist() == columns[jumps].tolist()


def test_fewer_frames_than_the_filter_is_wide_are_aligned_too():
    assert align_attention(torch.rand(2, 4, 2)).tolist()[0] == 0
    assert first_frames(np.array([[0, 0], [1, 0], [1, 1]])).tolist() == [0, 0]


def test_words_have_the_times_at_which_a_ctc_head_hears_their_tokens():
    model, processor = recognizer(**KINDS["ctc on tokens"])
    encoded = encode(model, processor, noise(1.0))
    frame_s = seconds_per_frame(model, processor)
    assert frame_s == 0.02
    hello, world = processor.tokenizer.convert_tokens_to_ids(["hello", "world"])
    script = [0] * encoded.last_hidden_state.shape[1]
    script[10:13], script[15], script[40:42] = [hello] * 3, world, [world] * 2
    model.ctc_head = ScriptedHead(script, 20)
    sequence = torch.tensor([[2, hello, world, world, 3]])
    ((text, words, _),) = time_words(model, processor, encoded, sequence, [1.0])
    assert text == "hello world world" and [word.text for word in words] == text.split()
    times = [(word.start_s, word.end_s) for word in words]
    blank = MOST_BLANK_S
    expected = [(0.2 - blank, 0.28), (0.28, 0.32 + blank), (0.8 - blank, 0.84 + blank)]
    np.testing.assert_allclose(times, expected, atol=1e-9)


def test_characters_have_the_times_at_which_a_head_that_spells_hears_them_and_unknown_ones_stand_between():
    model, processor = recognizer(**KINDS["ctc that spells"])
    encoded = encode(model, processor, noise(1.0))
    script = [0] * encoded.last_hidden_state.shape[1]
    for frame, character in zip((5, 6, 12, 14, 20, 25, 26, 27), "the cat ", strict=True):
        script[frame] = 1 + CHARACTERS.index(character)
    model.ctc_head = ScriptedHead(script, len(CHARACTERS) + 1)
    sequence = torch.tensor([[2, *processor.label_ids("the cat")]])
    ((_, words, _),) = time_words(model, processor, encoded, sequence, [1.0], with_characters=True)
    assert [[c.text for c in word.characters] for word in words] == [list("the"), list("cat")]
    starts = [c.start_s for word in words for c in word.characters]
    np.testing.assert_allclose(starts, [0.0, 0.12, 0.19, 0.35, 0.46, 0.52], atol=1e-9)
    assert words[0].end_s == pytest.approx(0.27) and words[1].end_s == pytest.approx(0.54 + MOST_BLANK_S)
    model.config.ctc_characters = processor.ctc_characters = CHARACTERS.replace("h", "q")
    ((_, (the, _), _),) = time_words(model, processor, encoded, sequence, [1.0], with_characters=True)
    t, h, e = the.characters
    assert t.end_s == h.start_s == h.end_s <= e.start_s


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_times_go_on_inside_the_recording_and_are_those_of_the_recording_alone(kind, num_beams):
    model, processor = recognizer(**KINDS[kind])
    durations = [1.0, 0.4, 0.7]
    waveforms = [noise(duration_s, seed) for seed, duration_s in enumerate(durations)]
    encoded = encode(model, processor, *waveforms)
    sequences = model.generate(encoder_outputs=encoded, num_beams=num_beams, max_length=8)
    together = time_words(model, processor, encoded, sequences, durations, with_characters=True)
    assert any(words for _, words, _ in together)
    for row, (text, words, scored) in enumerate(together):
        alone = encode(model, processor, waveforms[row])
        ((same_text, same_words, same_score),) = time_words(
            model, processor, alone, sequences[row : row + 1], [durations[row]], with_characters=True
        )
        assert same_text == text == processor.decode(sequences[row], skip_special_tokens=True)
        assert "".join(word.space + word.text for word in words).strip() == text
        assert same_score.mean_log_prob == pytest.approx(scored.mean_log_prob, abs=1e-4)
        edges = [0.0]
        for word, same in zip(words, same_words, strict=True):
            assert (word.start_s, word.end_s) == pytest.approx((same.start_s, same.end_s), abs=1e-6)
            assert word.confidence == pytest.approx(same.confidence, abs=1e-4) and 0 < word.confidence < 1
            for character in word.characters:
                edges += [character.start_s, character.end_s]
            assert word.start_s == word.characters[0].start_s and word.end_s == word.characters[-1].end_s
        assert edges == sorted(edges) and edges[-1] <= durations[row] + 1e-9


def test_a_text_too_long_for_its_recording_is_spread_over_it():
    model, processor = recognizer(**KINDS["ctc on tokens"])
    encoded = encode(model, processor, noise(0.1))
    sequence = torch.tensor([[2, *[10] * 30, 3]])
    ((_, words, _),) = time_words(model, processor, encoded, sequence, [0.1])
    assert len(words) == 30 and words[0].start_s == 0 and words[-1].end_s <= 0.1
    assert time_words(model, processor, encoded, torch.tensor([[2, 3]]), [0.1])[0][:2] == ("", [])


def test_probabilities_are_those_that_generation_chose_by():
    model, processor = recognizer(**KINDS["attention"])
    encoded = encode(model, processor, noise(0.8), noise(0.5, 1))
    output = model.generate(
        encoder_outputs=encoded, max_length=9, return_dict_in_generate=True, output_scores=True, do_sample=False
    )
    theirs = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
    for row, scored in enumerate(score_texts(model, processor.tokenizer, encoded, output.sequences)):
        chosen = [float(theirs[row, place - 1]) for place in scored.places]
        assert scored.log_probs == pytest.approx(chosen, abs=1e-4)
        is_end = output.sequences[row, 1:] == 3
        count = int(is_end.int().argmax()) + 1 if is_end.any() else len(is_end)
        assert scored.mean_log_prob == pytest.approx(float(theirs[row, :count].mean()), abs=1e-4)


def test_models_without_a_head_that_can_spell_are_told():
    plain, processor = recognizer(**KINDS["attention"])
    assert timing_method(plain, processor) == "attention"
    own, own_processor = recognizer("wav2vec2-layer", ctc_weight=0.3, ctc_vocab_size=7)
    assert timing_method(own, own_processor) == "attention"
    joint, joint_processor = recognizer(**KINDS["ctc on tokens"])
    assert timing_method(joint, joint_processor) == "ctc"
    assert timing_method(joint, joint_processor, "attention") == "attention"
    with pytest.raises(ValueError, match="no CTC head whose outputs"):
        timing_method(plain, processor, "ctc")
    with pytest.raises(ValueError, match="method is one of auto, ctc, attention"):
        timing_method(plain, processor, "guess")


def wordpiece() -> PreTrainedTokenizerFast:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "it", "'", "s", "un", "##believ", "##able", ",", "ok"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True, **special)


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "▁hel", "lo", "▁wor", "ld", "▁"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize(
    ("make", "text", "words"),
    [
        (wordpiece, "it's unbelievable, ok", ["it's", "unbelievable,", "ok"]),
        (byte_level, "für 我们 👍 ok", ["für", "我", "们", "👍", "ok"]),
        (metaspace, "hello world", ["hello", "world"]),
    ],
)
def test_every_kind_of_tokenizer_tells_which_tokens_a_character_comes_from(make, text, words):
    tokenizer = make()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decoded, owners = characters_of_tokens(ids, tokenizer)
    assert decoded == text == tokenizer.decode(ids).strip() and len(owners) == len(text)
    assert owners == sorted(owners) and {t for span in owners for t in range(*span)} == set(range(len(ids)))
    found = words_of(text, np.zeros((len(text), 2)), owners, np.full(len(ids), np.log(0.5)))
    assert [word.text for word in found] == words
    assert "".join(word.space + word.text for word in found) == text
    for word in found:  # the probability of its own tokens, those of the space before it included at most
        tokens = tokenizer(word.text.rstrip(","), add_special_tokens=False)["input_ids"]
        assert 0.5 ** (len(tokens) + 1) <= word.confidence <= 0.5 ** len([t for t in tokens if t != 5]) + 1e-12


def test_a_doubtful_comma_does_not_make_a_certain_word_doubtful():
    text, owners = "yes, ?", [(0, 1), (0, 1), (0, 1), (1, 2), (2, 2), (2, 3)]
    found = words_of(text, np.zeros((len(text), 2)), owners, np.log([0.9, 0.2, 0.3]))
    assert [(word.text, round(word.confidence, 6)) for word in found] == [("yes,", 0.9), ("?", 0.3)]
    (found,) = words_of("कि", np.zeros((2, 2)), [(0, 1), (1, 2)], np.log([0.9, 0.5]))
    assert round(found.confidence, 6) == 0.45  # a vowel sign is no punctuation


@pytest.mark.slow
def test_known_times_of_synthetic_speech_are_found(pretrained_folder):
    """Whisper's own cross-attention beside Transformers' word times, and espeak-ng's events."""
    pytest.importorskip("espeakng_loader")
    from transformers import GenerationConfig, WhisperForConditionalGeneration

    from speechgraft.processing.espeak_speech import EspeakSynthesizer, EspeakVoice

    folder = pretrained_folder("whisper-tiny.en")
    model: Any = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(str(folder)).eval()
    processor = SpeechSeq2SeqProcessor.from_parts(str(folder), str(folder), config=model.config)
    errors = []
    with EspeakSynthesizer() as synthesizer:
        for text in SENTENCES:
            spoken = synthesizer.speak(text, EspeakVoice("en-us", 160))
            inputs = processor(audio=spoken.audio, sampling_rate=RATE, return_tensors="pt")
            encoded = model.get_encoder()(**inputs)
            sequence = torch.tensor([[model.config.decoder_start_token_id, *processor.label_ids(" " + text)]])
            ((written, words, _),) = time_words(model, processor, encoded, sequence, [spoken.duration_s])
            assert written == text and len(words) == len(spoken.words)
            errors += [abs(word.start_s - known.start_s) for word, known in zip(words, spoken.words, strict=True)]
    assert np.median(errors) <= 0.06

    settings = GenerationConfig.from_pretrained(folder)
    model.generation_config.alignment_heads = settings.alignment_heads
    ((_, words, scored),) = time_words(model, processor, encoded, sequence, [spoken.duration_s])
    native: Any = WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    frames = 2 * int(np.ceil(spoken.duration_s / 0.02))
    cross = native(**inputs, decoder_input_ids=sequence, output_attentions=True).cross_attentions
    steps = [scored.places[0] - 1, *scored.places]
    rows = [tuple(layer[:, :, step : step + 1].detach() for layer in cross) for step in steps]
    fake: Any = {"cross_attentions": rows, "sequences": torch.zeros(1, len(steps) + 1)}
    times = native._extract_token_timestamps(
        generation_whisper_output(fake), settings.alignment_heads, num_frames=frames, num_input_ids=0
    )[0]
    starts = [float(times[owner]) for owner in first_tokens(scored.token_ids, processor.tokenizer)]
    assert [word.start_s for word in words] == pytest.approx(starts, abs=1e-6)


def generation_whisper_output(fields: dict[str, Any]) -> Any:
    from transformers.generation.utils import GenerateEncoderDecoderOutput

    return GenerateEncoderDecoderOutput(**fields)


def first_tokens(token_ids: list[int], tokenizer: Any) -> list[int]:
    """Places of the tokens that begin a word: Whisper's that decode to a space and more."""
    return [place for place, one in enumerate(token_ids) if place == 0 or tokenizer.decode([one]).startswith(" ")]
