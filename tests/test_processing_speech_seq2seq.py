"""The processor gives a recording what its encoder was trained on, alone or in a batch, and survives being saved."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
from tiny_tokenizers import tiny_tokenizer
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
    ParakeetFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Speech2TextFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from speechgraft.processing.audio_files import AudioError
from speechgraft.processing.processing_speech_seq2seq import MIN_AUDIO_S, SpeechSeq2SeqProcessor

RATE = 16_000


def parakeet() -> ParakeetFeatureExtractor:
    try:
        return ParakeetFeatureExtractor()
    except ImportError as error:  # older Transformers made its filters with librosa
        pytest.skip(str(error).strip().splitlines()[0])


EXTRACTORS = {
    "wav2vec2": lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True),
    "wav2vec2-group-norm": lambda: Wav2Vec2FeatureExtractor(return_attention_mask=False),
    "moonshine": lambda: Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False),
    "whisper": WhisperFeatureExtractor,
    "speech_to_text": Speech2TextFeatureExtractor,
    "w2v-bert": SeamlessM4TFeatureExtractor,
    "parakeet": parakeet,
}
EVERY_EXTRACTOR = pytest.mark.parametrize("family", EXTRACTORS)


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(duration_s * RATE)).astype(np.float32)


def make(family: str, tokenizer: str = "bert", **kwargs) -> SpeechSeq2SeqProcessor:
    return SpeechSeq2SeqProcessor(EXTRACTORS[family](), tiny_tokenizer(tokenizer), **kwargs)


def native(family: str, *audio: np.ndarray):
    extractor = EXTRACTORS[family]()
    padding = "max_length" if family == "whisper" else True
    return extractor(list(audio), sampling_rate=RATE, padding=padding, return_tensors="pt")


@EVERY_EXTRACTOR
@pytest.mark.parametrize("duration_s", [0.5, 1.0, 1.003])
def test_one_recording_gives_what_its_own_extractor_gives(family, duration_s):
    audio = noise(duration_s)
    ours = make(family)(audio, sampling_rate=RATE, return_tensors="pt")
    theirs = native(family, audio)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


@EVERY_EXTRACTOR
def test_a_batch_gives_each_row_what_it_gets_alone(family):
    """Native fails for group-norm wav2vec2, whose extractor normalises the padding in, mean and variance and all."""
    clips = [noise(1.0, 1), noise(0.31, 2), noise(0.777, 3)]
    for fixed in [None, False] if family == "whisper" else [None]:
        processor = make(family, fixed_input_window=fixed)
        main = processor.main_input_name
        batch = processor(clips, sampling_rate=RATE, return_tensors="pt")
        for index, clip in enumerate(clips):
            alone = processor(clip, sampling_rate=RATE, return_tensors="pt")
            axis = 1 if family == "whisper" else 0
            n = alone[main].shape[axis + 1]
            assert torch.equal(batch[main][index].narrow(axis, 0, n), alone[main][0])
            if "attention_mask" in alone:
                assert torch.equal(batch["attention_mask"][index, :n], alone["attention_mask"][0])
                assert not batch["attention_mask"][index, n:].any()


@pytest.mark.parametrize("family", ["wav2vec2", "moonshine", "speech_to_text", "w2v-bert", "parakeet"])
def test_a_batch_equals_the_native_batch_where_that_is_right(family):
    clips = [noise(1.0, 1), noise(0.31, 2)]
    ours = make(family)(clips, sampling_rate=RATE, return_tensors="pt")
    theirs = native(family, *clips)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-5)


def test_group_norm_wav2vec2_is_padded_with_zeros_and_no_mask():
    batch = make("wav2vec2-group-norm")([noise(1.0) + 1, noise(0.5) + 1], sampling_rate=RATE, return_tensors="pt")
    assert set(batch) == {"input_values"}
    assert not batch["input_values"][1, RATE // 2 :].any()
    assert abs(batch["input_values"][1, : RATE // 2].mean()) < 1e-5


def test_whisper_fills_its_window_unless_the_model_was_trained_without():
    audio = noise(2.0)
    window = make("whisper")(audio, sampling_rate=RATE, return_tensors="pt")
    free = make("whisper", fixed_input_window=False)(audio, sampling_rate=RATE, return_tensors="pt")
    assert window["input_features"].shape == (1, 80, 3000) and "attention_mask" not in window
    assert free["input_features"].shape == (1, 80, 200) and free["attention_mask"].tolist() == [[1] * 200]
    torch.testing.assert_close(free["input_features"], window["input_features"][..., :200], rtol=0, atol=1e-6)


def test_the_mask_of_whisper_counts_frames():
    processor = make("whisper", fixed_input_window=False)
    batch = processor([noise(1.0), noise(0.503)], sampling_rate=RATE, return_tensors="pt")
    assert batch["attention_mask"].sum(-1).tolist() == [100, math.ceil(50.3)]
    window = make("whisper")(noise(0.503), sampling_rate=RATE, return_attention_mask=True, return_tensors="pt")
    assert window["attention_mask"].shape == (1, 3000) and window["attention_mask"].sum() == 51


def test_whisper_frames_behind_the_end_are_its_frames_of_silence():
    processor = make("whisper", fixed_input_window=False)
    short = noise(0.5)
    batch = processor([noise(1.0), short], sampling_rate=RATE, return_tensors="pt")
    window = make("whisper")(short, sampling_rate=RATE, return_tensors="pt")
    torch.testing.assert_close(batch["input_features"][1, :, 60:], window["input_features"][0, :, 60:100])


def test_too_long_for_the_window_names_both_lengths_instead_of_cutting():
    """Native cuts at 30 s and says nothing."""
    for fixed in (True, False):
        processor = make("whisper", fixed_input_window=fixed)
        with pytest.raises(ValueError, match=r"31\.50 s .* 30 s"):
            processor(noise(31.5), sampling_rate=RATE)
        cut = processor(noise(31.5), sampling_rate=RATE, truncation=True, return_tensors="pt")
        assert cut["input_features"].shape[-1] == 3000


@EVERY_EXTRACTOR
@pytest.mark.parametrize("n_samples", [1, 100, 160, 399, 400, 401, 560, 639, 640, 800])
def test_the_shortest_audio_is_padded_instead_of_crashing(family, n_samples):
    for fixed in [None, False] if family == "whisper" else [None]:
        processor = make(family, fixed_input_window=fixed)
        batch = processor(noise(n_samples / RATE), sampling_rate=RATE, return_tensors="pt")
        features = batch[processor.main_input_name]
        assert torch.isfinite(features).all() and features.numel() > 0
        if processor.main_input_name == "input_values":
            assert features.shape[1] == max(n_samples, round(MIN_AUDIO_S * RATE))


@EVERY_EXTRACTOR
def test_digital_silence_is_finite(family):
    """Native speech_to_text divides zero by zero."""
    features = make(family)(np.zeros(RATE, dtype=np.float32), sampling_rate=RATE, return_tensors="pt")
    assert all(torch.isfinite(value).all() for value in features.values())


def test_audio_of_another_rate_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"8000 Hz.*16000 Hz"):
        make("wav2vec2")(noise(1.0), sampling_rate=8_000)


def test_files_bytes_and_dicts_bring_their_rate_and_are_resampled(tmp_path):
    audio = noise(1.0)
    path = tmp_path / "a.wav"
    soundfile.write(path, audio, 8_000, subtype="FLOAT")
    processor = make("moonshine")
    expected = processor({"array": audio, "sampling_rate": 8_000})["input_values"]
    assert expected.shape == (1, 2 * RATE)
    for source in (str(path), path, path.read_bytes(), [str(path)]):
        np.testing.assert_array_equal(processor(source)["input_values"], expected)


def test_arrays_tensors_and_lists_are_one_recording_or_a_batch():
    audio = noise(0.1)
    processor = make("moonshine")
    for one in (audio, torch.from_numpy(audio), audio.tolist(), [audio], [audio.tolist()], audio[None]):
        assert processor(one, sampling_rate=RATE, return_tensors="np")["input_values"].tolist() == [audio.tolist()]
    for two in (
        np.stack([audio, audio]),
        [audio, torch.from_numpy(audio)],
        torch.from_numpy(np.stack([audio, audio])),
    ):
        assert processor(two, sampling_rate=RATE, return_tensors="np")["input_values"].shape == (2, 1600)


def test_bad_audio_in_a_batch_is_named():
    bad = noise(0.5)
    bad[7] = np.nan
    with pytest.raises(AudioError, match="audio 1 .*1 of 8000 samples are NaN"):
        make("wav2vec2")([noise(0.5), bad], sampling_rate=RATE)
    with pytest.raises(AudioError, match="audio 0 .*0 samples"):
        make("wav2vec2")([np.zeros(0), bad], sampling_rate=RATE)
    with pytest.raises(ValueError, match="empty list"):
        make("wav2vec2")([], sampling_rate=RATE)


@EVERY_EXTRACTOR
def test_rows_can_be_left_unpadded_and_padded_later(family):
    processor = make(family, fixed_input_window=False if family == "whisper" else None)
    clips = [noise(0.5, 1), noise(0.25, 2)]
    rows = processor(clips, sampling_rate=RATE, padding=False)
    features = [{name: values[i] for name, values in rows.items()} for i in range(2)]
    later, now = processor.pad(features, return_tensors="pt"), processor(clips, sampling_rate=RATE)
    for name in now:
        np.testing.assert_array_equal(later[name], now[name])


def test_padding_length_can_be_set_in_steps_of_the_input():
    raw = make("wav2vec2")([noise(0.5)], sampling_rate=RATE, pad_to_multiple_of=3_000, return_tensors="pt")
    assert raw["input_values"].shape == (1, 9_000) and raw["attention_mask"].sum() == 8_000
    free = make("whisper", fixed_input_window=False)
    frames = free([noise(0.5)], sampling_rate=RATE, pad_to_multiple_of=64, return_tensors="pt")
    assert frames["input_features"].shape == (1, 80, 64) and frames["attention_mask"].sum() == 50
    longest = make("wav2vec2")(noise(0.5), sampling_rate=RATE, padding="max_length", max_length=10_000)
    assert longest["input_values"].shape == (1, 10_000)
    cut = make("wav2vec2")(noise(0.5), sampling_rate=RATE, truncation=True, max_length=1_000)
    assert cut["input_values"].shape == (1, 1_000)


@EVERY_EXTRACTOR
def test_the_step_of_the_input_is_known_in_seconds(family):
    processor = make(family, fixed_input_window=False if family == "whisper" else None)
    features = processor(noise(5.0), sampling_rate=RATE)[processor.main_input_name]
    n_steps = features.shape[2 if family == "whisper" else 1]
    assert abs(n_steps * processor.input_step_s - 5.0) < 0.05


def test_labels_are_prompt_transcript_end_whatever_the_tokenizer_adds():
    tokenizer = tiny_tokenizer("mbart")
    language = tokenizer.convert_tokens_to_ids("de_DE")
    processor = SpeechSeq2SeqProcessor(Wav2Vec2FeatureExtractor(), tokenizer, decoder_prompt_token_ids=[language])
    words = [tokenizer.vocab[word] for word in ("hello", "world")]
    assert processor(text="hello world")["labels"] == [language, *words, tokenizer.eos_token_id]
    assert make("wav2vec2")(text=["a b", "c"])["labels"] == [[4, 5, 3], [6, 3]]  # BERT: [SEP] ends, no [CLS]


def test_labels_of_a_batch_are_padded_with_what_the_loss_ignores():
    """Native pads with the pad token, which the loss counts unless the user masks it."""
    batch = make("wav2vec2")([noise(0.5)] * 2, text=["a b", "c"], sampling_rate=RATE, return_tensors="pt")
    assert batch["labels"].tolist() == [[4, 5, 3], [6, 3, -100]]
    assert batch["input_values"].shape == (2, 8_000)


def test_empty_and_too_long_transcripts_raise():
    processor = make("wav2vec2")
    for text in ("", "  \n", ["a", ""]):
        with pytest.raises(ValueError, match="empty transcript"):
            processor(text=text)
    with pytest.raises(ValueError, match="4 label tokens exceed max_length=3"):
        processor(text="a b c", max_length=3)
    assert processor(text="a b c", max_length=3, truncation=True)["labels"] == [4, 5, 3]


def test_a_transcript_that_spells_the_end_token_is_refused():
    """Tokenizers read the words "[SEP]" as the token, and the model would learn to stop in the middle."""
    with pytest.raises(ValueError, match=r"the end token '\[SEP\]' is inside: 'a \[SEP\] b'"):
        make("wav2vec2")(text="a [SEP] b")


def test_a_tokenizer_without_any_end_is_refused():
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither eos_token nor sep_token"):
        SpeechSeq2SeqProcessor(Wav2Vec2FeatureExtractor(), tokenizer)(text="a")


def test_wrong_arguments_raise_instead_of_being_ignored():
    processor = make("wav2vec2")
    with pytest.raises(TypeError, match="sample_rate"):
        processor(noise(0.5), sample_rate=RATE)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="add_special_tokens"):
        processor(text="a", add_special_tokens=True)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="audio_kwargs"):
        processor(noise(0.5), text="a", sampling_rate=RATE, max_length=10)
    with pytest.raises(ValueError, match="give audio, text or both"):
        processor()
    with pytest.raises(ValueError, match="no fixed window"):
        make("wav2vec2", fixed_input_window=True)
    both = processor(noise(0.5), text="a b", sampling_rate=RATE, text_kwargs={"max_length": 8}, audio_kwargs={})
    assert both["labels"] == [4, 5, 3]


def test_the_tokenizers_own_max_length_does_not_cut_the_audio():
    """_merge_kwargs hands settings saved with a tokenizer to every modality; sentence encoders save max_length=128."""
    tokenizer = tiny_tokenizer("bert")
    tokenizer.init_kwargs.update(max_length=128, pad_to_multiple_of=7, padding_side="left", truncation=True)
    for extractor in (WhisperFeatureExtractor(), Wav2Vec2FeatureExtractor()):
        features = SpeechSeq2SeqProcessor(extractor, tokenizer)(noise(1.0), text="a", sampling_rate=RATE)
        assert features[extractor.model_input_names[0]].shape[-1] == (3000 if "input_features" in features else RATE)


def test_model_input_names_are_the_models():
    assert make("wav2vec2").model_input_names == ["input_values", "attention_mask", "labels"]
    assert make("whisper").model_input_names == ["input_features", "attention_mask", "labels"]


@EVERY_EXTRACTOR
def test_auto_processor_returns_the_whole_processor(family, tmp_path):
    """Native: AutoProcessor gives a bare tokenizer."""
    fixed = False if family == "whisper" else None
    processor = make(family, "whisper", decoder_prompt_token_ids=[5], fixed_input_window=fixed)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SpeechSeq2SeqProcessor
    assert type(loaded.feature_extractor) is type(processor.feature_extractor)
    assert loaded.decoder_prompt_token_ids == [5] and loaded.fixed_input_window is fixed
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["processor_class"] == "SpeechSeq2SeqProcessor" and saved["decoder_prompt_token_ids"] == [5]
    before, after = (p(noise(0.5), text="a b", sampling_rate=RATE) for p in (processor, loaded))
    assert before["labels"] == after["labels"]
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_a_setting_can_be_overridden_when_loading(tmp_path):
    make("whisper").save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path, fixed_input_window=False).fixed_input_window is False


def test_decoding_is_the_tokenizers(tmp_path):
    processor = make("wav2vec2")
    labels = processor(text="hello world")["labels"]
    assert processor.decode(labels, skip_special_tokens=True) == "hello world"
    assert processor.batch_decode([labels]) == processor.tokenizer.batch_decode([labels]) != ["hello world"]


def test_parts_come_from_folders_or_objects(tmp_path):
    make("whisper").save_pretrained(tmp_path / "speech")
    tiny_tokenizer("bart").save_pretrained(tmp_path / "text")
    processor = SpeechSeq2SeqProcessor.from_parts(
        tmp_path / "speech", str(tmp_path / "text"), fixed_input_window=False
    )
    assert isinstance(processor.feature_extractor, WhisperFeatureExtractor)
    assert processor.end_token_id == 2 and not processor.pads_to_window


def test_real_checkpoints_make_a_processor(pretrained_folder):
    processor = SpeechSeq2SeqProcessor.from_parts(pretrained_folder("whisper-tiny.en"), pretrained_folder("minilm"))
    batch = processor([noise(1.0)], text=["hello world"], sampling_rate=RATE, return_tensors="pt")
    assert batch["input_features"].shape == (1, 80, 3000)
    assert batch["labels"].tolist() == [[7592, 2088, 102]]


def test_apostrophes_come_back_inside_their_words(tmp_path):
    """BERT's tokenizer takes "it's" apart and, on its own, writes it back as three words, each an error."""
    text = "it's o'clock, isn't it?"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"',?", "it", "s", "o", "clock", "isn", "t"]
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) != text
    processor = SpeechSeq2SeqProcessor(EXTRACTORS["wav2vec2"](), tokenizer)
    processor.save_pretrained(tmp_path)
    for one in (processor, SpeechSeq2SeqProcessor.from_pretrained(tmp_path)):
        ids = one.label_ids(text)
        assert one.decode(ids, skip_special_tokens=True) == text
        assert one.batch_decode([ids], skip_special_tokens=True) == [text]
        assert one.tokenizer.decode(ids, skip_special_tokens=True) == text  # pipelines ask it directly
    loaded = AutoTokenizer.from_pretrained(tmp_path)  # and load it without the processor
    assert loaded.decode(loaded.encode(text), skip_special_tokens=True) == text
