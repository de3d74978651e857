"""The table of speech encoders: what differs between families, one row each, and nowhere else.

Shapes: `B` batch, `N` audio samples, `F` feature frames, `M` mel bins, `T` encoder frames, `D` encoder width.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder
from transformers.models.speech_to_text.modeling_speech_to_text import Speech2TextEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .spec_augment import span_mask

Lengths = Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]


class WhisperSpeechEncoder(WhisperEncoder):
    """Whisper's encoder, which also takes input that is shorter than its window, and masks padding there.

    On a full window without a mask it computes what Whisper's own forward does, bit for bit.
    """

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encode log-mel frames.

        Args:
            input_features: [B, M, F], F at most the window (3,000 frames of 10 ms).
            attention_mask: [B, F], 1 where a frame is real. Padding neither leaks through the convolutions nor is
                attended to.

        Returns:
            `last_hidden_state` [B, T, D], T = ceil(F / 2).

        Raises:
            ValueError: the input is longer than the window.
        """
        window = self.max_source_positions * self.conv2.stride[0]
        if input_features.shape[-1] > window:
            raise ValueError(
                f"Whisper's encoder takes at most {window} feature frames, got {input_features.shape[-1]}: "
                "cut the audio, or transcribe it in chunks"
            )
        frames_kept = 1.0 if attention_mask is None else attention_mask[:, None].to(input_features.dtype)
        hidden_states = nn.functional.gelu(self.conv1(input_features * frames_kept)) * frames_kept  # [B, D, F]
        hidden_states = nn.functional.gelu(self.conv2(hidden_states)).transpose(1, 2)  # [B, T, D]
        hidden_states = hidden_states + self.embed_positions.weight[: hidden_states.shape[1]]
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        mask = None
        if attention_mask is not None:
            mask = create_bidirectional_mask(self.config, hidden_states, attention_mask[:, :: self.conv2.stride[0]])
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand([]) < self.layerdrop:
                continue
            hidden_states = layer(hidden_states, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden_states))


class _SpanMasking:
    """SpecAugment inside a backbone as tensor operations: Transformers draws the channels in NumPy, which no graph can
    hold.
    """

    config: Any
    training: bool
    masked_spec_embed: nn.Parameter

    def _mask_hidden_states(
        self,
        hidden_states: torch.Tensor,
        mask_time_indices: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mask the frames given as boolean [B, T], and channels drawn here, in [B, T, D]."""
        if mask_time_indices is not None:
            embedding = self.masked_spec_embed.to(hidden_states.dtype)
            hidden_states = torch.where(mask_time_indices[..., None], embedding, hidden_states)
        config = self.config
        if not (self.training and config.apply_spec_augment and config.mask_feature_prob > 0):
            return hidden_states
        rows, _, width = hidden_states.shape
        channels = torch.full((rows,), width, device=hidden_states.device)
        spans = config.mask_feature_prob, config.mask_feature_length, config.mask_feature_min_masks
        return hidden_states.masked_fill(span_mask(channels, width, *spans)[:, None], 0)


@functools.cache
def _with_span_masking(backbone_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class of Transformers with the masking above. It keeps its name and place, which Transformers looks up."""
    names = {name: getattr(backbone_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(backbone_class.__name__, (_SpanMasking, backbone_class), names)


class WholeArguments:
    """Gives a checkpointed layer by its arguments all that it depends on, so that it can be computed again from them.

    - The lengths that its convolutions hear: by the time of the backward pass, another batch may have been heard.
    - By position what carries a gradient: PyTorch's older, reentrant checkpointing cuts the graph at these arguments
      and at no others, and would go on through all layers before it, again for each layer.
    """

    heard_lengths: torch.Tensor | None  # [B]
    by_position: tuple[str, ...]  # the arguments of forward, as far as these

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for name in self.by_position[len(args) :]:
            args = (*args, kwargs.pop(name, None))
        return cast(Any, super()).__call__(*args, heard_lengths=self.heard_lengths, **kwargs)

    def forward(self, *args: Any, heard_lengths: torch.Tensor | None = None, **kwargs: Any) -> Any:
        for module in cast(nn.Module, self).modules():
            if module is not self and "heard_lengths" in vars(module):
                cast(Any, module).heard_lengths = heard_lengths
        return cast(Any, super()).forward(*args, **kwargs)


@functools.cache
def layer_with_whole_arguments(layer_class: type[nn.Module], last: str | None) -> type[nn.Module]:
    """A class of layers with the above. It keeps its name and place, which Transformers looks up.

    Args:
        layer_class: a `GradientCheckpointingLayer` of Transformers.
        last: argument of its forward up to which all are given by position; None leaves them as they are.
    """
    names = {name: getattr(layer_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    arguments = list(inspect.signature(layer_class.forward).parameters)[1:]
    names["by_position"] = () if last is None else tuple(arguments[: arguments.index(last) + 1])
    return type(layer_class.__name__, (WholeArguments, layer_class), names)


@dataclass(frozen=True)
class SpeechEncoderFamily:
    """What this project must know about a family of speech encoders.

    Args:
        model_types: the `model_type` of its configurations; the first names the family in messages.
        output_lengths: (backbone, input lengths [B]) to output lengths [B], as the backbone's layers compute them.
        input_name: name of the input in forward, and in the feature extractor's output.
        time_dim: dimension of the input that runs over time.
        model_class: the backbone's class where AutoModel would build more than the encoder.
        encoder_config: name of the sub-configuration to use where the checkpoint's configuration covers more.
        checkpoint_renames: regular expression to replacement, from a full checkpoint's keys to the encoder's.
        mask_place: where SpecAugment applies: "hidden", inside the backbone with its mask embedding, "features", on
            the input, or None.
        feature_encoder: attributes that make up the feature encoder, for `freeze_feature_encoder`.
        fixed_input_window: whether the family was trained on a window that every input must fill.
        hidden_lengths: like `output_lengths`, of the frames that SpecAugment masks inside the backbone; also for an
            integer, from which a compiled graph takes the shape of the mask.
        least_frames: how many frames the backbone needs, or name of the configuration's field that says so. Batch
            norm needs two, or a batch of one short clip would have no variance.
        named_gradients: name of the argument through which the backbone's layers hand each other a tensor with a
            gradient, and by which Transformers gives it to them. See `layer_with_whole_arguments`.
        leaking_convolutions: convolutions through which Transformers lets padding leak into real frames: pattern of
            their names, lengths of their input. The padding there is set to zero, as is what lies beyond the edge of
            a clip that stands alone.
        unused: attributes that Transformers builds and never computes with.
        bypassed: linear layers whose weights Transformers takes without calling them: low-rank adapters there would
            neither be heard nor trained.
    """

    model_types: tuple[str, ...]
    output_lengths: Lengths
    input_name: Literal["input_values", "input_features"] = "input_values"
    time_dim: int = 1
    model_class: type[PreTrainedModel] | None = None
    encoder_config: str | None = None
    checkpoint_renames: tuple[tuple[str, str], ...] = ()
    mask_place: Literal["hidden", "features"] | None = "hidden"
    feature_encoder: tuple[str, ...] = ("feature_extractor",)
    fixed_input_window: bool = False
    hidden_lengths: Callable[[PreTrainedModel, Any], Any] | None = None
    least_frames: int | str = 1
    named_gradients: str | None = None
    leaking_convolutions: tuple[tuple[str, Lengths], ...] = ()
    unused: tuple[str, ...] = ()
    bypassed: tuple[str, ...] = ()

    def backbone_class(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """The class of the backbone for a configuration of this family."""
        if self.model_class is not None:
            return self.model_class
        backbone_class = cast(type[PreTrainedModel], MODEL_MAPPING[type(config)])
        return _with_span_masking(backbone_class) if self.mask_place == "hidden" else backbone_class

    def output_size(self, config: PreTrainedConfig) -> int:
        """Width of the backbone's output, which is not always the one that its configuration announces."""
        if getattr(config, "add_adapter", False):
            return config.output_hidden_size
        return config.hidden_size


def _lengths(backbone: Any, lengths: torch.Tensor) -> torch.Tensor:
    return backbone._get_feat_extract_output_lengths(lengths)


def _hidden_lengths(backbone: Any, lengths: Any) -> Any:
    for kernel_size, stride in zip(backbone.config.conv_kernel, backbone.config.conv_stride, strict=True):
        lengths = (lengths - kernel_size) // stride + 1
    return lengths


def _same_lengths(backbone: Any, lengths: Any) -> Any:
    return lengths


def _half_lengths(backbone: Any, lengths: Any) -> Any:
    return (lengths + 1) // 2


def _moonshine_lengths(backbone: Any, lengths: torch.Tensor) -> torch.Tensor:
    for layer in (backbone.conv1, backbone.conv2, backbone.conv3):
        lengths = (lengths - layer.kernel_size[0]) // layer.stride[0] + 1
    return lengths


def _parakeet_lengths(backbone: Any, lengths: torch.Tensor) -> torch.Tensor:
    return backbone._get_subsampling_output_length(lengths)


ENCODER_HALF = ((r"^model\.encoder\.", ""),)

SPEECH_ENCODER_FAMILIES = (
    SpeechEncoderFamily(
        ("wav2vec2",),
        output_lengths=_lengths,
        hidden_lengths=_hidden_lengths,
    ),
    SpeechEncoderFamily(
        ("wavlm",),
        output_lengths=_lengths,
        hidden_lengths=_hidden_lengths,
        named_gradients="position_bias",
        bypassed=("q_proj", "k_proj", "v_proj", "out_proj"),
    ),
    SpeechEncoderFamily(
        ("wav2vec2-conformer",),
        output_lengths=_lengths,
        hidden_lengths=_hidden_lengths,
        least_frames=2,
        leaking_convolutions=((r"conv_module\.depthwise_conv$", _hidden_lengths),),
        unused=("encoder.pos_conv_embed",),
    ),
    SpeechEncoderFamily(
        ("data2vec-audio",),
        output_lengths=_lengths,
        hidden_lengths=_hidden_lengths,
        leaking_convolutions=((r"pos_conv_embed\.layers\.\d+\.conv$", _hidden_lengths),),
    ),
    SpeechEncoderFamily(
        ("hubert", "unispeech", "unispeech-sat"), output_lengths=_lengths, hidden_lengths=_hidden_lengths
    ),
    SpeechEncoderFamily(
        ("sew", "sew-d"),
        output_lengths=_lengths,
        hidden_lengths=_hidden_lengths,
        least_frames="squeeze_factor",
        named_gradients="rel_embeddings",
    ),
    SpeechEncoderFamily(
        ("wav2vec2-bert",),
        output_lengths=_lengths,
        hidden_lengths=_same_lengths,
        input_name="input_features",
        feature_encoder=("feature_projection",),
    ),
    SpeechEncoderFamily(
        ("whisper",),
        output_lengths=_lengths,
        input_name="input_features",
        time_dim=2,
        model_class=WhisperSpeechEncoder,
        checkpoint_renames=ENCODER_HALF,
        mask_place="features",
        feature_encoder=("conv1", "conv2"),
        fixed_input_window=True,
    ),
    SpeechEncoderFamily(
        ("speech_to_text",),
        output_lengths=_lengths,
        input_name="input_features",
        model_class=Speech2TextEncoder,
        checkpoint_renames=ENCODER_HALF,
        mask_place="features",
        feature_encoder=("conv",),
        leaking_convolutions=(
            (r"^conv\.conv_layers\.0$", _same_lengths),
            (r"^conv\.conv_layers\.1$", _half_lengths),
        ),
    ),
    SpeechEncoderFamily(
        ("moonshine",),
        output_lengths=_moonshine_lengths,
        model_class=MoonshineEncoder,
        checkpoint_renames=ENCODER_HALF,
        mask_place=None,
        feature_encoder=("conv1", "conv2", "conv3", "groupnorm"),
    ),
    SpeechEncoderFamily(
        ("parakeet_encoder", "parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"),
        output_lengths=_parakeet_lengths,
        input_name="input_features",
        model_class=ParakeetEncoder,
        encoder_config="encoder_config",
        checkpoint_renames=((r"^encoder\.", ""),),
        mask_place="features",
        feature_encoder=("subsampling",),
        least_frames=2,
    ),
)

_FAMILY_OF = {model_type: family for family in SPEECH_ENCODER_FAMILIES for model_type in family.model_types}


def speech_encoder_family(config: PreTrainedConfig) -> SpeechEncoderFamily:
    """Look a configuration's family up in the table.

    Raises:
        ValueError: the family is not in the table; the message lists those that are.
    """
    if config.model_type not in _FAMILY_OF:
        raise ValueError(
            f"{config.model_type!r} is not a supported speech encoder. Supported: {', '.join(sorted(_FAMILY_OF))}"
        )
    return _FAMILY_OF[config.model_type]


def speech_encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The encoder's own configuration, taken out of a checkpoint's where that covers more than the encoder."""
    family = speech_encoder_family(config)
    return getattr(config, family.encoder_config or "", config)
