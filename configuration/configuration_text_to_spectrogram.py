"""What a text-to-speech model is made of: a text encoder, a spectrogram decoder, a postnet and a vocoder."""

from dataclasses import field, fields
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, SpeechT5Config, SpeechT5HifiGanConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

from .configuration_speech_seq2seq import refuse_unknown_keys
from .published_code import PublishesItsCode

logger = logging.get_logger(__name__)

NATIVE_TTS_MODEL_TYPE = "speecht5"
TEXT_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")

POSITIVE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "encoder_attention_heads",
    "decoder_layers",
    "decoder_attention_heads",
    "encoder_max_relative_position",
    "max_text_positions",
    "max_speech_positions",
    "num_mel_bins",
    "reduction_factor",
    "speech_decoder_postnet_kernel",
    "sampling_rate",
    "hop_length",
    "win_length",
    "n_fft",
)
NATURAL_FIELDS = ("encoder_layers", "speech_decoder_prenet_layers", "speech_decoder_postnet_layers")


@strict
class TextToSpectrogramConfig(PublishesItsCode, PreTrainedConfig):
    """Text to a log-mel spectrogram to a waveform, in the manner of SpeechT5 (Ao et al. 2022).

    Fields that SpeechT5's configuration has too bear its names. A folder of `SpeechT5ForTextToSpeech` reads as one of
    these.

    Args:
        encoder: configuration of a pretrained text encoder, of any family in `modeling/text_encoders.py`; None for
            SpeechT5's own, which the `encoder_…` fields describe.
        vocoder: configuration of the HiFi-GAN that the checkpoint holds; None where it holds none.
        vocab_size: text tokens. With a pretrained encoder these and the token ids are that encoder's.
        hidden_size: width of the decoder, and of SpeechT5's own encoder.
        encoder_layers: layers of the text encoder; likewise heads and width of the feed-forward part.
        encoder_attention_heads: see `encoder_layers`.
        encoder_ffn_dim: see `encoder_layers`.
        encoder_max_relative_position: distance in tokens beyond which relative positions are no longer told apart.
        decoder_layers: layers of the spectrogram decoder; likewise heads and width of the feed-forward part.
        decoder_attention_heads: see `decoder_layers`.
        decoder_ffn_dim: see `decoder_layers`.
        hidden_act: activation of the feed-forward parts.
        positional_dropout: after positions were added.
        hidden_dropout: after each attention and feed-forward part.
        attention_dropout: of attention weights.
        activation_dropout: inside the feed-forward parts.
        layer_norm_eps: added to the variance in layer normalisation.
        initializer_range: standard deviation of new weights.
        max_text_positions: longest text, in tokens, that SpeechT5's own encoder has positions for.
        max_speech_positions: longest speech, in decoder steps of `reduction_factor` frames.
        num_mel_bins: mel bins of a frame.
        reduction_factor: frames that the decoder writes in one step.
        speaker_embedding_dim: width of a speaker embedding; 0 for a model of one voice, without that layer.
        has_default_speaker: whether the checkpoint stores the voice that speaks where none is given; see
            `TextToSpectrogramModel.set_default_speaker`.
        speech_decoder_prenet_layers: linear layers that read the last frame.
        speech_decoder_prenet_units: their width.
        speech_decoder_prenet_dropout: probability of dropping a unit of theirs, in training and out of it (Shen et
            al. 2018). 0 makes speech repeatable without a generator, but models trained with it may lose their
            alignment.
        speech_decoder_postnet_layers: convolutions over the finished spectrogram; 0 for none.
        speech_decoder_postnet_units: their channels.
        speech_decoder_postnet_kernel: their width in frames, odd.
        speech_decoder_postnet_dropout: after each of them, in training.
        scheduled_sampling_rate: share of the decoder's steps that in training read the frame that the model itself
            wrote, in a first pass over the recording's frames (Mihaylova and Martins 2019), instead of the
            recording's. It gets used to its own mistakes; training takes longer by that pass through the decoder.
        stop_positive_weight: weight of the one frame that ends an utterance against each of those that do not.
        use_guided_attention_loss: whether training draws cross-attention to the diagonal (Tachibana et al. 2017).
        guided_attention_loss_heads: which heads of each decoder layer are: a list of indices, or -1 for all.
        guided_attention_loss_sigma: how far from the diagonal is free.
        guided_attention_loss_scale: weight of that loss.
        sampling_rate: of the waveform, in Hz.
        n_fft: samples of a Fourier transform.
        win_length: samples of its window.
        hop_length: samples from one frame to the next.
        fmin: lowest frequency of the mel filters, in Hz.
        fmax: highest, in Hz.
        mel_floor: magnitudes are raised to this before the logarithm, which is to base 10.
        use_cache: whether a forward pass without labels returns its cache.
        newly_initialized: names of the modules that no checkpoint supplied when the model was built.

    Raises:
        ValueError: a key is unknown.
        StrictDataclassError: a value has the wrong type, or lies outside its range.
    """

    model_type = "text_to_spectrogram"
    published_as = ("AutoConfig",)
    attribute_map = {"num_hidden_layers": "decoder_layers", "num_attention_heads": "decoder_attention_heads"}
    sub_configs_defaults = {
        "encoder": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True),
        "vocoder": SubConfigSpec(config_class=SpeechT5HifiGanConfig, optional=True),
    }
    keys_to_ignore_at_inference = [
        "l1_loss",
        "postnet_l1_loss",
        "stop_loss",
        "guided_attention_loss",
        "spectrogram_before_postnet",
        "stop_logits",
        "spectrogram_mask",
        "past_key_values",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "encoder_attentions",
        "encoder_attention_mask",
    ]

    encoder: Any = None  # a configuration, a dict to make one from, or None; a configuration or None afterwards
    vocoder: Any = None  # likewise
    vocab_size: int = 81
    hidden_size: int = 768
    encoder_layers: int = 12
    encoder_attention_heads: int = 12
    encoder_ffn_dim: int = 3072
    encoder_max_relative_position: int = 160
    decoder_layers: int = 6
    decoder_attention_heads: int = 12
    decoder_ffn_dim: int = 3072
    hidden_act: str = "gelu"
    positional_dropout: float | int = 0.1
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    max_text_positions: int = 450
    max_speech_positions: int = 4000
    num_mel_bins: int = 80
    reduction_factor: int = 2
    speaker_embedding_dim: int = 512
    has_default_speaker: bool = False
    speech_decoder_prenet_layers: int = 2
    speech_decoder_prenet_units: int = 256
    speech_decoder_prenet_dropout: float | int = 0.5
    speech_decoder_postnet_layers: int = 5
    speech_decoder_postnet_units: int = 256
    speech_decoder_postnet_kernel: int = 5
    speech_decoder_postnet_dropout: float | int = 0.5
    scheduled_sampling_rate: float | int = 0.0
    stop_positive_weight: float | int = 5.0
    use_guided_attention_loss: bool = True
    guided_attention_loss_heads: list[int] | int = -1
    guided_attention_loss_sigma: float | int = 0.4
    guided_attention_loss_scale: float | int = 1.0
    sampling_rate: int = 16_000
    n_fft: int = 1024
    win_length: int = 1024
    hop_length: int = 256
    fmin: float | int = 80
    fmax: float | int = 7600
    mel_floor: float = 1e-10
    use_cache: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    newly_initialized: list[str] = field(default_factory=list)
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)
        refuse_unknown_keys(type(self), set(kwargs))
        attention = getattr(self.encoder, "_attn_implementation", None)
        if attention is not None:  # or a ready encoder would forget its own
            kwargs.setdefault("attn_implementation", {"encoder": attention})
        super().__post_init__(**kwargs)
        self.newly_initialized = list(self.newly_initialized or [])
        if self.encoder is not None:
            for name in ("vocab_size", *TEXT_TOKEN_IDS):
                setattr(self, name, getattr(self.encoder, name, None))

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As in Transformers, but a `SpeechT5ForTextToSpeech` folder reads as one of ours."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == NATIVE_TTS_MODEL_TYPE:
            config_dict = cls._from_native(config_dict)
        return config_dict, kwargs

    @classmethod
    def _from_native(cls, native: dict[str, Any]) -> dict[str, Any]:
        """Its fields that mean the same; layerdrop, which can drop every layer, stays behind."""
        own = {one.name for one in fields(cls)} - {"decoder_start_token_id"}
        config_dict = {name: value for name, value in native.items() if name in own and name != "architectures"}
        heads = native.get("guided_attention_loss_num_heads", 2)
        config_dict["guided_attention_loss_heads"] = heads if heads < 0 else list(range(heads))
        config_dict.setdefault("guided_attention_loss_scale", 10.0)
        return config_dict | {"model_type": cls.model_type}

    def to_native(self) -> SpeechT5Config:
        """The configuration of the same model as a `SpeechT5ForTextToSpeech`; mel settings are not part of it."""
        shared = {one.name for one in fields(SpeechT5Config)} & {one.name for one in fields(type(self))}
        settings = {name: getattr(self, name) for name in shared - {"architectures", "transformers_version"}}
        heads = self.guided_attention_loss_heads
        settings["guided_attention_loss_num_heads"] = -1 if heads == -1 else len(self.guided_heads)
        if heads != -1 and heads != list(range(len(self.guided_heads))):
            logger.warning(f"SpeechT5 guides the first heads, not {heads}: its training would differ")
        for name in ("guided_attention_loss_sigma", "guided_attention_loss_scale"):
            settings[name] = float(settings[name])
        return SpeechT5Config(**settings, encoder_layerdrop=0.0, decoder_layerdrop=0.0)

    @property
    def guided_heads(self) -> list[int]:
        """Indices of the heads of each decoder layer that guided attention draws to the diagonal."""
        chosen = self.guided_attention_loss_heads
        return list(range(self.decoder_attention_heads)) if chosen == -1 else cast(list[int], chosen)

    def validate_counts(self) -> None:
        """Part of the checks that `@strict` runs."""
        for name in (*POSITIVE_FIELDS, *NATURAL_FIELDS, "speaker_embedding_dim"):
            value, least = getattr(self, name), int(name in POSITIVE_FIELDS)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        own = ("encoder_attention_heads",) if self.encoder is None else ()  # a pretrained encoder has heads of its own
        for name in (*own, "decoder_attention_heads"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {name} {getattr(self, name)}")
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even, for pairs of sine and cosine, got {self.hidden_size}")
        if self.speech_decoder_postnet_kernel % 2 == 0:
            raise ValueError(
                f"speech_decoder_postnet_kernel must be odd, to leave the length as it is, got "
                f"{self.speech_decoder_postnet_kernel}"
            )

    def validate_probabilities(self) -> None:
        """Part of the checks that `@strict` runs."""
        for name in (one.name for one in fields(self) if one.name.endswith("_dropout")):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a probability from 0 to below 1, got {getattr(self, name)}")
        if not 0 <= self.scheduled_sampling_rate <= 1:
            raise ValueError(f"scheduled_sampling_rate is a share from 0 to 1, got {self.scheduled_sampling_rate}")

    def validate_guided_attention(self) -> None:
        """Part of the checks that `@strict` runs."""
        heads = self.guided_attention_loss_heads
        if isinstance(heads, int) and heads != -1:
            raise ValueError(f"guided_attention_loss_heads is a list of indices, or -1 for all heads, got {heads}")
        outside = [] if isinstance(heads, int) else [head for head in heads if head >= self.decoder_attention_heads]
        if heads == [] or outside or (isinstance(heads, list) and min(heads) < 0):
            raise ValueError(
                f"guided_attention_loss_heads names heads from 0 to {self.decoder_attention_heads - 1}, got {heads}"
            )
        if self.guided_attention_loss_sigma <= 0:
            raise ValueError(f"guided_attention_loss_sigma must be above 0, got {self.guided_attention_loss_sigma}")

    def validate_mel(self) -> None:
        """Part of the checks that `@strict` runs."""
        if not 0 <= self.fmin < self.fmax <= self.sampling_rate / 2:
            raise ValueError(
                f"fmin {self.fmin} and fmax {self.fmax} Hz must lie in this order between 0 and half of "
                f"sampling_rate {self.sampling_rate}"
            )
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} exceeds n_fft {self.n_fft}")


AutoConfig.register(TextToSpectrogramConfig.model_type, TextToSpectrogramConfig, exist_ok=True)

__all__ = ["TextToSpectrogramConfig"]
