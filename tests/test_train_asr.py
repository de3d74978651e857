"""`speechgraft train-asr`: options mean the same anywhere, mistakes are told before hours are lost, runs go on."""

import csv
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny_models import save_decoder, save_encoder
from tiny_recognizers import RATE, noise, save_bad_clips, save_clips, save_native, save_recognizer
from tiny_tokenizers import WORDS
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, BertTokenizer, Wav2Vec2FeatureExtractor

from speechgraft.scripts.cli import main
from speechgraft.scripts.common import CommandError
from speechgraft.scripts.train_asr import COMMAND, build, parse
from speechgraft.scripts.training_options import TrainingParser

QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "--logging_steps", "1", "--seed", "0"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[str]:
    """Options that warm-start from a tiny wav2vec 2.0 and a tiny BERT."""
    folder = tmp_path_factory.mktemp("parts")
    save_encoder(folder / "encoder", "wav2vec2-layer")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / "encoder")
    save_decoder(folder / "decoder", "bert", tokenizer=True)
    return ["--encoder", str(folder / "encoder"), "--decoder", str(folder / "decoder")]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return save_clips(tmp_path_factory.mktemp("audio") / "clips", 6)


def train(output: Path, *words: object) -> int:
    return main(["train-asr", "--output_dir", str(output), *QUICK, *map(str, words)])


def told(capsys) -> str:
    """The one line in which a mistake is told."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("speechgraft train-asr: ")]
    return line


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_warm_start_trains_evaluates_and_saves_what_the_auto_classes_load(parts, clips, tmp_path, capsys):
    output = tmp_path / "model"
    status = train(output, *parts, "--train", clips, "--validation", clips, "--set", "ctc_weight=0.3")
    assert status == 0
    assert f"model saved to {output}, WER" in capsys.readouterr().err
    model, processor = AutoModelForSpeechSeq2Seq.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert model.config.ctc_weight == 0.3 and model.ctc_head is not None
    inputs = processor(audio=str(clips / "clip0.wav"), return_tensors="pt")
    assert isinstance(processor.batch_decode(model.generate(**inputs, max_length=4))[0], str)
    assert json.loads((output / "eval_results.json").read_text())["eval_wer"] >= 0
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert {"loss", "decoder_loss", "ctc_loss"} <= set(log[0])
    pytest.importorskip("matplotlib")
    assert (output / "loss.png").stat().st_size > 1000


def test_a_ctc_head_that_spells_learns_the_alphabet_of_the_transcripts(parts, clips, tmp_path, capsys):
    output, spelled = tmp_path / "model", ["--ctc_units", "characters"]
    assert train(output, *parts, "--train", clips, *spelled) == 2
    assert "give the CTC loss a weight too" in told(capsys)
    assert train(output, *parts, "--train", clips, "--validation", clips, *spelled, "--set", "ctc_weight=0.3") == 0
    model, processor = AutoModelForSpeechSeq2Seq.from_pretrained(output), AutoProcessor.from_pretrained(output)
    with open(clips / "metadata.csv", newline="") as file:
        texts = [line["text"] for line in csv.DictReader(file)]
    assert processor.ctc_characters == "".join(sorted(set("".join(texts))))
    assert model.ctc_head.out_features == model.config.ctc_vocab_size == len(processor.ctc_characters) + 1
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert log[0]["ctc_loss"] > 0
    assert train(tmp_path / "on", "--model", output, "--train", clips) == 0  # its own alphabet goes on with it


def test_validation_in_characters_never_trained_on_does_not_stop_a_training(parts, clips, tmp_path, caplog):
    validation = save_clips(tmp_path / "validation", 3)
    metadata = (validation / "metadata.csv").read_text().splitlines()
    metadata[1], metadata[2] = "clip0.wav,42", "clip1.wav,the caf\u00e9"
    (validation / "metadata.csv").write_text("\n".join(metadata), encoding="utf-8")
    spelled = ["--ctc_units", "characters", "--set", "ctc_weight=0.3"]
    assert train(tmp_path / "model", *parts, "--train", clips, "--validation", validation, *spelled) == 0
    assert "clip0.wav: no character of the CTC head's alphabet" in caplog.text
    assert "alphabet, which it does without" in caplog.text and "'\u00e9' (1)" in caplog.text
    results = json.loads((tmp_path / "model" / "eval_results.json").read_text())
    assert results["eval_loss"] > 0


def test_a_vocabulary_of_what_the_transcripts_teach_is_trained_and_saved(clips, tmp_path, capsys):
    save_encoder(tmp_path / "encoder", "wav2vec2-layer")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "encoder")
    save_decoder(tmp_path / "decoder", "bert")
    letters = "abcdefghijklmn"  # the decoder has 20 tokens
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, "zebra"]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(tmp_path / "decoder")
    parts = ["--encoder", tmp_path / "encoder", "--decoder", tmp_path / "decoder", "--vocabulary_min_count", "1"]
    assert train(tmp_path / "model", *parts, "--train", clips, "--set", "ctc_weight=0.3") == 0
    assert "of 20 tokens are kept" in capsys.readouterr().err
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "model")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "model").tokenizer
    assert "zebra" not in tokenizer.get_vocab()
    assert len(tokenizer) == model.config.vocab_size == model.ctc_head.out_features < 20


@pytest.fixture(scope="module")
def filling_parts(tmp_path_factory) -> list[str]:
    """Options that warm-start with a decoder whose tokenizer has a mask token."""
    folder = tmp_path_factory.mktemp("filling")
    save_encoder(folder / "encoder", "wav2vec2-layer")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / "encoder")
    save_decoder(folder / "decoder", "bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder / "decoder")
    return ["--encoder", str(folder / "encoder"), "--decoder", str(folder / "decoder")]


def test_a_decoder_learns_to_fill_in_and_what_it_fills_in_is_evaluated(filling_parts, clips, tmp_path, capsys):
    output = tmp_path / "model"
    options = [
        "--train",
        clips,
        "--validation",
        clips,
        "--per_device_eval_batch_size",
        "4",
        "--eval_strategy",
        "steps",
    ]
    asked = ["--non_autoregressive", "--set", "ctc_weight=0.3", "--eval_steps", "1"]
    assert train(output, *filling_parts, *options, *asked) == 0
    model, processor = AutoModelForSpeechSeq2Seq.from_pretrained(output), AutoProcessor.from_pretrained(output)
    assert model.config.mask_token_id == 4 == processor.tokenizer.mask_token_id
    with open(clips / "metadata.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    heard = []
    for line in lines:
        inputs = processor(audio=str(clips / line["file_name"]), return_tensors="pt")
        heard += processor.batch_decode(model.eval().generate_masked(**inputs), skip_special_tokens=True)
    results = json.loads((output / "eval_results.json").read_text())
    assert results["eval_wer"] == pytest.approx(jiwer.wer([line["text"] for line in lines], heard))
    assert results["eval_loss"] > 0
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert {"loss", "decoder_loss", "ctc_loss"} <= set(log[0]) and "eval_wer" in log[1]
    capsys.readouterr()
    beams = ["--generation_num_beams", "3"]
    assert train(tmp_path / "more", "--model", output, "--train", clips, *beams) == 2  # it is known for what it is
    assert "--generation_num_beams: a decoder that fills in" in told(capsys)


def test_a_model_that_writes_from_left_to_right_goes_on_as_one_that_fills_in(filling_parts, clips, tmp_path):
    first, then = tmp_path / "first", tmp_path / "then"
    assert train(first, *filling_parts, "--train", clips, "--set", "ctc_weight=0.3") == 0
    options = ["--train", clips, "--validation", clips, "--generation_max_length", "4", "--learning_rate", "0"]
    assert train(then, "--model", first, "--non_autoregressive", *options) == 0
    before, after = weights(first), weights(then)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert AutoModelForSpeechSeq2Seq.from_pretrained(then).config.mask_token_id == 4
    assert AutoModelForSpeechSeq2Seq.from_pretrained(first).config.mask_token_id is None
    assert train(tmp_path / "last", "--model", then, *options, "--predict_with_generate", "false") == 0


def test_a_head_learns_how_long_transcripts_are_and_they_are_written_from_that(
    filling_parts, clips, tmp_path, capsys, caplog
):
    output, results = tmp_path / "model", tmp_path / "results.json"
    asked = ["--non_autoregressive", "--set", "max_predicted_length=5", "--validation", clips]
    with (clips / "metadata.csv").open(newline="") as file:
        texts = [line["text"] for line in csv.DictReader(file)]
    assert train(output, *filling_parts, "--train", clips, *asked) == 0
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert log[0]["length_loss"] > 0 and "ctc_loss" not in log[0]
    model, processor = AutoModelForSpeechSeq2Seq.from_pretrained(output), AutoProcessor.from_pretrained(output)
    heard = []
    for index in range(len(texts)):
        inputs = processor(audio=str(clips / f"clip{index}.wav"), return_tensors="pt")
        tokens = model.eval().generate_masked(**inputs, length_candidates=2, passes=3)
        heard += processor.batch_decode(tokens, skip_special_tokens=True)
    words = ["--model", str(output), "--length-candidates", "2", "--passes", "3"]
    assert main(["evaluate-asr", "--data", str(clips), *words, "--output", str(results)]) == 0
    found = json.loads(results.read_text())
    assert found["results"][0]["wer"] == pytest.approx(jiwer.wer(texts, heard))
    capsys.readouterr()
    assert main(["transcribe", str(clips), *words]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == heard
    assert main(["transcribe", str(clips), "--model", str(output), "--mask-threshold", "0.5"]) == 2
    assert "threshold=0.5 is of what the CTC head hears" in capsys.readouterr().err
    short = ["--non_autoregressive", "--set", "max_predicted_length=3"]
    capsys.readouterr()
    assert train(tmp_path / "short", *filling_parts, "--train", clips, *short) == 0
    assert "left out 1 of 6 clips" in caplog.text and "5 tokens, the limit is 4" in caplog.text
    more = ["--model", output, "--train", clips, "--set", "ctc_weight=0.3"]
    assert train(tmp_path / "both", *more) == 0
    log = json.loads((tmp_path / "both" / "trainer_state.json").read_text())["log_history"]
    assert {"length_loss", "ctc_loss", "decoder_loss"} <= set(log[0])


def test_transcripts_that_only_a_decoder_from_left_to_right_has_positions_for_are_left_out(
    filling_parts, tmp_path, caplog
):
    clips = save_clips(tmp_path / "clips", 2)
    positions = 40  # of the tiny decoder
    with (clips / "metadata.csv").open("a") as file:
        for index, n_words in enumerate((positions - 2, positions - 1)):
            soundfile.write(clips / f"long{index}.wav", noise(0.3), RATE)
            file.write(f"long{index}.wav,{'a ' * n_words}\n")
    asked = ["--train", clips, "--per_device_train_batch_size", "4", "--set", "ctc_weight=0.3"]
    assert train(tmp_path / "model", *filling_parts, *asked, "--non_autoregressive") == 0
    assert "left out 1 of 4 clips" in caplog.text and "long1.wav: 40 tokens, the limit is 39" in caplog.text


def test_without_matplotlib_training_ends_well_and_says_what_is_missing(parts, clips, tmp_path, capsys, monkeypatch):
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "matplotlib" else find_spec(name, *a)
    )
    assert train(tmp_path / "model", *parts, "--train", clips) == 0
    assert "speechgraft[plot]" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_to_the_same_weights(parts, clips, tmp_path, capsys):
    options = [*parts, "--train", clips, "--max_steps", "4", "--save_steps", "2"]
    assert train(tmp_path / "whole", *options) == 0
    assert train(tmp_path / "cut", *options, "--max_steps", "2", "--lr_scheduler_type", "constant") == 0
    assert "going on" not in capsys.readouterr().err
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        os.replace(tmp_path / "whole" / "checkpoint-2" / name, tmp_path / "cut" / "checkpoint-2" / name)
    assert train(tmp_path / "cut", *options) == 0
    assert f"going on from {tmp_path / 'cut' / 'checkpoint-2'}" in capsys.readouterr().err
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert max(float((whole[name] - resumed[name]).abs().max()) for name in whole) < 1e-6
    assert train(tmp_path / "cut", *options, "--start_over") == 0
    assert "going on" not in capsys.readouterr().err
    assert train(tmp_path / "new", *options, "--resume_from_checkpoint", clips) == 2
    assert f"--resume_from_checkpoint {clips}: no checkpoint" in told(capsys)


def test_a_trained_or_native_model_is_gone_on_with(clips, tmp_path):
    for source in save_recognizer(tmp_path / "own"), save_native(tmp_path / "native"):
        output = tmp_path / f"{source.name}-more"
        assert train(output, "--model", source, "--train", clips, "--learning_rate", "1e-2") == 0
        assert (output / "processor_config.json").is_file()


def test_streamed_data_train_without_being_counted_first(parts, clips, tmp_path):
    assert train(tmp_path / "model", *parts, "--train", clips, "--streaming") == 0


def test_clips_that_cannot_be_used_are_left_out_and_told(parts, tmp_path, capsys, caplog):
    folder = save_clips(tmp_path / "clips", 3)
    lines = [f"{path.name},hello" for path in save_bad_clips(tmp_path / "bad").values()]
    for path in (tmp_path / "bad").iterdir():
        path.rename(folder / path.name)
    soundfile.write(folder / "untold.wav", noise(0.3), RATE)
    soundfile.write(folder / "long.wav", noise(0.3), RATE)
    with (folder / "metadata.csv").open("a") as file:
        file.write("\n".join([*lines, "untold.wav,", f"long.wav,{'a ' * 60}"]) + "\n")
    assert train(tmp_path / "model", *parts, "--train", folder) == 0
    messages = "\n".join(record.message for record in caplog.records)
    for message in (
        "0 bytes",
        "0 samples",
        "cannot be decoded",
        "NaN",
        "3600.00 s",
        "no such file",
        "empty",
        "tokens",
    ):
        assert message in messages
    assert "left out 8 of 11 clips" in messages
    (folder / "metadata.csv").write_text("file_name,text\nnan.wav,hello\n")
    assert train(tmp_path / "none", *parts, "--train", folder) == 2
    assert f"{folder}: no clip can be used" in told(capsys)


def test_freezing_and_cold_starts_do_what_they_say(parts, clips, tmp_path):
    frozen = build(parse([*parts, "--freeze", "encoder", "decoder"])[0])[0]
    trainable = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trainable and all("crossattention" in name or "projection" in name for name in trainable)
    torch.manual_seed(0)
    warm, cold = (build(parse([*parts, *more])[0])[0] for more in ([], ["--cold"]))
    assert warm.config.to_dict() == cold.config.to_dict()
    same = [torch.equal(a, b) for a, b in zip(warm.parameters(), cold.parameters(), strict=True) if a.dim() > 1]
    assert not any(same)


def test_attention_and_dtype_reach_both_parts(parts):
    model, _ = build(parse([*parts, "--attn", "eager", "--dtype", "bfloat16"])[0])
    assert {model.encoder.backbone.config._attn_implementation, model.decoder.config._attn_implementation} == {"eager"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_activation_checkpointing_trains_the_same_weights(parts, clips, tmp_path):
    quiet = ["--set", "encoder_activation_dropout=0.0", "encoder_hidden_dropout=0.0", "encoder_attention_dropout=0.0"]
    quiet += ["encoder_feat_proj_dropout=0.0", "decoder_hidden_dropout_prob=0.0"]
    quiet += ["decoder_attention_probs_dropout_prob=0.0"]
    for name, more in {
        "plain": [],
        "checkpointing": ["--gradient_checkpointing", "--freeze", "feature-encoder"],
    }.items():
        freeze = ["--freeze", "feature-encoder"] if not more else []
        assert train(tmp_path / name, *parts, "--train", clips, *quiet, *more, *freeze) == 0
    plain, checkpointing = weights(tmp_path / "plain"), weights(tmp_path / "checkpointing")
    for name, value in plain.items():
        torch.testing.assert_close(checkpointing[name], value, rtol=1e-4, atol=1e-6)


CONFIG = """
encoder: speech
decoder: text
train: clips
learning-rate: 1e-4      # YAML 1.1 reads this as a text
bf16: false
predict_with_generate: false
freeze: [encoder, decoder]
set: {ctc_weight: 0.3, apply_spec_augment: false, decoder_prompt_token_ids: [1, 2]}
lr_scheduler_kwargs: {num_cycles: 2}
validation: null
"""


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_a_file_means_what_the_command_line_means_and_the_command_line_wins(kind, tmp_path):
    import yaml

    path = tmp_path / f"config.{kind}"
    path.write_text(CONFIG if kind == "yaml" else json.dumps(yaml.safe_load(CONFIG)))
    model, data, training = parse([str(path), "--decoder", "another", "--output_dir", str(tmp_path)])
    assert (model.encoder, model.decoder, data.train, data.validation) == ("speech", "another", "clips", None)
    assert training.learning_rate == 1e-4 and training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert not training.bf16 and not training.predict_with_generate and not training.remove_unused_columns
    assert model.freeze == ["encoder", "decoder"]
    assert model.set == ["ctc_weight=0.3", "apply_spec_augment=false", "decoder_prompt_token_ids=[1, 2]"]


def test_options_are_pickled_with_checkpoints_as_transformers_own(tmp_path):
    training = parse(["--output_dir", str(tmp_path)])[2]
    assert type(training).__module__.startswith("transformers.") and pickle.dumps(training)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1e-4", "no option 'learning_rat'; did you mean learning_rate?"),
        ("learning_rate: fast", "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        ("bf16: perhaps", "perhaps"),
        ("eval_strategy: sometimes", "sometimes"),
        ("- a\n- b", "options and their values are expected"),
        ("a: [", "not YAML"),
        ("freeze: [nothing]\nencoder: a\ntrain: b", "--freeze nothing: the parts are feature-encoder, encoder and"),
    ],
)
def test_a_wrong_key_or_value_in_a_file_is_told_with_the_file(content, message, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    assert main(["train-asr", str(path)]) == 2
    line = told(capsys)
    assert message in line and (str(path) in line or "freeze" in message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --encoder (and --decoder) to warm-start, or --model"),
        (["--encoder", "a"], "--train: name an audio folder"),
        (["--encoder", "a", "--model", "b"], "give --encoder"),
        (["--model", "b", "--decoder", "a"], "--model brings its own decoder"),
        (["--encoder", "a", "--train", "b", "--streaming", "--max_steps", "-1"], "--streaming needs --max_steps"),
        (["--encoder", "a", "--train", "b", "--ctc_units", "letters"], "letters"),
        (
            [*("--encoder", "a", "--train", "b", "--ctc_units", "characters"), *("--streaming", "--max_steps", "1")],
            "--ctc_units characters reads all transcripts",
        ),
        (
            ["--model", "a", "--train", "b", "--ctc_units", "characters"],
            "--ctc_units: --model brings its own CTC head",
        ),
        (["--encoder", "a", "--train", "b", "--eval_strategy", "steps"], "--eval_strategy steps needs --validation"),
        (["--encoder", "a", "--train", "b", "--frieze", "encoder"], "no option --frieze; did you mean freeze?"),
        (["--encoder", "a", "--train", "b", "--max_steps", "many"], "invalid int value: 'many'"),
        (["missing.yaml"], "missing.yaml: no such file"),
        (["--encoder", "{tmp}/none", "--train", "b"], "{tmp}/none: no such model folder"),
        (["--model", "{tmp}/none", "--train", "b"], "{tmp}/none: no such model folder"),
        (["{parts}", "--train", "{tmp}/none"], "{tmp}/none: no such file or folder"),
        (["{parts}", "--train", "{clips}", "--train_split", "test"], "{clips}"),
        (["{parts}", "--train", "{clips}", "--text_column", "words"], "no text column (looked for words)"),
        (["{parts}", "--train", "{clips}", "--set", "ctc_wait=1"], "ctc_wait"),
        (["{parts}", "--train", "{clips}", "--set", "ctc_weight"], "--set ctc_weight: write NAME=VALUE"),
        (["{parts}", "--train", "{clips}", "--set", "ctc_weight=7"], "ctc_weight is a share between 0 and 1, got 7"),
        (["{parts}", "--train", "{clips}", "--set", "adapter_layers=two"], "'adapter_layers' expected int, got str"),
        (
            ["{parts}", "--train", "{clips}", "--set", "ctc_weight=0.3", "--non_autoregressive"],
            "--non_autoregressive: the tokenizer of ",
        ),
        (["{filling}", "--train", "{clips}", "--non_autoregressive"], "--non_autoregressive: nothing tells how many"),
        (
            ["{filling}", "--train", "{clips}", "--set", "max_predicted_length=9"],
            "max_predicted_length=9: a decoder that writes from left to right",
        ),
        (
            [*("{filling}", "--train", "{clips}", "--non_autoregressive"), *("--set", "ctc_weight=0.3")]
            + ["--ctc_units", "characters"],
            "--non_autoregressive: nothing tells how many",
        ),
        (["{parts}", "--train", "{clips}", "--feature_extractor", "{tmp}"], "feature extractor of {tmp}"),
    ],
)
def test_a_usage_mistake_is_one_line_with_status_2(words, message, parts, filling_parts, clips, tmp_path, capsys):
    places, both = {"tmp": tmp_path, "clips": clips}, {"{parts}": parts, "{filling}": filling_parts}
    words = [part for word in words for part in (both[word] if word in both else [word.format(**places)])]
    if words[:1] != ["missing.yaml"]:
        words = ["--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--use_cpu", *words]
    assert main(["train-asr", *words]) == 2
    assert message.format(**places) in told(capsys)


def test_unknown_families_and_fields_are_told(clips, tmp_path, capsys):
    from transformers import BertConfig, OPTConfig, OPTForCausalLM

    (tmp_path / "bert").mkdir()
    BertConfig().save_pretrained(tmp_path / "bert")
    assert train(tmp_path / "out", "--encoder", tmp_path / "bert", "--train", clips) == 2
    assert "'bert' is not a supported speech encoder. Supported: " in told(capsys)
    model = save_recognizer(tmp_path / "model")
    assert train(tmp_path / "out", "--model", model, "--train", clips, "--set", "ctc_wait=1") == 2
    assert "--set ctc_wait: no field of SpeechSeq2SeqConfig; did you mean ctc_weight?" in told(capsys)
    small = OPTConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8)
    OPTForCausalLM(small).save_pretrained(tmp_path / "opt")
    save_encoder(tmp_path / "encoder", "wav2vec2")
    assert (
        train(tmp_path / "out", "--encoder", tmp_path / "encoder", "--decoder", tmp_path / "opt", "--train", clips)
        == 2
    )
    assert "'opt' is not a supported text decoder" in told(capsys)


def test_help_explains_the_everyday_options_and_names_all_others(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train-asr", "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert text.index("\nmodel:") < text.index("\ndata:") < text.index("\ntraining:")
    assert "Deprecated" not in text and "--adam_beta2" in text.split("which --help_all explains")[1]
    with pytest.raises(SystemExit):
        main(["train-asr", "--help_all"])
    assert len(capsys.readouterr().out) > 2 * len(text)
    assert TrainingParser(COMMAND).names >= {"encoder", "train", "adam_beta2"}


def test_a_mistake_shows_its_traceback_where_asked(capsys):
    for words in (["--debug", "train-asr", "missing.yaml"], ["train-asr", "missing.yaml", "--debug"]):
        with pytest.raises(CommandError, match=r"missing\.yaml: no such file"):
            main(words)


@pytest.mark.slow
def test_two_processes_train_under_accelerate_launch(parts, clips, tmp_path):
    config = tmp_path / "config.json"
    options = {"train": str(clips), "validation": str(clips), "output_dir": str(tmp_path / "model"), "max_steps": 2}
    options |= {"encoder": parts[1], "decoder": parts[3], "use_cpu": True, "save_strategy": "no"}
    config.write_text(json.dumps(options))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, "-m", "speechgraft.scripts.train_asr", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("model saved to") == 1
    assert all(np.isfinite(value).all() for value in map(torch.Tensor.numpy, weights(tmp_path / "model").values()))
