"""A pretrained speech encoder, made ready for cross-attention: backbone, adapter, projection.

Shapes: `B` batch, `N` input length (audio samples or feature frames), `T` encoder frames, `D` width.
"""

import functools
import inspect
import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from ..configuration.configuration_speech_seq2seq import SpeechEncoderConfig
from ..configuration.published_code import PublishesItsCode
from .attention_outputs import asked_outputs, eager_attention
from .quick_inference import is_quick
from .spec_augment import span_mask
from .speech_encoders import Lengths, WholeArguments, layer_with_whole_arguments, speech_encoder_family

LEAST_FRAMES_ALONE = 100  # of a clip for which a CPU works as well on it alone as on many: 2 s


@dataclass
class SpeechEncoderOutput(ModelOutput):
    """What a `SpeechEncoder` returns.

    Args:
        last_hidden_state: [B, T, D], adapted and projected.
        hidden_states: the backbone's, where asked for.
        attentions: the backbone's, where asked for.
        attention_mask: boolean [B, T], True where a frame is real; None where the input had no mask.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    attention_mask: torch.Tensor | None = None


class SpeechEncoderAdapterLayer(nn.Module):
    """A strided convolution with a gated linear unit: shortens [B, T, D] by its stride."""

    def __init__(self, width: int, kernel_size: int, stride: int):
        super().__init__()
        self.conv = nn.Conv1d(width, 2 * width, kernel_size, stride=stride, padding=kernel_size // 2)

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Input lengths [B] to output lengths [B], in frames."""
        padding, kernel_size, stride = self.conv.padding[0], self.conv.kernel_size[0], self.conv.stride[0]
        return (lengths + 2 * int(padding) - kernel_size) // stride + 1

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, T, D] to [B, T', D]."""
        return nn.functional.glu(self.conv(hidden_states.transpose(1, 2)), dim=1).transpose(1, 2).contiguous()


class SpeechEncoder(PublishesItsCode, PreTrainedModel):
    """Any speech encoder of the table, with an optional adapter and a projection where the widths differ.

    Args:
        config: what the encoder is made of.
        output_size: width that the reader of the output needs; None leaves the backbone's own.
        backbone: a ready module to use; None builds one from `config.encoder`.
    """

    config: SpeechEncoderConfig
    base_model_prefix = "speech_encoder"
    published_as = ("AutoModel",)
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(
        self,
        config: SpeechEncoderConfig,
        output_size: int | None = None,
        backbone: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        encoder_config = cast(PreTrainedConfig, config.encoder)
        self.family = speech_encoder_family(encoder_config)
        self.main_input_name = self.family.input_name
        if config.fixed_input_window and not self.family.fixed_input_window:
            raise ValueError(f"fixed_input_window: {encoder_config.model_type} encoders have no window to fill")
        self.backbone = self._adopt(backbone) if backbone is not None else self._build()
        width = self.family.output_size(encoder_config)
        self.adapter = nn.ModuleList(
            SpeechEncoderAdapterLayer(width, config.adapter_kernel_size, config.adapter_stride)
            for _ in range(config.adapter_layers)
        )
        self.projection = None
        if output_size is not None and output_size != width:
            self.projection = nn.Linear(width, output_size)
        self._least_input = self._find_least_input()
        self._train_what_is_used()
        self._watch_leaks()
        self._make_layers_repeatable()
        self.post_init()

    def _build(self) -> PreTrainedModel:
        encoder_config = cast(PreTrainedConfig, self.config.encoder)
        return self.family.backbone_class(encoder_config)(encoder_config)

    def _adopt(self, backbone: PreTrainedModel) -> PreTrainedModel:
        """Make a ready module one of the table's, which may extend Transformers' own class without new weights."""
        wanted = self.family.backbone_class(cast(PreTrainedConfig, self.config.encoder))
        if not issubclass(wanted, type(backbone)) and not isinstance(backbone, wanted):
            raise ValueError(f"the encoder must be a {wanted.__name__}, got a {type(backbone).__name__}")
        if not isinstance(backbone, wanted):
            backbone.__class__ = wanted
        for module in backbone.modules():
            if hasattr(module, "layerdrop"):  # some modules copy the setting when they are built
                cast(Any, module).layerdrop = self.config.layerdrop
        if self._masks_hidden_frames and not hasattr(backbone, "masked_spec_embed"):
            raise ValueError("mask_time_prob > 0 needs an encoder that was built with mask_time_prob > 0 itself")
        return backbone

    def _train_what_is_used(self) -> None:
        """Leave no parameter waiting for a gradient that never comes, and no flag that breaks a compiled graph."""
        mask_embedding = getattr(self.backbone, "masked_spec_embed", None)
        if mask_embedding is not None:
            mask_embedding.requires_grad_(self._masks_hidden_frames)
        for name in self.family.unused:
            self.backbone.get_submodule(name).requires_grad_(False)
        for module in self.backbone.modules():
            if getattr(module, "_requires_grad", False) is True:  # wav2vec 2.0 marks its input so inside forward
                cast(Any, module)._requires_grad = False

    def _watch_leaks(self) -> None:
        for pattern, lengths in self.family.leaking_convolutions:
            for name, module in self.backbone.named_modules():
                if re.search(pattern, name):
                    cast(Any, module).heard_lengths = None  # [B], real samples or feature frames
                    module.register_forward_pre_hook(functools.partial(self._silence_padding, lengths))

    def _make_layers_repeatable(self) -> None:
        """See `layer_with_whole_arguments`."""
        last = self.family.named_gradients
        for layer in self.backbone.modules():
            if not isinstance(layer, GradientCheckpointingLayer) or isinstance(layer, WholeArguments):
                continue
            hears = any("heard_lengths" in vars(module) for module in layer.modules())
            hands_on = last is not None and last in inspect.signature(layer.forward).parameters
            if hears or hands_on:
                cast(Any, layer).__class__ = layer_with_whole_arguments(type(layer), last if hands_on else None)
                cast(Any, layer).heard_lengths = None

    def _silence_padding(
        self, lengths: Lengths, module: nn.Module, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """Zero the padding of a convolution's input, [B, D, T]."""
        heard = cast(Any, module).heard_lengths
        if heard is None:
            return inputs
        places = torch.arange(inputs[0].shape[-1], device=inputs[0].device)
        real = places < lengths(self.backbone, heard)[:, None]  # [B, T]
        return inputs[0] * real[:, None], *inputs[1:]

    @property
    def _masks_hidden_frames(self) -> bool:
        masks_time = bool(self.config.apply_spec_augment) and (self.config.mask_time_prob or 0) > 0
        return self.family.mask_place == "hidden" and masks_time

    def get_input_embeddings(self) -> nn.Module:
        """The layer that reads the input (PEFT and quantisation ask for it)."""
        return getattr(self.backbone, self.family.feature_encoder[0])

    def freeze_feature_encoder(self) -> None:
        """Exclude the layers that read the waveform or the mel frames from training."""
        for name in self.family.feature_encoder:
            getattr(self.backbone, name).requires_grad_(False)

    def freeze_backbone(self) -> None:
        """Exclude the pretrained backbone from training; adapter and projection still learn."""
        self.backbone.requires_grad_(False)

    def min_input_length(self) -> int:
        """The shortest input that can be encoded, in samples or feature frames; shorter input is padded to it."""
        return self._least_input

    def _find_least_input(self) -> int:
        lengths = torch.arange(1, 16_000, device="cpu")  # on it even where the weights are placeholders
        least = self.family.least_frames
        frames = getattr(self.config.encoder, least) if isinstance(least, str) else least
        enough = (self.family.output_lengths(self.backbone, lengths) >= frames) & (self.output_lengths(lengths) >= 1)
        return int(lengths[enough][0])

    def output_lengths(self, input_lengths: torch.Tensor) -> torch.Tensor:
        """Input lengths to output lengths, adapter included.

        Args:
            input_lengths: [B], in samples or feature frames.

        Returns:
            [B], in frames of the output.
        """
        lengths = self.family.output_lengths(self.backbone, input_lengths)
        for layer in self.adapter:
            lengths = cast(SpeechEncoderAdapterLayer, layer).output_lengths(lengths)
        return lengths.long()

    def output_mask(self, attention_mask: torch.Tensor | None, frames: int) -> torch.Tensor | None:
        """Mask of the input, [B, N], to the mask of the output, boolean [B, frames]; None where nothing is masked."""
        if attention_mask is None or self._has_fixed_window:
            return None
        lengths = self.output_lengths(attention_mask.sum(dim=-1)).clamp(min=1)
        return torch.arange(frames, device=attention_mask.device) < lengths[:, None]

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SpeechEncoderOutput | tuple:
        """Encode audio.

        Args:
            input_values: [B, N], audio samples, for backbones that read waveforms.
            attention_mask: [B, N], 1 where the input is real. Padding stands at the end.
            input_features: feature frames in the backbone's layout ([B, M, N] for Whisper, [B, N, M] for others).
            output_attentions: return the backbone's attentions.
            output_hidden_states: return the backbone's hidden states.
            return_dict: False for a tuple.

        Raises:
            ValueError: the input is missing, given under the other kind's name, padded at the start, or does not
                fill the window that the backbone needs.
        """
        inputs = self._check_input(input_values, input_features, attention_mask)
        inputs, attention_mask = self._trim_window(inputs, attention_mask)
        inputs, attention_mask = self._fill_to_minimum(inputs, attention_mask)
        inputs, options = self._augment(inputs, attention_mask)
        asked = asked_outputs(self.config, output_attentions, output_hidden_states)
        heard = None if self._has_fixed_window else attention_mask
        with eager_attention(self.backbone, bool(asked.get("output_attentions"))):
            if self._encodes_one_by_one(inputs, heard) and not any(asked.values()):
                outputs = self._run_backbone_one_by_one(inputs, heard)
            else:
                outputs = self._run_backbone(inputs, heard, options | asked)
            hidden_states, mask = self.join(outputs.last_hidden_state, heard)  # [B, T, output_size]
        output = SpeechEncoderOutput(
            last_hidden_state=hidden_states,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            attention_mask=mask,
        )
        return output.to_tuple() if return_dict is False else output

    def _encodes_one_by_one(self, inputs: torch.Tensor, heard: torch.Tensor | None) -> bool:
        """Whether a CPU is done sooner with clip after clip: less padding, and states that its caches can hold."""
        if not is_quick() or self.training or inputs.device.type != "cpu":
            return False
        if len(inputs) == 1 if heard is None else self._hears_padding:
            return False
        return int(self.output_lengths(torch.tensor([inputs.shape[self.family.time_dim]]))) >= LEAST_FRAMES_ALONE

    @functools.cached_property
    def _hears_padding(self) -> bool:
        """Whether the backbone normalises over a clip's time, padding included, as it does in its training."""
        return any(isinstance(module, nn.GroupNorm) for module in self.backbone.modules())

    def _run_backbone_one_by_one(self, inputs: torch.Tensor, heard: torch.Tensor | None) -> Any:
        """Encode clips without their padding, behind which there are zeros in place of frames."""
        time_dim = self.family.time_dim
        size = inputs.shape[time_dim]
        lengths = torch.full((len(inputs),), size) if heard is None else heard.sum(dim=-1)  # [B]
        clips = [clip.narrow(time_dim, 0, n) for clip, n in zip(inputs.split(1), lengths.tolist(), strict=True)]
        states = [self._run_backbone(clip, None, {}).last_hidden_state[0] for clip in clips]  # B of [T, D]
        frames = int(self.family.output_lengths(self.backbone, torch.tensor([size])))
        found = states[0].new_zeros(len(states), max(frames, *map(len, states)), states[0].shape[-1])
        for row, state in zip(found, states, strict=True):
            row[: len(state)] = state
        return ModelOutput(last_hidden_state=found)

    def _run_backbone(self, inputs: torch.Tensor, heard: torch.Tensor | None, options: dict[str, Any]) -> Any:
        if not self.family.leaking_convolutions:
            return self.backbone(inputs, attention_mask=heard, **options)
        self._tell_lengths(None if heard is None else heard.sum(dim=-1))
        outputs = self.backbone(inputs, attention_mask=heard, **options)
        self._tell_lengths(None)
        return outputs

    def _tell_lengths(self, lengths: torch.Tensor | None) -> None:
        for module in self.backbone.modules():
            if "heard_lengths" in vars(module):
                cast(Any, module).heard_lengths = lengths

    @property
    def _has_fixed_window(self) -> bool:
        wanted = self.config.fixed_input_window
        return self.family.fixed_input_window if wanted is None else wanted

    def _check_input(
        self, input_values: torch.Tensor | None, input_features: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        by_position = input_values is not None and input_values.dim() == 3  # no waveform has three dimensions
        if by_position and input_features is None and self.family.input_name == "input_features":
            input_values, input_features = None, input_values
        given = {"input_values": input_values, "input_features": input_features}
        inputs = given[self.family.input_name]
        if inputs is None or sum(value is not None for value in given.values()) != 1:
            names = [name for name, value in given.items() if value is not None]
            raise ValueError(
                f"{type(self.backbone).__name__} reads {self.family.input_name} and nothing else, got "
                f"{' and '.join(names) or 'neither input_values nor input_features'}"
            )
        if self._has_fixed_window:
            window = cast(Any, self.backbone).max_source_positions * 2
            if inputs.shape[self.family.time_dim] != window:
                raise ValueError(
                    f"the encoder needs a full window of {window} feature frames, got "
                    f"{inputs.shape[self.family.time_dim]}: pad with its processor, or set "
                    "config.fixed_input_window=False for a model that was trained on shorter input"
                )
        if mask is not None and not torch.compiler.is_compiling() and not bool(mask[:, 0].all()):
            raise ValueError("attention_mask starts with padding: speech encoders need padding at the end")
        inputs = inputs.to(self.dtype)
        return inputs.detach().requires_grad_() if self._recomputes_reentrantly else inputs

    @property
    def _recomputes_reentrantly(self) -> bool:
        """Whether layers are checkpointed in PyTorch's older way: no gradient unless their input has one."""
        if torch.compiler.is_compiling() or not (self.training and torch.is_grad_enabled()):
            return False
        checkpointing = (module for module in self.modules() if getattr(module, "gradient_checkpointing", False))
        functions = (getattr(module, "_gradient_checkpointing_func", None) for module in checkpointing)
        return any(getattr(function, "keywords", {}).get("use_reentrant", False) for function in functions)

    def _trim_window(
        self, inputs: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Cut the silence that a feature extractor filled a window with, where the model was trained without it."""
        if mask is None or not self.family.fixed_input_window or self._has_fixed_window:
            return inputs, mask
        if self.training or torch.compiler.is_compiling():
            return inputs, mask
        longest = max(int(mask.sum(dim=-1).max()), self.min_input_length())
        return inputs.narrow(self.family.time_dim, 0, min(longest, inputs.shape[self.family.time_dim])), mask[
            :, :longest
        ]

    def _fill_to_minimum(
        self, inputs: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pad clips that are shorter than the receptive field with silence, which then counts as heard."""
        least = self.min_input_length()
        time_dim = self.family.time_dim
        missing = least - inputs.shape[time_dim]
        if missing > 0:
            padding = [0, 0] * (inputs.dim() - 1 - time_dim) + [0, missing]
            inputs = nn.functional.pad(inputs, padding)
            mask = None if mask is None else nn.functional.pad(mask, [0, missing])
        if mask is not None:
            mask = mask.bool() | (torch.arange(mask.shape[1], device=mask.device) < least)
            mask = mask.long()
        return inputs, mask

    def _augment(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Apply SpecAugment in training: on the features here, on hidden frames through the backbone's own door."""
        config, place = self.config, self.family.mask_place
        if not (self.training and config.apply_spec_augment and place):
            return inputs, {}
        size = inputs.shape[self.family.time_dim]
        lengths = torch.full((inputs.shape[0],), size, device=inputs.device) if mask is None else mask.sum(dim=-1)
        time_prob = float(config.mask_time_prob or 0)
        span, least = int(config.mask_time_length or 0), int(config.mask_time_min_masks or 0)
        if place == "hidden":
            if time_prob == 0:
                return inputs, {}
            hidden_lengths = cast(Any, self.family.hidden_lengths)
            frames = hidden_lengths(self.backbone, size)
            lengths = hidden_lengths(self.backbone, lengths).clamp(min=1)
            return inputs, {"mask_time_indices": span_mask(lengths, frames, time_prob, span, least)}
        channel_dim = 3 - self.family.time_dim
        if time_prob > 0:
            masked = span_mask(lengths, size, time_prob, span, least)  # [B, N]
            inputs = inputs.masked_fill(masked.unsqueeze(channel_dim), 0)
        if (feature_prob := float(config.mask_feature_prob or 0)) > 0:
            bins = torch.full((inputs.shape[0],), inputs.shape[channel_dim], device=inputs.device)
            width, least = int(config.mask_feature_length or 0), int(config.mask_feature_min_masks or 0)
            masked = span_mask(bins, inputs.shape[channel_dim], feature_prob, width, least)  # [B, M]
            inputs = inputs.masked_fill(masked.unsqueeze(self.family.time_dim), 0)
        return inputs, {}

    def join(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What follows the backbone: adapter and projection.

        Args:
            hidden_states: [B, T, D], the backbone's output.
            attention_mask: [B, N], of the input.

        Returns:
            The encoder's output [B, T', output_size], and its mask, boolean [B, T'], or None.
        """
        hidden_states, mask = self._adapt(hidden_states, None if self._has_fixed_window else attention_mask)
        return hidden_states if self.projection is None else self.projection(hidden_states), mask

    def _adapt(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Shorten the sequence with the adapter, keeping padding silent between its layers."""
        lengths = None
        if attention_mask is not None:
            lengths = self.family.output_lengths(self.backbone, attention_mask.sum(dim=-1)).long().clamp(min=1)
        for layer in self.adapter:
            if lengths is not None:
                real = torch.arange(hidden_states.shape[1], device=hidden_states.device) < lengths[:, None]
                hidden_states = hidden_states * real[..., None]
                lengths = cast(SpeechEncoderAdapterLayer, layer).output_lengths(lengths).clamp(min=1)
            hidden_states = layer(hidden_states)
        if lengths is None:
            return hidden_states, None
        return hidden_states, torch.arange(hidden_states.shape[1], device=hidden_states.device) < lengths[:, None]
