"""Layers of SpeechT5's Transformer, which its text encoder and its spectrogram decoder share.

Shapes: `B` batch, `Q` queries, `K` keys, `H` heads, `E` width of a head, `D` width.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class ScaledPositions(nn.Module):
    """Sine positions times a learned scale (Li et al. 2019).

    Args:
        length: positions there are.
        width: D, even.
        dropout: of the sum.
    """

    def __init__(self, length: int, width: int, dropout: float):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(()))
        self.table = nn.Buffer(sine_table(length, width), persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor, positions: torch.Tensor | slice) -> torch.Tensor:
        """Add positions to [B, Q, D]: those of a slice, or of integers [Q] or [B, Q]."""
        return self.dropout(hidden_states + (self.alpha * self.table[positions]).to(hidden_states.dtype))


def initialize_positions(module: nn.Module) -> None:
    """Part of a model's `_init_weights`; the table is in no checkpoint."""
    if isinstance(module, ScaledPositions):
        init.ones_(module.alpha)
        init.copy_(module.table, sine_table(*module.table.shape))


def sine_table(length: int, width: int) -> torch.Tensor:
    """Sines and cosines in turn, [length, width], of wavelengths from 2 pi to 20,000 pi (Vaswani et al. 2017)."""
    frequencies = torch.exp(torch.arange(0, width, 2).float() * -(math.log(10_000.0) / width))
    angles = torch.arange(length).float()[:, None] * frequencies  # [length, D / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Attention(nn.Module):
    """Multi-head attention, in whichever implementation the configuration names.

    Args:
        config: read for the width and, at every call, for the implementation.
        num_heads: H.
        is_causal: whether a query sees only keys that do not come after it.
    """

    def __init__(self, config: PreTrainedConfig, num_heads: int, is_causal: bool = False):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.dropout = config.attention_dropout
        width = config.hidden_size
        self.scaling = (width // num_heads) ** -0.5
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, K, E]

    def keys_and_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, K, D] to keys and values [B, H, K, E] each."""
        return self._split(self.k_proj(states)), self._split(self.v_proj(states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None = None,
        relative_positions: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            hidden_states: [B, Q, D].
            keys: [B, H, K, E].
            values: [B, H, K, E].
            mask: boolean, broadcast to [B, H, Q, K], True where a query may look. None lets it look everywhere, or
                where causal at its past.
            relative_positions: [Q, K, E], whose product with each query is added to its scores (Shaw et al. 2018).
            output_attentions: return the weights, which fused implementations cannot.

        Returns:
            [B, Q, D], and the weights before dropout, [B, H, Q, K], or None.
        """
        queries = self._split(self.q_proj(hidden_states))  # [B, H, Q, E]
        if relative_positions is not None:
            bias = torch.einsum("bhqe,qke->bhqk", queries, relative_positions) * self.scaling
            mask = bias if mask is None else bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
        attended, weights = self._implementation(output_attentions)(
            self,
            queries,
            keys,
            values,
            mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=self.is_causal,
        )
        return self.out_proj(attended.flatten(2)), weights if output_attentions else None

    def _implementation(self, output_attentions: bool) -> Callable[..., Any]:
        if output_attentions:
            return plain_attention
        name: Any = self.config._attn_implementation
        return ALL_ATTENTION_FUNCTIONS.get_interface(name, plain_attention)


def plain_attention(
    module: Attention,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as it is written in the books; the reference for the fused ones, and the one that shows its weights.

    Args:
        module: unused, part of the interface.
        queries: [B, H, Q, E].
        keys: [B, H, K, E].
        values: [B, H, K, E].
        mask: boolean, True where a query may look, or added to the scores.
        scaling: of the scores.
        dropout: of the weights.
        is_causal: where there is no mask, whether query i sees keys up to i alone. One query sees everything.
        kwargs: unused, part of the interface.

    Returns:
        [B, Q, H, E], and the weights before dropout, [B, H, Q, K].
    """
    scores = queries @ keys.transpose(-1, -2) * scaling  # [B, H, Q, K]
    if mask is None and is_causal and queries.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)
    attended = nn.functional.dropout(weights, dropout) @ values
    return attended.transpose(1, 2).contiguous(), weights


class FeedForward(nn.Module):
    """Two linear layers and an activation.

    Args:
        config: what the layers are made of.
        units: between the two.
    """

    def __init__(self, config: PreTrainedConfig, units: int):
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, units)
        self.activation = ACT2FN[config.hidden_act]
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = nn.Linear(units, config.hidden_size)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, Q, D] to [B, Q, D]."""
        inner = self.intermediate_dropout(self.activation(self.intermediate_dense(hidden_states)))
        return self.output_dropout(self.output_dense(inner))
