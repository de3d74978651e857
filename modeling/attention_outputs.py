"""Which further outputs a part of a model returns, and how it comes by attention weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig


def asked_outputs(
    config: PreTrainedConfig, output_attentions: bool | None, output_hidden_states: bool | None
) -> dict[str, bool]:
    """Which further outputs a part shall return, from the call or else the whole model's configuration.

    Nothing is said of those that neither asks for: an explicit None would hide the part's own configuration.
    """
    given = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
    settled = {name: getattr(config, name) or None if value is None else value for name, value in given.items()}
    return {name: value for name, value in settled.items() if value is not None}


@contextmanager
def eager_attention(part: nn.Module, wanted: bool) -> Iterator[None]:
    """Compute a part's attentions in the one way that returns them: fused kernels drop them without a word."""
    if not wanted:
        yield
        return
    modules: list[Any] = list(part.modules())  # Pegasus' layers have a copy of its configuration
    configs = [each.config for each in modules if isinstance(getattr(each, "config", None), PreTrainedConfig)]
    before = [(config, config._attn_implementation) for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
