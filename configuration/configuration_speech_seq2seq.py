"""What a speech-to-text model is made of: a speech encoder, a text decoder, and what joins them."""

import copy
import difflib
import math
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .published_code import PublishesItsCode

NATIVE_MODEL_TYPE = "speech-encoder-decoder"

# Keys that Transformers itself, or older versions of it, write into a config.json beside the declared fields.
FOREIGN_KEYS = {
    "add_cross_attention",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "is_decoder",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "processor_class",
    "quantization_config",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_weights",
    "use_cache",
    "vocab_size",
}
TOKEN_ID_KEYS = {"bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"}

# Strides of the convolutions of backbones that have no setting for them.
FIXED_STRIDES = {"whisper": (1, 2), "moonshine": (64, 3, 2)}

SPEC_AUGMENT_DEFAULTS = {
    "apply_spec_augment": True,
    "mask_time_prob": 0.0,
    "mask_time_length": 10,
    "mask_time_min_masks": 2,
    "mask_feature_prob": 0.0,
    "mask_feature_length": 10,
    "mask_feature_min_masks": 0,
}


def refuse_unknown_keys(config_class: type[PreTrainedConfig], keys: set[str]) -> None:
    """Raise for keys that no field, property or part of Transformers reads, instead of storing a typing error."""
    unknown = _unknown_keys(config_class, keys)
    if not unknown:
        return
    known = sorted({field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)})
    told = []
    for key in unknown:
        close = difflib.get_close_matches(key, known, n=1)
        if key in GenerationConfig().to_dict():
            told.append(f"{key!r} (it belongs to generation_config)")
        else:
            told.append(f"{key!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    raise ValueError(
        f"{config_class.__name__} does not know {', '.join(told)}. Its fields are: {', '.join(known)}. If this comes "
        "from a saved file, a newer version wrote it: pip install --upgrade speechgraft transformers"
    )


def _unknown_keys(config_class: type[PreTrainedConfig], keys: set[str]) -> list[str]:
    known = FOREIGN_KEYS | TOKEN_ID_KEYS | {field.name for field in fields(config_class)}
    return sorted(key for key in keys - known if not key.startswith("_"))


@strict
class SpeechEncoderConfig(PublishesItsCode, PreTrainedConfig):
    """A pretrained speech encoder and what is done to its input and output.

    Args:
        encoder: configuration of the backbone, of any family in `modeling/speech_encoders.py`.
        adapter_layers: strided convolutions that shorten the encoder's output; 0 for none.
        adapter_kernel_size: width of each adapter convolution, in encoder frames.
        adapter_stride: factor by which each adapter layer shortens the sequence.
        fixed_input_window: whether every input must fill the window that the backbone was trained on (Whisper's
            30 s). None takes the family's habit. False admits shorter input, without padding, for checkpoints that
            were trained so.
        layerdrop: probability of skipping a layer in training, for those backbones and decoders that can. It is off
            unless asked for, because skipped layers leave parameters without a gradient, which distributed training
            refuses.
        apply_spec_augment: whether SpecAugment (Park et al. 2019) masks the encoder's input in training. None means
            yes where a probability below is asked for, else, as with all of them, the backbone's own setting, or the
            default of wav2vec 2.0 where it has none.
        mask_time_prob: expected share of frames to mask, 0 for none.
        mask_time_length: length of one masked span, in frames. Spans are clamped in clips that are shorter.
        mask_time_min_masks: least number of spans in each clip.
        mask_feature_prob: expected share of feature channels (hidden units, or mel bins) to mask.
        mask_feature_length: width of one masked span of channels.
        mask_feature_min_masks: least number of channel spans in each clip.

    Raises:
        ValueError: a key is unknown.
        StrictDataclassError: a value has the wrong type, or lies outside its range.
    """

    model_type = "speech_encoder"
    published_as = ("AutoConfig",)
    sub_configs_defaults = {"encoder": SubConfigSpec(config_class=AutoConfig, model_type="wav2vec2")}

    encoder: Any = None  # a configuration, or a dict or None to make one from; always a configuration afterwards
    adapter_layers: int = 0
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    fixed_input_window: bool | None = None
    layerdrop: float | int = 0.0
    apply_spec_augment: bool | None = None
    mask_time_prob: float | int | None = None
    mask_time_length: int | None = None
    mask_time_min_masks: int | None = None
    mask_feature_prob: float | int | None = None
    mask_feature_length: int | None = None
    mask_feature_min_masks: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)
        refuse_unknown_keys(type(self), set(kwargs))
        if "attn_implementation" not in kwargs:  # or the parts of ready modules would forget theirs
            kwargs["attn_implementation"] = self._attention_of_parts()
        super().__post_init__(**kwargs)
        self.encoder = getattr(self.encoder, "encoder_config", self.encoder)  # Parakeet's covers more than the encoder
        self._settle_spec_augment()
        self._settle_layerdrop()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in Transformers, but changes of SpecAugment and LayerDrop reach the backbone, which reads its own."""
        changes = {name: kwargs.pop(name) for name in (*SPEC_AUGMENT_DEFAULTS, "layerdrop") if name in kwargs}
        if changes.get("mask_time_prob") or changes.get("mask_feature_prob"):
            changes.setdefault("apply_spec_augment", True)
        return super().from_dict({**config_dict, **changes}, **kwargs)

    def _attention_of_parts(self) -> dict[str, str] | None:
        parts = {name: getattr(self, name) for name in self.sub_configs_defaults}
        chosen = {name: getattr(part, "_attn_implementation", None) for name, part in parts.items()}
        return {name: value for name, value in chosen.items() if value is not None} or None

    def _settle_spec_augment(self) -> None:
        """Make these fields and the backbone's equal: whether it has a mask embedding depends on its own.

        A backbone that masks reads them all, though some configurations (data2vec, WavLM) leave one out.
        """
        if self.apply_spec_augment is None and (self.mask_time_prob or self.mask_feature_prob):
            self.apply_spec_augment = True  # Whisper's own says no, and would silence what was asked for
        masks = hasattr(self.encoder, "mask_time_prob")
        for name, default in SPEC_AUGMENT_DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.encoder, name, default))
            if masks:
                setattr(self.encoder, name, getattr(self, name))

    def _settle_layerdrop(self) -> None:
        for part in (getattr(self, name) for name in self.sub_configs_defaults):
            for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
                if hasattr(part, name):
                    setattr(part, name, self.layerdrop)

    def validate_counts(self) -> None:
        """Part of the checks that `@strict` runs."""
        positive = ("adapter_kernel_size", "adapter_stride", "mask_time_length", "mask_feature_length")
        natural = ("adapter_layers", "mask_time_min_masks", "mask_feature_min_masks")
        for name in (*positive, *natural):
            value, least = getattr(self, name), int(name in positive)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def validate_probabilities(self) -> None:
        """Part of the checks that `@strict` runs."""
        for name in ("layerdrop", "mask_time_prob", "mask_feature_prob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability between 0 and 1, got {value}")

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Input samples (or feature frames) to one frame of the encoder's output."""
        encoder = cast(PreTrainedConfig, self.encoder)
        ratio = self.adapter_stride**self.adapter_layers * math.prod(_strides(encoder))
        if getattr(encoder, "add_adapter", False):
            ratio *= encoder.adapter_stride**encoder.num_adapter_layers
        return ratio


def _strides(encoder: PreTrainedConfig) -> Sequence[int]:
    """Strides of a backbone's convolutions: listed in its configuration, implied by it, or fixed."""
    if hasattr(encoder, "subsampling_factor"):  # Parakeet
        return [encoder.subsampling_factor]
    if hasattr(encoder, "num_conv_layers"):  # speech_to_text
        return [2] * encoder.num_conv_layers
    return getattr(encoder, "conv_stride", FIXED_STRIDES.get(encoder.model_type, ()))


class _DecoderTokenId:
    """A token id kept in `config.decoder`, where Trainer and generate() also look: there is no second copy."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, owner: type | None = None) -> Any:
        return self if config is None else getattr(config.decoder, self.name, None)

    def __set__(self, config: Any, value: int | list[int] | None) -> None:
        setattr(config.decoder, self.name, value)


@strict
class SpeechSeq2SeqConfig(SpeechEncoderConfig):
    """A speech encoder grafted onto a text decoder.

    The token ids (`decoder_start_token_id`, `eos_token_id`, `pad_token_id`, `bos_token_id`) are read from and written
    to `config.decoder`; training and generation both take them from here.

    Args:
        decoder: configuration of the text decoder, of any family in `modeling/text_decoders.py`.
        decoder_prompt_token_ids: tokens that follow the start token in every transcript (Whisper's language, task
            and no-timestamps tokens); empty for most decoders.
        ctc_weight: share of the CTC loss in `(1 - ctc_weight) * decoder loss + ctc_weight * CTC loss`. Above 0 the
            model has a CTC head.
        ctc_characters: alphabet of a CTC head that spells: output `i + 1` is character `i`, output 0 the blank.
        ctc_vocab_size: outputs of the CTC head; None takes those of `ctc_characters`, else the decoder's vocabulary.
        ctc_blank_token_id: the blank's place in the head's vocabulary; None takes the decoder's padding token, or 0
            for a vocabulary of the head's own.
        mask_token_id: token that hides others from a decoder that sees both sides and fills in (Mask-CTC, by
            `generate_masked`); None for a decoder that writes from left to right.
        max_predicted_length: most tokens of a transcript, without prompt and end token, that a length head can tell
            from the encoder's output, for a decoder that fills in masked tokens without a CTC head (Mask-Predict).
            None for a model without a length head.
        newly_initialized: names of the modules that no checkpoint supplied when the model was built: cross-attention,
            projection, adapter, CTC and length head. Adapters such as LoRA must train and save these whole.

    Raises:
        ValueError: a key is unknown.
        StrictDataclassError: a value has the wrong type, or lies outside its range.
    """

    model_type = "speech_seq2seq"
    sub_configs_defaults = {
        "encoder": SubConfigSpec(config_class=AutoConfig, model_type="wav2vec2"),
        "decoder": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }
    keys_to_ignore_at_inference = [
        "past_key_values",
        "decoder_loss",
        "ctc_loss",
        "ctc_logits",
        "length_loss",
        "length_logits",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_attention_mask",
        "encoder_hidden_states",
        "encoder_attentions",
    ]

    decoder: Any = None  # likewise
    decoder_prompt_token_ids: list[int] = field(default_factory=list)
    ctc_weight: float | int = 0.0
    ctc_characters: str | None = None
    ctc_vocab_size: int | None = None
    ctc_blank_token_id: int | None = None
    mask_token_id: int | None = None
    max_predicted_length: int | None = None
    newly_initialized: list[str] = field(default_factory=list)
    is_encoder_decoder: bool = True

    decoder_start_token_id = _DecoderTokenId()
    eos_token_id = _DecoderTokenId()
    pad_token_id = _DecoderTokenId()
    bos_token_id = _DecoderTokenId()

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.decoder is self.encoder:  # one Whisper configuration for both halves: their edits must not meet
            self.decoder = copy.deepcopy(self.decoder)
        self.decoder_prompt_token_ids = list(self.decoder_prompt_token_ids or [])
        self.newly_initialized = list(self.newly_initialized or [])
        if self.ctc_characters is not None and self.ctc_vocab_size is None:
            self.ctc_vocab_size = len(self.ctc_characters) + 1
        make_cross_attending_decoder(cast(PreTrainedConfig, self.decoder))

    @classmethod
    def from_encoder_decoder_configs(
        cls, encoder_config: PreTrainedConfig, decoder_config: PreTrainedConfig, **kwargs: Any
    ) -> "SpeechSeq2SeqConfig":
        """Build from the configurations of the two parts, which are copied. `kwargs` are fields of this class."""
        encoder, decoder = encoder_config.to_dict(), decoder_config.to_dict()
        return cls(encoder=encoder, decoder=decoder, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As in Transformers, but a `SpeechEncoderDecoderModel` folder reads as one of ours."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == NATIVE_MODEL_TYPE:
            # There every key is accepted, and most of what people set has no effect; generation settings do, and are
            # read from the same file by GenerationConfig.
            ignored = {"architectures", *_unknown_keys(cls, set(config_dict))}
            ignored |= {key for key in TOKEN_ID_KEYS if config_dict.get(key) is None}  # its decoder knows better
            config_dict = {key: value for key, value in config_dict.items() if key not in ignored}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    @property
    def has_ctc_head(self) -> bool:
        """Whether the model has a CTC head."""
        return self.ctc_weight > 0

    def validate_ctc(self) -> None:
        """Part of the checks that `@strict` runs."""
        if not 0 <= self.ctc_weight <= 1:
            raise ValueError(f"ctc_weight is a share between 0 and 1, got {self.ctc_weight}")
        if self.ctc_vocab_size is not None and self.ctc_vocab_size < 2:
            raise ValueError(f"ctc_vocab_size needs the blank and at least one token, got {self.ctc_vocab_size}")
        characters = self.ctc_characters
        if characters is not None and len(set(characters)) < len(characters):
            raise ValueError(f"ctc_characters: a character comes more than once in {characters!r}")
        if characters is not None and self.ctc_vocab_size not in (None, len(characters) + 1):
            raise ValueError(
                f"ctc_vocab_size={self.ctc_vocab_size}, but {len(characters)} ctc_characters and the blank are "
                f"{len(characters) + 1}"
            )

    def validate_length_head(self) -> None:
        """Part of the checks that `@strict` runs."""
        longest = self.max_predicted_length
        if longest is not None and longest < 1:
            raise ValueError(f"max_predicted_length must be at least 1, got {longest}")
        if longest is not None and self.mask_token_id is None:
            raise ValueError(
                f"max_predicted_length={longest}: a decoder that writes from left to right finds the end by itself; "
                "give mask_token_id too for one that fills in masked tokens"
            )

    @property
    def vocab_size(self) -> int:
        """Size of the decoder's vocabulary."""
        return cast(PreTrainedConfig, self.decoder).vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        cast(PreTrainedConfig, self.decoder).vocab_size = value

    @property
    def hidden_size(self) -> int:
        """Width of the decoder, which is the width of the encoder's projected output."""
        return cast(PreTrainedConfig, self.decoder).hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the decoder."""
        return cast(PreTrainedConfig, self.decoder).num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of the decoder."""
        return cast(PreTrainedConfig, self.decoder).num_attention_heads


def make_cross_attending_decoder(config: PreTrainedConfig) -> None:
    """Set what Transformers reads to build a decoder with cross-attention from a text model's configuration.

    Configurations of encoder-decoder text models alias `num_hidden_layers` and `num_attention_heads` to their
    encoder's sizes, from which caches are built. That encoder is not used here, so its sizes follow the decoder's.
    """
    for name, value in (("is_decoder", True), ("add_cross_attention", True), ("is_encoder_decoder", False)):
        setattr(config, name, value)
    for name in ("layers", "attention_heads", "ffn_dim"):
        if hasattr(config, f"encoder_{name}") and hasattr(config, f"decoder_{name}"):
            setattr(config, f"encoder_{name}", getattr(config, f"decoder_{name}"))
    if hasattr(config, "decoder_vocab_size"):  # Marian's halves may have a vocabulary each
        config.vocab_size = config.decoder_vocab_size


AutoConfig.register(SpeechEncoderConfig.model_type, SpeechEncoderConfig, exist_ok=True)
AutoConfig.register(SpeechSeq2SeqConfig.model_type, SpeechSeq2SeqConfig, exist_ok=True)

__all__ = ["SpeechEncoderConfig", "SpeechSeq2SeqConfig"]
