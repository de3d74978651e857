"""Recordings with transcripts, wherever they are, as one kind of data set: columns `audio` and `text`.

Audio folders and manifests are read here, line by line, so that an error can name the file, the line, the column and
the value; everything else is `datasets.load_dataset`. Recordings stay paths or bytes until the collator (or
`load_audio`) decodes them: nothing depends on torchcodec, and a data set larger than memory is no problem.
"""

import csv
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from .audio_files import AudioError, audio_duration_s, audio_extensions, decoded_duration_s, source_name

logger = logging.getLogger(__name__)

AUDIO_COLUMNS = ("audio", "file_name", "path", "file", "audio_path", "audio_filepath", "filename", "wav")
TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "normalized_text")
MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")
METADATA_NAMES = tuple(f"metadata{suffix}" for suffix in MANIFEST_SUFFIXES)


class DatasetError(ValueError):
    """A data set that cannot be used. The message is one line naming the file, line, column and value."""


def load_speech_dataset(
    source: str | PathLike,
    split: str | None = None,
    *,
    name: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    streaming: bool = False,
    strict: bool = True,
    **load_kwargs: Any,
) -> Any:
    """Load recordings and their transcripts.

    Args:
        source: an audio folder (with metadata.csv, .tsv or .jsonl, or such folders or train.csv, … as splits); a
            manifest (.csv, .tsv or .jsonl whose paths are relative to it); a folder written by `save_to_disk`; or
            any folder or hub id that `datasets.load_dataset` loads.
        split: which split (of a manifest: the rows whose column `split` says so); may be a slice such as
            "train[:100]" or "train[:10%]". Needed only where there are several.
        name: configuration of a hub data set, such as its language.
        audio_column, text_column: their names in the source; by default the usual names are tried.
        streaming: give an `IterableDataset`, which reads as it goes.
        strict: raise on the first unusable row of a folder or manifest. False keeps such rows, for `drop_unusable` to
            report and skip.
        **load_kwargs: for `datasets.load_dataset`, such as `revision` or `token`.

    Returns:
        `datasets.Dataset`, or `IterableDataset` when streaming, with `audio` (a path, or a dict with `path` and
        `bytes`), `text`, `duration` in seconds (folders and manifests), and the source's other columns.

    Raises:
        DatasetError: nothing there, missing columns, missing audio files, empty transcripts, an empty set.
    """
    columns = (audio_column, text_column)
    base, slice_spec = _split_parts(split)
    manifest = _manifest_of(Path(source), base)
    if manifest is not None:
        dataset = _slice(_from_manifest(manifest, base, columns, strict), slice_spec)
        return dataset.to_iterable_dataset() if streaming else dataset
    if any((Path(source) / marker).exists() for marker in ("state.json", "dataset_dict.json")):
        dataset = _from_disk(Path(source), base, slice_spec)
        dataset = _with_standard_columns(dataset, columns, str(source))
        return dataset.to_iterable_dataset() if streaming else dataset
    dataset = _from_load_dataset(source, split, name, streaming, load_kwargs)
    return _with_standard_columns(dataset, columns, str(source))


@dataclass
class UnusableClips:
    """What `drop_unusable` left out, and why.

    Attributes:
        checked: number of rows seen.
        clips: for each row left out: its index, what it is called, the kind of fault, and the details in one line.
        foreign_characters: characters outside of the alphabet, with the number of transcripts that have them.
    """

    checked: int = 0
    clips: list[dict[str, Any]] = field(default_factory=list)
    foreign_characters: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> dict[str, int]:
        """Rows left out for each kind of fault."""
        return dict(Counter(clip["reason"] for clip in self.clips))

    def summary(self) -> str:
        """One line: how many of how many, and why."""
        if not self.clips:
            return f"all {self.checked} clips are usable"
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))
        return f"left out {len(self.clips)} of {self.checked} clips: {reasons}"


def drop_unusable(
    dataset: Any,
    *,
    min_duration_s: float = 0.0,
    max_duration_s: float | None = None,
    max_label_length: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    alphabet: str | None = None,
    progress: bool = True,
) -> tuple[Any, UnusableClips]:
    """Leave out the rows that training could not use, and say which and why.

    Every recording is decoded once: only that finds the broken ones before they stop a training run.

    Args:
        dataset: from `load_speech_dataset`. Of a streamed one, the rows are checked as they pass, and the report
            fills up with them.
        min_duration_s, max_duration_s: allowed durations in seconds.
        max_label_length: most tokens of a transcript; needs `count_tokens`.
        count_tokens: number of label tokens of a text, such as `lambda text: len(processor.label_ids(text))`.
        alphabet: of a CTC head that spells (`processor.ctc_characters`). Transcripts without any of its characters
            are left out. The others lose their foreign characters in training, which are named in one warning.
        progress: show a progress bar.

    Returns:
        The data set without those rows, and the report. Each row left out is logged as a warning, then the summary.
    """
    if max_label_length is not None and count_tokens is None:
        raise ValueError("max_label_length needs count_tokens, which counts the tokens of a transcript")
    report = UnusableClips()
    limits = _Limits(min_duration_s, max_duration_s, max_label_length, count_tokens, alphabet)
    if not hasattr(dataset, "select"):
        return dataset.filter(_StreamCheck(limits, report)), report
    from tqdm.auto import tqdm

    rows = tqdm(dataset, desc="checking clips", unit="clip", disable=not progress)
    kept = [index for index, row in enumerate(rows) if _record(row, index, limits, report)]
    logger.log(logging.WARNING if report.clips else logging.INFO, report.summary())
    _tell_foreign_characters(report.foreign_characters)
    return (dataset.select(kept) if report.clips else dataset), report


@dataclass
class _Limits:
    min_duration_s: float
    max_duration_s: float | None
    max_label_length: int | None
    count_tokens: Callable[[str], int] | None
    alphabet: str | None


@dataclass
class _StreamCheck:
    limits: _Limits
    report: UnusableClips

    def __call__(self, row: Mapping[str, Any]) -> bool:
        known = set(self.report.foreign_characters)
        usable = _record(row, self.report.checked, self.limits, self.report)
        found = self.report.foreign_characters
        _tell_foreign_characters(Counter({character: found[character] for character in set(found) - known}))
        return usable


def _tell_foreign_characters(found: Counter[str]) -> None:
    if found:
        told = ", ".join(f"{character!r} ({count})" for character, count in sorted(found.items()))
        logger.warning(
            "characters outside of the CTC head's alphabet, which it does without (transcripts that have them): %s",
            told,
        )


def _record(row: Mapping[str, Any], index: int, limits: _Limits, report: UnusableClips) -> bool:
    """Check one row; whether it is usable."""
    report.checked += 1
    fault = _fault_of(row, limits)
    if fault is None:
        report.foreign_characters.update(_foreign_characters(row["text"], limits.alphabet))
        return True
    reason, detail = fault
    clip = {"index": index, "audio": source_name(row["audio"]), "reason": reason, "detail": detail}
    report.clips.append(clip)
    logger.warning("left out clip %d: %s", index, detail)
    return False


def _fault_of(row: Mapping[str, Any], limits: _Limits) -> tuple[str, str] | None:
    name = source_name(row["audio"])
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        return "empty transcript", f"{name}: empty transcript {text!r}"
    if limits.max_label_length is not None and limits.count_tokens is not None:
        n_tokens = limits.count_tokens(text)
        if n_tokens > limits.max_label_length:
            return "transcript too long", f"{name}: {n_tokens} tokens, the limit is {limits.max_label_length}"
    if limits.alphabet is not None and not set(_spelled(text)) & set(limits.alphabet):
        return "transcript that cannot be spelled", f"{name}: no character of the CTC head's alphabet in {text!r}"
    try:
        duration_s = decoded_duration_s(row["audio"])
    except AudioError as error:
        return "unusable audio", str(error)
    if duration_s < limits.min_duration_s:
        return "audio too short", f"{name}: {duration_s:.2f} s, the minimum is {limits.min_duration_s:g} s"
    if limits.max_duration_s is not None and duration_s > limits.max_duration_s:
        return "audio too long", f"{name}: {duration_s:.2f} s, the limit is {limits.max_duration_s:g} s"
    return None


def _spelled(text: str) -> str:
    """A transcript as a CTC head spells it: any white space is one space."""
    return " ".join(text.split())


def _foreign_characters(text: str, alphabet: str | None) -> set[str]:
    return set() if alphabet is None else set(_spelled(text)) - set(alphabet)


def _split_parts(split: str | None) -> tuple[str | None, str | None]:
    """("train", "[:100]") of "train[:100]"."""
    if split is None or "[" not in split:
        return split, None
    base, _, rest = split.partition("[")
    return base, f"[{rest}"


def _slice(dataset: Any, slice_spec: str | None) -> Any:
    """The rows that `datasets`' slicing notation names, such as "[:100]" or "[10%:20%]"."""
    if slice_spec is None:
        return dataset
    from datasets import ReadInstruction

    try:
        parts = ReadInstruction.from_spec(f"rows{slice_spec}").to_absolute({"rows": len(dataset)})
    except (AssertionError, ValueError) as error:
        raise DatasetError(f"split slice {slice_spec}: {error}") from error
    return dataset.select([row for part in parts for row in range(part.from_, part.to)])


def _manifest_of(source: Path, split: str | None) -> Path | None:
    """The manifest that `source` is or has for the split; None where it is neither a manifest nor an audio folder."""
    if source.is_file() or source.suffix.lower() in (*MANIFEST_SUFFIXES, ".json"):
        return source
    if not source.is_dir():
        return None
    for folder in [source / split, source] if split else [source]:
        for name in METADATA_NAMES:
            if (folder / name).is_file():
                return folder / name
    manifests = {path.parent.name: path for name in METADATA_NAMES for path in source.glob(f"*/{name}")}
    manifests |= {path.stem: path for suffix in MANIFEST_SUFFIXES for path in source.glob(f"*{suffix}")}
    return manifests[_only_split(sorted(manifests), split, str(source))] if manifests else None


def _from_manifest(manifest: Path, split: str | None, columns: tuple[str | None, str | None], strict: bool) -> Any:
    from datasets import Dataset

    rows = _rows_of_split(manifest, list(_read_manifest(manifest)), split)
    if not rows:
        raise DatasetError(f"{manifest}: no rows")
    found = list(dict.fromkeys(key for _, row in rows for key in row))
    audio_column = _find_column(columns[0], AUDIO_COLUMNS, found, "audio", str(manifest))
    text_column = _find_column(columns[1], TEXT_COLUMNS, found, "text", str(manifest))
    others = [key for key in found if key not in (audio_column, text_column, "duration", "audio", "text")]
    checked = [_checked_row(manifest, line, row, audio_column, text_column, strict) for line, row in rows]
    data = {key: [row[key] for row in checked] for key in ("audio", "text", "duration")}
    data |= {key: [row.get(key) for _, row in rows] for key in others}
    try:
        return Dataset.from_dict(data)
    except (TypeError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DatasetError(f"{manifest}: a column holds values of different types ({_one_line(error)})") from error


def _rows_of_split(
    manifest: Path, rows: list[tuple[int, dict[str, Any]]], split: str | None
) -> list[tuple[int, dict[str, Any]]]:
    """The rows that a `split` column assigns to the split; without such a column, the manifest is one split."""
    if split is None or not rows:
        return rows
    if "split" in rows[0][1]:
        splits = sorted({str(row.get("split")) for _, row in rows})
        _only_split(splits, split, str(manifest))
        return [(line, row) for line, row in rows if row.get("split") == split]
    if split not in ("train", "all", manifest.stem, manifest.parent.name):
        raise DatasetError(f"{manifest}: no split {split!r}, as there is no column 'split'")
    return rows


def _read_manifest(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a manifest."""
    if not manifest.is_file():
        raise DatasetError(f"{manifest}: no such manifest")
    suffix = manifest.suffix.lower()
    if suffix not in MANIFEST_SUFFIXES:
        raise DatasetError(f"{manifest}: a manifest is one of {', '.join(MANIFEST_SUFFIXES)}, not {suffix or 'this'}")
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            yield from _read_json_lines(manifest, file) if suffix == ".jsonl" else _read_table(manifest, file)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{manifest}: not UTF-8 text ({error})") from error


def _read_json_lines(manifest: Path, file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(file, start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{manifest} line {line}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{manifest} line {line}: a JSON object is expected, not {content.strip()[:60]!r}")
        yield line, row


def _read_table(manifest: Path, file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, delimiter="\t" if manifest.suffix.lower() == ".tsv" else ",")
    for row in reader:
        if None in row:
            raise DatasetError(
                f"{manifest} line {reader.line_num}: {len(reader.fieldnames or ()) + len(row[None])} fields,"
                f" but the header has {len(reader.fieldnames or ())}; quote text that contains the separator"
            )
        yield reader.line_num, dict(row)


def _find_column(wanted: str | None, usual: Sequence[str], found: Sequence[str], kind: str, source: str) -> str:
    candidates = (wanted,) if wanted else usual
    for column in candidates:
        if column in found:
            return column
    looked_for, columns = ", ".join(candidates), ", ".join(map(str, found))
    raise DatasetError(f"{source}: no {kind} column (looked for {looked_for}); the columns are: {columns}")


def _checked_row(
    manifest: Path, line: int, row: Mapping[str, Any], audio_column: str, text_column: str, strict: bool
) -> dict[str, Any]:
    where = f"{manifest} line {line}"
    file_name, text = row.get(audio_column), row.get(text_column)
    path = manifest.parent / str(file_name or "")
    duration_s = _number_or_none(row.get("duration"))
    if strict:
        if not isinstance(file_name, str) or not file_name.strip():
            raise DatasetError(f"{where}, column {audio_column}: no audio file name ({file_name!r})")
        if not path.is_file():
            raise DatasetError(f"{where}, column {audio_column}: no such audio file: {path}")
        if not isinstance(text, str) or not text.strip():
            raise DatasetError(f"{where}, column {text_column}: empty transcript ({text!r})")
    if duration_s is None:
        try:
            duration_s = audio_duration_s(path)
        except AudioError as error:
            if strict:
                raise DatasetError(f"{where}, column {audio_column}: {error}") from error
    return {"audio": str(path), "text": None if text is None else str(text), "duration": duration_s}


def _number_or_none(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _from_disk(path: Path, split: str | None, slice_spec: str | None) -> Any:
    from datasets import DatasetDict, load_from_disk

    dataset = load_from_disk(str(path))
    if isinstance(dataset, DatasetDict):
        dataset = dataset[_only_split([*map(str, dataset)], split, str(path))]
    return _slice(dataset, slice_spec)


def _only_split(splits: Sequence[str], split: str | None, source: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        problem = "give a split, one of" if split is None else f"no split {split!r}; there are"
        raise DatasetError(f"{source}: {problem} {', '.join(splits)}")
    return split


def _from_load_dataset(
    source: str | PathLike, split: str | None, name: str | None, streaming: bool, kwargs: Mapping[str, Any]
) -> Any:
    from datasets import load_dataset

    text, path = str(source), Path(source)
    if not path.exists() and (text.startswith(("/", ".", "~")) or text.count("/") > 1):
        raise DatasetError(f"{text}: no such file or folder")
    if path.is_dir() and _is_bare_audio(path):
        raise DatasetError(f"{text}: an audio folder needs a metadata.csv with the columns file_name and text")
    try:
        loaded = load_dataset(text, name, split=split, streaming=streaming, **kwargs)
    except Exception as error:  # whatever the hub, the builder or the network raise
        raise DatasetError(f"{text}: cannot be loaded ({_one_line(error)})") from error
    return loaded[_only_split([*map(str, loaded)], None, text)] if isinstance(loaded, dict) else loaded


def _is_bare_audio(folder: Path) -> bool:
    """Whether a folder has recordings and nothing that `load_dataset` could take transcripts from."""
    suffixes = {file.suffix.lower() for file in folder.rglob("*")}
    return bool(suffixes & audio_extensions()) and not suffixes & {".parquet", ".arrow", ".tar", ".zip"}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _with_standard_columns(dataset: Any, columns: tuple[str | None, str | None], source: str) -> Any:
    from datasets import Audio, Value

    if getattr(dataset, "num_rows", None) == 0:
        raise DatasetError(f"{source}: no rows")
    found = list(dataset.column_names or next(iter(dataset), {}))  # a streamed table may not know its columns
    audio_column = _find_column(columns[0], AUDIO_COLUMNS, found, "audio", source)
    text_column = _find_column(columns[1], TEXT_COLUMNS, found, "text", source)
    # Plain bytes and path before anything else: with the Audio feature, even undecoded, every later operation on a
    # stream (renaming, filtering) would encode the recording again, which needs torchcodec.
    if isinstance((dataset.features or {}).get(audio_column), Audio):
        dataset = dataset.cast_column(audio_column, {"bytes": Value("binary"), "path": Value("string")})
    for column, standard in ((audio_column, "audio"), (text_column, "text")):
        if column != standard:
            if standard in found:
                dataset = dataset.remove_columns(standard)
            dataset = dataset.rename_column(column, standard)
    return dataset
