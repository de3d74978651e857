"""Text encoders for speech: SpeechT5's own, and the table of pretrained ones, one row a family.

Shapes: `B` batch, `S` text tokens, `D` width, `E` width of a head.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import MT5EncoderModel, PreTrainedConfig, PreTrainedModel, T5EncoderModel, UMT5EncoderModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils.generic import ModelOutput

from ..configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from .attention_outputs import eager_attention
from .transformer_layers import Attention, FeedForward, ScaledPositions, initialize_positions


@dataclass
class TextEncoderOutput(ModelOutput):
    """What a `TextEncoder` returns.

    Args:
        last_hidden_state: [B, S, D], as wide as the decoder.
        hidden_states: the backbone's, where asked for.
        attentions: the backbone's, where asked for.
        attention_mask: boolean [B, S], True where a token is real; None where all are.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    attention_mask: torch.Tensor | None = None


class SpeechT5TextEncoderLayer(GradientCheckpointingLayer):
    """Self-attention with relative positions, then feed-forward, each followed by its layer normalisation."""

    def __init__(self, config: TextToSpectrogramConfig):
        super().__init__()
        self.attention = Attention(config, config.encoder_attention_heads)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config, config.encoder_ffn_dim)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        relative_positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, S, D] to [B, S, D], with the attention weights where asked for."""
        keys, values = self.attention.keys_and_values(hidden_states)
        attended, weights = self.attention(hidden_states, keys, values, mask, relative_positions, output_attentions)
        hidden_states = self.layer_norm(hidden_states + self.dropout(attended))
        return self.final_layer_norm(hidden_states + self.feed_forward(hidden_states)), weights


class TextEmbedding(nn.Embedding):
    """Of the tokens that positions are added to: new ones are as loud as those, or text would drown in places."""


class SpeechT5TextEncoder(nn.Module):
    """SpeechT5's encoder with its prenet for text."""

    def __init__(self, config: TextToSpectrogramConfig):
        super().__init__()
        self.config = config
        width, reach = config.hidden_size, config.encoder_max_relative_position
        self.embed_tokens: nn.Embedding = TextEmbedding(config.vocab_size, width, config.pad_token_id)
        self.encode_positions = ScaledPositions(config.max_text_positions, width, config.positional_dropout)
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.relative_positions = nn.Embedding(2 * reach, width // config.encoder_attention_heads)
        self.layers = nn.ModuleList(SpeechT5TextEncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> TextEncoderOutput:
        """Token ids [B, S] to [B, S, D]; see `TextEncoder.forward`."""
        embeddings = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        hidden_states = self.encode_positions(embeddings, self._positions(embeddings, attention_mask))
        hidden_states = self.dropout(self.layer_norm(hidden_states))
        between = self._between(hidden_states)
        mask = None if attention_mask is None else attention_mask[:, None, None]  # [B, 1, 1, S]
        all_states, all_weights = [hidden_states], []
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, between, mask, output_attentions=output_attentions)
            all_states.append(hidden_states)
            all_weights.append(weights)
        return TextEncoderOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
        )

    def _positions(self, embeddings: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | slice:
        """Places counted from the first real token, on whichever side the padding is."""
        if mask is None:
            return slice(0, embeddings.shape[1])
        places = torch.arange(mask.shape[1], device=mask.device)
        return (places - mask.long().argmax(dim=-1, keepdim=True)).clamp(min=0)  # [B, S]

    def _between(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What is learned of the distance between each pair of tokens: [S, S, E]."""
        reach = self.relative_positions.num_embeddings // 2
        places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        distance = places[:, None] - places[None, :]
        return self.relative_positions(distance.clamp(-reach, reach - 1) + reach)


@dataclass(frozen=True)
class TextEncoderFamily:
    """What this project must know about a family of pretrained text encoders.

    Args:
        model_types: the `model_type` of its configurations.
        has_pooler: whether its class adds a pooling layer, for which there is no use here, unless told not to.
        position_limit: name of the configuration's field that bounds the length, None where there is no bound.
        positions_start_after_padding: whether the first position is the padding token's id + 1, as in fairseq.
        model_class: the encoder's class where AutoModel has one that does not fit.
    """

    model_types: tuple[str, ...]
    has_pooler: bool = False
    position_limit: str | None = "max_position_embeddings"
    positions_start_after_padding: bool = False
    model_class: type[PreTrainedModel] | None = None

    def backbone_class(self, config: PreTrainedConfig) -> type[PreTrainedModel]:
        """The class of the encoder for a configuration of this family."""
        return self.model_class or cast(Any, MODEL_MAPPING[type(config)])

    def build_options(self) -> dict[str, Any]:
        """Arguments of the class beside its configuration."""
        return {"add_pooling_layer": False} if self.has_pooler else {}

    def max_length(self, config: PreTrainedConfig) -> int | None:
        """The most tokens that the encoder has positions for, None where it computes them on the fly."""
        if self.position_limit is None:
            return None
        used = config.pad_token_id + 1 if self.positions_start_after_padding else 0
        return getattr(config, self.position_limit) - used


TEXT_ENCODER_FAMILIES = (
    TextEncoderFamily(("bert", "albert"), has_pooler=True),
    TextEncoderFamily(
        ("roberta", "xlm-roberta", "camembert", "mpnet"), has_pooler=True, positions_start_after_padding=True
    ),
    TextEncoderFamily(("distilbert", "electra", "deberta-v2", "modernbert")),
    TextEncoderFamily(("t5",), position_limit=None, model_class=T5EncoderModel),
    TextEncoderFamily(("mt5",), position_limit=None, model_class=MT5EncoderModel),
    TextEncoderFamily(("umt5",), position_limit=None, model_class=UMT5EncoderModel),
)

_FAMILY_OF = {model_type: family for family in TEXT_ENCODER_FAMILIES for model_type in family.model_types}


def text_encoder_family(config: PreTrainedConfig) -> TextEncoderFamily:
    """Look a configuration's family up in the table.

    Raises:
        ValueError: the family is not in the table; the message lists those that are.
    """
    if config.model_type not in _FAMILY_OF:
        raise ValueError(
            f"{config.model_type!r} is not a supported text encoder. Supported: {', '.join(sorted(_FAMILY_OF))}, and "
            "SpeechT5's own where no encoder is named"
        )
    return _FAMILY_OF[config.model_type]


class TextEncoder(PreTrainedModel):
    """Any text encoder of the table, or SpeechT5's own, with a projection where the widths differ.

    Args:
        config: what the model is made of.
        backbone: a ready pretrained encoder; None builds one from `config.encoder`.
    """

    config: TextToSpectrogramConfig
    base_model_prefix = "text_encoder"
    main_input_name = "input_ids"
    input_modalities = "text"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: TextToSpectrogramConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.projection: nn.Linear | None = None
        self.max_length: int | None = config.max_text_positions
        self.backbone: Any = SpeechT5TextEncoder(config) if config.encoder is None else backbone
        if config.encoder is not None:
            family = text_encoder_family(config.encoder)
            if backbone is None:
                self.backbone = family.backbone_class(config.encoder)(config.encoder, **family.build_options())
            self.max_length = family.max_length(config.encoder)
            if config.encoder.hidden_size != config.hidden_size:
                self.projection = nn.Linear(config.encoder.hidden_size, config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_positions(module)
        if isinstance(module, TextEmbedding):
            init.normal_(module.weight)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        own = isinstance(self.backbone, SpeechT5TextEncoder)
        return self.backbone.embed_tokens if own else self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        if isinstance(self.backbone, SpeechT5TextEncoder):
            self.backbone.embed_tokens = cast(nn.Embedding, value)
        else:
            self.backbone.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> TextEncoderOutput:
        """Encode.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 1 where a token is real. Where it is left out, padding tokens are not.
            inputs_embeds: embeddings [B, S, …] in place of `input_ids`.
            output_hidden_states: return the hidden states of every layer.
            output_attentions: return attention weights.
            kwargs: what else the pretrained encoder reads, such as `token_type_ids`.

        Raises:
            ValueError: there is no text, more of it than there are positions, or a token outside the vocabulary.
        """
        mask = self.checked_mask(input_ids, inputs_embeds, attention_mask)
        is_own = isinstance(self.backbone, SpeechT5TextEncoder)
        with eager_attention(self.backbone, output_attentions and not is_own):
            encoded = self.backbone(
                input_ids=input_ids,
                attention_mask=mask if is_own or mask is None else mask.long(),
                inputs_embeds=inputs_embeds,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                **kwargs,
            )
        hidden_states = encoded.last_hidden_state
        return TextEncoderOutput(
            last_hidden_state=hidden_states if self.projection is None else self.projection(hidden_states),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            attention_mask=mask,
        )

    def checked_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Which tokens are real, of texts that can be spoken.

        Args:
            input_ids: [B, S].
            inputs_embeds: [B, S, D], in place of `input_ids`.
            mask: [B, S], 1 where a token is real; None to tell by the padding token.

        Returns:
            Boolean [B, S], or None where every token is real.

        Raises:
            ValueError: there is no text or no token, there are more tokens than positions, or an unknown one.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None:
            raise ValueError("give the text as input_ids, or what encode() returned for it as encoder_outputs")
        if self.max_length is not None and given.shape[1] > self.max_length:
            raise ValueError(
                f"the text has {given.shape[1]} tokens, but the encoder has positions for {self.max_length}: split it "
                "into sentences"
            )
        if mask is None:
            mask = self._mask_of(given)
        if torch.compiler.is_compiling():
            return None if mask is None else mask.bool()
        if given.shape[1] == 0 or (mask is not None and not bool(mask.any(dim=-1).all())):
            raise ValueError("a text without any token cannot be spoken")
        if input_ids is not None and int(input_ids.max()) >= self.config.vocab_size:
            raise ValueError(
                f"token id {int(input_ids.max())} lies outside the vocabulary of {self.config.vocab_size}: does the "
                "tokenizer belong to this model?"
            )
        return None if mask is None or bool(mask.all()) else mask.bool()

    def _mask_of(self, given: torch.Tensor) -> torch.Tensor | None:
        pad, end = self.config.pad_token_id, self.config.eos_token_id
        if given.is_floating_point() or pad is None or pad == end:
            return None
        return given != pad
