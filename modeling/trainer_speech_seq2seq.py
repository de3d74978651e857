"""A Seq2SeqTrainer that shows every part of a joint loss, and keeps them all under label smoothing."""

from typing import Any, cast

import torch
from transformers import Seq2SeqTrainer

from .sequence_losses import IGNORED_LABEL
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

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """As in Trainer, with the model's own loss also where the text is generated.

        Joint decoding is told by the processor what the decoder's tokens spell. A decoder that fills in masked tokens
        does so in place of generating.
        """
        fills_in = getattr(cast(Any, self.model).config, "mask_token_id", None) is not None
        if fills_in and cast(Any, self.args).predict_with_generate and not prediction_loss_only:
            inputs = self._prepare_inputs(inputs)
            loss = self.prediction_step(model, inputs, True, *args)[0] if "labels" in inputs else None
            return loss, *self._fill_in(inputs)
        tokenizer = getattr(self.processing_class, "tokenizer", None)
        spells = getattr(cast(Any, self.model).config, "ctc_characters", None) is not None
        if spells and tokenizer is not None:
            self._gen_kwargs = {**getattr(self, "_gen_kwargs", {}), "tokenizer": tokenizer}
        smoother, self.label_smoother = self.label_smoother, None
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        finally:
            self.label_smoother = smoother

    def _fill_in(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids [B, S] of the model's transcripts, and of the true ones where a batch tells them."""
        model = cast(Any, self.model)
        names = ("input_values", "input_features", "attention_mask")
        audio = {name: inputs[name] for name in names if name in inputs}
        asked = getattr(self, "_gen_kwargs", {})
        longest = asked.get("max_new_tokens")
        if longest is None and asked.get("max_length") is not None:
            longest = max(asked["max_length"] - 1 - len(model.config.decoder_prompt_token_ids), 1)
        with torch.no_grad(), self.compute_loss_context_manager():
            found = model.generate_masked(**audio, max_new_tokens=longest)
        labels = inputs.get("labels")
        if labels is None:
            return found, None
        told = torch.where(labels == IGNORED_LABEL, inputs["decoder_input_ids"], labels)  # with nothing masked
        return found, told


__all__ = ["SpeechSeq2SeqTrainer"]
