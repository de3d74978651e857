"""`speechgraft quickstart` keeps its promises: a fair test, ordinary parts, a model that loads, true pictures."""

import importlib.util
import logging as standard_logging
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoConfig, AutoModelForSpeechSeq2Seq, AutoProcessor, AutoTokenizer, BertLMHeadModel

from speechgraft.modeling.quickstart_parts import train_tokenizer
from speechgraft.modeling.speech_figures import (
    FiguresNotInstalledError,
    losses_by_step,
    plot_cross_attention,
    plot_losses,
)
from speechgraft.processing.espeak_speech import EspeakSynthesizer, EspeakVoice
from speechgraft.processing.quickstart_corpus import (
    HELD_OUT_SPEAKERS,
    TRAINING_SPEAKERS,
    draw_sentences,
    draw_voices,
    quickstart_vocabulary,
    speak_training_clips,
)
from speechgraft.processing.speech_datasets import load_speech_dataset
from speechgraft.scripts.cli import main, make_parser
from speechgraft.scripts.common import MISUSED
from speechgraft.scripts.quickstart import QuickstartOptions
from speechgraft.scripts.quickstart_recipe import QuickstartResult, graft, one_thread, run_quickstart

PNG_SIGNATURE = b"\x89PNG"

needs_espeak = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="needs espeakng-loader")
needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


def tiny_options(folder: Path) -> QuickstartOptions:
    return QuickstartOptions(
        output_dir=folder,
        train_clips=12,
        held_out_clips=6,
        encoder_steps=3,
        decoder_steps=3,
        steps=10,
        batch_size=4,
        num_beams=2,
        show=3,
    )


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> tuple[Path, QuickstartResult, str]:
    """Folder, result and printed text of a run that is too short to learn anything."""
    if importlib.util.find_spec("espeakng_loader") is None or importlib.util.find_spec("matplotlib") is None:
        pytest.skip("needs espeakng-loader and matplotlib")
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        result = run_quickstart(tiny_options(folder))
    return folder, result, "\n".join(lines)


# The corpus ----------------------------------------------------------------------------------------------------------


def test_no_held_out_sentence_is_trained_on():
    sentences = draw_sentences(train=3000, held_out=200, text_only=5000)
    parts = [set(sentences.train), set(sentences.held_out), set(sentences.text_only)]
    assert [len(part) for part in parts] == [3000, 200, 5000]
    assert len(set.union(*parts)) == 8200


def test_no_held_out_voice_is_trained_on():
    variants = [{speaker.partition("+")[2] for speaker in part} for part in (TRAINING_SPEAKERS, HELD_OUT_SPEAKERS)]
    assert not variants[0] & variants[1]
    assert {voice.name for voice in draw_voices(TRAINING_SPEAKERS, 100)} == set(TRAINING_SPEAKERS)


def test_held_out_sentences_hold_no_word_that_training_lacks():
    sentences = draw_sentences(train=300, held_out=200)
    heard = {word for sentence in sentences.train for word in sentence.split()}
    assert {word for sentence in sentences.held_out for word in sentence.split()} <= heard
    assert heard == quickstart_vocabulary()


def test_the_test_stays_the_same_when_training_grows_and_changes_with_the_seed():
    assert draw_sentences(100, 20).held_out == draw_sentences(500, 20, 50).held_out
    assert draw_sentences(100, 20, seed=1).held_out != draw_sentences(100, 20, seed=2).held_out


@needs_espeak
def test_every_speaker_speaks_and_no_two_sound_alike():
    speakers = (*TRAINING_SPEAKERS, *HELD_OUT_SPEAKERS)
    with EspeakSynthesizer() as synthesizer:
        clips = [synthesizer.speak("the old captain", EspeakVoice(name)).audio for name in speakers]
    spectra = np.array([np.abs(np.fft.rfft(clip, 32_000)) for clip in clips])
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    likeness = spectra @ spectra.T - np.eye(len(clips))
    assert likeness.max() < 0.999


@needs_espeak
def test_every_word_is_timed():
    sentences = draw_sentences(train=100, held_out=0).train
    for clip in speak_training_clips(sentences):
        assert " ".join(word.text for word in clip.words) == clip.text
        assert -1e-3 < clip.duration_s - clip.words[-1].end_s < 0.08  # some voices have an echo


def test_every_word_of_the_corpus_is_one_token():
    tokenizer = train_tokenizer(draw_sentences(train=3000, held_out=0).train)
    assert {word: tokenizer.tokenize(word) for word in quickstart_vocabulary()} == {
        word: [word] for word in quickstart_vocabulary()
    }


# The run -------------------------------------------------------------------------------------------------------------


def test_the_saved_model_transcribes_files_as_the_run_printed(tiny_run):
    folder, result, printed = tiny_run
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder / "model")
    processor = AutoProcessor.from_pretrained(folder / "model")
    assert len(result.transcripts) == 3
    name, said, heard = result.transcripts[0]
    inputs = processor(audio=[str(folder / "held-out-clips" / name)], return_tensors="pt")
    ids = model.generate(**inputs, num_beams=2)
    assert processor.batch_decode(ids, skip_special_tokens=True) == [heard]
    assert f"said:  {said}" in printed and f"heard: {heard}" in printed


def test_the_parts_are_ordinary_folders_and_the_graft_starts_from_their_weights(tiny_run):
    folder, _, _ = tiny_run
    encoder_folder, decoder_folder = folder / "pretrained-encoder", folder / "pretrained-decoder"
    assert AutoConfig.from_pretrained(encoder_folder).model_type == "speech_to_text"
    assert AutoTokenizer.from_pretrained(decoder_folder).cls_token == "[CLS]"
    model = graft(encoder_folder, decoder_folder)
    decoder = BertLMHeadModel.from_pretrained(decoder_folder)
    grafted = model.decoder.state_dict()
    for name, weight in decoder.state_dict().items():
        assert torch.equal(grafted[name], weight), name
    assert model.config.newly_initialized == [
        "ctc_head",
        *(f"decoder.bert.encoder.layer.{layer}.crossattention" for layer in range(2)),
    ]


def test_fine_tuning_moved_the_encoder_and_the_decoder(tiny_run):
    folder, _, _ = tiny_run
    before = graft(folder / "pretrained-encoder", folder / "pretrained-decoder").state_dict()
    after = AutoModelForSpeechSeq2Seq.from_pretrained(folder / "model").state_dict()
    assert before.keys() == after.keys()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert all("position" in name for name in still), still


def test_the_written_clips_are_an_audio_folder_with_transcripts(tiny_run):
    folder, result, _ = tiny_run
    dataset = load_speech_dataset(folder / "held-out-clips")
    assert sorted(row["text"] for row in dataset) == sorted(said for _, said, _ in result.transcripts)
    info = soundfile.info(folder / "held-out-clips" / result.transcripts[0][0])
    assert (info.samplerate, info.channels) == (16_000, 1)


def test_both_pictures_are_drawn_and_the_times_are_told(tiny_run):
    folder, result, printed = tiny_run
    for name in ("loss.png", "cross_attention.png"):
        content = (folder / name).read_bytes()
        assert content.startswith(PNG_SIGNATURE) and len(content) > 5_000
    assert len(result.seconds) == 8 and all(seconds > 0 for seconds in result.seconds.values())
    assert all(step in printed for step in result.seconds)
    assert f"{result.wer_greedy:.1%}" in printed and f"{result.wer_beam:.1%}" in printed


def test_a_run_leaves_threads_and_logging_as_they_were(tiny_run):
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == standard_logging.WARNING
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_has_an_option_for_every_field_with_its_default():
    args = make_parser("quickstart").parse_args(["quickstart"])
    assert {option.name: getattr(args, option.name) for option in fields(QuickstartOptions)} == {
        option.name: option.default for option in fields(QuickstartOptions)
    }


@pytest.mark.parametrize("missing", ["espeakng_loader", "matplotlib"])
def test_a_missing_extra_is_one_line_with_the_command_that_helps(missing, monkeypatch, capsys, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else find_spec(name, *rest)
    )
    assert main(["quickstart", "--output-dir", str(tmp_path / "out")]) == MISUSED
    message = capsys.readouterr().err
    assert 'pip install "speechgraft[quickstart]"' in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@needs_espeak
@needs_matplotlib
def test_an_output_folder_that_cannot_be_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["quickstart", "--output-dir", str(tmp_path / "file" / "out")]) == MISUSED
    assert str(tmp_path / "file" / "out") in capsys.readouterr().err


def test_a_count_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["quickstart", "--steps", "0"])
    assert "at least 1" in capsys.readouterr().err


# The pictures --------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_part_of_the_log_that_has_its_name():
    log = [{"step": 10, "loss": 2.0, "ctc_loss": 3.0}, {"step": 10, "eval_loss": 1.0}, {"step": 20, "loss": 1.0}]
    assert losses_by_step(log) == [(10, 2.0), (20, 1.0)]
    assert losses_by_step(log, "ctc_loss") == [(10, 3.0)]


@needs_matplotlib
def test_attention_is_drawn_with_a_label_for_each_token_on_an_axis_in_seconds(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (figures.append(self), savefig(self, path)))
    attention = np.eye(3, 8)
    plot_cross_attention(
        attention, ["a", "b", "[SEP]"], 0.2, tmp_path / "a.png", word_starts_s=[("a", 0.0), ("b", 0.4)]
    )
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "[SEP]"]
    assert axes.get_xlim() == pytest.approx((0, 1.5))
    assert np.array_equal(axes.images[0].get_array(), attention)
    assert axes.images[0].get_extent()[:2] == pytest.approx([-0.1, 1.5])
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    assert (tmp_path / "a.png").read_bytes().startswith(PNG_SIGNATURE)


@needs_matplotlib
def test_tokens_that_do_not_fit_the_attention_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 tokens need attention of shape \[2, T\]"):
        plot_cross_attention(np.eye(3, 8), ["a", "b"], 0.2, tmp_path / "a.png")


def test_pictures_without_matplotlib_name_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FiguresNotInstalledError, match=r"speechgraft\[plot\]"):
        plot_losses({"run": {"loss": [(1, 1.0)]}}, tmp_path / "loss.png")


# What it is all for --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_espeak
@needs_matplotlib
def test_the_recogniser_hears_new_voices_say_new_sentences(tmp_path):
    start = time.process_time()
    result = run_quickstart(QuickstartOptions(output_dir=tmp_path))
    assert result.wer_greedy < 0.10 and result.wer_beam < 0.10
    assert time.process_time() - start < 300
