"""The table of text decoders: what differs between families, one row each, and nowhere else.

Shapes: `B` batch, `S` text tokens, `T` encoder frames, `D` decoder width, `V` vocabulary.
"""

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.bart.modeling_bart import BartForCausalLM
from transformers.models.m2m_100.configuration_m2m_100 import M2M100Config
from transformers.models.m2m_100.modeling_m2m_100 import M2M100Decoder, M2M100PreTrainedModel
from transformers.models.marian.modeling_marian import MarianForCausalLM
from transformers.models.mbart.modeling_mbart import MBartForCausalLM
from transformers.models.pegasus.modeling_pegasus import PegasusForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperForCausalLM


class _MaskedCrossAttention(WhisperAttention):
    """Whisper's cross-attention, told which encoder frames are padding: Whisper itself never masks them."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        kwargs["attention_mask"] = kwargs.pop("cross_attention_mask", None)
        return super().forward(hidden_states, *args, **kwargs)


class WhisperTextDecoder(WhisperForCausalLM):
    """Whisper's decoder with the interface of the other decoders: it takes encoder states and their mask."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(cast(Any, config))
        for layer in self.model.decoder.layers:
            cast(Any, layer).encoder_attn.__class__ = _MaskedCrossAttention

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """As `BartForCausalLM.forward`: ids [B, S] and encoder states [B, T, D] to logits [B, S, V]."""
        if encoder_attention_mask is not None:
            queries = inputs_embeds if inputs_embeds is not None else self.get_input_embeddings()(input_ids)
            kwargs["cross_attention_mask"] = create_bidirectional_mask(
                self.config, queries, encoder_attention_mask, encoder_hidden_states=encoder_hidden_states
            )
        outputs = self.model.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            **kwargs,
        )
        return _logits_output(outputs, self.proj_out, logits_to_keep)


class _M2M100DecoderHolder(M2M100PreTrainedModel):
    """Puts the decoder where full M2M100 checkpoints keep it: under `model.decoder`."""

    def __init__(self, config: M2M100Config):
        super().__init__(config)
        self.decoder = M2M100Decoder(config)
        self.post_init()


class M2M100TextDecoder(M2M100PreTrainedModel, GenerationMixin):
    """The decoder of M2M100 and NLLB as a causal language model, which Transformers does not offer."""

    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: M2M100Config):
        config.is_decoder, config.is_encoder_decoder = True, False
        super().__init__(config)
        self.model = _M2M100DecoderHolder(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.decoder.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.model.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """As `BartForCausalLM.forward`: ids [B, S] and encoder states [B, T, D] to logits [B, S, V]."""
        outputs = self.model.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            **kwargs,
        )
        return _logits_output(outputs, self.lm_head, logits_to_keep)


class _WithOutputBias:
    """The output bias of BART's kin, which Transformers' full models have and its decoders alone have not."""

    native_class: type[Any]
    config: Any
    lm_head: nn.Linear
    model: nn.Module
    training: bool

    def __init__(self, config: PreTrainedConfig):
        cast(Any, super()).__init__(config)
        self.final_logits_bias = nn.Buffer(torch.zeros(1, self.lm_head.out_features))

    def _init_weights(self, module: nn.Module) -> None:
        cast(Any, super())._init_weights(module)
        if "final_logits_bias" in module._buffers:
            init.zeros_(cast(Any, module).final_logits_bias)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in Transformers; new tokens have no bias."""
        embeddings = cast(Any, super()).resize_token_embeddings(*args, **kwargs)
        added = embeddings.num_embeddings - self.final_logits_bias.shape[-1]
        self.final_logits_bias = nn.Buffer(nn.functional.pad(self.final_logits_bias, [0, added]))
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """As `BartForCausalLM.forward`: ids [B, S] and encoder states [B, T, D] to logits [B, S, V]."""
        output = cast(Any, super()).forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        output.logits = output.logits + self.final_logits_bias
        return output

    def to_native(self) -> Any:
        """The same weights without the bias, as Transformers' class of the decoder alone.

        Raises:
            ValueError: the bias is not zero.
        """
        if self.final_logits_bias.any():
            raise ValueError(f"{self.native_class.__name__} has no place for the decoder's output bias")
        with torch.device("meta"):
            native = self.native_class(self.config)
        native.model, native.lm_head = self.model, self.lm_head
        return native.train(self.training)


class BartTextDecoder(_WithOutputBias, BartForCausalLM):
    """BART's decoder with the output bias of the full model."""

    native_class = BartForCausalLM
    _keys_to_ignore_on_load_missing = [r"final_logits_bias$"]  # decoders saved alone have none


class MBartTextDecoder(_WithOutputBias, MBartForCausalLM):
    """mBART's decoder with the output bias of the full model."""

    native_class = MBartForCausalLM
    _keys_to_ignore_on_load_missing = [r"final_logits_bias$"]


class PegasusTextDecoder(_WithOutputBias, PegasusForCausalLM):
    """Pegasus' decoder with the output bias of the full model."""

    native_class = PegasusForCausalLM
    # Its positions, which are sines, are not stored.
    _keys_to_ignore_on_load_missing = [r"final_logits_bias$", r"model\.decoder\.embed_positions\.weight$"]


class MarianTextDecoder(_WithOutputBias, MarianForCausalLM):
    """Marian's decoder with the output bias of its translation models."""

    native_class = MarianForCausalLM
    _keys_to_ignore_on_load_missing = [r"final_logits_bias$", r"model\.decoder\.embed_positions\.weight$"]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in Transformers; new tokens have no bias."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.decoder_vocab_size = embeddings.num_embeddings
        return embeddings


def _places(logits_to_keep: int | torch.Tensor) -> slice | torch.Tensor:
    return slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep


def _logits_output(
    outputs: Any, head: nn.Module, logits_to_keep: int | torch.Tensor
) -> CausalLMOutputWithCrossAttentions:
    return CausalLMOutputWithCrossAttentions(
        logits=head(outputs.last_hidden_state[:, _places(logits_to_keep)]),
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
        cross_attentions=outputs.cross_attentions,
    )


@dataclass(frozen=True)
class TextDecoderFamily:
    """What this project must know about a family of text decoders.

    Args:
        model_types: the `model_type` of its configurations; the first names the family in messages.
        cross_attention: names of the sub-modules of a layer that make up its cross-attention.
        head: name prefix of the language-model head's own layers, which checkpoints without a head cannot supply;
            empty where the head is nothing but the embeddings.
        start, end, pad: where each token id comes from, in this order: `config.X`, `tokenizer.X`.
        model_class: the decoder's class where AutoModelForCausalLM has none that fits.
        checkpoint_renames: regular expression to replacement, from checkpoint keys that the decoder's own class does
            not know to its keys.
        position_limit: name of the configuration's field that bounds the length, None where there is no bound.
        positions_start_after_padding: whether the first position is the padding token's id + 1, as in fairseq.
    """

    model_types: tuple[str, ...]
    cross_attention: tuple[str, ...]
    head: str = ""
    start: tuple[str, ...] = ("config.decoder_start_token_id", "config.bos_token_id")
    end: tuple[str, ...] = ("config.eos_token_id",)
    pad: tuple[str, ...] = ("config.pad_token_id", "config.eos_token_id")
    model_class: type[PreTrainedModel] | None = None
    checkpoint_renames: tuple[tuple[str, str], ...] = ()
    position_limit: str | None = "max_position_embeddings"
    positions_start_after_padding: bool = False

    def decoder_class(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """The class of the decoder for a configuration of this family."""
        return self.model_class or cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])

    def max_length(self, config: PreTrainedConfig) -> int | None:
        """The most tokens that the decoder has positions for, None where it computes them on the fly."""
        if self.position_limit is None:
            return None
        used = config.pad_token_id + 1 if self.positions_start_after_padding else 0
        return getattr(config, self.position_limit) - used

    def token_ids(self, config: PreTrainedConfig, tokenizer: Any = None) -> dict[str, int | None]:
        """Start, end and padding ids, the first that is defined in the order that the row gives."""
        sources = {"config": config, "tokenizer": tokenizer}

        def first(places: tuple[str, ...]) -> int | None:
            for source, name in (place.split(".") for place in places):
                value = getattr(sources[source], name, None)
                if value is not None:
                    return value[0] if isinstance(value, list) else value
            return None

        return {
            "decoder_start_token_id": first(self.start),
            "eos_token_id": first(self.end),
            "pad_token_id": first(self.pad),
        }


BART_CROSS_ATTENTION = ("encoder_attn", "encoder_attn_layer_norm")
SHARED_EMBEDDINGS = ((r"^model\.shared\.", "model.decoder.embed_tokens."), (r"^shared\.", "decoder.embed_tokens."))

TEXT_DECODER_FAMILIES = (
    TextDecoderFamily(
        ("bert",),
        cross_attention=("crossattention",),
        head="cls.",
        start=("config.decoder_start_token_id", "tokenizer.cls_token_id", "config.bos_token_id"),
        end=("tokenizer.sep_token_id", "config.eos_token_id"),
        pad=("config.pad_token_id", "tokenizer.pad_token_id"),
    ),
    TextDecoderFamily(
        ("roberta", "xlm-roberta"),
        cross_attention=("crossattention",),
        head="lm_head.",
        positions_start_after_padding=True,
    ),
    TextDecoderFamily(("gpt2",), cross_attention=("crossattention", "ln_cross_attn")),
    TextDecoderFamily(
        ("bart",),
        cross_attention=BART_CROSS_ATTENTION,
        start=("config.decoder_start_token_id", "config.eos_token_id"),
        model_class=BartTextDecoder,
        checkpoint_renames=SHARED_EMBEDDINGS,
    ),
    TextDecoderFamily(
        ("mbart",),
        cross_attention=BART_CROSS_ATTENTION,
        start=("config.decoder_start_token_id", "config.eos_token_id"),
        model_class=MBartTextDecoder,
        checkpoint_renames=SHARED_EMBEDDINGS,
    ),
    TextDecoderFamily(
        ("pegasus",),
        cross_attention=BART_CROSS_ATTENTION,
        start=("config.decoder_start_token_id", "config.eos_token_id"),
        model_class=PegasusTextDecoder,
        checkpoint_renames=SHARED_EMBEDDINGS,
    ),
    TextDecoderFamily(
        ("marian",),
        cross_attention=BART_CROSS_ATTENTION,
        start=("config.decoder_start_token_id", "config.eos_token_id"),
        model_class=MarianTextDecoder,
        checkpoint_renames=SHARED_EMBEDDINGS,
    ),
    TextDecoderFamily(
        ("m2m_100",),
        cross_attention=BART_CROSS_ATTENTION,
        start=("config.decoder_start_token_id", "config.eos_token_id"),
        model_class=M2M100TextDecoder,
        checkpoint_renames=SHARED_EMBEDDINGS,
        position_limit=None,
        positions_start_after_padding=True,
    ),
    TextDecoderFamily(
        ("whisper",),
        cross_attention=BART_CROSS_ATTENTION,
        model_class=WhisperTextDecoder,
        position_limit="max_target_positions",
    ),
    TextDecoderFamily(
        ("xglm",), cross_attention=BART_CROSS_ATTENTION, start=("config.decoder_start_token_id", "config.eos_token_id")
    ),
    TextDecoderFamily(
        ("trocr",),
        cross_attention=BART_CROSS_ATTENTION,
        start=("config.decoder_start_token_id", "config.eos_token_id"),
    ),
)

# Transformers' own composites: their decoder is a model of its own, under `decoder`.
ENCODER_DECODERS = ("vision-encoder-decoder", "speech-encoder-decoder", "encoder-decoder")

_FAMILY_OF = {model_type: family for family in TEXT_DECODER_FAMILIES for model_type in family.model_types}


def text_decoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The decoder's own configuration, taken out of a checkpoint's where that covers an encoder, such as TrOCR's."""
    return config.decoder if config.model_type in ENCODER_DECODERS else config


def text_decoder_family(config: PreTrainedConfig) -> TextDecoderFamily:
    """Look a configuration's family up in the table.

    Raises:
        ValueError: the family is not in the table; the message lists those that are.
    """
    if config.model_type not in _FAMILY_OF:
        raise ValueError(
            f"{config.model_type!r} is not a supported text decoder: it must attend to the audio. "
            f"Supported: {', '.join(sorted(_FAMILY_OF))}"
        )
    return _FAMILY_OF[config.model_type]


def check_cross_attends(decoder: PreTrainedModel) -> None:
    """Raise unless the decoder can hear: some accept encoder states and ignore them, so its layers are looked at.

    Raises:
        ValueError: the decoder was built without cross-attention, or is of a class that does not decode.
    """
    family = text_decoder_family(decoder.config)
    wanted = family.decoder_class(decoder.config)
    listens = "encoder_hidden_states" in inspect.signature(decoder.forward).parameters
    if not (isinstance(decoder, wanted) or (listens and issubclass(wanted, type(decoder)))):
        raise ValueError(f"the decoder must be a {wanted.__name__}, got a {type(decoder).__name__}")
    if not any(name.rpartition(".")[2] in family.cross_attention for name, _ in decoder.named_modules()):
        raise ValueError(
            f"{type(decoder).__name__} was built without cross-attention and would ignore the audio: build it with "
            "is_decoder=True and add_cross_attention=True in its configuration"
        )
