"""SpeechT5's spectrogram decoder: prenet, causal Transformer with cross-attention, mel and stop heads, postnet.

Shapes: `B` batch, `N` decoder steps, `r` frames of a step, `T = N r` frames, `M` mel bins, `S` text tokens, `D` width,
`H` heads, `E` width of a head, `U` prenet units, `V` width of a speaker embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from .transformer_layers import Attention, FeedForward, ScaledPositions

Generators = torch.Generator | Sequence[torch.Generator] | None


class SpectrogramPrenet(nn.Module):
    """Reads the last frame of each step through a bottleneck with dropout that is always on (Shen et al. 2018).

    Without it a decoder copies the last frame instead of listening to the text.
    """

    def __init__(self, config: TextToSpectrogramConfig):
        super().__init__()
        self.config = config
        units = config.speech_decoder_prenet_units
        widths = [config.num_mel_bins] + [units] * config.speech_decoder_prenet_layers
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.final_layer = nn.Linear(widths[-1], config.hidden_size)
        self.encode_positions = ScaledPositions(
            config.max_speech_positions, config.hidden_size, config.positional_dropout
        )
        self.speaker_embeds_layer = None
        if config.speaker_embedding_dim > 0:
            self.speaker_embeds_layer = nn.Linear(
                config.speaker_embedding_dim + config.hidden_size, config.hidden_size
            )

    def draw_masks(self, batch: int, steps: int, generator: Generators = None) -> list[torch.Tensor]:
        """Dropout masks of the linear layers, each [B, N, U]: 0, or 1 / (1 - p), with probability p of 0.

        Args:
            batch: B.
            steps: N.
            generator: where the randomness comes from: one for all rows, or one for each row, which makes a row
                independent of its neighbours. None takes PyTorch's own.

        Returns:
            A mask for each layer; none where the configuration's dropout is 0.
        """
        p = self.config.speech_decoder_prenet_dropout
        if p == 0:
            return []
        shape = (steps, len(self.layers), self.config.speech_decoder_prenet_units)  # a prefix has its own noise, alone
        like = self.encode_positions.alpha  # a parameter whatever kernels the linear layers were given
        if isinstance(generator, Sequence):
            if len(generator) != batch:
                raise ValueError(f"there are {len(generator)} generators for {batch} rows")
            noise = torch.stack([_uniform(shape, like.device, one) for one in generator], dim=1)  # [N, B, …, U]
        else:
            noise = _uniform((steps, batch, *shape[1:]), like.device, generator)
        return list(((noise >= p).to(like.dtype) / (1 - p)).permute(2, 1, 0, 3))

    def forward(
        self,
        frames: torch.Tensor,
        positions: torch.Tensor | slice,
        speaker_embeddings: torch.Tensor | None = None,
        masks: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Read frames.

        Args:
            frames: [B, N, M].
            positions: of the steps; see `ScaledPositions`.
            speaker_embeddings: [B, V], of unit length, or None.
            masks: from `draw_masks`; none leaves out dropout.

        Returns:
            [B, N, D].
        """
        hidden_states = frames.to(self.encode_positions.alpha.dtype)
        for index, layer in enumerate(self.layers):
            hidden_states = nn.functional.relu(layer(hidden_states))  # [B, N, U]
            if masks:
                hidden_states = hidden_states * masks[index]
        hidden_states = self.encode_positions(self.final_layer(hidden_states), positions)  # [B, N, D]
        if speaker_embeddings is None or self.speaker_embeds_layer is None:
            return hidden_states
        speakers = speaker_embeddings[:, None].expand(-1, hidden_states.shape[1], -1)  # [B, N, V]
        return nn.functional.relu(self.speaker_embeds_layer(torch.cat([hidden_states, speakers], dim=-1)))


def _uniform(shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> torch.Tensor:
    """Uniform numbers, drawn where the generator lives, so that one on the CPU means the same everywhere."""
    if generator is None:
        return torch.rand(shape, device=device)
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


class SpectrogramDecoderLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention, feed-forward, each followed by its layer normalisation."""

    def __init__(self, config: TextToSpectrogramConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = Attention(config, config.decoder_attention_heads, is_causal=True)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.encoder_attn = Attention(config, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward = FeedForward(config, config.decoder_ffn_dim)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        mask: torch.Tensor | None = None,
        cross_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        output_attentions: bool = False,
        output_cross_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """[B, N, D] to [B, N, D], with the weights of both attentions where asked for."""
        keys, values = self.self_attn.keys_and_values(hidden_states)
        if past_key_values is not None:
            keys, values = past_key_values.self_attention_cache.update(keys, values, self.layer_idx)
        attended, weights = self.self_attn(hidden_states, keys, values, mask, output_attentions=output_attentions)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        keys, values = self.text_keys_and_values(encoder_hidden_states, past_key_values)
        attended, cross_weights = self.encoder_attn(
            hidden_states, keys, values, cross_mask, output_attentions=output_cross_attentions
        )
        hidden_states = self.encoder_attn_layer_norm(hidden_states + self.dropout(attended))
        hidden_states = self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))
        return hidden_states, weights, cross_weights

    def text_keys_and_values(
        self, encoder_hidden_states: torch.Tensor | None, past_key_values: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, H, S, E] of the text, projected once for an utterance where there is a cache."""
        if past_key_values is None:
            return self.encoder_attn.keys_and_values(cast(torch.Tensor, encoder_hidden_states))
        cache = past_key_values.cross_attention_cache
        if past_key_values.is_updated.get(self.layer_idx):
            layer: Any = cache.layers[self.layer_idx]
            return layer.keys, layer.values
        keys, values = self.encoder_attn.keys_and_values(cast(torch.Tensor, encoder_hidden_states))
        past_key_values.is_updated[self.layer_idx] = True
        return cache.update(keys, values, self.layer_idx)


@dataclass
class DecoderStates:
    """What `SpectrogramDecoder` returns.

    Args:
        last_hidden_state: [B, N, D].
        hidden_states: input of the first layer and output of each, where asked for.
        attentions: weights of self-attention, [B, H, N, K] for each layer, where asked for.
        cross_attentions: weights of cross-attention, [B, H, N, S] for each layer, where asked for.
    """

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class SpectrogramDecoder(nn.Module):
    """From the frames so far and the encoded text to the next `r` frames and whether speech ends in them."""

    def __init__(self, config: TextToSpectrogramConfig):
        super().__init__()
        self.config = config
        self.prenet = SpectrogramPrenet(config)
        self.layers = nn.ModuleList(SpectrogramDecoderLayer(config, index) for index in range(config.decoder_layers))
        self.mel_head = nn.Linear(config.hidden_size, config.num_mel_bins * config.reduction_factor)
        self.stop_head = nn.Linear(config.hidden_size, config.reduction_factor)

    def forward(
        self,
        frames: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        cross_mask: torch.Tensor | None = None,
        speaker_embeddings: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        prenet_masks: Sequence[torch.Tensor] = (),
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_cross_attentions: bool = False,
    ) -> DecoderStates:
        """Decode.

        Args:
            frames: [B, N, M], the last frame of each step before, zeros for the first.
            encoder_hidden_states: [B, S, D]; None where the cache holds what the layers need of it.
            cross_mask: boolean [B, 1, 1, S], True where a token is real; None where all are.
            speaker_embeddings: [B, V], of unit length.
            past_key_values: steps before these, which the new ones are added to.
            prenet_masks: from `SpectrogramPrenet.draw_masks`.
            output_hidden_states: return the hidden states of every layer.
            output_attentions: return the weights of self-attention.
            output_cross_attentions: return the weights of cross-attention.
        """
        steps = frames.shape[1]
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        self._check_positions(start, steps)
        positions, mask = _places(start, steps, past_key_values, frames.device)
        hidden_states = self.prenet(frames, positions, speaker_embeddings, prenet_masks)  # [B, N, D]
        all_states, self_weights, cross_weights = [hidden_states], [], []
        for layer in self.layers:
            hidden_states, weights, over_text = layer(
                hidden_states,
                encoder_hidden_states,
                mask,
                cross_mask,
                past_key_values=past_key_values,
                output_attentions=output_attentions,
                output_cross_attentions=output_cross_attentions,
            )
            all_states.append(hidden_states)
            self_weights.append(weights)
            cross_weights.append(over_text)
        return DecoderStates(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_states) if output_hidden_states else None,
            attentions=tuple(self_weights) if output_attentions else None,
            cross_attentions=tuple(cross_weights) if output_cross_attentions else None,
        )

    def heads(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, N, D] to frames [B, T, M] and stop logits [B, T]."""
        frames = self.mel_head(hidden_states).unflatten(-1, (-1, self.config.num_mel_bins)).flatten(1, 2)
        return frames, self.stop_head(hidden_states).flatten(1)

    def _check_positions(self, start: int | torch.Tensor, steps: int) -> None:
        """Raise beyond the positions; those of a static cache were checked when it was made."""
        limit = self.config.max_speech_positions
        if isinstance(start, int) and start + steps > limit:
            r = self.config.reduction_factor
            raise ValueError(
                f"the speech has {(start + steps) * r} frames ({start + steps} decoder steps of {r}), but the model "
                f"has positions for {limit * r} (max_speech_positions={limit} steps): split the text"
            )


def _places(
    start: int | torch.Tensor, steps: int, past_key_values: Cache | None, device: torch.device
) -> tuple[torch.Tensor | slice, torch.Tensor | None]:
    """Positions of new steps, and a causal mask [N, K] where the causality of attention itself is not enough."""
    static = past_key_values is not None and past_key_values.is_compileable
    if not static and isinstance(start, int):
        positions: torch.Tensor | slice = slice(start, start + steps)
        if start == 0 or steps == 1:
            return positions, None
        return positions, torch.ones(steps, start + steps, dtype=torch.bool, device=device).tril(start)
    rows = torch.arange(steps, device=device) + start
    length: Any = cast(Cache, past_key_values).get_max_length() if static else start + steps
    return rows, torch.arange(length, device=device) <= rows[:, None]


class RoomyLayer(DynamicLayer):
    """A growing cache that copies its content only when its room is used up, instead of at every step."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values [B, H, N, E]; gives all of them so far."""
        if torch.is_grad_enabled() and key_states.requires_grad:  # what backward needs must not be written over
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("_key_room", self.keys, key_states)
        self.values = self._append("_value_room", self.values, value_states)
        return self.keys, self.values

    def _append(self, name: str, held: Any, new: torch.Tensor) -> torch.Tensor:
        used = held.shape[-2] if held.numel() else 0
        needed = used + new.shape[-2]
        room: torch.Tensor | None = getattr(self, name, None)
        is_ours = room is not None and used > 0 and room.data_ptr() == held.data_ptr() and len(room) == len(held)
        if room is None or not is_ours or room.shape[-2] < needed:
            room = new.new_empty(*new.shape[:2], max(64, 2 * needed), new.shape[-1])
            if used:
                room[:, :, :used] = held
            setattr(self, name, room)
        room[:, :, used:needed] = new
        return room[:, :, :needed]


@dataclass
class DecodingState:
    """What is carried from one decoding step to the next.

    Args:
        cache: keys and values of the steps so far, and of the text.
        cross_mask: boolean [B, 1, 1, S], True where a token is real; None where all are.
        speaker_embeddings: [B, V], of unit length, or None.
    """

    cache: EncoderDecoderCache
    cross_mask: torch.Tensor | None = None
    speaker_embeddings: torch.Tensor | None = None

    @property
    def position(self) -> int | torch.Tensor:
        """Steps so far: an integer, or for a static cache a tensor, so that a compiled step needs no new graph."""
        return self.cache.get_seq_length()

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep some rows of the batch: `rows` are their indices, or a boolean [B]."""
        for cache in (self.cache.self_attention_cache, self.cache.cross_attention_cache):
            for layer in cast(list[Any], cache.layers):
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        if self.cross_mask is not None:
            self.cross_mask = self.cross_mask[rows]
        if self.speaker_embeddings is not None:
            self.speaker_embeddings = self.speaker_embeddings[rows]


def new_cache(
    config: TextToSpectrogramConfig, like: torch.Tensor | None = None, max_steps: int | None = None
) -> EncoderDecoderCache:
    """An empty cache.

    Args:
        config: of the model.
        like: [B, S, D], of the dtype, device and batch that a static cache is made for.
        max_steps: steps that a static cache has room for; None for one that grows.

    Raises:
        ValueError: there are not as many positions.
    """
    text = DynamicCache(config=config)
    if max_steps is None:
        return EncoderDecoderCache(Cache(layers=[RoomyLayer() for _ in range(config.decoder_layers)]), text)
    if max_steps > config.max_speech_positions:
        raise ValueError(
            f"max_steps={max_steps} exceeds the model's positions: max_speech_positions={config.max_speech_positions}"
        )
    like = cast(torch.Tensor, like)
    own = StaticCache(config=config, max_cache_len=max_steps)
    heads = config.decoder_attention_heads
    own.early_initialization(len(like), heads, config.hidden_size // heads, like.dtype, like.device)
    return EncoderDecoderCache(own, text)


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation whose statistics are those of real frames alone.

    Args:
        channels: C.
        begins_silent: a new one gives zeros, until it has learned a scale.
    """

    def __init__(self, channels: int, begins_silent: bool = False):
        super().__init__(channels)
        self.begins_silent = begins_silent

    def forward(self, input: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise.

        Args:
            input: [B, C, T].
            mask: boolean [B, 1, T], True where a frame is real; None where all are.

        Returns:
            [B, C, T].
        """
        if not self.training:
            return super().forward(input)
        real = torch.ones_like(input[:, :1]) if mask is None else mask.to(input.dtype)
        count = real.float().sum().clamp(min=1)
        values = input.float()
        mean = (values * real).sum(dim=(0, 2)) / count  # [C]
        centred = values - mean[:, None]
        variance = (centred**2 * real).sum(dim=(0, 2)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight.float() * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None] + self.bias.float()[:, None]).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        for held, new in ((self.running_mean, mean), (self.running_var, variance)):
            cast(torch.Tensor, held).lerp_(new.to(cast(torch.Tensor, held).dtype), cast(float, self.momentum))
        cast(torch.Tensor, self.num_batches_tracked).add_(1)


class PostnetLayer(nn.Module):
    """Convolution, batch normalisation, tanh in all layers but the last, dropout."""

    def __init__(self, config: TextToSpectrogramConfig, index: int):
        super().__init__()
        units, kernel = config.speech_decoder_postnet_units, config.speech_decoder_postnet_kernel
        is_last = index == config.speech_decoder_postnet_layers - 1
        inputs = config.num_mel_bins if index == 0 else units
        outputs = config.num_mel_bins if is_last else units
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.batch_norm = MaskedBatchNorm(outputs, begins_silent=is_last)  # or a new postnet would add loud noise
        self.activation = nn.Identity() if is_last else nn.Tanh()
        self.dropout = nn.Dropout(config.speech_decoder_postnet_dropout)

    def forward(self, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[B, C, T] to [B, C', T]; frames where `mask` [B, 1, T] is False are as the zeros beyond the end."""
        if mask is not None:
            values = values.masked_fill(~mask, 0)
        return self.dropout(self.activation(self.batch_norm(self.conv(values), mask)))


class Postnet(nn.Module):
    """Adds detail to a finished spectrogram (Shen et al. 2018)."""

    def __init__(self, config: TextToSpectrogramConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            PostnetLayer(config, index) for index in range(config.speech_decoder_postnet_layers)
        )
        self.context_frames = config.speech_decoder_postnet_layers * (config.speech_decoder_postnet_kernel // 2)

    def forward(self, spectrogram: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Refine.

        Args:
            spectrogram: [B, T, M].
            mask: boolean [B, T], True where a frame is real, None where all are. Real frames come out as they would
                alone.

        Returns:
            [B, T, M]. A frame depends on `context_frames` to either side.
        """
        if len(self.layers) == 0:
            return spectrogram
        channel_mask = None if mask is None else mask[:, None]  # [B, 1, T]
        values = spectrogram.transpose(1, 2)  # [B, M, T]
        for layer in self.layers:
            values = layer(values, channel_mask)
        if channel_mask is not None:
            values = values.masked_fill(~channel_mask, 0)
        return spectrogram + values.transpose(1, 2)
