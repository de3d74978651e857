"""What encoder-only models share, whatever their head: how they are built, loaded from native folders, exported."""

import copy
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from ..configuration.configuration_speech_encoder_heads import SpeechEncoderHeadConfig
from ..configuration.published_code import PublishesItsCode
from .attention_outputs import asked_outputs
from .modeling_speech_encoder import SpeechEncoder, SpeechEncoderOutput
from .warm_start import HUB_ARGUMENTS, OPTIONAL_IN_ENCODER, _load_encoder, _modules_of, _take_ready

logger = logging.get_logger(__name__)

BACKBONE = "encoder.backbone."


class SpeechEncoderHeadModel(PublishesItsCode, PreTrainedModel):
    """A speech encoder of the table and a head on its frames; subclasses bring the head.

    Args:
        config: what the model is made of.
        backbone: a ready backbone, such as a `Wav2Vec2Model`; None builds one from `config.encoder`.
    """

    config: SpeechEncoderHeadConfig
    base_model_prefix = "encoder"
    main_input_name = "input_values"
    input_modalities = "audio"
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    native_classes: ClassVar[Any] = {}  # configuration class to the native class with the same head
    native_heads: ClassVar[dict[str, tuple[str, ...]]] = {}  # part of the head to its native names

    def __init__(self, config: SpeechEncoderHeadConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.encoder = self._make_encoder(backbone)
        self.main_input_name = self.encoder.main_input_name
        self.encoder_width = self.encoder.family.output_size(cast(PreTrainedConfig, config.encoder))
        self._add_head()
        self.post_init()
        self._no_split_modules = {
            type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)
        }

    def _make_encoder(self, backbone: PreTrainedModel | None) -> SpeechEncoder:
        return SpeechEncoder(self.config, backbone=backbone)

    def _add_head(self) -> None:
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        """The layer that reads the input (PEFT and quantisation ask for it)."""
        return self.encoder.get_input_embeddings()

    def freeze_feature_encoder(self) -> None:
        """Exclude the layers that read the waveform or the mel frames from training."""
        self.encoder.freeze_feature_encoder()

    def freeze_base_model(self) -> None:
        """Exclude the pretrained backbone from training; the head, and an adapter, still learn."""
        self.encoder.freeze_backbone()

    def _encode(
        self,
        input_values: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        input_features: torch.Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> SpeechEncoderOutput:
        asked = asked_outputs(self.config, output_attentions, output_hidden_states)
        encoded = self.encoder(
            input_values=input_values, input_features=input_features, attention_mask=attention_mask, **asked
        )
        return cast(SpeechEncoderOutput, encoded)

    @classmethod
    def from_encoder_pretrained(cls, encoder: Any, **kwargs: Any) -> Any:
        """Start from a pretrained speech encoder, with a new head.

        Args:
            encoder: folder or hub id of any speech checkpoint of the table of encoders, or a ready backbone. Of a
                checkpoint that has more, a head or a decoder, the encoder alone is taken.
            kwargs: fields of the configuration; `dtype`; `attn_implementation`; hub arguments such as `revision`;
                with the prefix `encoder_`, fields of the backbone's configuration; and what describes the head:
                `tokenizer` or `vocab_size`, `labels` (their names) or `num_labels`.

        Returns:
            The model, in evaluation mode. `config.newly_initialized` names what no checkpoint supplied.

        Raises:
            TypeError: an argument is unknown.
            ValueError: the family is not supported, the head is not described, or a tensor that the checkpoint should
                have supplied is random.
        """
        kwargs = cls._describe_head(kwargs)
        options = _sort_arguments(cls, kwargs)
        if isinstance(encoder, PreTrainedModel):
            if hub := sorted(options["hub"]["encoder"]):
                raise TypeError(f"the encoder is a ready module, so these have no effect: {', '.join(hub)}")
            backbone, missing = _take_ready(encoder, "encoder", options), []
        else:
            backbone, missing = cls._load_backbone(encoder, options)
        config = cast(Any, cls.config_class)(encoder=backbone.config, **options["fields"])
        model = cls(config, backbone=backbone).to(cast(Any, backbone.dtype))
        own = {name for name, _ in model.named_parameters() if not name.startswith(BACKBONE)}
        config.newly_initialized = sorted(_modules_of(model, own | {BACKBONE + key for key in missing}))
        logger.warning(f"newly initialised, to be trained: {', '.join(config.newly_initialized)}")
        return model.eval()

    @classmethod
    def _load_backbone(cls, source: Any, options: dict[str, Any]) -> tuple[PreTrainedModel, list[str]]:
        """The backbone of a checkpoint, and the names of its weights that no checkpoint need supply."""
        return _load_encoder(source, "encoder", options)

    @classmethod
    def _describe_head(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `from_encoder_pretrained` with the head's description as fields of the configuration."""
        return kwargs

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in Transformers. Folders of the native classes with the same head load too, with equal logits.

        Raises:
            ValueError: a native folder has no such head, or its family has no such class.
        """
        if not _is_native(pretrained_model_name_or_path, cls.config_class, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = cls._from_native(pretrained_model_name_or_path, **kwargs)
        return (model, info) if wants_info else model

    @classmethod
    def _from_native(cls, source: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Load the native class, and take it apart."""
        if refused := sorted({"config", "quantization_config"} & set(kwargs)):
            raise ValueError(f"{source} is a native checkpoint: save it as {cls.__name__} to load it with {refused}")
        own = {one.name for one in fields(cast(Any, cls.config_class))} - {"encoder", "dtype"}
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in own}
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        native_config = AutoConfig.from_pretrained(source, **hub)
        for name, value in given.items():
            if hasattr(native_config, name):  # whether the backbone has a mask embedding depends on these
                setattr(native_config, name, value)
        native_class = cls._native_class(type(native_config))
        native, info = native_class.from_pretrained(source, config=native_config, output_loading_info=True, **kwargs)
        heads = {name for names in cls.native_heads.values() for name in names} | {"layer_weights"}
        _raise_if_random(source, info["missing_keys"], heads, native_class, cls)
        taken = cast(Any, cls.config_class).fields_of_native(native_config.to_dict()) | given
        taken["encoder"] = (backbone := getattr(native, _backbone_name(native))).config
        model = cls(cast(Any, cls.config_class)(**taken), backbone=backbone).to(native.dtype)
        for ours, theirs in model._pairs(native):
            share_parameters(ours, theirs)
        model.config.name_or_path = str(source)
        return model.to(native.device).eval(), info

    @classmethod
    def _native_class(cls, config_class: Any) -> Any:
        if config_class not in cls.native_classes:
            known = sorted(one.model_type for one in cls.native_classes if hasattr(one, "model_type"))
            raise ValueError(
                f"Transformers has no class for {config_class.model_type} encoders with the head of {cls.__name__}, "
                f"only for {', '.join(known)}: start from the encoder with from_encoder_pretrained"
            )
        return cls.native_classes[config_class]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As in Transformers, always in this class's own layout: a Trainer resumes from nothing else."""
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)

    def to_native(self) -> PreTrainedModel:
        """The same weights in the native class (`Wav2Vec2ForCTC`, …), for people without this package.

        Returns:
            A model that shares this one's tensors; its `save_pretrained` writes the native layout.

        Raises:
            ValueError: the model has parts that no native class can express.
        """
        if foreign := self._foreign_parts():
            raise ValueError(f"the native class has no place for {' or '.join(foreign)}")
        config = self._native_config()
        native_class = self._native_class(type(config))
        with torch.device("meta"):  # whatever it is built with is replaced
            native = native_class(config)
        setattr(native, _backbone_name(native), self.encoder.backbone)
        for ours, theirs in self._pairs(native):
            share_parameters(theirs, ours)
        return native.eval()

    def _pairs(self, native: nn.Module) -> Iterable[tuple[nn.Module, nn.Module]]:
        """The parts of the head, and the native ones; a parameter of the model itself goes with the models."""
        for ours, names in self.native_heads.items():
            yield getattr(self, ours), next(getattr(native, name) for name in names if hasattr(native, name))
        if any(True for _ in self.named_parameters(recurse=False)):
            yield self, native

    def _foreign_parts(self) -> list[str]:
        return ["an adapter"] if len(self.encoder.adapter) > 0 else []

    def _native_config(self) -> PreTrainedConfig:
        encoder_config = copy.deepcopy(cast(PreTrainedConfig, self.config.encoder))
        family = self.encoder.family
        if family.encoder_config is not None:  # the native configuration wraps the encoder's
            classes = [CONFIG_MAPPING[model_type] for model_type in family.model_types]
            wrapper = next((one for one in classes if one in self.native_classes), type(encoder_config))
            native_config = cast(Any, wrapper)(**{family.encoder_config: encoder_config.to_dict()})
        else:
            native_config = encoder_config
        for name in self.config.native_keys:
            if hasattr(native_config, name):
                setattr(native_config, name, copy.deepcopy(getattr(self.config, name)))
        return native_config


def share_parameters(target: nn.Module, source: nn.Module) -> None:
    """Let a module bear another's parameters, in its own shapes: a convolution over one frame is a linear layer."""
    for name, parameter in source.named_parameters(recurse=False):
        setattr(target, name, nn.Parameter(parameter.data.reshape(getattr(target, name).shape)))


def _backbone_name(native: PreTrainedModel) -> str:
    return native.base_model_prefix if hasattr(native, native.base_model_prefix) else "encoder"


def _is_native(source: Any, config_class: Any, kwargs: dict[str, Any]) -> bool:
    if source is None:
        return False
    options = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(source, **options)
    except OSError:  # a folder of adapters, or of weights alone: loading says so itself where that is a mistake
        return False
    ours = config_dict.get("model_type") == config_class.model_type
    return bool(config_dict) and not ours and "encoder" not in config_dict


def _raise_if_random(source: Any, missing: Iterable[str], heads: set[str], native_class: Any, cls: type) -> None:
    lost = [key for key in missing if not OPTIONAL_IN_ENCODER.match(key.partition(".")[2])]
    if not lost:
        return
    if all(key.split(".")[0] in heads for key in lost):
        raise ValueError(
            f"{source} holds no head of a {native_class.__name__}, only an encoder: "
            f"{cls.__name__}.from_encoder_pretrained gives it a new one"
        )
    raise ValueError(f"{source} does not supply these weights, which would be random: {', '.join(sorted(lost)[:5])}")


def _sort_arguments(cls: type[SpeechEncoderHeadModel], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Each argument to the one place that uses it; those that nothing uses are refused."""
    known = {one.name for one in fields(cast(Any, cls.config_class))} - {"encoder"} | {"num_labels"}
    sorted_out: dict[str, Any] = {"fields": {}, "encoder": {}, "hub": {"encoder": {}}}
    sorted_out["dtype"] = kwargs.pop("dtype", None)
    sorted_out["attention"] = {"encoder": kwargs.pop("attn_implementation", None)}
    unknown = []
    for name, value in kwargs.items():
        if name in HUB_ARGUMENTS:
            sorted_out["hub"]["encoder"][name] = value
        elif name in known:
            sorted_out["fields"][name] = value
        elif name.startswith("encoder_"):
            sorted_out["encoder"][name.removeprefix("encoder_")] = value
        else:
            unknown.append(name)
    if unknown:
        raise TypeError(
            f"from_encoder_pretrained does not know {', '.join(sorted(unknown))}: give fields of "
            f"{cast(Any, cls.config_class).__name__}, dtype, attn_implementation, hub arguments, or fields of the "
            "encoder's configuration with the prefix encoder_"
        )
    return sorted_out


__all__ = ["SpeechEncoderHeadModel"]
