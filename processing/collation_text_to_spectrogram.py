"""The data collator of a text-to-speech model: rows of a data set to one batch, ready for `Trainer`.

Rows carry `text` or `input_ids`, and `audio` (anything `load_audio` takes, decoded here and not before) or `labels`;
where there are several voices also `speaker_embeddings`. Spectrograms are padded with -100, which the losses leave
out, to a length that the decoder's steps divide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import numpy as np
import torch

from .audio_files import source_name
from .mel_spectrograms import check_mel_agreement, extract_log_mel
from .processing_text_to_spectrogram import (
    IGNORED_FRAME,
    TextToSpectrogramProcessor,
    pad_spectrograms,
    pad_token_ids,
)


@dataclass
class TextToSpectrogramCollator:
    """Makes batches for `TextToSpectrogramModel`; use with `remove_unused_columns=False`.

    Args:
        processor: of the model.
        reduction_factor: frames of a decoder step; None takes the config's, or 1 without one.
        config: of the model (`TextToSpectrogramConfig`). With it the collator checks that the processor fits, and
            takes the limits below from it.
        max_text_tokens: most tokens of a text; longer ones raise, as the model would.
        max_frames: most frames of a spectrogram.
        pad_text_to_multiple_of: round the number of tokens of a batch up, so that compiled models see few shapes.
        pad_frames_to_multiple_of: the same for frames.
        audio_column, text_column: where the rows have the recording and the text.

    Calling it gives a dict of tensors: `input_ids` and `attention_mask` `[B, S]`; `labels` `[B, T, M]`, where T is a
    multiple of `reduction_factor`; `speaker_embeddings` `[B, D]` where the rows have them. Rows without recording and
    labels (for inference) give the text part alone.

    Raises:
        ValueError: processor and config differ, or a row has no usable text, recording or speaker; the message names
            the row.
    """

    processor: TextToSpectrogramProcessor
    reduction_factor: int | None = None
    config: Any = None
    max_text_tokens: int | None = None
    max_frames: int | None = None
    pad_text_to_multiple_of: int | None = None
    pad_frames_to_multiple_of: int | None = None
    audio_column: str = "audio"
    text_column: str = "text"

    def __post_init__(self) -> None:
        if self.config is not None:
            _check_agreement(self.processor, self.config)
            self.reduction_factor = self.reduction_factor or self.config.reduction_factor
            self._take_limits(self.config)
        self.reduction_factor = 1 if self.reduction_factor is None else self.reduction_factor
        if self.reduction_factor < 1:
            raise ValueError(f"reduction_factor must be at least 1, got {self.reduction_factor}")

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [self._checked(self._token_ids, row, index) for index, row in enumerate(features)]
        spectrograms = [self._checked(self._spectrogram, row, index) for index, row in enumerate(features)]
        speakers = [self._checked(self._speaker, row, index) for index, row in enumerate(features)]
        batch = pad_token_ids(ids, self.processor.tokenizer.pad_token_id, multiple=self.pad_text_to_multiple_of)
        if _all_or_none(spectrograms, f"{self.audio_column!r} and 'labels'"):
            multiple = lcm(self.reduction_factor or 1, self.pad_frames_to_multiple_of or 1)
            batch["labels"] = pad_spectrograms(spectrograms, multiple)
        if _all_or_none(speakers, "'speaker_embeddings'"):
            if len(widths := {len(speaker) for speaker in speakers}) > 1:
                raise ValueError(f"speaker_embeddings of different widths in one batch: {sorted(widths)}")
            batch["speaker_embeddings"] = np.stack(speakers)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _take_limits(self, config: Any) -> None:
        if self.max_text_tokens is None:  # a pretrained encoder brings its own
            encoder = config.encoder
            own = config.max_text_positions if encoder is None else getattr(encoder, "max_position_embeddings", None)
            self.max_text_tokens = own
        if self.max_frames is None:
            self.max_frames = config.max_speech_positions * config.reduction_factor

    def _checked(self, make: Any, row: Mapping[str, Any], index: int) -> Any:
        """What a method makes of a row; whatever is wrong with it names the row."""
        try:
            return make(row)
        except (ValueError, TypeError) as error:
            audio = row.get(self.audio_column)
            name = "" if audio is None else f" ({source_name(audio)})"
            problem = str(error).removeprefix(f"{name[2:-1]}: ")
            raise ValueError(f"row {index} of the batch{name}: {problem}") from error

    def _token_ids(self, row: Mapping[str, Any]) -> list[int]:
        if row.get("input_ids") is not None:
            ids = [int(i) for i in row["input_ids"]]
            mask = row.get("attention_mask")
            ids = ids if mask is None else [i for i, kept in zip(ids, mask, strict=True) if kept]
        elif row.get(self.text_column) is not None:
            ids = self.processor.token_ids(row[self.text_column])
        else:
            found = ", ".join(map(str, row))
            raise ValueError(
                f"neither {self.text_column!r} nor 'input_ids', only: {found}. With Trainer, set"
                " remove_unused_columns=False"
            )
        if not ids:
            raise ValueError("no token ids")
        if self.max_text_tokens is not None and len(ids) > self.max_text_tokens:
            raise ValueError(f"{len(ids)} tokens, but the limit is {self.max_text_tokens}: split or drop such texts")
        return ids

    def _spectrogram(self, row: Mapping[str, Any]) -> np.ndarray | None:
        if row.get("labels") is not None:
            spectrogram = self._ready_spectrogram(row["labels"])
        elif row.get(self.audio_column) is not None:
            spectrogram = extract_log_mel(row[self.audio_column], self.processor.feature_extractor)
        else:
            return None
        if self.max_frames is not None and len(spectrogram) > self.max_frames:
            seconds = self.processor.mel_settings.duration_s(1)
            raise ValueError(
                f"{len(spectrogram) * seconds:.2f} s of speech, but the limit is {self.max_frames * seconds:.2f} s"
            )
        return spectrogram

    def _ready_spectrogram(self, labels: Any) -> np.ndarray:
        spectrogram = np.asarray(labels, dtype=np.float32)
        n_mel_bins = self.processor.feature_extractor.num_mel_bins
        if spectrogram.ndim != 2 or spectrogram.shape[1] != n_mel_bins:
            raise ValueError(f"labels are a spectrogram [T, {n_mel_bins}], got shape {list(spectrogram.shape)}")
        spectrogram = spectrogram[: _length_without_padding(spectrogram)]
        if not len(spectrogram):
            raise ValueError("labels without a frame")
        if not np.isfinite(spectrogram).all():
            raise ValueError("labels with NaN or infinite values")
        return spectrogram

    def _speaker(self, row: Mapping[str, Any]) -> np.ndarray | None:
        if row.get("speaker_embeddings") is None:
            return None
        given = row["speaker_embeddings"]
        given = given.detach().cpu().float() if isinstance(given, torch.Tensor) else given
        embedding = np.asarray(given, dtype=np.float32)
        embedding = embedding[0] if embedding.ndim == 2 and len(embedding) == 1 else embedding
        width = getattr(self.config, "speaker_embedding_dim", None)
        if embedding.ndim != 1 or (width and len(embedding) != width):
            raise ValueError(f"speaker_embeddings has shape {list(embedding.shape)}, not [{width or 'D'}]")
        if not np.isfinite(embedding).all():
            raise ValueError("speaker_embeddings has NaN or infinite values")
        return embedding


def _all_or_none(values: Sequence[Any], what: str) -> bool:
    """Whether the rows have something; some with it and some without make no batch."""
    missing = [index for index, value in enumerate(values) if value is None]
    if 0 < len(missing) < len(values):
        raise ValueError(f"row {missing[0]} of the batch is without {what}, other rows are not")
    return not missing


def _length_without_padding(spectrogram: np.ndarray) -> int:
    """Frames before the padding of a row that was in a batch already."""
    padding = (spectrogram == IGNORED_FRAME).all(axis=1)
    return len(spectrogram) - int(np.argmin(padding[::-1])) if not padding.all() else 0


def _check_agreement(processor: TextToSpectrogramProcessor, config: Any) -> None:
    """What differs between processor and config would be trained into the model."""
    check_mel_agreement(config, processor.feature_extractor)
    tokenizer = processor.tokenizer
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, but config.vocab_size is {config.vocab_size}")
    if tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"pad token: the tokenizer has {tokenizer.pad_token_id}, the config {config.pad_token_id}; they must be "
            "the same"
        )
