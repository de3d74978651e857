"""Batches for a decoder that fills in masked tokens.

Mask-CTC (Higuchi et al. 2020) and Mask-Predict (Ghazvininejad et al. 2019) train on the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .collation_speech_seq2seq import SpeechSeq2SeqCollator, decoder_positions
from .processing_speech_seq2seq import IGNORED_LABEL


@dataclass
class MaskCtcCollator(SpeechSeq2SeqCollator):
    """As `SpeechSeq2SeqCollator`; the decoder's input is the transcript with some of its tokens masked.

    Args:
        generator: of the random numbers; None takes PyTorch's.

    Calling it gives `decoder_attention_mask` and `ctc_targets` too, `transcript_lengths` for a length head, and
    `labels` that are -100 but where masked. A transcript with more tokens than a length head can tell is an error.

    Raises:
        ValueError: the configuration has no `mask_token_id`; see also `SpeechSeq2SeqCollator`.
    """

    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config.mask_token_id is None:
            raise ValueError("config.mask_token_id is not set: build the model with mask_token_id=…")
        limits = [limit for limit in (self.max_label_length, longest_labels(self.config)) if limit is not None]
        self.max_label_length = min(limits, default=None)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(features)
        if "labels" not in batch:
            return batch
        masked = mask_transcripts(batch["labels"], self.config, self.generator)
        if self.config.ctc_vocab_size is not None:  # the CTC head spells: its targets are no tokens
            del masked["ctc_targets"]
        return {**batch, **masked}


def longest_labels(config: Any) -> int | None:
    """Most labels, prompt and end token included, that a decoder which fills in can learn; None for any number.

    It reads the start token and all labels, where others read all but the last one; and a length head can tell so many
    tokens and no more.
    """
    positions, told = decoder_positions(config.decoder), config.max_predicted_length
    limits = [] if positions is None else [positions - 1]
    if told is not None:
        limits.append(len(config.decoder_prompt_token_ids) + told + 1)
    return min(limits, default=None)


def mask_transcripts(
    labels: torch.Tensor, config: Any, generator: torch.Generator | None = None
) -> dict[str, torch.Tensor]:
    """What a decoder that fills in learns from: transcripts with some of their tokens masked.

    Of each transcript of L tokens, a number between 1 and L is masked, each number as likely as the others.

    Args:
        labels: [B, S]: prompt, transcript, end token, padded with -100.
        config: of the model.
        generator: of the random numbers; None takes PyTorch's.

    Returns:
        `decoder_input_ids` and `decoder_attention_mask` [B, 1 + S], with the start token and masked tokens;
        `labels` [B, 1 + S], -100 but where masked; `ctc_targets` [B, S], the transcripts; for a length head also
        `transcript_lengths` [B], -100 for rows without labels.
    """
    prompt, ends = len(config.decoder_prompt_token_ids), torch.tensor(_as_list(config.eos_token_id))
    transcript = (labels != IGNORED_LABEL) & ~torch.isin(labels, ends)
    transcript[:, :prompt] = False
    scores = torch.rand(labels.shape, generator=generator).masked_fill(~transcript, 2.0)
    order = scores.argsort(dim=1).argsort(dim=1)  # [B, S], places of the transcript's tokens in a random order
    share = torch.rand(len(labels), 1, generator=generator)
    counts = (share * transcript.sum(dim=1, keepdim=True)).long() + 1
    masked = transcript & (order < counts)
    inputs = labels.masked_fill(labels == IGNORED_LABEL, config.pad_token_id)
    inputs = inputs.masked_fill(masked, config.mask_token_id)
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    told = torch.nn.functional.pad(labels.masked_fill(~masked, IGNORED_LABEL), [1, 0], value=IGNORED_LABEL)
    real = torch.nn.functional.pad((labels != IGNORED_LABEL).long(), [1, 0], value=1)
    batch = {
        "decoder_input_ids": torch.cat([start, inputs], dim=1),
        "decoder_attention_mask": real,
        "labels": told,
        "ctc_targets": labels.masked_fill(~transcript, IGNORED_LABEL),
    }
    if config.max_predicted_length is not None:
        untold = (labels == IGNORED_LABEL).all(dim=1)
        batch["transcript_lengths"] = transcript.sum(dim=1).masked_fill(untold, IGNORED_LABEL)
    return batch


def _as_list(token_ids: Any) -> list[int]:
    return token_ids if isinstance(token_ids, list) else [token_ids]


__all__ = ["MaskCtcCollator", "longest_labels", "mask_transcripts"]
