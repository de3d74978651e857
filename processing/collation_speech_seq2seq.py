"""The data collator of a speech-to-text model: rows of a data set to one batch, ready for `Trainer`.

Rows carry `audio` (anything `load_audio` takes, decoded here and not before) or the encoder's ready input, and
`text` or `labels`. The batch also has `decoder_input_ids`: label smoothing and custom losses take `labels` away from
the model, which could then no longer derive them.

Labels come in many habits (with or without the tokenizer's start token, the decoder's prompt, an end token,
padding). The collator brings them all to the one form that training and generation agree on: prompt, transcript, one
end token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from .audio_files import source_name
from .processing_speech_seq2seq import IGNORED_LABEL, SpeechSeq2SeqProcessor, pad_labels

logger = logging.get_logger(__name__)


@dataclass
class SpeechSeq2SeqCollator:
    """Makes batches for `SpeechSeq2SeqModel`; use with `remove_unused_columns=False`.

    Args:
        processor: of the model.
        config: of the model (`SpeechSeq2SeqConfig`): its start, end, pad and prompt ids are the ones that count.
        pad_to_multiple_of_s: round the audio length of a batch up to a multiple of this many seconds, so that compiled
            models see few different shapes. Whisper's fixed window is one shape already and stays as it is.
        pad_labels_to_multiple_of: the same for labels, in tokens.
        max_label_length: most tokens of a transcript, prompt and end included; None takes the decoder's positions.
        audio_column, text_column: where the rows have the recording and the transcript.

    Calling it gives a dict of tensors: `input_values` `[B, samples]` or `input_features` (`[B, frames, D]`, Whisper
    `[B, D, frames]`), `attention_mask` where the encoder takes one, `labels` `[B, S]` padded with -100 and
    `decoder_input_ids` `[B, S]`, the labels shifted right behind the start token. Where the model's CTC head spells,
    also `ctc_targets` `[B, S']`, padded with -100; a transcript without any character of its alphabet has none, and
    does not count in the CTC loss. Rows without text and labels (for inference) give the audio part
    alone.

    Raises:
        ValueError: processor and config disagree about token ids, or a row has no usable audio or transcript; the
            message names the row.
    """

    processor: SpeechSeq2SeqProcessor
    config: Any
    pad_to_multiple_of_s: float | None = None
    pad_labels_to_multiple_of: int | None = None
    max_label_length: int | None = None
    audio_column: str = "audio"
    text_column: str = "text"

    def __post_init__(self) -> None:
        _check_agreement(self.processor, self.config)
        if self.max_label_length is None:
            self.max_label_length = decoder_positions(self.config.decoder)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self._collate_audio(features)
        labels = [self._labels_of(row, index) for index, row in enumerate(features)]
        if all(ids is None for ids in labels):
            return batch
        if None in labels:
            raise ValueError(f"row {labels.index(None)} has neither {self.text_column!r} nor 'labels', other rows do")
        batch = {**batch, **self._collate_labels([ids for ids in labels if ids is not None])}
        if self.config.has_ctc_head and self.config.ctc_vocab_size is not None:
            targets = [self._ctc_targets_of(row, index) for index, row in enumerate(features)]
            batch["ctc_targets"] = torch.from_numpy(pad_labels(targets, length=1))
        return batch

    def canonical_labels(self, label_ids: Iterable[int]) -> list[int]:
        """Labels of any habit to prompt, transcript, one end token.

        Args:
            label_ids: token ids with or without start token, prompt, end token, padding and -100.

        Raises:
            ValueError: nothing is left of the transcript, it has another prompt, an end token inside, or an id
                outside of the vocabulary.
        """
        tokenizer, config = self.processor.tokenizer, self.config
        prompt, end = list(config.decoder_prompt_token_ids or []), self.processor.end_token_id
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id, tokenizer.mask_token_id}
        starts = {config.decoder_start_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id, config.pad_token_id}
        ends = {end, tokenizer.eos_token_id, tokenizer.sep_token_id, config.pad_token_id}
        ends |= special & {*prompt, *starts}  # mBART writes its language behind the end token

        body = [int(token_id) for token_id in label_ids if int(token_id) != IGNORED_LABEL]
        if not prompt or body[: len(prompt)] != prompt:
            body = _drop_leading(body, starts)
        if body[: len(prompt)] == prompt:
            body = body[len(prompt) :]
        body = _drop_trailing(body, ends)
        self._check_body(body, prompt, end, special)
        return [*prompt, *body, end]

    def _check_body(self, body: list[int], prompt: list[int], end: int, special: set[int]) -> None:
        if not body:
            raise ValueError("empty transcript: its labels are special tokens only")
        if prompt and body[0] in special:
            raise ValueError(f"labels begin with token {body[0]}, but the decoder's prompt is {prompt}")
        if end in body:
            raise ValueError(f"the end token {end} is inside the transcript, at position {body.index(end)}")
        if not 0 <= min(body) <= max(body) < self.config.vocab_size:
            wrong = next(i for i in body if not 0 <= i < self.config.vocab_size)
            raise ValueError(f"token id {wrong} is outside of the decoder's vocabulary of {self.config.vocab_size}")

    def _labels_of(self, row: Mapping[str, Any], index: int) -> list[int] | None:
        try:
            if row.get("labels") is not None:
                labels = self.canonical_labels(row["labels"])
            elif row.get(self.text_column) is not None:
                labels = self.processor.label_ids(row[self.text_column])
            else:
                return None
            if self.max_label_length is not None and len(labels) > self.max_label_length:
                raise ValueError(f"{len(labels)} label tokens, but the limit is {self.max_label_length}")
        except ValueError as error:
            raise ValueError(f"{self._row_name(row, index)}: {error}") from error
        return labels

    def _ctc_targets_of(self, row: Mapping[str, Any], index: int) -> list[int]:
        if row.get("ctc_targets") is not None:
            return [int(token_id) for token_id in row["ctc_targets"] if int(token_id) != IGNORED_LABEL]
        try:
            if row.get(self.text_column) is None:
                raise ValueError(
                    f"neither {self.text_column!r} nor 'ctc_targets': 'labels' do not tell how the text is spelled"
                )
            targets = self.processor.ctc_target_ids(row[self.text_column])
        except ValueError as error:
            raise ValueError(f"{self._row_name(row, index)}: {error}") from error
        if not targets:
            logger.warning_once(
                f"{self._row_name(row, index)}: no character of the CTC head's alphabet"
                f" ({self.config.ctc_characters!r}) in {row[self.text_column]!r}: it does not count in the CTC loss,"
                " nor do others like it"
            )
        return targets

    def _row_name(self, row: Mapping[str, Any], index: int) -> str:
        audio = row.get(self.audio_column)
        return f"row {index} of the batch" + ("" if audio is None else f" ({source_name(audio)})")

    def _collate_audio(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        main = self.processor.main_input_name
        multiple = None
        if self.pad_to_multiple_of_s is not None:
            multiple = max(1, round(self.pad_to_multiple_of_s / self.processor.input_step_s))
        rows = [row if row.get(main) is not None else self._extract(row, index) for index, row in enumerate(features)]
        return dict(self.processor.pad(rows, pad_to_multiple_of=multiple, return_tensors="pt"))

    def _extract(self, row: Mapping[str, Any], index: int) -> Mapping[str, Any]:
        audio = row.get(self.audio_column)
        if audio is None:
            found = ", ".join(map(str, row))
            raise ValueError(
                f"row {index} of the batch has neither {self.audio_column!r} nor {self.processor.main_input_name!r},"
                f" only: {found}. With Trainer, set remove_unused_columns=False"
            )
        try:
            batch = self.processor([audio], sampling_rate=self.processor.sampling_rate)
        except ValueError as error:
            raise ValueError(f"row {index} of the batch: {error}") from error
        return {name: values[0] for name, values in batch.items()}

    def _collate_labels(self, labels: list[list[int]]) -> dict[str, torch.Tensor]:
        length = max(map(len, labels))
        if multiple := self.pad_labels_to_multiple_of:
            length = -(-length // multiple) * multiple
        inputs = [[self.config.decoder_start_token_id, *row[:-1]] for row in labels]
        return {
            "labels": torch.from_numpy(pad_labels(labels, length)),
            "decoder_input_ids": torch.from_numpy(pad_labels(inputs, length, value=self.config.pad_token_id)),
        }


def _check_agreement(processor: SpeechSeq2SeqProcessor, config: Any) -> None:
    """One source of truth for ids: a tokenizer that differs from the config would be trained into the model."""
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        if getattr(config, name) is None:
            raise ValueError(f"config.{name} is not set")
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    pairs = {
        "end token": (processor.end_token_id, processor.end_token_id if processor.end_token_id in ends else ends[0]),
        "pad token": (processor.tokenizer.pad_token_id, config.pad_token_id),
        "decoder prompt": (processor.decoder_prompt_token_ids, list(config.decoder_prompt_token_ids or [])),
        "CTC alphabet": (processor.ctc_characters, config.ctc_characters),
    }
    for what, (of_processor, of_config) in pairs.items():
        if of_processor is not None and of_processor != of_config:
            raise ValueError(
                f"{what}: the processor has {of_processor}, the config {of_config}; they must be the same"
            )


def decoder_positions(decoder: Any) -> int | None:
    """How many tokens the decoder has positions for: an upper bound, as some families start counting above 0."""
    for name in ("max_target_positions", "max_position_embeddings"):  # Whisper's decoder; all others
        if isinstance(value := getattr(decoder, name, None), int):
            return value
    return None


def _drop_leading(ids: list[int], dropped: set[int | None]) -> list[int]:
    start = next((i for i, token_id in enumerate(ids) if token_id not in dropped), len(ids))
    return ids[start:]


def _drop_trailing(ids: list[int], dropped: set[int | None]) -> list[int]:
    return _drop_leading(ids[::-1], dropped)[::-1]
