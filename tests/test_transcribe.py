"""`speechgraft transcribe`: every good recording gets its text, every bad one its line, whatever else goes wrong."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from tiny_models import save_encoder
from tiny_recognizers import (
    RATE,
    noise,
    save_bad_clips,
    save_clips,
    save_native,
    save_odd_clips,
    save_recognizer,
)

from speechgraft.modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
from speechgraft.processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor
from speechgraft.processing.subtitles import JsonArrayWriter, Segment, format_srt, format_vtt
from speechgraft.scripts.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_recognizer(tmp_path_factory.mktemp("recognizer") / "model"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return save_clips(tmp_path_factory.mktemp("audio") / "clips", 5)


def transcribe(*words: object) -> int:
    return main(["transcribe", "--max-new-tokens", "8", "--temperatures", "0", *map(str, words)])


def generate(model: str, path: Path, **options) -> list[str]:
    """What a user's own code gets for one recording."""
    processor = SpeechSeq2SeqProcessor.from_pretrained(model)
    inputs = processor(audio=str(path), return_tensors="pt")
    sequences = SpeechSeq2SeqModel.from_pretrained(model).eval().generate(**inputs, max_length=9, **options)
    return [text.strip() for text in processor.batch_decode(sequences, skip_special_tokens=True)]


def test_a_file_gives_its_text_and_nothing_else(model, clips, capsys):
    assert transcribe(clips / "clip1.wav", "--model", model) == 0
    assert capsys.readouterr().out.splitlines() == generate(model, clips / "clip1.wav")


def test_each_recording_of_a_folder_gets_what_it_gets_alone_whatever_the_batch(model, clips, capsys):
    expected = [f"{path}\t{generate(model, path)[0]}" for path in sorted(clips.glob("*.wav"))]
    assert len({line.split("\t")[1] for line in expected}) > 1, "the model says the same of everything"
    for batch_size in (1, 2, 8):
        assert transcribe(clips, "--model", model, "--batch-size", batch_size) == 0
        assert capsys.readouterr().out.splitlines() == expected


def test_paths_come_from_standard_input_in_their_order(model, clips, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{clips / 'clip3.wav'}\n\n  {clips / 'clip0.wav'}\n"))
    assert transcribe("-", "--model", model) == 0
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [str(clips / "clip3.wav"), str(clips / "clip0.wav")]


@pytest.mark.parametrize("spelled", [{}, {"ctc_characters": " abcdehlnorstuw"}])
def test_the_ctc_head_has_its_say_where_asked(model, clips, tmp_path, capsys, spelled):
    joint = str(save_recognizer(tmp_path / "joint", ctc_weight=0.3, **spelled))
    heard = {}
    for weight in (0, 0.9):
        assert transcribe(clips / "clip1.wav", "--model", joint, "--ctc-weight", weight) == 0
        heard[weight] = capsys.readouterr().out.splitlines()
        assert heard[weight] == generate(joint, clips / "clip1.wav", ctc_weight=weight)
    assert heard[0] != heard[0.9]
    assert transcribe(clips, "--model", model, "--ctc-weight", 0.3) == 2
    assert "--ctc-weight 0.3: the model was trained without a CTC head" in capsys.readouterr().err


def test_json_gives_the_n_best_with_scores_that_beam_search_ranked_them_by(model, clips, tmp_path):
    output = tmp_path / "out.json"
    assert transcribe(clips, "--model", model, "--format", "json", "--nbest", 3, "--output", output) == 0
    records = json.loads(output.read_text())
    assert [Path(record["file"]).name for record in records] == [f"clip{index}.wav" for index in range(5)]
    texts = generate(model, clips / "clip2.wav", num_beams=3, num_return_sequences=3)
    assert [hypothesis["text"] for hypothesis in records[2]["nbest"]] == texts
    assert records[2]["text"] == texts[0] and records[2]["duration_s"] == 0.5
    for record in records:
        scores = [hypothesis["score"] for hypothesis in record["nbest"]]
        assert scores == sorted(scores, reverse=True) and record["score"] == scores[0]


def test_a_greedy_score_is_the_mean_log_probability_up_to_the_end_token_in_a_batch_too(model, clips, capsys):
    assert transcribe(clips, "--model", model, "--format", "json", "--num-beams", 1) == 0
    scores = [record["score"] for record in json.loads(capsys.readouterr().out)]
    processor = SpeechSeq2SeqProcessor.from_pretrained(model)
    network = SpeechSeq2SeqModel.from_pretrained(model).eval()
    for path, score in zip(sorted(clips.glob("*.wav")), scores, strict=True):
        inputs = processor(audio=str(path), return_tensors="pt")
        sequence = network.generate(**inputs, max_length=9)
        with torch.no_grad():
            logits = network(**inputs, decoder_input_ids=sequence[:, :-1]).logits
        chosen = logits.log_softmax(-1).gather(-1, sequence[:, 1:, None])
        assert score == pytest.approx(float(chosen.mean()), abs=1e-3)


def test_unusual_recordings_are_transcribed(model, tmp_path, capsys):
    odd = save_odd_clips(tmp_path / "odd")
    assert transcribe(*odd.values(), "--model", model) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [str(p) for p in odd.values()]


def test_bad_recordings_are_told_in_one_line_each_and_the_rest_is_done(model, clips, tmp_path, capsys):
    bad = save_bad_clips(tmp_path / "bad")
    files = [clips / "clip0.wav", *bad.values(), clips / "clip1.wav"]
    assert transcribe(*files, "--model", model, "--format", "json", "--max-duration-s", 60) == 1
    out, err = capsys.readouterr()
    records = json.loads(out)
    assert [record["file"] for record in records] == [str(path) for path in files]
    assert [path for path, record in zip(files, records, strict=True) if "text" in record] == [files[0], files[-1]]
    told = [line for line in err.splitlines() if "skipped" in line]
    assert len(told) == len(bad) + 1 and told[-1] == f"skipped {len(bad)} of {len(files)} recordings"
    for message, path in bad.items():
        assert any(str(path) in line and message in line for line in told), message
    assert "Traceback" not in err


def test_nothing_is_loaded_where_no_recording_exists(tmp_path, capsys):
    assert transcribe(tmp_path / "a.wav", tmp_path / "b.wav", "--model", "no-model-is-asked-for") == 1
    assert capsys.readouterr().err.count("no such file") == 2


def test_audio_beyond_the_encoders_window_is_cut_into_windows(tmp_path, capsys):
    model = save_recognizer(tmp_path / "model", "whisper")
    soundfile.write(tmp_path / "long.wav", noise(2.5), RATE)
    assert transcribe(tmp_path / "long.wav", "--model", model, "--format", "json", "--timestamps", "segment") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["duration_s"] == 2.5 and record["segments"][-1]["end_s"] > 1


def test_an_hour_of_silence_is_an_empty_text(model, tmp_path, capsys):
    hour = save_bad_clips(tmp_path / "bad")["3600.0 s long"]
    assert transcribe(hour, "--model", model, "--format", "json", "--timestamps", "word") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["text"], record["segments"], record["duration_s"]) == ("", [], 3600.0)


def test_times_are_those_of_the_library_in_every_format(model, clips, tmp_path, capsys):
    files = [clips / "clip1.wav", clips / "clip4.wav"]
    network, processor = SpeechSeq2SeqModel.from_pretrained(model), SpeechSeq2SeqProcessor.from_pretrained(model)
    options = {"timestamps": "char", "max_new_tokens": 8, "temperatures": (0.0,)}
    known = network.transcribe([str(path) for path in files], processor, **options)
    assert all(one.words for one in known)
    assert transcribe(*files, "--model", model, "--format", "json", "--timestamps", "char") == 0
    for record, one in zip(json.loads(capsys.readouterr().out), known, strict=True):
        assert record["confidence"] == round(one.confidence, 4) and record["text"] == one.text
        words = [word for segment in record["segments"] for word in segment["words"]]
        assert [word["start_s"] for word in words] == [round(word.start_s, 3) for word in one.words]
        assert ["".join(c["text"] for c in word["characters"]) for word in words] == one.text.split()
    assert transcribe(*files, "--model", model, "--timestamps", "word") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        [str(path), f"{word.start_s:.3f}", f"{word.end_s:.3f}", word.text]
        for path, one in zip(files, known, strict=True)
        for word in one.words
    ]
    assert transcribe(files[0], "--model", model, "--format", "srt", "--output", tmp_path / "a.srt") == 0
    assert (tmp_path / "a.srt").read_text() == format_srt(known[0].segments)
    assert transcribe(*files, "--model", model, "--format", "vtt", "--timestamps", "word", "--output", tmp_path) == 0
    assert (tmp_path / "clip4.vtt").read_text() == format_vtt(known[1].words)


def test_a_recording_in_pieces_is_what_the_library_makes_of_it(model, tmp_path, capsys):
    soundfile.write(tmp_path / "long.wav", noise(3.0), RATE)
    assert transcribe(tmp_path / "long.wav", "--model", model, "--max-chunk-s", 1, "--nbest", 2) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    network, processor = SpeechSeq2SeqModel.from_pretrained(model), SpeechSeq2SeqProcessor.from_pretrained(model)
    options = {"max_chunk_s": 1, "min_chunk_s": 0.5, "overlap_s": 0.5, "n_best": 2, "num_beams": 2}
    known = network.transcribe(
        str(tmp_path / "long.wav"), processor, timestamps=None, temperatures=(0.0,), max_new_tokens=8, **options
    )
    assert [row[2] for row in rows] == [one.text for one in known.hypotheses]
    assert float(rows[0][1]) >= float(rows[1][1])


def test_native_folders_work_as_they_are(tmp_path, clips, capsys):
    assert transcribe(clips, "--model", save_native(tmp_path / "native")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_whisper_folder_works_as_a_baseline(tmp_path, clips, capsys):
    from tiny_models import MELS
    from tiny_tokenizers import tiny_tokenizer
    from transformers import WhisperFeatureExtractor

    save_encoder(tmp_path / "whisper", "whisper", max_source_positions=50)
    WhisperFeatureExtractor(feature_size=MELS, chunk_length=1).save_pretrained(tmp_path / "whisper")
    tokenizer: Any = tiny_tokenizer("whisper")
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, "<|startofprev|>"]})
    tokenizer.save_pretrained(tmp_path / "whisper")
    assert transcribe(clips, "--model", tmp_path / "whisper") == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    told = ["--condition-on-previous-text", "--initial-prompt", "the cat sat"]
    assert transcribe(clips, "--model", tmp_path / "whisper", "--format", "json", *told) == 0
    texts = [one["text"] for one in json.loads(capsys.readouterr().out)]
    model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(tmp_path / "whisper")
    processor = SpeechSeq2SeqProcessor.from_parts(tmp_path / "whisper", tmp_path / "whisper", config=model.config)
    options = {"temperatures": (0.0,), "max_new_tokens": 8, "timestamps": None}
    options |= {"condition_on_previous_text": True, "initial_prompt": "the cat sat"}
    files = sorted(map(str, clips.glob("*.wav")))
    assert texts == [one.text for one in model.transcribe(files, processor, **options)]


@pytest.fixture(scope="module")
def filling(tmp_path_factory) -> str:
    """A model whose decoder fills in masked tokens."""
    return str(save_recognizer(tmp_path_factory.mktemp("filling") / "model", ctc_weight=0.3, mask_token_id=1))


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ([], {}),
        (["--passes", "0"], {"passes": 0}),
        (["--passes", "2", "--mask-threshold", "1"], {"passes": 2, "threshold": 1.0}),
    ],
)
def test_a_decoder_that_fills_in_does_so(options, arguments, filling, clips, capsys):
    processor = SpeechSeq2SeqProcessor.from_pretrained(filling)
    network = SpeechSeq2SeqModel.from_pretrained(filling).eval()
    expected = []
    for path in sorted(clips.glob("*.wav")):
        ids = network.generate_masked(**processor(audio=str(path), return_tensors="pt"), max_new_tokens=8, **arguments)
        expected.append(processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
    assert len(set(expected)) > 1
    for batch_size in (1, 5):
        words = [clips, "--model", filling, "--format", "json", "--timestamps", "word", "--batch-size", batch_size]
        assert transcribe(*words, *options) == 0
        found = json.loads(capsys.readouterr().out)
        assert [one["text"] for one in found] == expected
        for one, text in zip(found, expected, strict=True):
            words = [word for segment in one["segments"] for word in segment["words"]]
            assert " ".join(word["text"] for word in words) == text
            assert all(0 <= word["confidence"] <= 1 for word in words) and one["score"] <= 0


def test_a_decoder_that_fills_in_refuses_what_it_would_ignore(filling, model, clips, tmp_path, capsys):
    lists = {
        "--num-beams": "2",
        "--nbest": "2",
        "--ctc-weight": "0.3",
        "--hot-words": "hello",
        "--language-model": str(tmp_path),
        "--initial-prompt": "a cat",
        "--temperatures": "0,0.4",
    }
    for option, value in lists.items():
        assert transcribe(clips, "--model", filling, option, value) == 2
        (line,) = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("speechgraft transcribe: ")
        ]
        assert line.endswith(
            f"{option}: the model's decoder fills in masked tokens, it does not search: leave the option out"
        )
    for option, value in (("--passes", "2"), ("--mask-threshold", "0.5")):
        assert transcribe(clips, "--model", model, option, value) == 2
        assert f"{option}: the model's decoder writes from left to right" in capsys.readouterr().err


def test_subtitles_of_several_recordings_need_a_folder(model, clips, tmp_path, capsys):
    assert transcribe(clips, "--model", model, "--format", "srt") == 2
    assert "--format srt: 5 recordings have a file of subtitles each" in capsys.readouterr().err
    assert transcribe(clips, "--model", model, "--timing", "ctc") == 2
    assert "--timing: method='ctc': the model has no CTC head" in capsys.readouterr().err
    (tmp_path / "more").mkdir()
    soundfile.write(tmp_path / "more" / "clip0.flac", noise(0.4), RATE)
    assert transcribe(clips, tmp_path / "more", "--model", model, "--format", "srt", "--output", tmp_path) == 0
    names = {path.name for path in tmp_path.glob("*.srt")}
    assert names == {*(f"clip{place}.srt" for place in range(5)), "clip0.flac.srt"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{tmp}/none"], "{tmp}/none: no such model folder"),
        (["--model", "{tmp}"], "{tmp}: no config.json in this folder, so it holds no model"),
        (["--model", "{clip}"], "{clip}: a file, but a model is a folder or a hub id"),
        (["--model", "{model}", "--nbest", "4", "--num-beams", "2"], "--nbest 4 needs --num-beams 4 or more, not 2"),
        (["--model", "{model}", "--output", "{tmp}/no/out.txt"], "no such folder {tmp}/no"),
        (["--model", "{model}", "--initial-prompt", "a cat"], "the bert decoder cannot be told what was said before"),
        (["--model", "{model}", "--device", "abacus"], "{model}: "),
        (["--model", "{model}", "--attn", "best"], "best"),
        (["--model", "nobody/no-such-model"], "nobody/no-such-model: neither a folder here nor a model that the hub"),
    ],
)
def test_a_usage_mistake_is_one_line_with_status_2(options, message, model, clips, tmp_path, capsys):
    places = {"tmp": tmp_path, "model": model, "clip": clips / "clip0.wav"}
    assert transcribe(clips, *(option.format(**places) for option in options)) == 2
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("speechgraft transcribe: ")]
    assert message.format(**places) in line
    assert "Traceback" not in err


def test_other_models_and_folders_without_a_processor_are_told(tmp_path, clips, capsys):
    save_encoder(tmp_path / "ctc", "wav2vec2")
    assert transcribe(clips, "--model", tmp_path / "ctc") == 2
    assert f"{tmp_path / 'ctc'}: holds a wav2vec2 model" in capsys.readouterr().err
    native = save_native(tmp_path / "native", with_processor=False)
    assert transcribe(clips, "--model", native) == 2
    assert f"{native}: no processor in this folder" in capsys.readouterr().err
    assert transcribe(clips, "--model", native, "--processor", save_recognizer(tmp_path / "model")) == 0


def test_a_broken_weights_file_is_told(tmp_path, clips, capsys):
    model = save_recognizer(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"not weights")
    assert transcribe(clips, "--model", model) == 2
    err = capsys.readouterr().err
    assert str(model) in err and "Traceback" not in err


def test_subrip_times_roll_over_hours_minutes_and_milliseconds():
    segments = [Segment(0.0, 1.9996, " hello "), Segment(3661.05, 3662.0, "world")]
    assert format_srt(segments) == (
        "1\n00:00:00,000 --> 00:00:02,000\nhello\n\n2\n01:01:01,050 --> 01:01:02,000\nworld\n"
    )
    with pytest.raises(ValueError, match="segment 1 lasts from 2 s to 1 s"):
        format_srt([Segment(2, 1, "backwards")])


def test_webvtt_has_its_head_and_points_and_long_lines_are_broken():
    text = "a line that is longer than a line of subtitles may be <i>"
    assert format_vtt([Segment(3661.05, 3662.0, text)]) == (
        "WEBVTT\n\n01:01:01.050 --> 01:01:02.000\na line that is longer than a line of\nsubtitles may be &lt;i&gt;\n"
    )
    assert format_vtt([]) == "WEBVTT\n" and format_srt([]) == ""


def test_a_json_list_is_valid_when_it_is_empty_and_when_the_work_was_cut_short():
    for count in (0, 1, 2):
        lines: list[str] = []
        with pytest.raises(KeyboardInterrupt), JsonArrayWriter(lines.append) as writer:
            for index in range(count):
                writer.write({"text": f"ä{index}"})
            raise KeyboardInterrupt
        assert json.loads("\n".join(lines)) == [{"text": f"ä{index}"} for index in range(count)]
