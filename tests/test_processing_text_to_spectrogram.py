"""The processor tells the model what to say and what it should sound like, and names what it cannot say."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import torch
from test_mel_spectrograms import LJSPEECH, speechlike
from transformers import AutoProcessor, BertTokenizer, SpeechT5FeatureExtractor, SpeechT5Processor, SpeechT5Tokenizer

from speechgraft.configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from speechgraft.processing.audio_files import AudioError
from speechgraft.processing.mel_spectrograms import MelSettings, extract_log_mel
from speechgraft.processing.processing_text_to_spectrogram import TextToSpectrogramProcessor
from speechgraft.processing.text_front_end import train_character_tokenizer

SENTENCES = [
    "hello world, it is fine.",
    "twenty apples cost zero dollars and fifty cents!",
    "why? just because; quick jumps",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def speecht5_tokenizer(folder) -> SpeechT5Tokenizer:
    """A SentencePiece model of characters, as SpeechT5 has, with its special tokens in its order."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, LETTERS] * 20),
        model_writer=model,
        model_type="char",
        vocab_size=1000,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    (folder / "spm_char.model").write_bytes(model.getvalue())
    return SpeechT5Tokenizer(str(folder / "spm_char.model"))


def bert_tokenizer(folder) -> BertTokenizer:
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "hello",
        "world",
        *LETTERS,
        *(f"##{c}" for c in LETTERS),
    ]
    (folder / "vocab.txt").write_text("\n".join([*vocabulary, *".,;!?'-"]))
    return BertTokenizer.from_pretrained(folder)


def character_tokenizer(folder):
    return train_character_tokenizer([*SENTENCES, LETTERS])


TOKENIZERS = {"speecht5": speecht5_tokenizer, "characters": character_tokenizer, "bert": bert_tokenizer}
EVERY_TOKENIZER = pytest.mark.parametrize("kind", TOKENIZERS)


def make(folder, kind: str = "characters", **kwargs) -> TextToSpectrogramProcessor:
    (folder / "tokenizer").mkdir(exist_ok=True)
    return TextToSpectrogramProcessor.from_parts(TOKENIZERS[kind](folder / "tokenizer"), **kwargs)


@pytest.fixture
def warnings(monkeypatch):
    said = []
    for module in ("processing_text_to_spectrogram", "text_front_end"):
        monkeypatch.setattr(f"speechgraft.processing.{module}.logger.warning_once", said.append)
    return said


@EVERY_TOKENIZER
def test_a_text_becomes_what_its_own_tokenizer_makes_of_it_once_read_out(kind, tmp_path):
    processor = make(tmp_path, kind)
    one = processor("20 apples, $0.50!", return_tensors="pt")
    assert set(one) == {"input_ids", "attention_mask"}
    assert one["input_ids"].tolist() == [processor.tokenizer("twenty apples, fifty cents!").input_ids]
    assert one["input_ids"].dtype == torch.int64 and one["attention_mask"].all()
    assert processor("hi", normalize=False)["input_ids"] == processor.tokenizer("hi").input_ids
    assert processor(["hi"])["input_ids"] == [processor.tokenizer("hi").input_ids]


@EVERY_TOKENIZER
def test_a_batch_is_padded_on_the_right_and_masked(kind, tmp_path):
    processor = make(tmp_path, kind)
    batch = processor(["hello world", "hi"], return_tensors="pt", pad_to_multiple_of=8)
    assert batch["input_ids"].shape[1] % 8 == 0
    for row, mask, text in zip(batch["input_ids"], batch["attention_mask"], ["hello world", "hi"], strict=True):
        ids = processor.tokenizer(text).input_ids
        assert row.tolist() == ids + [processor.tokenizer.pad_token_id] * (len(row) - len(ids))
        assert mask.tolist() == [1] * len(ids) + [0] * (len(row) - len(ids))
    assert set(processor(["hello", "hi"])) == {"input_ids", "attention_mask"}  # no token types: the model has none


def test_a_recording_becomes_the_labels(tmp_path):
    processor = make(tmp_path)
    audio = [speechlike(0.5), speechlike(0.3, seed=1)]
    both = processor(["hello", "world"], audio, sampling_rate=16_000, return_tensors="pt")
    mels = [extract_log_mel(one) for one in audio]
    assert both["labels"].shape == (2, len(mels[0]), 80) and both["labels"].dtype == torch.float32
    for row, mel in zip(both["labels"], mels, strict=True):
        np.testing.assert_array_equal(row[: len(mel)].numpy(), mel)
        assert (row[len(mel) :] == -100).all()
    single = processor(audio=audio[0], text="hello", sampling_rate=16_000)
    np.testing.assert_array_equal(single["labels"], mels[0])
    assert single["input_ids"] == processor.tokenizer("hello").input_ids
    np.testing.assert_array_equal(processor(audio=audio)["labels"][1], mels[1])
    stacked = np.stack([audio[0], audio[0]])
    assert processor(audio=stacked, return_tensors="np")["labels"].shape == (2, len(mels[0]), 80)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "nothing to say in the text ''"),
        ("  \n", "nothing to say in the text"),
        ("?!... -- ()", "nothing to say in the text"),
        ("😀😀", "nothing to say in the text '😀😀'"),
        ("Привет", "nothing to say in the text 'Привет'"),
        ("?" * 10_000, r"nothing to say in the text '\?{60}\.\.\.'"),
    ],
)
def test_a_text_with_nothing_to_say_is_one_clear_line(text, problem, tmp_path):
    processor = make(tmp_path)
    with pytest.raises(ValueError, match=problem) as caught:
        processor(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=problem):
        processor(text, normalize=False)


def test_what_is_no_text_is_refused(tmp_path):
    processor = make(tmp_path)
    for wrong in ([None], [3], [["hello"]]):
        with pytest.raises(TypeError, match="a text is a string, not"):
            processor(wrong)
    for nothing in ({}, {"text": []}):
        with pytest.raises(ValueError, match="Nothing to process"):
            processor(**nothing)
    with pytest.raises(TypeError, match="unexpected keyword argument 'txet'"):
        processor(txet="hello")
    with pytest.raises(ValueError, match="1 texts, but 2 recordings"):
        processor("hello", [speechlike(), speechlike()])
    with pytest.raises(ValueError, match="audio of 8000 Hz, but the model speaks at 16000 Hz"):
        processor(audio=speechlike(), sampling_rate=8000)
    with pytest.raises(AudioError, match=r"audio 1 <ndarray>: 1 of 2 samples are NaN"):
        processor(audio=[speechlike(), np.array([0, np.nan])])


@EVERY_TOKENIZER
def test_characters_without_a_token_are_named_and_left_out(kind, tmp_path, warnings):
    processor = make(tmp_path, kind)
    ids = processor("hello 😀 wörld ж", return_tensors="pt")["input_ids"][0].tolist()
    assert ids == processor.tokenizer("hello world").input_ids
    assert processor.tokenizer.unk_token_id not in ids
    assert "GRINNING FACE" in warnings[0] and "CYRILLIC SMALL LETTER ZHE" in warnings[0]
    warnings.clear()
    assert processor("hello ☃ world", normalize=False)["input_ids"] == processor.tokenizer("hello world").input_ids
    assert "'☃' (SNOWMAN)" in warnings[0] and "no tokens" in warnings[0]


def test_words_that_a_tokenizer_does_not_know_are_named(tmp_path, warnings):
    processor = make(tmp_path, "bert")
    processor("hello " + "a" * 101)
    assert "does not know" in warnings[0] and "aaa" in warnings[0]


def test_a_special_token_in_a_text_does_not_end_it(tmp_path):
    processor = make(tmp_path)
    assert processor("hello</s> world")["input_ids"][:-1].count(2) == 0
    vocabulary = make(tmp_path, "bert")
    vocabulary.tokenizer.add_tokens(["[", "]"])
    with pytest.raises(ValueError, match=r"the special token '\[SEP\]' is inside the text"):
        vocabulary("hello [SEP] world", normalize=False)


@EVERY_TOKENIZER
def test_ten_thousand_characters_are_spelled_or_split(kind, tmp_path):
    processor = make(tmp_path, kind)
    text = "Hello world, it is 5 past 3; why? Just because. " * 210
    assert len(text) > 10_000
    with pytest.raises(ValueError, match="tokens exceed max_length=450: split the text"):
        processor(text, max_length=450)
    assert len(processor(text, max_length=450, truncation=True)["input_ids"]) == 450
    assert len(processor(text)["input_ids"]) > 450
    sentences = processor.split_sentences(text, max_tokens=30)
    assert all(len(processor(one, normalize=False)["input_ids"]) <= 30 for one in sentences)
    assert " ".join(sentences) == processor.spoken_text(text)
    assert " ".join(processor.split_sentences("A title\n\n...\n\nAnd 2 more. Words!")).lower() == (
        "a title and two more. words!"
    )
    assert len(processor.split_sentences("A title\n\n...\n\nAnd 2 more. Words!")) == 3
    with pytest.raises(ValueError, match="nothing to say in the text"):
        processor.split_sentences("...\n\n?")


def test_another_language_is_read_by_its_own_rules(tmp_path):
    processor = make(tmp_path, language="de")
    assert processor.spoken_text("3,20 Meter") == "drei Komma zwei null Meter"
    processor.language = "xx"
    with pytest.raises(ValueError, match="no text normalizer for the language 'xx'"):
        processor("hi")
    assert processor("hi", normalize=False)["input_ids"]


@EVERY_TOKENIZER
def test_a_saved_processor_comes_back_the_same(kind, tmp_path):
    processor = make(tmp_path, kind, language="de", normalize=False, feature_extractor=LJSPEECH)
    processor.save_pretrained(tmp_path / "saved")
    for loaded in (
        AutoProcessor.from_pretrained(tmp_path / "saved"),
        TextToSpectrogramProcessor.from_pretrained(tmp_path / "saved"),
    ):
        assert type(loaded) is TextToSpectrogramProcessor
        assert (loaded.language, loaded.normalize, loaded.mel_settings) == ("de", False, LJSPEECH)
        assert loaded("hello world")["input_ids"] == processor("hello world")["input_ids"]
        assert loaded.sampling_rate == 22_050
        audio = speechlike(0.1, 22_050)
        np.testing.assert_array_equal(loaded(audio=audio)["labels"], processor(audio=audio)["labels"])


def test_a_speecht5_folder_opens_as_one_of_ours(tmp_path):
    native = SpeechT5Processor(SpeechT5FeatureExtractor(), speecht5_tokenizer(tmp_path))
    native.save_pretrained(tmp_path / "native")
    ours = TextToSpectrogramProcessor.from_pretrained(tmp_path / "native")
    assert type(ours) is TextToSpectrogramProcessor and ours.mel_settings == MelSettings()
    assert ours("hello world")["input_ids"] == native(text="hello world")["input_ids"]
    audio = speechlike()
    labels = native(audio_target=audio, sampling_rate=16_000)["input_values"][0]
    np.testing.assert_allclose(ours(audio=audio)["labels"], labels, rtol=0, atol=1e-5)


def test_a_config_alone_says_which_processor_and_mel_settings_it_needs(tmp_path):
    config = TextToSpectrogramConfig(sampling_rate=22_050, fmax=8000, num_mel_bins=40)
    processor = make(tmp_path, config=config)
    assert processor.mel_settings == MelSettings.from_config(config)
    config.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "processor_config.json"
    content = json.loads(file.read_text())
    del content["processor_class"]
    file.write_text(json.dumps(content))
    assert type(AutoProcessor.from_pretrained(tmp_path / "saved")) is TextToSpectrogramProcessor


def test_a_processor_published_with_its_code_works_without_the_package(tmp_path):
    processor = make(tmp_path, feature_extractor=LJSPEECH)
    processor.save_pretrained(tmp_path / "published")
    processor.publish_code(tmp_path / "published")
    code = (
        "import sys, numpy; sys.modules['speechgraft'] = None; from transformers import AutoProcessor;"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True);"
        "row = processor('2 apples', numpy.zeros(1024, numpy.float32), sampling_rate=22050);"
        "print(type(processor).__name__, *row['input_ids'], row['labels'].shape[0])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "published")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    wanted = ["TextToSpectrogramProcessor", *map(str, processor("2 apples")["input_ids"]), "5"]
    assert done.stdout.split() == wanted, done.stderr


def test_processor_and_feature_extractor_are_found_in_a_fresh_process(tmp_path):
    make(tmp_path, feature_extractor=LJSPEECH).save_pretrained(tmp_path / "saved")
    code = (
        "import sys, speechgraft; from transformers import AutoProcessor;"
        "processor = AutoProcessor.from_pretrained(sys.argv[1]);"
        "print(type(processor).__module__, type(processor.feature_extractor).__module__)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    modules = [f"speechgraft.processing.{name}" for name in ("processing_text_to_spectrogram", "mel_spectrograms")]
    assert done.stdout.split() == modules, done.stderr
