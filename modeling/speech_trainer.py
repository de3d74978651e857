"""What the trainers of both kinds of models do beyond Transformers': every part of a loss, batches of like lengths."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..configuration.published_code import PublishesItsCode


class ShuffledLengthGroups(LengthGroupedSampler):
    """Batches of clips of similar length, in random order.

    Transformers' sampler sorts hundreds of clips from long to short, so that the steps sweep from the longest to the
    shortest and back, again and again, and the model forgets the one over the other. The first batch stays the one
    with the longest clip: memory that does not suffice shows at once. The last one may be smaller.
    """

    def __init__(self, grouped: LengthGroupedSampler):
        super().__init__(grouped.batch_size, lengths=grouped.lengths, generator=grouped.generator)

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        batches = [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]
        inner = torch.randperm(max(len(batches) - 2, 0), generator=self.generator).tolist()
        order = [0, *(1 + place for place in inner), len(batches) - 1][: len(batches)]
        return (index for batch in order for index in batches[batch])


class SpeechTrainerMixin:
    """Comes before `Trainer`, or a subclass of it, among the bases of a trainer.

    Every output of the model whose name ends in `_loss` is logged beside `loss`, in the same unit: as the mean over
    the optimiser steps since the last log.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._loss_sums: dict[str, torch.Tensor] = {}
        self._steps_before = 0  # optimiser steps that were done when the sums were empty
        if cast(Any, self).args.push_to_hub:
            self._save_with_code()

    def _save_with_code(self) -> None:
        """Let what is saved from now on be usable by people who have not installed this package."""
        for part in (cast(Any, self).model, cast(Any, self).processing_class):
            if isinstance(part, PublishesItsCode):
                part.publishes_code = True

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, with the code."""
        self._save_with_code()
        return cast(Any, super()).push_to_hub(*args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer, but batches that group clips by length come in random order."""
        sampler = cast(Any, super())._get_train_sampler(*args, **kwargs)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        dataset = args[0] if args and args[0] is not None else cast(Any, self).train_dataset
        sampler.lengths = getattr(dataset, "lengths", sampler.lengths)
        return ShuffledLengthGroups(sampler)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in Trainer."""
        self._loss_sums.clear()  # an earlier training may have ended between two logs
        return cast(Any, super()).train(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As in Trainer, with an eye on the parts."""
        loss, outputs = cast(Any, super()).compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self._remember(outputs, num_items_in_batch is not None)
        return (loss, outputs) if return_outputs else loss

    def _remember(self, outputs: Any, divided_by_all_items: bool) -> None:
        """Add up the parts of one batch's loss, scaled as Trainer scales their total."""
        trainer: Any = self
        if not self._loss_sums:
            self._steps_before = trainer.state.global_step
        scale = 1.0
        if not divided_by_all_items:
            scale = 1 / trainer.current_gradient_accumulation_steps
        elif trainer.args.average_tokens_across_devices:
            scale = trainer.accelerator.num_processes if trainer.args.n_gpu <= 1 else trainer.args.n_gpu
        for name, value in outputs.items():
            if name.endswith("_loss") and value is not None:
                self._loss_sums[name] = self._loss_sums.get(name, 0) + value.detach().float().mean() * scale

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss to a training log."""
        trainer: Any = self
        if "loss" in logs and self._loss_sums:
            steps = max(trainer.state.global_step - self._steps_before, 1)
            for name, total in self._loss_sums.items():
                logs[name] = float(trainer.accelerator.reduce(total, reduction="mean")) / steps
            self._loss_sums.clear()
        cast(Any, super()).log(logs, *args, **kwargs)


__all__ = ["ShuffledLengthGroups", "SpeechTrainerMixin"]
