"""A Seq2SeqTrainer that shows every part of a joint loss, and keeps them all under label smoothing."""

from typing import Any, cast

import torch
from transformers import Seq2SeqTrainer

from .speech_trainer import SpeechTrainerMixin


class SpeechSeq2SeqTrainer(SpeechTrainerMixin, Seq2SeqTrainer):
    """Trains a `SpeechSeq2SeqModel`; `Trainer` and `Seq2SeqTrainer` do too, but log the total loss alone.

    Every output of the model whose name ends in `_loss` is logged beside `loss`, in the same unit: per label, as the
    mean over the optimiser steps since the last log. Label smoothing applies in training; the evaluation's loss is
    the one without it, so that runs with different smoothing compare.
    """

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As in Trainer. The model smooths labels itself: the decoder's loss is smoothed, the CTC loss is kept."""
        smoother = self.label_smoother
        if smoother is not None and "labels" in inputs and model.training:
            inputs = {**inputs, "smoothing": smoother.epsilon}
        self.label_smoother = None
        try:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.label_smoother = smoother

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, with the model's own loss also where the text is generated.

        Joint decoding is told by the processor what the decoder's tokens spell.
        """
        tokenizer = getattr(self.processing_class, "tokenizer", None)
        spells = getattr(cast(Any, self.model).config, "ctc_characters", None) is not None
        if spells and tokenizer is not None:
            self._gen_kwargs = {**getattr(self, "_gen_kwargs", {}), "tokenizer": tokenizer}
        smoother, self.label_smoother = self.label_smoother, None
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.label_smoother = smoother


__all__ = ["SpeechSeq2SeqTrainer"]
