"""Classes of whole clips from their spectrogram, read as an image by an Audio Spectrogram Transformer or a ResNet.

Shapes: `B` batch, `N` spectrogram frames, `M` mel bins, `C` image channels, `F` x `T` patches, `D` width, `L` labels.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    ASTModel,
    AutoModel,
    AutoModelForAudioClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from ..configuration.configuration_spectrogram_classification import SpectrogramClassificationConfig
from .attention_outputs import asked_outputs, eager_attention
from .modeling_speech_encoder_classification import classification_loss, with_named_labels
from .spec_augment import mask_spectrogram
from .speech_encoder_heads import BACKBONE, SpeechEncoderHeadModel
from .warm_start import _configure, _load, _raise_if_random

SPECIAL_TOKENS = 2  # of an AST, before its patches: class and distillation
POSITIONS = "embeddings.position_embeddings"
FIRST_CONVOLUTION = "embedder.embedder.convolution.weight"

Weights = dict[str, torch.Tensor]


def patch_grid(config: Any) -> tuple[int, int]:
    """Patches of an AST along mel bins, and along time.

    Raises:
        ValueError: there would be none.
    """
    patch, bins, frames = config.patch_size, config.num_mel_bins, config.max_length
    if min(bins, frames) < patch:
        raise ValueError(f"{frames} frames of {bins} mel bins do not hold one patch of {patch} x {patch}: take more")
    return (bins - patch) // config.frequency_stride + 1, (frames - patch) // config.time_stride + 1


def _fit_positions(weights: Weights, old: Any, new: Any) -> None:
    weights[POSITIONS] = resized_positions(weights[POSITIONS], patch_grid(old), patch_grid(new))


def _fit_channels(weights: Weights, old: Any, new: Any) -> None:
    weights[FIRST_CONVOLUTION] = spread_over_channels(weights[FIRST_CONVOLUTION], new.num_channels)


def _patches_as_image(spectrogram: torch.Tensor, config: Any) -> torch.Tensor:
    """An AST makes its image itself."""
    return spectrogram


def _repeated_image(spectrogram: torch.Tensor, config: Any) -> torch.Tensor:
    """[B, N, M] to [B, C, M, N], mel bins from top to bottom, the same in every channel."""
    return spectrogram.transpose(1, 2)[:, None].expand(-1, config.num_channels, -1, -1)


@dataclass(frozen=True)
class SpectrogramEncoderFamily:
    """What differs between networks that read spectrograms.

    Args:
        title: what the network is, for model cards.
        backbone_class: of Transformers.
        first_layers: the module that reads the spectrogram.
        image: spectrograms and configuration to the backbone's input.
        output_size: width of the pooled output.
        normalizes: whether a layer norm stands between backbone and classifier.
        native_head: parts of the head to their native names.
        fitted: fields of the configuration that may differ from the checkpoint's, because `fit` changes the weights.
        fit: changes weights in place, of one configuration to those of another.
    """

    title: str
    backbone_class: type[PreTrainedModel]
    first_layers: str
    image: Callable[[torch.Tensor, Any], torch.Tensor]
    output_size: Callable[[Any], int]
    normalizes: bool
    native_head: dict[str, str]
    fitted: tuple[str, ...]
    fit: Callable[[Weights, Any, Any], None]
    encoder_config: None = None  # native configurations are the encoder's own
    bypassed: tuple[str, ...] = ()  # linear layers that are never called


SPECTROGRAM_ENCODER_FAMILIES: dict[str, SpectrogramEncoderFamily] = {
    "audio-spectrogram-transformer": SpectrogramEncoderFamily(
        title="An Audio Spectrogram Transformer",
        backbone_class=ASTModel,
        first_layers="embeddings.patch_embeddings",
        image=_patches_as_image,
        output_size=lambda config: config.hidden_size,
        normalizes=True,
        native_head={"head_norm": "classifier.layernorm", "classifier": "classifier.dense"},
        fitted=("max_length", "num_mel_bins", "time_stride", "frequency_stride"),
        fit=_fit_positions,
    ),
    "resnet": SpectrogramEncoderFamily(
        title="A ResNet that reads spectrograms as images",
        backbone_class=ResNetModel,
        first_layers="embedder",
        image=_repeated_image,
        output_size=lambda config: config.hidden_sizes[-1],
        normalizes=False,
        native_head={"classifier": "classifier.1"},
        fitted=("num_channels",),
        fit=_fit_channels,
    ),
}


def spectrogram_encoder_family(config: PreTrainedConfig) -> SpectrogramEncoderFamily:
    """The row of the table for a network's configuration.

    Raises:
        ValueError: there is none.
    """
    if config.model_type not in SPECTROGRAM_ENCODER_FAMILIES:
        known = ", ".join(sorted(SPECTROGRAM_ENCODER_FAMILIES))
        raise ValueError(f"{config.model_type} networks are no encoders of spectrograms; these are: {known}")
    return SPECTROGRAM_ENCODER_FAMILIES[config.model_type]


def _network_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The network's own configuration, taken out of that of a `SpectrogramClassificationModel`."""
    if config.model_type == SpectrogramClassificationConfig.model_type:
        config = cast(Any, config).encoder
    spectrogram_encoder_family(config)
    return config


def resized_positions(positions: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Position embeddings for another number of patches, as in the AST paper (Gong et al. 2021, section 2.2).

    Along an axis that gets shorter the middle is cut out; along one that gets longer, neighbours are interpolated
    linearly. The embeddings of the special tokens stay.

    Args:
        positions: [1, 2 + F * T, D].
        old_grid: F and T.
        new_grid: those wanted.

    Returns:
        [1, 2 + F' * T', D].
    """
    special, patches = positions[:, :SPECIAL_TOKENS], positions[:, SPECIAL_TOKENS:]
    image = patches.transpose(1, 2).unflatten(2, old_grid)  # [1, D, F, T]
    for axis, (old, new) in enumerate(zip(old_grid, new_grid, strict=True), start=2):
        if new < old:
            image = image.narrow(axis, old // 2 - new // 2, new)
    image = nn.functional.interpolate(image.float(), size=tuple(new_grid), mode="bilinear")
    return torch.cat([special, image.to(positions.dtype).flatten(2).transpose(1, 2)], dim=1)


def spread_over_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A first convolution for another number of channels, with equal output where all channels are equal.

    Args:
        weight: [D, C, height, width].
        channels: C', those wanted.

    Returns:
        [D, C', height, width]: the sum over the input channels, in equal parts.
    """
    return weight.sum(dim=1, keepdim=True).expand(-1, channels, -1, -1) / channels


class SpectrogramEncoder(nn.Module):
    """A network of the table, and the spectrogram as its input.

    Args:
        config: what the model is made of.
        backbone: a ready `ASTModel` or `ResNetModel`; None builds one from `config.encoder`.

    Raises:
        ValueError: the network is not in the table, or the backbone of another class.
    """

    main_input_name = "input_values"

    def __init__(self, config: SpectrogramClassificationConfig, backbone: PreTrainedModel | None = None):
        super().__init__()
        self.config = config
        encoder_config = cast(PreTrainedConfig, config.encoder)
        self.family = spectrogram_encoder_family(encoder_config)
        wanted = self.family.backbone_class
        if backbone is not None and not isinstance(backbone, wanted):
            raise ValueError(f"the encoder must be a {wanted.__name__}, got a {type(backbone).__name__}")
        self.backbone: Any = wanted(encoder_config) if backbone is None else backbone

    @property
    def window(self) -> int | None:
        """Frames that every spectrogram must have; None where their number does not matter."""
        return self.backbone.config.max_length if "max_length" in self.family.fitted else None

    def get_input_embeddings(self) -> nn.Module:
        """The layers that read the spectrogram."""
        return self.backbone.get_submodule(self.family.first_layers)

    def freeze_feature_encoder(self) -> None:
        """Exclude the layers that read the spectrogram from training."""
        self.get_input_embeddings().requires_grad_(False)
        self.train(self.training)

    def freeze_backbone(self) -> None:
        """Exclude the network from training."""
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SpectrogramEncoder":
        """As in PyTorch, but batch norms without a gradient keep their statistics: those are learned too."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def forward(self, spectrogram: torch.Tensor, **asked: bool) -> tuple[torch.Tensor, Any]:
        """[B, N, M] to one vector of each clip, [B, D], and all that the backbone returned."""
        if self.training and self.config.apply_spec_augment:
            spectrogram = mask_spectrogram(spectrogram, self.config)
        image = self.family.image(spectrogram, self.backbone.config)
        with eager_attention(self.backbone, bool(asked.get("output_attentions"))):
            outputs = self.backbone(image, **asked)
        return outputs.pooler_output.flatten(1), outputs

    def check_input(self, spectrogram: torch.Tensor | None) -> torch.Tensor:
        """The spectrogram in the model's own type.

        Raises:
            ValueError: it is none that the network can read.
        """
        if spectrogram is None:
            raise ValueError("the model reads input_values, and got none: give what ASTFeatureExtractor returns")
        self._check_shape(tuple(spectrogram.shape))
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(spectrogram).all()):
            row = int((~torch.isfinite(spectrogram)).flatten(1).any(dim=1).nonzero()[0])
            raise ValueError(
                f"input_values have NaN or infinite values in row {row}: check that recording, or drop it; log-mel "
                "frames of silence need a floor"
            )
        return spectrogram.to(self.backbone.dtype)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        bins = self.config.num_mel_bins
        if len(shape) != 3:
            raise ValueError(
                f"input_values of shape {shape} are no spectrograms: the model reads log-mel frames [batch, frames, "
                f"{bins}], make them of waveforms with ASTFeatureExtractor(num_mel_bins={bins})"
            )
        if shape[2] != bins:
            advice = "transpose them" if shape[1] == bins else f"use ASTFeatureExtractor(num_mel_bins={bins})"
            raise ValueError(
                f"input_values of shape {shape} have {shape[2]} mel bins, the model reads {bins}: {advice}"
            )
        if self.window is not None and shape[1] != self.window:
            raise ValueError(
                f"input_values have {shape[1]} frames, the model's window is {self.window}: pad or crop to it with "
                f"ASTFeatureExtractor(max_length={self.window}), or change it with model.resize_window({shape[1]})"
            )


class SpectrogramClassificationModel(SpeechEncoderHeadModel):
    """A classifier of clips that reads their log-mel spectrogram as an image, with an AST or a ResNet.

    Start from a network with `from_encoder_pretrained`, or load a trained one with `from_pretrained`: of this class,
    an `ASTForAudioClassification`, or a `ResNetForImageClassification`. `ASTFeatureExtractor` makes the spectrograms
    for both: it pads and crops them to its `max_length`, and the padding is read too, as both networks are trained.

    An AST (Gong et al. 2021) has a window, `config.encoder.max_length` frames of 10 ms. For another one, give
    `encoder_max_length` to `from_encoder_pretrained`, or call `resize_window`: its position embeddings are cut to
    the middle where the window gets shorter, and interpolated along time where it gets longer.

    A ResNet reads any number of frames, as an image with mel bins from top to bottom and time from left to right. It
    has `config.encoder.num_channels` channels, all equal; `encoder_num_channels=1` makes a checkpoint of 3 read one,
    with the same result at less cost, by summing the first convolution's weights over the channels. Its batch norm
    sees one batch at a time: gradient accumulation adds up gradients, not statistics.
    """

    config: SpectrogramClassificationConfig  # type: ignore[assignment]
    published_as = ("AutoModel", "AutoModelForAudioClassification")
    native_classes: ClassVar[Any] = {
        ASTConfig: ASTForAudioClassification,
        ResNetConfig: ResNetForImageClassification,
    }
    native_heads = {"classifier": ("classifier",)}

    def _make_encoder(self, backbone: PreTrainedModel | None) -> Any:
        encoder = SpectrogramEncoder(self.config, backbone)
        self.supports_gradient_checkpointing = encoder.backbone.supports_gradient_checkpointing
        return encoder

    def _add_head(self) -> None:
        norm_eps = getattr(self.config.encoder, "layer_norm_eps", None)
        norm = nn.LayerNorm(self.encoder_width, eps=cast(float, norm_eps)) if self._family.normalizes else None
        self.head_norm = norm
        self.classifier = nn.Linear(self.encoder_width, cast(int, self.config.num_labels))

    @property
    def _family(self) -> SpectrogramEncoderFamily:
        return cast(Any, self.encoder).family

    @property
    def description(self) -> str:
        """What the model is, for its card."""
        return self._family.title

    @classmethod
    def _describe_head(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        return with_named_labels(kwargs)

    @classmethod
    def _load_backbone(cls, source: Any, options: dict[str, Any]) -> tuple[PreTrainedModel, list[str]]:
        asked, hub = dict(options["encoder"]), options["hub"]["encoder"]
        fitted = {name for family in SPECTROGRAM_ENCODER_FAMILIES.values() for name in family.fitted}
        resized = {name: asked.pop(name) for name in fitted & set(asked)}
        config, is_part = _configure(source, asked, hub, _network_config)
        family = spectrogram_encoder_family(config)
        if unknown := sorted(set(resized) - set(family.fitted)):
            raise TypeError(f"the {config.model_type} configuration does not know {', '.join(unknown)}")
        renames = {f"^{BACKBONE}".replace(".", r"\."): ""} if is_part else {}
        backbone, info = _load(family.backbone_class, source, "encoder", config, options, renames)
        _raise_if_random(info["missing_keys"], source, "encoder")
        return _resized(backbone, resized), []

    def _pairs(self, native: nn.Module) -> Iterable[tuple[nn.Module, nn.Module]]:
        for ours, theirs in self._family.native_head.items():
            yield getattr(self, ours), native.get_submodule(theirs)

    def _foreign_parts(self) -> list[str]:
        return []

    def resize_window(self, frames: int) -> None:
        """Let an AST read spectrograms of another length; see the class. Prepare them with the same `max_length`.

        Args:
            frames: of 10 ms.

        Raises:
            ValueError: a ResNet has no window, or it would not hold one patch.
        """
        encoder = cast(SpectrogramEncoder, self.encoder)
        if encoder.window is None:
            raise ValueError(f"a {self.config.encoder.model_type} reads spectrograms of any length already")
        training = encoder.training
        encoder.backbone = _resized(encoder.backbone, {"max_length": frames})
        self.config.encoder = encoder.backbone.config
        encoder.train(training)

    def forward(  # type: ignore[override]
        self,
        input_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> SequenceClassifierOutput | tuple:
        """Classify clips, and with labels compute the loss.

        Args:
            input_values: [B, N, M], log-mel frames of `ASTFeatureExtractor`.
            labels: [B], -100 where ignored. With `config.problem_type` "multi_label_classification" [B, L] of zeros
                and ones; with "regression" numbers, [B] or [B, L]. None takes them for regression where there is one
                label, for several labels at once where they are [B, L], else for one class of each clip.
            output_attentions: return an AST's attentions; computes them eagerly for this call.
            output_hidden_states: return an AST's tokens [B, 2 + F * T, D] before and after each layer, or a ResNet's
                images before and after each stage.
            return_dict: False for a tuple.
            num_items_in_batch: labels in the whole optimiser step, which the summed loss is divided by.

        Returns:
            `logits` [B, L], and the loss.

        Raises:
            ValueError: the input is no spectrogram, has another number of mel bins or frames than the model reads, or
                values that are no numbers; or a ResNet is asked for attentions.
        """
        encoder = cast(SpectrogramEncoder, self.encoder)
        asked = asked_outputs(self.config, output_attentions, output_hidden_states)
        if asked.get("output_attentions") and not hasattr(self.config.encoder, "num_attention_heads"):
            raise ValueError(f"output_attentions: a {self.config.encoder.model_type} has no attention")
        pooled, outputs = encoder(encoder.check_input(input_values), **asked)
        logits = self.classifier(pooled if self.head_norm is None else self.head_norm(pooled))  # [B, L]
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        output = SequenceClassifierOutput(
            loss=cast(Any, loss),
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )
        return output.to_tuple() if return_dict is False else output


def _resized(backbone: Any, changes: dict[str, Any]) -> Any:
    """A backbone with other fields of those that its family can fit, and the weights of this one, fitted."""
    if all(getattr(backbone.config, name) == value for name, value in changes.items()):
        return backbone
    config = copy.deepcopy(backbone.config)
    for name, value in changes.items():
        setattr(config, name, value)
    weights = dict(backbone.state_dict())
    spectrogram_encoder_family(config).fit(weights, backbone.config, config)
    resized = type(backbone)(config).to(device=backbone.device, dtype=backbone.dtype)
    resized.load_state_dict(weights)
    for ours, theirs in zip(resized.parameters(), backbone.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return resized.train(backbone.training)


AutoModel.register(SpectrogramClassificationConfig, SpectrogramClassificationModel, exist_ok=True)
AutoModelForAudioClassification.register(
    SpectrogramClassificationConfig, SpectrogramClassificationModel, exist_ok=True
)

__all__ = [
    "SpectrogramClassificationModel",
    "SpectrogramEncoder",
    "SpectrogramEncoderFamily",
    "patch_grid",
    "resized_positions",
    "spectrogram_encoder_family",
    "spread_over_channels",
]
