"""Every batch trains the model on what it will generate, however the rows bring their audio and their labels."""

import pickle

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from test_processing_speech_seq2seq import EXTRACTORS, RATE, noise
from tiny_models import tiny_model
from tiny_tokenizers import tiny_tokenizer
from torch.utils.data import DataLoader
from transformers import BertConfig, GPT2Config, Wav2Vec2Config, WhisperConfig

from speechgraft.configuration.configuration_speech_seq2seq import SpeechSeq2SeqConfig
from speechgraft.processing.collation_speech_seq2seq import SpeechSeq2SeqCollator
from speechgraft.processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor

# family: start token, prompt tokens
STARTS = {
    "bert": ("[CLS]", []),
    "gpt2": ("<|eot|>", []),
    "bart": ("</s>", []),
    "bart with forced start": ("</s>", ["<s>"]),
    "marian": ("<pad>", []),
    "mbart": ("en_XX", []),
    "mbart50": ("</s>", ["en_XX"]),
    "whisper": ("<|sot|>", ["<|en|>", "<|transcribe|>", "<|notimestamps|>"]),
}


def make(
    family: str = "bert", extractor: str = "wav2vec2", fixed: bool | None = None, **options
) -> SpeechSeq2SeqCollator:
    tokenizer = tiny_tokenizer(family.split()[0])
    start, prompt = STARTS[family]
    prompt_ids = [tokenizer.vocab[token] for token in prompt]
    processor = SpeechSeq2SeqProcessor(EXTRACTORS[extractor](), tokenizer, prompt_ids, fixed)
    decoder = {"gpt2": GPT2Config, "whisper": WhisperConfig}.get(family, BertConfig)(vocab_size=len(tokenizer))
    config = SpeechSeq2SeqConfig(encoder=Wav2Vec2Config(), decoder=decoder, decoder_prompt_token_ids=prompt_ids)
    config.decoder_start_token_id = tokenizer.vocab[start]
    config.eos_token_id = processor.end_token_id
    config.pad_token_id = tokenizer.vocab[str(tokenizer.pad_token)]
    return SpeechSeq2SeqCollator(processor, config, **options)


def row(duration_s: float = 0.5, seed: int = 0, **columns) -> dict:
    return {"audio": {"array": noise(duration_s, seed), "sampling_rate": RATE, "path": f"clip{seed}.wav"}, **columns}


@pytest.mark.parametrize("family", STARTS)
def test_labels_of_every_habit_come_out_as_prompt_transcript_end(family):
    collate = make(family)
    tokenizer, config = collate.processor.tokenizer, collate.config
    words = tokenizer.convert_tokens_to_ids(["hello", "world"])
    prompt, start = config.decoder_prompt_token_ids, config.decoder_start_token_id
    end, pad = collate.processor.end_token_id, config.pad_token_id
    canonical = [*prompt, *words, end]
    habits = [
        canonical,
        words,
        [*words, end],
        [*prompt, *words],
        [start, *canonical],
        [start, *words],
        [*canonical, pad, pad],
        [*canonical, -100, -100],
        [pad, pad, *canonical],
        tokenizer("hello world").input_ids,
        tokenizer("hello world", padding="max_length", max_length=12).input_ids,
        np.array(canonical),
        torch.tensor(canonical),
    ]
    for labels in habits:
        assert collate.canonical_labels(labels) == canonical, labels
    batch = collate([row(text="hello world"), row(labels=habits[-1])])
    assert batch["labels"].tolist() == [canonical, canonical]
    assert batch["decoder_input_ids"].tolist() == [[start, *canonical[:-1]]] * 2


@pytest.mark.parametrize("family", STARTS)
def test_decoder_inputs_are_the_labels_shifted_behind_the_start(family):
    collate = make(family)
    batch = collate([row(text="a b c d"), row(text="cat")])
    labels, inputs = batch["labels"], batch["decoder_input_ids"]
    assert labels.shape == inputs.shape and labels.dtype == inputs.dtype == torch.int64
    assert (inputs[:, 0] == collate.config.decoder_start_token_id).all()
    for i in range(2):
        n = (labels[i] != -100).sum()
        assert inputs[i, 1:n].tolist() == labels[i, : n - 1].tolist()
        assert (inputs[i, n:] == collate.config.pad_token_id).all()
        assert (labels[i, n:] == -100).all()


def test_the_end_is_learned_where_it_is_also_the_padding():
    """The tutorials' masked_fill(labels == pad, -100) hides GPT-2's only end token: the model never learns to stop."""
    collate = make("gpt2")
    end = collate.processor.end_token_id
    assert end == collate.config.pad_token_id == collate.config.decoder_start_token_id
    labels = collate([row(text="a b"), row(text="a")])["labels"].tolist()
    assert labels == [[1, 2, end], [1, end, -100]]


def test_an_ordinary_token_as_prompt_is_not_cut_from_the_end_of_a_transcript():
    collate = make("bert")
    prompt = collate.processor.tokenizer.convert_tokens_to_ids(["one"])
    collate.config.decoder_prompt_token_ids = collate.processor.decoder_prompt_token_ids = prompt
    assert collate.canonical_labels([*prompt, 5, *prompt]) == [*prompt, 5, *prompt, 3]


def test_unknown_words_at_the_edges_stay():
    collate = make("bert")
    assert collate.canonical_labels([2, 1, 5, 1, 3]) == [1, 5, 1, 3]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([], "empty transcript"),
        ([-100, -100], "empty transcript"),
        ([1, 2, 4, 5, 0], "empty transcript"),  # <|sot|> <|en|> and so on, without a word
        ([1, 3, 4, 5, 7, 0], "labels begin with token 3, but the decoder's prompt is"),  # tokenized as German
        ([7, 0, 8, 0], "the end token 0 is inside the transcript, at position 1"),
        ([7, 999], "token id 999 is outside of the decoder's vocabulary of 18"),
    ],
)
def test_labels_that_cannot_be_meant_name_the_row(labels, problem):
    with pytest.raises(ValueError, match=rf"row 1 of the batch \(clip7\.wav\): {problem}"):
        make("whisper")([row(text="a"), row(seed=7, labels=labels)])


def test_whisper_labels_keep_their_own_language_where_the_model_has_no_fixed_prompt():
    collate = make("whisper")
    collate.config.decoder_prompt_token_ids = collate.processor.decoder_prompt_token_ids = []
    assert collate.canonical_labels([1, 3, 4, 5, 7, 0]) == [3, 4, 5, 7, 0]


@pytest.mark.parametrize("text", ["", "   "])
def test_empty_transcripts_name_the_row(text):
    with pytest.raises(ValueError, match=r"row 1 of the batch \(clip3\.wav\): empty transcript"):
        make()([row(text="a"), row(seed=3, text=text)])


def test_too_long_transcripts_name_the_limit_before_the_embedding_does():
    with pytest.raises(ValueError, match=r"row 0 .*: 5 label tokens, but the limit is 4"):
        make(max_label_length=4)([row(text="a b c d")])
    assert make("bert").max_label_length == 512
    assert make("gpt2").max_label_length == 1024
    assert make("whisper").max_label_length == 448


def test_processor_and_config_that_disagree_are_refused():
    """They would train one end token and wait for another in generation."""
    collate = make("bert")
    for name, value, what in [
        ("eos_token_id", 2, "end token: the processor has 3, the config 2"),
        ("pad_token_id", 1, "pad token: the processor has 0, the config 1"),
        ("decoder_prompt_token_ids", [5], r"decoder prompt: the processor has \[\], the config \[5\]"),
        ("decoder_start_token_id", None, "config.decoder_start_token_id is not set"),
    ]:
        good = getattr(collate.config, name)
        setattr(collate.config, name, value)
        with pytest.raises(ValueError, match=what):
            SpeechSeq2SeqCollator(collate.processor, collate.config)
        setattr(collate.config, name, good)
    collate.config.eos_token_id = [2, 3]
    SpeechSeq2SeqCollator(collate.processor, collate.config)


def test_a_tokenizer_without_pad_token_takes_the_configs():
    collate = make("gpt2")
    collate.processor.tokenizer.pad_token = None
    collate = SpeechSeq2SeqCollator(collate.processor, collate.config)
    assert collate([row(text="a"), row(text="a b")])["labels"].tolist() == [[1, 0, -100], [1, 2, 0]]


@pytest.mark.parametrize(("extractor", "fixed"), [*((name, None) for name in EXTRACTORS), ("whisper", False)])
def test_ready_features_and_audio_make_the_same_batch(extractor, fixed):
    collate = make(extractor=extractor, fixed=fixed)
    rows = [row(1.0, 1, text="a"), row(0.37, 2, text="b c")]
    from_audio = collate(rows)
    ready = []
    for one in rows:
        features = collate.processor(one["audio"], text=one["text"])
        ready.append({name: values if name == "labels" else values[0] for name, values in features.items()})
    from_features = collate([{name: np.asarray(value).tolist() for name, value in one.items()} for one in ready])
    direct = collate.processor([one["audio"] for one in rows], return_tensors="pt")
    assert set(from_audio) == set(from_features) == {*direct, "labels", "decoder_input_ids"}
    for name, value in from_audio.items():
        torch.testing.assert_close(from_features[name].to(value.dtype), value)
        if name in direct:
            assert torch.equal(direct[name], value)


def test_group_norm_wav2vec2_gets_no_mask():
    assert "attention_mask" not in make(extractor="wav2vec2-group-norm")([row(text="a"), row(0.3, text="b")])


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_bucketing_rounds_the_length_up_in_seconds(extractor):
    collate = make(extractor=extractor, pad_to_multiple_of_s=0.8, fixed=False if extractor == "whisper" else None)
    batch = collate([row(0.9, text="a"), row(0.3, text="b")])
    features = batch[collate.processor.main_input_name]
    length = features.shape[2 if extractor == "whisper" else 1]
    assert length == round(1.6 / collate.processor.input_step_s)
    if "attention_mask" in batch:
        assert batch["attention_mask"].shape[1] == length and batch["attention_mask"].sum() < 2 * length


def test_label_bucketing():
    batch = make(pad_labels_to_multiple_of=8)([row(text="a b c"), row(text="a")])
    assert batch["labels"].shape == batch["decoder_input_ids"].shape == (2, 8)


def test_rows_without_transcripts_are_for_inference_and_mixtures_a_mistake():
    collate = make()
    assert set(collate([row(), row()])) == {"input_values", "attention_mask"}
    with pytest.raises(ValueError, match="row 1 has neither 'text' nor 'labels'"):
        collate([row(text="a"), row()])


def test_rows_without_audio_say_what_trainer_did_to_them():
    with pytest.raises(ValueError, match="only: text.*remove_unused_columns=False"):
        make()([{"text": "a"}])


def test_a_broken_clip_names_its_row_and_file(tmp_path):
    path = tmp_path / "broken.wav"
    path.write_text("no audio")
    with pytest.raises(ValueError, match=r"row 1 of the batch: .*broken\.wav: cannot be decoded"):
        make()([row(text="a"), {"audio": str(path), "text": "b"}])


def make_spelling(characters: str | None = "abc ") -> SpeechSeq2SeqCollator:
    collate = make()
    parts = (collate.processor.feature_extractor, collate.processor.tokenizer)
    fields = {"ctc_weight": 0.3, "ctc_characters": "abc "}
    config = SpeechSeq2SeqConfig.from_dict({**collate.config.to_dict(), **fields})
    return SpeechSeq2SeqCollator(SpeechSeq2SeqProcessor(*parts, ctc_characters=characters), config)


def test_a_ctc_head_that_spells_gets_the_characters_of_each_transcript():
    collate = make_spelling("abc ")
    batch = collate([row(text="cab  a"), row(text="b", ctc_targets=[2, -100]), row(text="a Xb")])
    expected = [[3, 1, 2, 4, 1], [2, -100, -100, -100, -100], [1, 4, 2, -100, -100]]
    assert batch["ctc_targets"].tolist() == expected
    assert collate.processor.ctc_text([3, 0, 1, 2]) == "cab"
    assert "ctc_targets" not in make()([row(text="a")])


def test_a_ctc_head_that_spells_says_what_it_cannot_spell():
    collate = make_spelling("abc ")
    with pytest.raises(ValueError, match="neither 'text' nor 'ctc_targets'"):
        collate([row(labels=collate.processor.label_ids("a"))])
    with pytest.raises(ValueError, match="CTC alphabet: the processor has ab, the config abc "):
        make_spelling("ab")
    with pytest.raises(ValueError, match="no ctc_characters"):
        make().processor.ctc_target_ids("a")


def test_a_transcript_that_cannot_be_spelled_does_not_count_in_the_ctc_loss():
    collate = make_spelling("abc ")
    batch = collate([row(text="cab"), row(text="XYZ", seed=1)])
    assert batch["ctc_targets"].tolist() == [[3, 1, 2], [-100, -100, -100]]
    model = tiny_model(ctc_weight=0.3, ctc_characters="abc ")
    with torch.no_grad():
        together = model(**batch, num_items_in_batch=8)
        alone = model(**{name: value[:1] for name, value in batch.items()}, num_items_in_batch=8)
    torch.testing.assert_close(together.ctc_loss, alone.ctc_loss)
    torch.testing.assert_close(  # each transcript's own, by PyTorch's loss of one clip
        together.ctc_loss * 8,
        torch.nn.functional.ctc_loss(
            together.ctc_logits[:1].log_softmax(-1).transpose(0, 1),
            torch.tensor([[3, 1, 2]]),
            [together.ctc_logits.shape[1]],
            [3],
            reduction="sum",
        ),
    )
    nothing = collate([row(text="XYZ")])
    assert nothing["ctc_targets"].tolist() == [[-100]]
    assert model(**nothing).ctc_loss.item() == 0


def test_other_column_names():
    collate = make(audio_column="speech", text_column="sentence")
    batch = collate([{"speech": noise(0.5), "sentence": "a", "speaker": "me"}])
    assert set(batch) == {"input_values", "attention_mask", "labels", "decoder_input_ids"}


def test_works_in_data_loader_processes_on_files_not_decoded_before(tmp_path):
    paths = []
    for i in range(4):
        paths.append(str(tmp_path / f"{i}.flac"))
        soundfile.write(paths[-1], noise(0.2 + 0.1 * i, i), 8_000)
    dataset = Dataset.from_dict({"audio": paths, "text": ["a", "b c", "d", "cat sat"]})
    collate = make()
    serial = list(DataLoader(dataset, 2, collate_fn=collate))  # pyright: ignore[reportArgumentType]
    parallel = list(DataLoader(dataset, 2, collate_fn=collate, num_workers=1))  # pyright: ignore[reportArgumentType]
    assert len(serial) == len(parallel) == 2
    for ours, theirs in zip(serial, parallel, strict=True):
        for name in ours:
            assert torch.equal(ours[name], theirs[name])
    assert pickle.loads(pickle.dumps(collate)).max_label_length == 512


def test_recordings_of_the_development_set_make_a_batch(recordings, pretrained_folder):
    from speechgraft.processing.speech_datasets import load_speech_dataset

    dataset = load_speech_dataset(recordings, "validation[:3]")
    processor = SpeechSeq2SeqProcessor.from_parts(
        pretrained_folder("whisper-tiny.en"), pretrained_folder("minilm"), fixed_input_window=False
    )
    config = SpeechSeq2SeqConfig(encoder=WhisperConfig(), decoder=BertConfig(vocab_size=30_522))
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 101, 102, 0
    batch = SpeechSeq2SeqCollator(processor, config)([dataset[i] for i in range(3)])
    assert batch["attention_mask"].sum(-1).tolist() == [int(np.ceil(100 * s)) for s in dataset["duration"]]
    texts = processor.batch_decode(batch["decoder_input_ids"], skip_special_tokens=True)
    assert texts == [processor.tokenizer.decode(processor.tokenizer(t).input_ids, True) for t in dataset["text"]]
