"""Every batch is what its rows are alone, and a row that cannot be used is named."""

import pickle

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from test_mel_spectrograms import speechlike
from torch.utils.data import DataLoader
from transformers import BertConfig, Trainer, TrainingArguments

from speechgraft.configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from speechgraft.processing.collation_text_to_spectrogram import TextToSpectrogramCollator
from speechgraft.processing.mel_spectrograms import MelSettings, extract_log_mel
from speechgraft.processing.processing_text_to_spectrogram import TextToSpectrogramProcessor
from speechgraft.processing.text_front_end import train_character_tokenizer

TOKENIZER = train_character_tokenizer(["hello world zero apples, one two three."])
RATE = 16_000


def make(**options) -> TextToSpectrogramCollator:
    return TextToSpectrogramCollator(TextToSpectrogramProcessor.from_parts(TOKENIZER), **options)


def tiny_config(**options) -> TextToSpectrogramConfig:
    sizes = {"hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1, "speaker_embedding_dim": 0}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    sizes |= {"speech_decoder_prenet_units": 8, "speech_decoder_postnet_units": 8, "speech_decoder_postnet_layers": 2}
    ids = {
        "vocab_size": len(TOKENIZER),
        "pad_token_id": TOKENIZER.pad_token_id,
        "eos_token_id": TOKENIZER.eos_token_id,
    }
    return TextToSpectrogramConfig(**{**sizes, **ids, **options})


def row(text: str = "hello", duration_s: float = 0.5, seed: int = 0, **columns) -> dict:
    audio = {"array": speechlike(duration_s, seed=seed), "sampling_rate": RATE, "path": f"clip{seed}.wav"}
    return {"text": text, "audio": audio, **columns}


@pytest.mark.parametrize("reduction_factor", [1, 2, 3, 5])
def test_a_batch_is_its_rows_padded_to_a_multiple_of_the_step(reduction_factor):
    rows = [row("hello world", 0.5, 1), row("0 apples", 0.33, 2), row("one", 0.2, 3)]
    batch = make(reduction_factor=reduction_factor)(rows)
    assert {name: value.dtype for name, value in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.float32,
    }
    longest = len(extract_log_mel(rows[0]["audio"]))
    assert longest <= batch["labels"].shape[1] < longest + reduction_factor
    assert batch["labels"].shape[1] % reduction_factor == 0
    for index, (one, spoken) in enumerate(zip(rows, ["hello world", "zero apples", "one"], strict=True)):
        mel = extract_log_mel(one["audio"])
        np.testing.assert_array_equal(batch["labels"][index, : len(mel)].numpy(), mel)
        assert (batch["labels"][index, len(mel) :] == -100).all()
        ids = TOKENIZER(spoken).input_ids
        assert batch["input_ids"][index, : len(ids)].tolist() == ids
        assert batch["attention_mask"][index].tolist() == [
            int(i < len(ids)) for i in range(batch["input_ids"].shape[1])
        ]
        assert (batch["input_ids"][index, len(ids) :] == TOKENIZER.pad_token_id).all()


def test_ready_features_and_raw_rows_make_the_same_batch():
    collate = make(reduction_factor=2)
    rows = [row("hello world", 0.5, 1), row("0 apples", 0.31, 2)]
    direct = collate(rows)
    ready = [dict(collate.processor(one["text"], one["audio"])) for one in rows]
    from_lists = [{name: np.asarray(value).tolist() for name, value in one.items()} for one in ready]
    batched = [{name: values[index] for name, values in direct.items()} for index in range(2)]  # with padding
    mixed = [
        {"input_ids": ready[0]["input_ids"], "audio": rows[0]["audio"]},
        {**rows[1], "labels": ready[1]["labels"]},
    ]
    for others in (ready, from_lists, batched, mixed):
        again = collate(others)
        assert set(again) == set(direct)
        assert all(torch.equal(again[name], direct[name]) for name in direct)


def test_files_are_read_and_resampled_here(tmp_path):
    soundfile.write(tmp_path / "a.wav", speechlike(0.5, 44_100), 44_100)
    batch = make()([{"text": "hello", "audio": str(tmp_path / "a.wav")}])
    assert batch["labels"].shape == (1, MelSettings().n_frames(8000), 80)


def test_speakers_come_in_any_form_and_type():
    vectors = [np.arange(4.0), torch.arange(4, dtype=torch.bfloat16), [0, 1, 2, 3], torch.arange(4.0)[None]]
    batch = make()([row(speaker_embeddings=vector) for vector in vectors])
    assert batch["speaker_embeddings"].dtype == torch.float32
    assert batch["speaker_embeddings"].tolist() == [[0, 1, 2, 3]] * 4
    assert "speaker_embeddings" not in make()([row(speaker_embeddings=None)])


def test_texts_alone_make_a_batch_for_inference():
    assert set(make()([{"text": "hello"}, {"text": "one"}])) == {"input_ids", "attention_mask"}


def test_lengths_are_rounded_for_compiled_models():
    collate = make(reduction_factor=3, pad_text_to_multiple_of=16, pad_frames_to_multiple_of=32)
    batch = collate([row()])
    assert batch["input_ids"].shape[1] == 16 and batch["labels"].shape[1] == 96


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"text": "😀"}, r"\(clip7.wav\): nothing to say in the text '😀'"),
        (
            {"text": None},
            r"neither 'text' nor 'input_ids', only: text, audio, .* set remove_unused_columns=False",
        ),
        ({"text": 3}, r"\(clip7.wav\): a text is a string, not int"),
        ({"input_ids": []}, r"\(clip7.wav\): no token ids"),
        ({"text": "hello " * 100}, r"\(clip7.wav\): 600 tokens, but the limit is 450: split"),
        ({"audio": None}, "is without 'audio' and 'labels', other rows are not"),
        ({"audio": "/no/such.wav"}, r"\(/no/such.wav\): no such file"),
        ({"audio": np.zeros(0)}, r"\(<ndarray>\): empty audio"),
        (
            {"audio": {"array": [0.0, np.nan], "sampling_rate": RATE, "path": "x.wav"}},
            r"\(x.wav\): 1 of 2 samples are NaN",
        ),
        ({"labels": np.zeros((3, 40))}, r"\(clip7.wav\): labels are a spectrogram \[T, 80\], got shape \[3, 40\]"),
        ({"labels": np.full((3, 80), np.nan)}, "labels with NaN"),
        ({"labels": np.full((3, 80), -100)}, "labels without a frame"),
        ({"labels": np.zeros((0, 80))}, "labels without a frame"),
        ({"speaker_embeddings": [np.nan] * 4}, r"\(clip7.wav\): speaker_embeddings has NaN"),
        ({"speaker_embeddings": np.zeros((2, 4))}, r"speaker_embeddings has shape \[2, 4\], not \[4\]"),
        ({"speaker_embeddings": np.zeros(5)}, r"speaker_embeddings has shape \[5\], not \[4\]"),
        ({"speaker_embeddings": None}, "row 1 of the batch is without 'speaker_embeddings', other rows are not"),
        (
            {"audio": {"array": np.zeros(RATE * 129, np.float32), "sampling_rate": RATE}},
            r"129.0. s of speech, but the limit",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(bad, problem):
    collate = make(config=tiny_config(speaker_embedding_dim=4))
    good = row(speaker_embeddings=np.zeros(4))
    with pytest.raises(ValueError, match=problem) as caught:
        collate([good, {**row(seed=7, speaker_embeddings=np.zeros(4)), **bad}])
    assert str(caught.value).startswith("row 1 of the batch") and "\n" not in str(caught.value)


def test_speakers_of_different_widths_are_refused():
    with pytest.raises(ValueError, match=r"speaker_embeddings of different widths in one batch: \[3, 4\]"):
        make()([row(speaker_embeddings=np.zeros(3)), row(speaker_embeddings=np.zeros(4))])


def test_limits_and_the_step_come_from_the_config():
    collate = make(config=tiny_config(reduction_factor=3, max_speech_positions=10, max_text_positions=8))
    assert (collate.reduction_factor, collate.max_frames, collate.max_text_tokens) == (3, 30, 8)
    assert make(reduction_factor=4, config=tiny_config()).reduction_factor == 4
    encoder = BertConfig(vocab_size=100, max_position_embeddings=64, hidden_size=16, num_attention_heads=2)
    assert make(config=tiny_config(encoder=encoder)).max_text_tokens == 64
    assert make().reduction_factor == 1
    with pytest.raises(ValueError, match="reduction_factor must be at least 1"):
        make(reduction_factor=0)


def test_processor_and_config_that_disagree_are_refused():
    for options, problem in [
        ({"hop_length": 128}, "hop_length: config 128, feature extractor 256"),
        ({"vocab_size": 5}, f"the tokenizer has {len(TOKENIZER)} tokens, but config.vocab_size is 5"),
        ({"pad_token_id": 1}, "pad token: the tokenizer has 0, the config 1"),
    ]:
        with pytest.raises(ValueError, match=problem):
            make(config=tiny_config(**options))


def test_worker_processes_make_the_same_batches():
    collate = make(reduction_factor=2, config=tiny_config())
    rows = [row("hello", 0.3, 1), row("one two", 0.2, 2)]
    direct = collate(rows)
    loader = DataLoader(rows, batch_size=2, collate_fn=collate, num_workers=1)  # type: ignore[arg-type]
    for batch in (pickle.loads(pickle.dumps(collate))(rows), next(iter(loader))):
        assert all(torch.equal(batch[name], direct[name]) for name in direct)


def test_trainer_evaluates_on_raw_rows(tmp_path):
    """With the built-in class Trainer loses eval_loss, and lengths that the step does not divide crash."""
    from speechgraft import TextToSpectrogramModel

    torch.manual_seed(0)
    config = tiny_config(reduction_factor=3, num_mel_bins=80)
    rows = [{"text": text, "audio": speechlike(0.2, seed=i).tolist()} for i, text in enumerate(["one", "two"])]
    arguments = TrainingArguments(
        str(tmp_path), remove_unused_columns=False, report_to=[], use_cpu=True, per_device_eval_batch_size=2
    )
    trainer = Trainer(
        TextToSpectrogramModel(config),
        arguments,
        eval_dataset=Dataset.from_list(rows),
        data_collator=make(config=config),
    )
    assert np.isfinite(trainer.evaluate()["eval_loss"])
