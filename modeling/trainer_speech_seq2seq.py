"""A Seq2SeqTrainer that shows every part of a joint loss, and keeps them all under label smoothing."""

from typing import Any, cast

import torch
from transformers import Seq2SeqTrainer


class SpeechSeq2SeqTrainer(Seq2SeqTrainer):
    """Trains a `SpeechSeq2SeqModel`; `Trainer` and `Seq2SeqTrainer` do too, but log the total loss alone.

    Every output of the model whose name ends in `_loss` is logged beside `loss`, as its mean over the optimiser
    steps since the last log.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._steps_logged = 0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As in Trainer. Label smoothing is done by the model, which smooths the decoder's loss and keeps the CTC loss."""
        smoother = self.label_smoother
        if smoother is not None and "labels" in inputs:
            inputs = {**inputs, "smoothing": smoother.epsilon}
        self.label_smoother = None
        try:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        finally:
            self.label_smoother = smoother
        if self.model is not None and self.model.training:
            self._remember(outputs)
        return (loss, outputs) if return_outputs else loss

    def _remember(self, outputs: Any) -> None:
        for name, value in outputs.items():
            if name.endswith("_loss") and value is not None:
                self._loss_sums[name] = self._loss_sums.get(name, 0) + value.detach().float()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss to a training log."""
        if "loss" in logs and self._loss_sums:
            steps = max(self.state.global_step - self._steps_logged, 1)
            for name, total in self._loss_sums.items():
                parts = cast(torch.Tensor, self.accelerator.reduce(total, reduction="sum"))
                logs[name] = round(float(parts) / steps, 4)
            self._loss_sums.clear()
            self._steps_logged = self.state.global_step
        super().log(logs, *args, **kwargs)
