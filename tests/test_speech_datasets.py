"""Recordings and transcripts load from wherever people have them, without torchcodec too, and no row gets lost."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile

from speechgraft.processing.audio_files import load_audio
from speechgraft.processing.speech_datasets import DatasetError, drop_unusable, load_speech_dataset

TEXTS = ["one two", "three", "the cat sat"]


def write_clips(folder: Path, n: int = 3, rate: int = 8_000) -> list[str]:
    """Clips of 0.1, 0.2, ... seconds; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"clip{i}.wav" for i in range(n)]
    for i, name in enumerate(names):
        soundfile.write(folder / name, np.full(rate * (i + 1) // 10, 0.1 * i), rate)
    return names


def write_table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def audio_folder(folder: Path, suffix: str = "csv", **extra: object) -> Path:
    rows = [{"file_name": name, "text": text, **extra} for name, text in zip(write_clips(folder), TEXTS, strict=True)]
    write_table(folder / f"metadata.{suffix}", rows, "\t" if suffix == "tsv" else ",")
    return folder


def assert_is_the_corpus(dataset: Any) -> None:
    rows = list(dataset)
    assert [row["text"] for row in rows] == TEXTS
    assert [len(load_audio(row["audio"])) for row in rows] == [1_600, 3_200, 4_800]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_audio_folder_loads_from_any_metadata(tmp_path, suffix, streaming):
    """datasets' own audiofolder builder fails here without torchcodec."""
    dataset = load_speech_dataset(audio_folder(tmp_path, suffix, speaker="me"), streaming=streaming)
    assert_is_the_corpus(dataset)
    assert [row["duration"] for row in dataset] == pytest.approx([0.1, 0.2, 0.3])
    assert [row["speaker"] for row in dataset] == ["me"] * 3
    assert isinstance(dataset, datasets.IterableDataset if streaming else datasets.Dataset)


@pytest.mark.parametrize("audio_column", ["file_name", "audio", "path", "audio_filepath"])
@pytest.mark.parametrize("text_column", ["text", "sentence", "transcription"])
def test_manifests_are_understood_by_their_usual_columns(tmp_path, audio_column, text_column):
    names = write_clips(tmp_path / "wavs")
    rows = [{audio_column: f"wavs/{n}", text_column: t} for n, t in zip(names, TEXTS, strict=True)]
    dataset = load_speech_dataset(write_table(tmp_path / "corpus.csv", rows))
    assert dataset.column_names == ["audio", "text", "duration"]
    assert_is_the_corpus(dataset)


def test_columns_can_be_named_and_absolute_paths_used(tmp_path):
    names = write_clips(tmp_path / "wavs")
    rows = [
        {"text": "not this", "clip": str(tmp_path / "wavs" / n), "said": t, "duration": 9.5}
        for n, t in zip(names, TEXTS, strict=True)
    ]
    manifest = write_table(tmp_path / "elsewhere" / "corpus.jsonl", rows)
    dataset = load_speech_dataset(manifest, audio_column="clip", text_column="said")
    assert_is_the_corpus(dataset)
    assert dataset["duration"] == [9.5] * 3


def test_audio_is_not_read_before_it_is_needed(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(soundfile, "read", refuse)
    monkeypatch.setattr(soundfile.SoundFile, "read", refuse)
    dataset = load_speech_dataset(audio_folder(tmp_path))
    assert [Path(row["audio"]).name for row in dataset] == ["clip0.wav", "clip1.wav", "clip2.wav"]


def test_splits_are_folders_files_or_a_column(tmp_path):
    audio_folder(tmp_path / "folders" / "train")
    audio_folder(tmp_path / "folders" / "test")
    write_clips(tmp_path / "files")
    write_clips(tmp_path / "column")
    rows = [{"file_name": f"clip{i}.wav", "text": TEXTS[i]} for i in range(3)]
    for split in ("train", "test"):
        write_table(tmp_path / "files" / f"{split}.csv", rows)
    write_table(
        tmp_path / "column" / "metadata.csv",
        [{**row, "split": split} for split in ("train", "test") for row in rows],
    )
    for kind in ("folders", "files", "column"):
        assert_is_the_corpus(load_speech_dataset(tmp_path / kind, "test"))
        with pytest.raises(DatasetError, match=r"no split 'dev'; there are test, train"):
            load_speech_dataset(tmp_path / kind, "dev")
    for kind in ("folders", "files"):
        with pytest.raises(DatasetError, match=r"give a split, one of test, train"):
            load_speech_dataset(tmp_path / kind)
    audio_folder(tmp_path / "single" / "data")
    assert_is_the_corpus(load_speech_dataset(tmp_path / "single"))


def test_a_manifest_is_not_taken_for_a_split_it_does_not_have(tmp_path):
    folder = audio_folder(tmp_path / "corpus")
    assert_is_the_corpus(load_speech_dataset(folder, "train"))
    with pytest.raises(DatasetError, match="no split 'validation', as there is no column 'split'"):
        load_speech_dataset(folder, "validation")


@pytest.mark.parametrize(("split", "n"), [("train[:2]", 2), ("train[1:]", 2), ("train[:34%]", 1), ("train[-1:]", 1)])
def test_splits_are_sliced_as_datasets_does(tmp_path, split, n):
    assert len(load_speech_dataset(audio_folder(tmp_path), split)) == n


def broken(folder: Path, kind: str) -> Path:
    """An audio folder with one fault."""
    names = write_clips(folder)
    rows = [{"file_name": name, "text": text} for name, text in zip(names, TEXTS, strict=True)]
    match kind:
        case "missing file":
            rows[1]["file_name"] = "absent.wav"
        case "no file name":
            rows[1]["file_name"] = ""
        case "empty text":
            rows[1]["text"] = " "
        case "broken audio":
            (folder / "clip1.wav").write_text("no audio")
        case "no rows":
            (folder / "metadata.csv").write_text("file_name,text\n")
            return folder
        case "no text column":
            rows = [{"file_name": row["file_name"], "words": row["text"], "speaker": "me"} for row in rows]
        case "no audio column":
            rows = [{"sound": row["file_name"], "text": row["text"]} for row in rows]
        case "comma in the text":
            (folder / "metadata.csv").write_text("file_name,text\nclip0.wav,a\nclip1.wav,well, no\n")
            return folder
        case "bad json":
            (folder / "metadata.jsonl").write_text('{"file_name": "clip0.wav", "text": "a"}\n{"file_name": \n')
            return folder
        case "json list":
            (folder / "metadata.jsonl").write_text("[1, 2]\n")
            return folder
        case "not UTF-8":
            (folder / "metadata.csv").write_bytes("file_name,text\nclip0.wav,ä\n".encode("latin-1"))
            return folder
        case "mixed types":
            mixed = [{**row, "speaker": value} for row, value in zip(rows, [1, "two", [3]], strict=True)]
            write_table(folder / "metadata.jsonl", mixed)
            return folder
    write_table(folder / "metadata.csv", rows)
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing file", r"metadata\.csv line 3, column file_name: no such audio file: .*absent\.wav"),
        ("no file name", r"metadata\.csv line 3, column file_name: no audio file name \(''\)"),
        ("empty text", r"metadata\.csv line 3, column text: empty transcript \(' '\)"),
        ("broken audio", r"metadata\.csv line 3, column file_name: .*clip1\.wav: cannot be decoded"),
        ("no rows", r"metadata\.csv: no rows"),
        ("no text column", r"no text column \(looked for text, .*\); the columns are: file_name, words, speaker"),
        ("no audio column", r"no audio column \(looked for audio, .*\); the columns are: sound, text"),
        ("comma in the text", r"metadata\.csv line 3: 3 fields, but the header has 2"),
        ("bad json", r"metadata\.jsonl line 2: not JSON"),
        ("json list", r"metadata\.jsonl line 1: a JSON object is expected, not '\[1, 2\]'"),
        ("not UTF-8", r"metadata\.csv: not UTF-8"),
        ("mixed types", r"metadata\.jsonl: a column holds values of different types"),
    ],
)
def test_a_faulty_source_names_file_line_column_and_value(tmp_path, kind, message):
    with pytest.raises(DatasetError, match=message) as caught:
        load_speech_dataset(broken(tmp_path, kind))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.csv", "no such manifest"),
        ("./absent", "no such file or folder"),
        ("/absent/folder", "no such file or folder"),
        ("notes.txt", r"a manifest is one of \.csv, \.tsv, \.jsonl"),
        ("some/dataset", "cannot be loaded"),  # a hub id, and there is no network
    ],
)
def test_a_source_that_is_not_there_is_one_line(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("hello")
    with pytest.raises(DatasetError, match=message) as caught:
        load_speech_dataset(source)
    assert source in str(caught.value) and "\n" not in str(caught.value)


def test_audio_without_metadata_says_what_is_missing(tmp_path):
    write_clips(tmp_path)
    with pytest.raises(DatasetError, match="needs a metadata.csv"):
        load_speech_dataset(tmp_path)


def hub_like(folder: Path) -> Path:
    """A folder of parquet files whose audio column has the Audio feature, as data sets on the hub have."""
    clips = folder / "clips"
    content = [(clips / name).read_bytes() for name in write_clips(clips)]
    plain = datasets.Dataset.from_dict(
        {"speech": [{"bytes": c, "path": f"{i}.wav"} for i, c in enumerate(content)], "sentence": TEXTS}
    )
    dataset = plain.cast_column("speech", datasets.Audio(sampling_rate=16_000))
    (folder / "hub" / "data").mkdir(parents=True)
    dataset.to_parquet(str(folder / "hub" / "data" / "train-00000-of-00001.parquet"))
    return folder / "hub"


@pytest.mark.parametrize(
    ("split", "streaming"), [(None, False), ("train", False), ("train[:3]", False), (None, True), ("train", True)]
)
def test_data_sets_with_the_audio_feature_load_without_torchcodec(tmp_path, streaming, split):
    source = hub_like(tmp_path)
    cache = str(tmp_path / "cache")
    dataset = load_speech_dataset(source, split, audio_column="speech", streaming=streaming, cache_dir=cache)
    assert set(next(iter(dataset))) == {"audio", "text"}
    assert_is_the_corpus(dataset)
    kept, report = drop_unusable(dataset, min_duration_s=0.15, progress=False)
    assert [row["text"] for row in kept] == TEXTS[1:] and report.counts == {"audio too short": 1}


def test_a_slice_of_a_stream_is_refused_not_ignored(tmp_path):
    with pytest.raises(DatasetError, match=r"train\[:3\]"):
        load_speech_dataset(hub_like(tmp_path), "train[:3]", audio_column="speech", streaming=True)


def test_a_folder_of_save_to_disk_loads(tmp_path):
    source = hub_like(tmp_path)
    dataset = datasets.load_dataset(str(source), split="train", cache_dir=str(tmp_path / "cache"))
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "several")
    assert_is_the_corpus(load_speech_dataset(tmp_path / "one", audio_column="speech"))
    assert_is_the_corpus(load_speech_dataset(tmp_path / "several", "test", audio_column="speech"))
    assert len(load_speech_dataset(tmp_path / "several", "test[:1]", audio_column="speech")) == 1
    with pytest.raises(DatasetError, match="give a split, one of train, test"):
        load_speech_dataset(tmp_path / "several", audio_column="speech")
    assert_is_the_corpus(load_speech_dataset(tmp_path / "one", audio_column="speech", streaming=True))


def test_nothing_imports_torchcodec(tmp_path, monkeypatch):
    """With it, people may lack FFmpeg: its import fails, and datasets' decoding with it."""
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert_is_the_corpus(load_speech_dataset(audio_folder(tmp_path)))


def faulty_corpus(folder: Path) -> Path:
    """Rows 0 and 6 are good."""
    names = write_clips(folder, 7)
    (folder / "clip1.wav").write_text("no audio")
    soundfile.write(folder / "clip2.wav", np.full(800, np.nan), 8_000, subtype="FLOAT")
    soundfile.write(folder / "clip3.wav", np.zeros(8_000 * 3), 8_000)
    rows = [{"file_name": name, "text": f"text {i}"} for i, name in enumerate(names)]
    rows[4]["file_name"] = "absent.wav"
    rows[5]["text"] = ""
    write_table(folder / "metadata.csv", rows)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_unusable_clips_are_left_out_counted_and_named(tmp_path, streaming, caplog):
    dataset = load_speech_dataset(faulty_corpus(tmp_path), strict=False, streaming=streaming)
    kept, report = drop_unusable(dataset, max_duration_s=2.0, progress=False)
    assert [row["text"] for row in kept] == ["text 0", "text 6"]
    assert report.checked == 7
    assert report.counts == {"unusable audio": 3, "audio too long": 1, "empty transcript": 1}
    assert [clip["index"] for clip in report.clips] == [1, 2, 3, 4, 5]
    assert [Path(clip["audio"]).name for clip in report.clips][3] == "absent.wav"
    assert report.summary() == "left out 5 of 7 clips: 1 audio too long, 1 empty transcript, 3 unusable audio"
    for detail in ("cannot be decoded", "800 of 800 samples are NaN", "3.00 s, the limit is 2 s", "no such file"):
        assert detail in caplog.text


def test_short_clips_and_long_transcripts_can_be_left_out(tmp_path):
    dataset = load_speech_dataset(audio_folder(tmp_path))
    kept, report = drop_unusable(
        dataset, min_duration_s=0.15, max_label_length=2, count_tokens=lambda text: len(text.split()), progress=False
    )
    assert kept["text"] == ["three"]
    assert report.counts == {"audio too short": 1, "transcript too long": 1}
    with pytest.raises(ValueError, match="count_tokens"):
        drop_unusable(dataset, max_label_length=2)


@pytest.mark.parametrize("streaming", [False, True])
def test_transcripts_that_a_ctc_alphabet_cannot_spell_are_told_before_training(tmp_path, streaming, caplog):
    names = write_clips(tmp_path, 5)
    texts = ["a cab", "42", "b\u00e9b\u00e9 2", "a\tb", "\u00e9a"]
    rows = [{"file_name": name, "text": text} for name, text in zip(names, texts, strict=True)]
    write_table(tmp_path / "metadata.csv", rows)
    dataset = load_speech_dataset(tmp_path, streaming=streaming)
    kept, report = drop_unusable(dataset, alphabet="abc ", progress=False)
    assert [row["text"] for row in kept] == [texts[0], *texts[2:]]
    assert report.counts == {"transcript that cannot be spelled": 1}
    assert dict(report.foreign_characters) == {"\u00e9": 2, "2": 1}
    assert "no character of the CTC head's alphabet in '42'" in caplog.text
    named = [record.message for record in caplog.records if "outside of the CTC head's alphabet" in record.message]
    assert len(named) == 1 and "'2' (1)" in named[0] and "'\u00e9'" in named[0]


def test_a_good_set_is_left_as_it_is(tmp_path, capsys):
    dataset = load_speech_dataset(audio_folder(tmp_path))
    kept, report = drop_unusable(dataset)
    assert kept is dataset and report.summary() == "all 3 clips are usable"
    assert "checking clips" in capsys.readouterr().err  # the progress bar


def test_recordings_of_the_development_set_are_all_usable(recordings):
    dataset = load_speech_dataset(recordings, "validation")
    assert {"audio", "text", "duration", "speaker"} <= set(dataset.column_names)
    _, report = drop_unusable(dataset.select(range(0, len(dataset), 10)), max_duration_s=30.0, progress=False)
    assert not report.clips
    with pytest.raises(DatasetError, match="one of train, validation"):
        load_speech_dataset(recordings)
