"""What a classifier of spectrograms is made of: a network that reads images, and the names of its classes."""

from dataclasses import field
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_speech_encoder_heads import LABEL_KEYS
from .configuration_speech_seq2seq import refuse_unknown_keys
from .published_code import PublishesItsCode

DEFAULT_MEL_BINS = 128  # of ASTFeatureExtractor


@strict
class SpectrogramClassificationConfig(PublishesItsCode, PreTrainedConfig):
    """A classifier of clips that reads their log-mel spectrogram as an image.

    `num_labels`, `id2label`, `label2id` and `problem_type` are those of Transformers.

    Args:
        encoder: configuration of the network, an `ASTConfig` (the default) or a `ResNetConfig`. A ResNet's
            `num_channels` says whether it reads the spectrogram as one channel, or repeated.
        num_mel_bins: of the spectrograms, which other numbers are refused. None takes an AST's own; a ResNet has
            none and takes 128, what `ASTFeatureExtractor` makes by default.
        apply_spec_augment: whether SpecAugment (Park et al. 2019) masks the spectrogram in training, where a
            probability below is above 0. What is masked is 0, the mean of what `ASTFeatureExtractor` normalised.
        mask_time_prob: expected share of frames to mask, 0 for none. All of the window counts, padding too.
        mask_time_length: length of one masked span, in frames of 10 ms.
        mask_time_min_masks: least number of spans in each clip.
        mask_feature_prob: expected share of mel bins to mask, 0 for none.
        mask_feature_length: width of one masked span of mel bins.
        mask_feature_min_masks: least number of spans of mel bins in each clip.
        newly_initialized: names of the modules that no checkpoint supplied when the model was built. Adapters such as
            LoRA must train and save these whole.

    Raises:
        ValueError: a key is unknown.
        StrictDataclassError: a value has the wrong type, lies outside its range, or contradicts the encoder's.
    """

    model_type = "spectrogram_classification"
    published_as = ("AutoConfig",)
    sub_configs_defaults = {
        "encoder": SubConfigSpec(config_class=AutoConfig, model_type="audio-spectrogram-transformer")
    }
    native_keys = LABEL_KEYS
    keys_to_ignore_at_inference = ["hidden_states", "attentions"]

    encoder: Any = None  # a configuration, or a dict or None to make one from; always a configuration afterwards
    num_mel_bins: int | None = None
    apply_spec_augment: bool = True
    mask_time_prob: float | int = 0.0
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float | int = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    newly_initialized: list[str] = field(default_factory=list)

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)
        refuse_unknown_keys(type(self), set(kwargs))
        if "attn_implementation" not in kwargs:  # or a ready module would forget its own
            chosen = getattr(self.encoder, "_attn_implementation", None)
            kwargs["attn_implementation"] = None if chosen is None else {"encoder": chosen}
        super().__post_init__(**kwargs)
        if self.num_mel_bins is None:
            self.num_mel_bins = getattr(self.encoder, "num_mel_bins", DEFAULT_MEL_BINS)
        self.newly_initialized = list(self.newly_initialized or [])
        names = cast(dict[int, str], self.id2label)
        if not self.label2id or set(self.label2id) != set(names.values()):
            self.label2id = {name: index for index, name in names.items()}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As in Transformers, but the folder of a native model reads as one of ours."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict and config_dict.get("model_type") != cls.model_type and "encoder" not in config_dict:
            config_dict = cls.fields_of_native(config_dict)
        return config_dict, kwargs

    @classmethod
    def fields_of_native(cls, native: dict[str, Any]) -> dict[str, Any]:
        """A native model's configuration as fields of this class."""
        taken = {key: native[key] for key in cls.native_keys if key in native}
        encoder = {key: value for key, value in native.items() if key not in (*LABEL_KEYS, "architectures")}
        return {**taken, "encoder": encoder, "model_type": cls.model_type}

    def validate_mel_bins(self) -> None:
        """Part of the checks that `@strict` runs."""
        own = getattr(self.encoder, "num_mel_bins", self.num_mel_bins)
        if self.num_mel_bins != own:
            raise ValueError(f"num_mel_bins={self.num_mel_bins}, but the encoder reads {own}: leave it out")
        if self.num_mel_bins is not None and self.num_mel_bins < 1:
            raise ValueError(f"num_mel_bins must be at least 1, got {self.num_mel_bins}")

    def validate_spec_augment(self) -> None:
        """Part of the checks that `@strict` runs."""
        for axis in ("time", "feature"):
            share = getattr(self, f"mask_{axis}_prob")
            if not 0 <= share <= 1:
                raise ValueError(f"mask_{axis}_prob is a probability between 0 and 1, got {share}")
            for setting, least in (("length", 1), ("min_masks", 0)):
                value = getattr(self, f"mask_{axis}_{setting}")
                if value < least:
                    raise ValueError(f"mask_{axis}_{setting} must be at least {least}, got {value}")

    @property
    def hidden_size(self) -> int:
        """Width of what is classified: of an AST's tokens, or of a ResNet's last stage."""
        encoder = cast(Any, self.encoder)
        return encoder.hidden_sizes[-1] if hasattr(encoder, "hidden_sizes") else encoder.hidden_size

    @property
    def fixed_input_window(self) -> None:
        """Always None: the feature extractor alone makes all spectrograms equally long (collators ask)."""


AutoConfig.register(SpectrogramClassificationConfig.model_type, SpectrogramClassificationConfig, exist_ok=True)

__all__ = ["SpectrogramClassificationConfig"]
