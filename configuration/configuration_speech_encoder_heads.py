"""What encoder-only speech models are made of: a speech encoder and a head that reads its frames, a class for each."""

from dataclasses import field, fields
from typing import Any, ClassVar, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_speech_seq2seq import SpeechEncoderConfig

# Audio samples at 16 kHz to one input frame of the backbones that read log-mel frames: 10 ms, or two stacked.
HOP_LENGTH = 160
STACKED_HOP_LENGTHS = {"wav2vec2-bert": 320}
WAVEFORM_MODEL_TYPES = {"moonshine"}  # those that do not list their convolutions' strides
LABEL_KEYS = ("id2label", "label2id", "problem_type")  # of Transformers; a native folder keeps them beside the encoder


@strict
class SpeechEncoderHeadConfig(SpeechEncoderConfig):
    """What the configurations below share; it makes no model itself.

    Args:
        newly_initialized: names of the modules that no checkpoint supplied when the model was built. Adapters such as
            LoRA must train and save these whole.
    """

    model_type = "speech_encoder_head"
    published_as = ()
    native_keys: ClassVar[tuple[str, ...]] = ()  # taken from native configurations, where they bear the same name
    keys_to_ignore_at_inference = ["hidden_states", "attentions", "attention_mask"]

    newly_initialized: list[str] = field(default_factory=list)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.newly_initialized = list(self.newly_initialized or [])

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As in Transformers, but the folder of a native model reads as one of ours."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict and config_dict.get("model_type") != cls.model_type and "encoder" not in config_dict:
            config_dict = cls.fields_of_native(config_dict)
        return config_dict, kwargs

    @classmethod
    def fields_of_native(cls, native: dict[str, Any]) -> dict[str, Any]:
        """A native model's configuration as fields of this class; the encoder's keep what is the encoder's."""
        names = {one.name for one in fields(cls)}
        taken = {key: native[key] for key in cls.native_keys if key in native and key in names}
        encoder = {key: value for key, value in native.items() if key not in (*LABEL_KEYS, "architectures")}
        return {**taken, "encoder": encoder, "model_type": cls.model_type}

    @property
    def hidden_size(self) -> int:
        """Width of the backbone."""
        return cast(PreTrainedConfig, self.encoder).hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the backbone."""
        return cast(PreTrainedConfig, self.encoder).num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of the backbone."""
        return cast(PreTrainedConfig, self.encoder).num_attention_heads

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Audio samples to one frame of the output. Pipelines cut and time recordings by it, of mel encoders too."""
        encoder = cast(PreTrainedConfig, self.encoder)
        ratio = super().inputs_to_logits_ratio
        if hasattr(encoder, "conv_stride") or encoder.model_type in WAVEFORM_MODEL_TYPES:
            return ratio
        return ratio * STACKED_HOP_LENGTHS.get(encoder.model_type, HOP_LENGTH)


@strict
class SpeechEncoderForCTCConfig(SpeechEncoderHeadConfig):
    """A speech encoder with a head for connectionist temporal classification.

    Args:
        vocab_size: outputs of the head, the blank included.
        pad_token_id: id of the blank: in CTC checkpoints it is the tokenizer's padding token.
        final_dropout: dropout before the head; None takes the backbone's own setting.

    Raises:
        ValueError: a key is unknown.
        StrictDataclassError: a value has the wrong type, or lies outside its range.
    """

    model_type = "speech_encoder_ctc"
    published_as = ("AutoConfig",)
    native_keys = ("vocab_size", "pad_token_id", "final_dropout")

    vocab_size: int = 32
    pad_token_id: int = 0
    final_dropout: float | int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.final_dropout is None:
            self.final_dropout = getattr(self.encoder, "final_dropout", 0.0)

    def validate_vocabulary(self) -> None:
        """Part of the checks that `@strict` runs."""
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size needs the blank and at least one token, got {self.vocab_size}")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id={self.pad_token_id}, the blank, is outside {self.vocab_size} tokens")


@strict
class SpeechEncoderForAudioFrameClassificationConfig(SpeechEncoderHeadConfig):
    """A speech encoder with a classifier of each of its frames (20 ms for most backbones).

    `num_labels`, `id2label`, `label2id` and `problem_type` are those of Transformers.

    Args:
        use_weighted_layer_sum: read a learned mixture of all the backbone's layers, not the last alone (Yang et al.
            2021, SUPERB).

    Raises:
        ValueError: a key is unknown.
        StrictDataclassError: a value has the wrong type, or lies outside its range.
    """

    model_type = "speech_encoder_audio_frame_classification"
    published_as = ("AutoConfig",)
    native_keys = (*LABEL_KEYS, "use_weighted_layer_sum")

    use_weighted_layer_sum: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        names = cast(dict[int, str], self.id2label)
        if not self.label2id or set(self.label2id) != set(names.values()):
            self.label2id = {name: index for index, name in names.items()}

    def validate_layer_sum(self) -> None:
        """Part of the checks that `@strict` runs."""
        if self.use_weighted_layer_sum and (self.adapter_layers or getattr(self.encoder, "add_adapter", False)):
            raise ValueError("use_weighted_layer_sum reads the backbone's layers, which come before an adapter")


@strict
class SpeechEncoderForAudioClassificationConfig(SpeechEncoderForAudioFrameClassificationConfig):
    """A speech encoder with a classifier of whole clips.

    `num_labels`, `id2label`, `label2id` and `problem_type` are those of Transformers.

    Args:
        pooling: "mean" of the projected frames, or "attentive", a mean with learned weights (Safari et al. 2020).
        classifier_proj_size: width to which frames are projected before pooling.

    Raises:
        ValueError: a key is unknown.
        StrictDataclassError: a value has the wrong type, or lies outside its range.
    """

    model_type = "speech_encoder_audio_classification"
    native_keys = (*LABEL_KEYS, "use_weighted_layer_sum", "classifier_proj_size")

    pooling: Literal["mean", "attentive"] = "mean"
    classifier_proj_size: int = 256

    def validate_projection(self) -> None:
        """Part of the checks that `@strict` runs."""
        if self.classifier_proj_size < 1:
            raise ValueError(f"classifier_proj_size must be at least 1, got {self.classifier_proj_size}")


for _config_class in (
    SpeechEncoderForCTCConfig,
    SpeechEncoderForAudioClassificationConfig,
    SpeechEncoderForAudioFrameClassificationConfig,
):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)

__all__ = [
    "SpeechEncoderForAudioClassificationConfig",
    "SpeechEncoderForAudioFrameClassificationConfig",
    "SpeechEncoderForCTCConfig",
    "SpeechEncoderHeadConfig",
]
