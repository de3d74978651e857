"""The data collator of encoder-only models: rows of a data set to one batch, for CTC and for classification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .audio_files import source_name
from .processing_speech_seq2seq import IGNORED_LABEL, SpeechSeq2SeqProcessor, pad_labels


class _AudioProcessor(SpeechSeq2SeqProcessor):
    """The audio half of the processor: each recording is extracted by itself, and padded afterwards."""

    def __init__(self, feature_extractor: Any, fixed_input_window: bool | None):
        self.feature_extractor, self.fixed_input_window = feature_extractor, fixed_input_window

    def extract(self, audio: Any) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self._process_waveforms([audio], self.sampling_rate).items()}


@dataclass
class SpeechEncoderCollator:
    """Makes batches for `SpeechEncoderForCTC` and the classifiers; use with `remove_unused_columns=False`.

    Args:
        processor: a processor with a feature extractor and a tokenizer, such as `Wav2Vec2Processor`, or for
            classification the feature extractor alone.
        config: of the model: what its padding token and `fixed_input_window` are.
        audio_column, text_column, label_column: where the rows have the recording (anything `load_audio` takes), the
            transcript, and a class (its number, or its name in `config.label2id`).

    Calling it gives `input_values` [B, N] or `input_features`, `attention_mask` where the checkpoint was trained with
    one, and `labels`: ready ones of the rows, else the tokens of the transcript, both [B, S] and padded with -100,
    else the classes [B]. Labels of rows may also be [T, L], of each frame.

    Raises:
        ValueError: a row has no usable audio or label, or processor and model differ about the blank.
    """

    processor: Any
    config: Any
    audio_column: str = "audio"
    text_column: str = "text"
    label_column: str = "label"

    def __post_init__(self) -> None:
        extractor = getattr(self.processor, "feature_extractor", self.processor)
        self._audio = _AudioProcessor(extractor, self.config.fixed_input_window)
        self._tokenizer = getattr(self.processor, "tokenizer", None)
        blank = getattr(self.config, "pad_token_id", None)
        if blank is not None and self._tokenizer is not None and self._tokenizer.pad_token_id != blank:
            raise ValueError(
                f"the tokenizer pads with {self._tokenizer.pad_token_id}, but the model's blank is {blank}: they must "
                "be the same"
            )

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        main = self._audio.main_input_name
        rows = [row if row.get(main) is not None else self._extract(row, index) for index, row in enumerate(features)]
        batch = dict(self._audio.pad(rows, return_tensors="pt"))
        labels = [self._label_of(row, index) for index, row in enumerate(features)]
        if all(label is None for label in labels):
            return batch
        if any(label is None for label in labels):
            index = next(index for index, label in enumerate(labels) if label is None)
            raise ValueError(f"row {index} of the batch has no label, other rows do")
        return {**batch, "labels": _batched([label for label in labels if label is not None])}

    def _extract(self, row: Mapping[str, Any], index: int) -> Mapping[str, Any]:
        audio = row.get(self.audio_column)
        if audio is None:
            raise ValueError(
                f"row {index} of the batch has neither {self.audio_column!r} nor {self._audio.main_input_name!r}, only"
                f": {', '.join(map(str, row))}. With Trainer, set remove_unused_columns=False"
            )
        try:
            return self._audio.extract(audio)
        except ValueError as error:
            raise ValueError(f"row {index} of the batch: {error}") from error

    def _label_of(self, row: Mapping[str, Any], index: int) -> np.ndarray | None:
        if row.get("labels") is not None:
            return np.asarray(row["labels"])
        if row.get(self.text_column) is not None and self._tokenizer is not None:
            ids = self._tokenizer(row[self.text_column], add_special_tokens=False)["input_ids"]
            if not ids:
                audio = row.get(self.audio_column)
                name = "" if audio is None else f" ({source_name(audio)})"
                raise ValueError(f"row {index} of the batch{name}: empty transcript: {row[self.text_column]!r}")
            return np.asarray(ids)
        label = row.get(self.label_column)
        if isinstance(label, str):
            if label not in self.config.label2id:
                raise ValueError(f"row {index} of the batch: {label!r} is none of {', '.join(self.config.label2id)}")
            label = self.config.label2id[label]
        return None if label is None else np.asarray(label)


def _batched(labels: list[np.ndarray]) -> torch.Tensor:
    """Labels of rows as one tensor: classes [B], sequences [B, S] and classes of frames [B, T, L] padded with -100."""
    if labels[0].ndim == 0:
        return torch.from_numpy(np.stack(labels))
    if labels[0].ndim == 1 and labels[0].dtype.kind == "i":
        return torch.from_numpy(pad_labels([row.tolist() for row in labels]))
    longest = max(len(row) for row in labels)
    rest = [[0, 0]] * (labels[0].ndim - 1)
    padded = [np.pad(row, [[0, longest - len(row)], *rest], constant_values=IGNORED_LABEL) for row in labels]
    return torch.from_numpy(np.stack(padded))


__all__ = ["SpeechEncoderCollator"]
