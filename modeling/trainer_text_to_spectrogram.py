"""A Trainer for text to speech: it logs every part of the loss, in training and in evaluation."""

from typing import Any

import torch
from transformers import Trainer

from .speech_trainer import SpeechTrainerMixin


class TextToSpectrogramTrainer(SpeechTrainerMixin, Trainer):
    """Trains a `TextToSpectrogramModel`; `Trainer` does too, but logs the total loss alone.

    Every output of the model whose name ends in `_loss` is logged beside `loss`, per frame, as the mean over the
    optimiser steps since the last log; evaluation gives them too, with `eval_` in front. Batches of similar length
    (`train_sampling_strategy="group_by_length"`) go by the data set's `lengths`, where it has them.
    """

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As in Trainer; in evaluation too the parts are added up."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not model.training:
            rows = len(inputs["labels"])
            for name, value in outputs.items():
                if name.endswith("_loss") and value is not None:
                    total, count = self._evaluated.get(name, (0.0, 0))
                    self._evaluated[name] = total + value.detach().float() * rows, count + rows
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, with the parts of the loss among the metrics."""
        self._evaluated: dict[str, tuple[Any, int]] = {}
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        for name, (total, count) in self._evaluated.items():
            mean = self.accelerator.reduce(total / count, reduction="mean")
            output.metrics[f"{prefix}_{name}"] = float(mean)  # type: ignore[index, arg-type]
        return output


__all__ = ["TextToSpectrogramTrainer"]
