"""Low-rank adapters for a `SpeechSeq2SeqModel`, which also keep what no checkpoint can supply again."""

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from .modeling_speech_seq2seq import SpeechSeq2SeqModel

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(model: SpeechSeq2SeqModel, **kwargs: Any) -> "LoraConfig":
    """A configuration of low-rank adaptation (Hu et al. 2021) that can be loaded again.

    An adapter holds only what it changes. In a freshly built model that is not enough: cross-attention, projection,
    adapter and CTC head are random, and would be random in another way when the model is built again. They are
    therefore trained and saved whole.

    Args:
        model: the model to adapt.
        kwargs: arguments of `peft.LoraConfig`. `target_modules` replaces the choice made here, all linear layers in
            the blocks of both halves; `modules_to_save` adds to it.

    Returns:
        For `peft.get_peft_model(model, …)`.

    Raises:
        ImportError: peft is not installed.
        ValueError: `task_type` was given; the classes that peft has for tasks know no speech input.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError('lora_config needs peft: pip install "speechgraft[peft]"') from error
    if kwargs.pop("task_type", None) is not None:
        raise ValueError("leave task_type out: peft's model for it takes input_ids, and no audio")
    whole = {*_new_modules(model), *(kwargs.pop("modules_to_save", None) or ())}
    kwargs.setdefault("target_modules", _linear_layers(model, whole))
    return LoraConfig(modules_to_save=sorted(whole), **kwargs)


def _new_modules(model: SpeechSeq2SeqModel) -> set[str]:
    """Modules that no checkpoint supplied; parameters that stand alone have no place in an adapter."""
    modules = dict(model.named_modules())
    found: set[str] = set()
    waiting = [name for name in model.config.newly_initialized or () if name in modules]
    while waiting:
        name = waiting.pop()
        if isinstance(modules[name], nn.ModuleList | nn.ModuleDict):  # peft takes their members alone
            waiting += [f"{name}.{child}" for child, _ in modules[name].named_children()]
        else:
            found.add(name)
    return found


def _linear_layers(model: SpeechSeq2SeqModel, whole: set[str]) -> list[str]:
    """Names of the linear layers in the blocks of both halves, without those that are saved whole or never called."""
    backbone, bypassed = "encoder.backbone.", model.encoder.family.bypassed
    found = []
    for block, holder in model.named_modules():
        if not isinstance(holder, GradientCheckpointingLayer):
            continue
        inside = holder.named_modules(prefix=block)
        layers = [name for name, module in inside if isinstance(module, nn.Linear | Conv1D)]
        found += [name for name in layers if not (block.startswith(backbone) and name.endswith(bypassed))]
    return [name for name in found if not any(f"{name}.".startswith(f"{saved}.") for saved in whole)]


__all__ = ["lora_config"]
