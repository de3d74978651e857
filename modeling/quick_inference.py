"""Generation on CPUs, sooner: what `generate()` and `transcribe()` may do, and a plain `forward` does not.

On x86 CPUs PyTorch gives products of float32 to MKL, which on many of them takes up to twice as long as oneDNN, the
library that its convolutions run on. Nothing is packed and nothing kept: weights stay where they are, so that whoever
changes them gets the changed ones. Sums are taken in another order, so results differ from those of the native classes
in the last bits of float32; those of `forward`, which people compare, do not.

`torch.backends.mkldnn.flags(enabled=False)` leaves all to MKL.
"""

import functools
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import nn

_QUICK: ContextVar[bool] = ContextVar("quick", default=False)

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[..., K], [N, K], [N] to [..., N], as `torch.nn.functional.linear` does; by oneDNN where that can be."""
    if torch.compiler.is_compiling() or not _computes_plainly(states, weight):
        return nn.functional.linear(states, weight, bias)
    product = onednn_product()
    return nn.functional.linear(states, weight, bias) if product is None else product(states, weight, bias)


class OneDnnLinear(nn.Linear):
    """A linear layer while a `quick_inference` is in force."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., K] to [..., N]."""
        return linear(input, self.weight, self.bias)


@contextmanager
def quick_inference(module: nn.Module) -> Iterator[None]:
    """Within it, linear layers that need no gradient and compute in float32 on the CPU do so by oneDNN.

    All others, and layers whose forward somebody else has replaced, stay as they are. Contexts may lie in each other,
    and threads may share the module. The layers change their class for that time, and nothing else.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return
    changed = []
    if onednn_product() is not None:
        for layer in module.modules():
            if type(layer) is nn.Linear and "forward" not in vars(layer) and _is_plain(layer.weight):
                layer.__class__ = OneDnnLinear
                changed.append(layer)
    before = _QUICK.set(True)
    try:
        yield
    finally:
        _QUICK.reset(before)
        for layer in changed:
            if type(layer) is OneDnnLinear:  # and not what somebody else made of it in the meantime
                cast(Any, layer).__class__ = nn.Linear


def is_quick() -> bool:
    """Whether a `quick_inference` is in force, so that the last bits do not matter."""
    return not torch.compiler.is_compiling() and _QUICK.get() and not torch.is_grad_enabled()


def _computes_plainly(states: torch.Tensor, weight: torch.Tensor) -> bool:
    asked = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled
    return (
        not asked and type(states) is torch.Tensor and states.numel() > 0 and _is_plain(states) and _is_plain(weight)
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it holds numbers that oneDNN reads as they stand, or in a copy."""
    return tensor.is_cpu and tensor.dtype == torch.float32 and tensor.layout == torch.strided


@functools.cache
def onednn_product() -> Product | None:
    """oneDNN's [..., K], [N, K], [N] -> [..., N]; None where this PyTorch has none, or the CPU is not an x86.

    The operator is the one that PyTorch's own compiler writes into graphs. It is not part of the public interface, so
    it is tried before it is trusted.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"} or not torch.backends.mkldnn.is_available():
        return None
    try:
        operator = torch.ops.mkldnn._linear_pointwise.default

        def product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return operator(states.contiguous(), weight.contiguous(), bias, "none", [], "")

        states, weight, bias = torch.eye(2)[None], torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.ones(3)
        right = torch.equal(product(states, weight, bias), (weight.T + 1)[None])
        right = right and torch.equal(product(states, weight, None), weight.T[None])
    except (AttributeError, RuntimeError, TypeError):
        return None
    return product if right else None


__all__ = ["OneDnnLinear", "is_quick", "linear", "onednn_product", "quick_inference"]
