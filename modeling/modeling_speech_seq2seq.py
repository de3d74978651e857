"""Speech to text: a pretrained speech encoder grafted onto a pretrained text decoder.

Shapes: `B` batch, `N` input length (audio samples or feature frames), `T` encoder frames, `S` text tokens,
`D` decoder width, `V` vocabulary, `C` outputs of the CTC head.
"""

import copy
import inspect
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSpeechSeq2Seq,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    SpeechEncoderDecoderConfig,
    SpeechEncoderDecoderModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
from transformers.utils import logging

from ..configuration.configuration_speech_seq2seq import NATIVE_MODEL_TYPE, SpeechSeq2SeqConfig
from ..configuration.published_code import UPLOAD_ARGUMENTS, PublishesItsCode, upload
from .ctc_prefix_scoring import CtcPrefixLogitsProcessor, CtcPrefixScorer, logits_of_ctc_head
from .ctc_spelling import SpelledPrefixScorer, TokenSpelling, token_spelling
from .language_prompts import LanguagePromptMixin
from .long_audio import TranscribesAudio
from .mask_ctc import MaskCtcMixin, see_both_sides
from .mask_predict import LengthHead, length_loss
from .modeling_speech_encoder import SpeechEncoder, SpeechEncoderOutput, asked_outputs, eager_attention
from .previous_text import PreviousTextMixin
from .publishing import publish_pretrained
from .quick_inference import quick_inference
from .score_fusion import ScoreFusionMixin
from .sequence_losses import IGNORED_LABEL, ctc_loss, decoder_cross_entropy, normalizer, transcript_tokens
from .text_decoders import check_cross_attends, text_decoder_family
from .warm_start import find_tokenizer, warm_start

logger = logging.get_logger(__name__)

# Keys of a SpeechEncoderDecoderModel checkpoint, and ours. Its `encoder.adapter.` is wav2vec 2.0's own.
NATIVE_KEYS = {
    r"^encoder\.": "encoder.backbone.",
    r"^enc_to_dec_proj\.": "encoder.projection.",
}
TOKEN_IDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")
HUB_KEYS = {"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"}
LEAST_CTC_CANDIDATES = 100  # tokens: among fewer, a decoder that is not sure yet misses what the CTC head hears
LEAST_SPELLED_CANDIDATES = 20  # tokens
DEFAULT_MAX_LENGTH = 448  # tokens, Whisper's; decoders with fewer positions take those


@dataclass
class SpeechSeq2SeqOutput(Seq2SeqLMOutput):
    """What `SpeechSeq2SeqModel.forward` returns, beyond `Seq2SeqLMOutput`.

    Args:
        decoder_loss: scalar, cross-entropy of the decoder.
        ctc_loss: scalar, loss of the CTC head.
        ctc_logits: [B, T, C].
        length_loss: scalar, loss of the length head.
        length_logits: [B, L], of transcripts of 0, 1, … tokens.
        encoder_attention_mask: boolean [B, T].
    """

    decoder_loss: torch.Tensor | None = None
    ctc_loss: torch.Tensor | None = None
    ctc_logits: torch.Tensor | None = None
    length_loss: torch.Tensor | None = None
    length_logits: torch.Tensor | None = None
    encoder_attention_mask: torch.Tensor | None = None


class SpeechSeq2SeqModel(
    PublishesItsCode,
    TranscribesAudio,
    MaskCtcMixin,
    ScoreFusionMixin,
    PreviousTextMixin,
    LanguagePromptMixin,
    PreTrainedModel,
    GenerationMixin,
):
    """A speech encoder and a text decoder, joined by cross-attention.

    Build one from checkpoints with `from_encoder_decoder_pretrained`, or load a trained one, of this class or of
    `SpeechEncoderDecoderModel`, with `from_pretrained`.

    Args:
        config: what the model is made of; None takes the configurations of the two ready modules.
        encoder: a ready backbone, such as a `Wav2Vec2Model`; None builds one from `config.encoder`.
        decoder: a ready decoder with cross-attention, such as a `BertLMHeadModel`.

    Raises:
        ValueError: a family is not supported, or the decoder would ignore the audio.
    """

    config: SpeechSeq2SeqConfig
    base_model_prefix = "speech_seq2seq"
    published_as = ("AutoModel", "AutoModelForSpeechSeq2Seq")
    main_input_name = "input_values"
    input_modalities = "audio"
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True

    def __init__(
        self,
        config: SpeechSeq2SeqConfig | None = None,
        encoder: PreTrainedModel | None = None,
        decoder: PreTrainedModel | None = None,
    ):
        if config is None:
            if encoder is None or decoder is None:
                raise ValueError("give a configuration, or both a ready encoder and a ready decoder")
            config = SpeechSeq2SeqConfig(encoder=encoder.config, decoder=decoder.config)
        super().__init__(config)
        decoder_config = cast(PreTrainedConfig, config.decoder)
        self.family = text_decoder_family(decoder_config)
        if decoder is not None:
            decoder.config = decoder_config
        self.decoder = self.family.decoder_class(decoder_config)(decoder_config) if decoder is None else decoder
        check_cross_attends(self.decoder)
        self._decoder_keeps_logits = "logits_to_keep" in inspect.signature(self.decoder.forward).parameters
        width = getattr(decoder_config, "cross_attention_hidden_size", None) or decoder_config.hidden_size
        self.encoder = SpeechEncoder(config, output_size=width, backbone=encoder)
        self.main_input_name = self.encoder.main_input_name
        self.ctc_head = nn.Linear(width, config.ctc_vocab_size or config.vocab_size) if config.has_ctc_head else None
        longest = config.max_predicted_length
        self.length_head = LengthHead(width, longest) if longest is not None else None
        self._no_split_modules = self._block_names()
        self.post_init()
        self._no_split_modules = self._block_names()
        self._agreed_token_ids: dict[str, Any] = {}
        self._tokenizer: Any = None
        self._tokens_changed = False  # since it was loaded
        self._known_spelling: TokenSpelling | None = None  # by that tokenizer
        self._adopt_generation_defaults()

    def _block_names(self) -> set[str]:
        """Classes of the layers that must stay whole on one device: those that are really there, in both halves."""
        return {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}

    def get_encoder(self, modality: str | None = None) -> SpeechEncoder:
        """The encoder, whose output is ready for cross-attention."""
        return self.encoder

    def get_decoder(self) -> PreTrainedModel:
        """The text decoder with its language-model head."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embeddings."""
        return self.decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embeddings."""
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's output layer."""
        return cast(nn.Module, self.decoder.get_output_embeddings())

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the decoder's output layer."""
        self.decoder.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize the decoder's vocabulary, and with it a CTC head that shares it; token ids keep their meaning.

        Raises:
            ValueError: a token id of the configuration would fall outside the new vocabulary.
        """
        if new_num_tokens is not None:
            self._check_ids_fit(new_num_tokens)
        embeddings = self.decoder.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        self.config.vocab_size = embeddings.num_embeddings
        self._tokenizer, self._known_spelling, self._tokens_changed = None, None, True
        if self.ctc_head is not None and self.config.ctc_vocab_size is None:
            self.ctc_head = self._get_resized_lm_head(self.ctc_head, embeddings.num_embeddings)
        return embeddings

    @torch.no_grad()
    def select_tokens(self, token_ids: Sequence[int]) -> nn.Embedding:
        """Reduce the decoder's vocabulary to these tokens, in this order, and with it a CTC head that shares it.

        The weights of each token and the configuration's token ids move along. Give the model a tokenizer with the
        same tokens afterwards, such as `trim_vocabulary` makes, which also gives the ids.

        Args:
            token_ids: of the tokens to keep, in the vocabulary as it is.

        Returns:
            The token embeddings.

        Raises:
            ValueError: an id comes twice or is outside the vocabulary, the padding moves in a decoder that counts its
                positions from it, or a token that the configuration names is not kept.
        """
        size, kept = self.config.vocab_size, list(token_ids)
        if len(set(kept)) < len(kept) or not all(0 <= token_id < size for token_id in kept):
            raise ValueError(f"token_ids must be different ids below {size}")
        places = {old: new for new, old in enumerate(kept)}
        shared = () if self.config.ctc_vocab_size is not None else ("ctc_blank_token_id",)
        own = ("decoder_prompt_token_ids", "mask_token_id", *shared)
        named = {name: getattr(self.config, name) for name in (*TOKEN_IDS, *own)}
        moved = {name: _moved_ids(ids, places, name) for name, ids in named.items() if ids is not None}
        padding = cast(nn.Embedding, self.get_input_embeddings()).padding_idx
        if padding is not None and places.get(padding) != padding:
            raise ValueError(f"the padding token {padding} must keep its place, but goes to {places.get(padding)}")
        order = torch.tensor(kept + sorted(set(range(size)) - set(kept)))
        for rows in {id(rows): rows for rows in self._rows_by_token()}.values():
            rows.copy_(rows[order.to(rows.device)])
        for name, value in moved.items():
            setattr(self.config, name, value)
        self._agreed_token_ids.clear()
        for name in TOKEN_IDS:
            setattr(self.generation_config, name, getattr(self.config, name))
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            if (ids := getattr(self.generation_config, name, None)) is not None:
                setattr(self.generation_config, name, [places[old] for old in ids if old in places])
        for name in ("lang_to_id", "task_to_id"):
            if (known := getattr(self.generation_config, name, None)) is not None:
                kept_names = {key: places[old] for key, old in known.items() if old in places}
                setattr(self.generation_config, name, kept_names)
        if (old := getattr(self.generation_config, "prev_sot_token_id", None)) is not None:
            cast(Any, self.generation_config).prev_sot_token_id = places.get(old)
        embeddings = self.resize_token_embeddings(len(kept))
        self.agree_on_token_ids()
        return embeddings

    def _rows_by_token(self) -> Iterator[torch.Tensor]:
        """Every parameter with a row for each token of the decoder's vocabulary."""
        heads = [self.get_input_embeddings(), self.get_output_embeddings()]
        if self.ctc_head is not None and self.config.ctc_vocab_size is None:
            heads.append(self.ctc_head)
        for head in heads:
            yield from cast(nn.Module, head).parameters(recurse=False)
        bias = getattr(self.decoder, "final_logits_bias", None)  # [1, V], of BART and its kin
        if bias is not None:
            yield bias.T

    def _check_ids_fit(self, vocabulary: int) -> None:
        shared = () if self.config.ctc_vocab_size is not None else ("ctc_blank_token_id",)
        for name in (*TOKEN_IDS, "decoder_prompt_token_ids", "mask_token_id", *shared):
            value = getattr(self.config, name)
            ids = value if isinstance(value, list) else [value]
            if any(token_id is not None and token_id >= vocabulary for token_id in ids):
                raise ValueError(f"{name}={value} would fall outside a vocabulary of {vocabulary} tokens")

    def freeze_feature_encoder(self) -> None:
        """Exclude the layers that read the waveform or the mel frames from training."""
        self.encoder.freeze_feature_encoder()

    def freeze_encoder(self) -> None:
        """Exclude the pretrained speech encoder from training; adapter and projection still learn."""
        self.encoder.freeze_backbone()

    def freeze_decoder(self) -> None:
        """Exclude the pretrained decoder from training; cross-attention and what no checkpoint held still learn."""
        new = [f"{name}." for name in self.config.newly_initialized or ()]
        for name, parameter in self.decoder.named_parameters():
            is_new = any(f"decoder.{name}.".startswith(module) for module in new)
            listens = any(part in self.family.cross_attention for part in name.split("."))
            parameter.requires_grad_(is_new or listens)

    def _adopt_generation_defaults(self) -> None:
        limit = self.family.max_length(cast(PreTrainedConfig, self.config.decoder))
        self.generation_config.max_length = min(limit or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
        self.generation_config._from_model_config = False  # or Transformers does not read ctc_weight from its file
        self.agree_on_token_ids()

    def agree_on_token_ids(self) -> None:
        """Carry the configuration's token ids, which training uses, over to generation.

        Raises:
            ValueError: `generation_config` was given an id of its own: training would not know it. Or the padding is
                not the token that the decoder counts its positions from.
        """
        if self.family.positions_start_after_padding:
            built_with = cast(nn.Embedding, self.get_input_embeddings()).padding_idx
            if self.config.pad_token_id != built_with:
                raise ValueError(
                    f"pad_token_id must stay {built_with}, got {self.config.pad_token_id}: "
                    f"{self.decoder.config.model_type} counts positions from it, so all of them would move"
                )
        for name in TOKEN_IDS:
            ours, theirs = getattr(self.config, name), getattr(self.generation_config, name, None)
            agreed = self._agreed_token_ids.get(name)
            is_one_of_several = isinstance(theirs, list) and ours in theirs
            if theirs not in (None, ours, agreed) and not is_one_of_several and agreed is not None:
                raise ValueError(
                    f"generation_config.{name} was set to {theirs}, but the model trains with {ours}: "
                    f"set model.config.{name}, which both follow"
                )
            if not is_one_of_several:
                setattr(self.generation_config, name, ours)
            self._agreed_token_ids[name] = ours
        if getattr(self.generation_config, "forced_eos_token_id", None) is not None:
            self.generation_config.forced_eos_token_id = self.config.eos_token_id

    def _settle_loaded_token_ids(self) -> None:
        """After loading: ids that only the generation file knows are adopted, those that differ from ours are told."""
        for name in TOKEN_IDS:
            ours, theirs = getattr(self.config, name), getattr(self.generation_config, name, None)
            if ours is None and theirs is not None:
                setattr(self.config, name, theirs[0] if isinstance(theirs, list) else theirs)
            elif theirs not in (None, ours) and not (isinstance(theirs, list) and ours in theirs):
                logger.warning(
                    f"{name} is {ours} in config.json, for training, but {theirs} in generation_config.json: "
                    f"{ours} is used for both"
                )
                setattr(self.generation_config, name, ours)
        self._agreed_token_ids.clear()
        self.agree_on_token_ids()

    def _require_token_id(self, name: str) -> int:
        value = getattr(self.config, name)
        if value is None:
            raise ValueError(
                f"config.{name} is not set: build the model with from_encoder_decoder_pretrained(tokenizer=…), or set "
                f"model.config.{name} from your tokenizer"
            )
        return value

    @classmethod
    def from_encoder_decoder_pretrained(cls, encoder: Any, decoder: Any = None, **kwargs: Any) -> "SpeechSeq2SeqModel":
        """Warm-start from pretrained parts; see `warm_start.warm_start` for the arguments."""
        return warm_start(cls, encoder, decoder, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As in Transformers. Folders of `SpeechEncoderDecoderModel` load too, with equal logits.

        Raises:
            ValueError: a native checkpoint holds a projection that this architecture would drop.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        if _is_native_checkpoint(pretrained_model_name_or_path, kwargs):
            kwargs["key_mapping"] = NATIVE_KEYS | (kwargs.get("key_mapping") or {})
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = cast(tuple[SpeechSeq2SeqModel, dict], loaded)
        if dropped := [key for key in info["unexpected_keys"] if "projection" in key or "enc_to_dec_proj" in key]:
            raise ValueError(f"the checkpoint projects between equal widths, which this class does not: {dropped}")
        model._keep_fields_out_of_generation(pretrained_model_name_or_path, kwargs)
        model._settle_loaded_token_ids()
        return (model, info) if wants_info else model

    def _keep_fields_out_of_generation(self, source: Any, given: Mapping[str, Any]) -> None:
        """Undo what Transformers does with changed fields of the configuration: it makes them generation settings too.

        `ctc_weight=0.5`, a share of the loss, would be taken for that of the CTC head in decoding.
        """
        names = {field.name for field in fields(cast(Any, self.config_class))} & set(given) - set(TOKEN_IDS)
        names = {name for name in names if name not in GenerationConfig().to_dict()}
        if not any(hasattr(self.generation_config, name) for name in names):
            return
        try:
            saved: Any = GenerationConfig.from_pretrained(source, **{key: given[key] for key in HUB_KEYS & set(given)})
        except OSError:  # there is none
            saved = None
        for name in names:
            if hasattr(saved, name):
                setattr(self.generation_config, name, getattr(saved, name))
            elif hasattr(self.generation_config, name):
                delattr(self.generation_config, name)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As in Transformers, always in this class's own layout: a Trainer resumes from nothing else."""
        self.agree_on_token_ids()
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, processor: Any = None, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> str:
        """Publish on the hub: weights, code, processor and a model card.

        Args:
            repo_id: repository, created where it does not exist. Its model card, if there is one, is kept.
            processor: the model's processor.
            metrics: what was measured, for the card; see `publishing.publish_pretrained`.
            kwargs: as in Transformers: `private`, `token`, `revision`, `create_pr`, `commit_message`, `tags`,
                `max_shard_size`.

        Returns:
            Address of the commit.
        """
        upload_arguments = {name: kwargs.pop(name) for name in UPLOAD_ARGUMENTS if name in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            publish_pretrained(self, folder, processor, metrics, name=repo_id, **kwargs)
            return upload(folder, repo_id, **upload_arguments)

    def to_native(self) -> SpeechEncoderDecoderModel:
        """The same weights as a `SpeechEncoderDecoderModel`, for people without this package.

        Returns:
            A model that shares this one's modules; its `save_pretrained` writes the native layout.

        Raises:
            ValueError: the model has parts that the native class cannot express.
        """
        encoder_config = cast(PreTrainedConfig, self.config.encoder)
        native_decoder = cast(Any, _native_decoder(self.decoder))
        foreign = {
            "an adapter": len(self.encoder.adapter) > 0,
            "a CTC head": self.ctc_head is not None,
            "a length head": self.length_head is not None,
            "a decoder that fills in masked tokens": self.config.mask_token_id is not None,
            f"a {encoder_config.model_type} encoder": self.encoder.family.model_class is not None,
            f"a {self.decoder.config.model_type} decoder": native_decoder is None,
        }
        if has := [name for name, present in foreign.items() if present]:
            raise ValueError(f"SpeechEncoderDecoderModel has no place for {' or '.join(has)}")
        config = SpeechEncoderDecoderConfig(
            encoder=copy.deepcopy(encoder_config),
            decoder=copy.deepcopy(self.config.decoder),
            **{name: getattr(self.config, name) for name in TOKEN_IDS},
        )
        shared = {part: part.config for part in (self.encoder.backbone, native_decoder)}
        native = SpeechEncoderDecoderModel(config, encoder=self.encoder.backbone, decoder=native_decoder)
        for part, own_config in shared.items():  # the native class gave them copies, which edits of ours would miss
            part.config = own_config
        if self.encoder.projection is not None:
            native.enc_to_dec_proj = self.encoder.projection
        native.generation_config = copy.deepcopy(self.generation_config)
        return native

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        ctc_targets: torch.Tensor | None = None,
        transcript_lengths: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        smoothing: float = 0.0,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> SpeechSeq2SeqOutput | tuple:
        """Encode the audio, decode the text, and with labels compute the losses.

        Args:
            input_values: [B, N], audio samples, for encoders that read waveforms.
            attention_mask: [B, N], 1 where the input is real.
            decoder_input_ids: [B, S]; by default the labels, shifted behind the start token.
            decoder_attention_mask: [B, S].
            encoder_outputs: output of `get_encoder()`, to spare encoding again.
            past_key_values: cache of the decoder.
            decoder_inputs_embeds: [B, S, D] in place of `decoder_input_ids`.
            labels: [B, S], -100 where ignored; they end with the end token and do not hold the start token.
            ctc_targets: [B, S'], -100 where padded, for a CTC head with a vocabulary of its own. By default the
                labels without prompt and end token. A row of padding alone does not count in the CTC loss.
            transcript_lengths: [B], tokens of each transcript without prompt and end token, for a length head; -100
                for rows that do not count in its loss.
            input_features: feature frames, for encoders that read log-mel features.
            use_cache: return the cache.
            output_attentions: return attentions, cross-attentions included; computes them eagerly for this call.
            output_hidden_states: return hidden states of both halves.
            return_dict: False for a tuple.
            num_items_in_batch: labels in the whole optimiser step, which summed losses are divided by.
            smoothing: label smoothing of the decoder's loss (not named so, or Trainer would take it for a label).
            logits_to_keep: as in generation: the last tokens whose logits are wanted, 0 for all.
            kwargs: arguments of the decoder, prefixed with `decoder_`.

        Raises:
            TypeError: an argument is unknown.
            ValueError: the labels do not fit the decoder's positions; see also `SpeechEncoder.forward`.
        """
        decoder_kwargs = _decoder_arguments(kwargs)
        asked = asked_outputs(self.config, output_attentions, output_hidden_states)
        encoded = self._encode(input_values, input_features, attention_mask, encoder_outputs, asked)
        if labels is not None:
            self._check_vocabulary(labels)
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            if self.config.mask_token_id is not None:
                raise ValueError("a decoder that fills in masked tokens needs decoder_input_ids: use MaskCtcCollator")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        self._check_length(decoder_input_ids if decoder_input_ids is not None else decoder_inputs_embeds)
        if self._decoder_keeps_logits:
            decoder_kwargs["logits_to_keep"] = logits_to_keep
        if self.config.mask_token_id is not None:
            given = cast(torch.Tensor, decoder_input_ids if decoder_input_ids is not None else decoder_inputs_embeds)
            decoder_attention_mask = see_both_sides(given, decoder_attention_mask, self.decoder.dtype)
        hidden_states = cast(torch.Tensor, encoded.last_hidden_state).to(self.decoder.dtype).contiguous()
        with eager_attention(self.decoder, bool(asked.get("output_attentions"))):
            decoded = self.decoder(
                input_ids=decoder_input_ids,
                attention_mask=decoder_attention_mask,
                encoder_hidden_states=hidden_states,
                encoder_attention_mask=encoded.attention_mask,
                inputs_embeds=decoder_inputs_embeds,
                past_key_values=past_key_values,
                use_cache=use_cache if labels is None else False,
                **asked,
                **decoder_kwargs,
            )
        output = SpeechSeq2SeqOutput(
            logits=decoded.logits,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
            encoder_attention_mask=encoded.attention_mask,
        )
        if labels is not None:
            divisor = normalizer(labels, num_items_in_batch)
            self._add_losses(output, encoded, labels, ctc_targets, divisor, smoothing)
            if self.length_head is not None:
                self._add_length_loss(output, encoded, transcript_lengths, divisor)
        elif (self.ctc_head is not None or self.length_head is not None) and num_items_in_batch is not None:
            raise ValueError("Trainer's label smoothing would drop the CTC loss: use SpeechSeq2SeqTrainer")
        return output.to_tuple() if return_dict is False else output

    def _encode(
        self,
        input_values: torch.Tensor | None,
        input_features: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        encoder_outputs: Any,
        asked: dict[str, bool],
    ) -> SpeechEncoderOutput:
        if encoder_outputs is not None:
            return self._ready_encoder_outputs(encoder_outputs, attention_mask)
        encoded = self.encoder(
            input_values=input_values, input_features=input_features, attention_mask=attention_mask, **asked
        )
        return cast(SpeechEncoderOutput, encoded)

    def _ready_encoder_outputs(self, outputs: Any, attention_mask: torch.Tensor | None) -> SpeechEncoderOutput:
        """Given encoder outputs, of this encoder or of its bare backbone, in the form that the decoder reads."""
        mask = getattr(outputs, "attention_mask", None)
        if isinstance(outputs, SpeechEncoderOutput) and mask is not None:
            return outputs  # as in every step of generation
        hidden_states = outputs[0]  # [B, T, D]
        if not isinstance(outputs, SpeechEncoderOutput) and self._is_of_backbone(hidden_states):
            hidden_states, mask = self.encoder.join(hidden_states, attention_mask)
        elif mask is None:
            mask = self.encoder.output_mask(attention_mask, hidden_states.shape[1])
        return SpeechEncoderOutput(
            last_hidden_state=hidden_states,
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
            attention_mask=mask,
        )

    def _is_of_backbone(self, hidden_states: torch.Tensor) -> bool:
        """Whether adapter and projection are still to come, told by the width."""
        if self.encoder.projection is not None:
            return hidden_states.shape[-1] == self.encoder.projection.in_features
        if len(self.encoder.adapter) > 0:
            raise ValueError(
                "encoder_outputs may be the backbone's or the adapter's, which have one width: give the output of "
                "model.get_encoder() as it is"
            )
        return False

    def _add_losses(
        self,
        output: SpeechSeq2SeqOutput,
        encoded: SpeechEncoderOutput,
        labels: torch.Tensor,
        ctc_targets: torch.Tensor | None,
        divisor: torch.Tensor,
        smoothing: float,
    ) -> None:
        output.decoder_loss = decoder_cross_entropy(cast(torch.Tensor, output.logits), labels, divisor, smoothing)
        output.loss = output.decoder_loss
        if self.ctc_head is None:
            return
        counted = (labels != IGNORED_LABEL).any(dim=-1)
        if ctc_targets is None:
            if self.config.ctc_vocab_size is not None:
                raise ValueError("the CTC head has a vocabulary of its own: give its token ids as ctc_targets")
            prompt = len(self.config.decoder_prompt_token_ids or [])
            ctc_targets = transcript_tokens(labels, prompt, self.config.eos_token_id)
        else:  # a transcript that the head's own vocabulary cannot spell has no targets
            counted = counted & (ctc_targets != IGNORED_LABEL).any(dim=-1)
        output.ctc_logits = self.ctc_head(encoded.last_hidden_state)  # [B, T, C]
        output.ctc_loss = ctc_loss(
            cast(torch.Tensor, output.ctc_logits),
            encoded.attention_mask,
            ctc_targets,
            self.ctc_blank,
            divisor,
            counted=counted,
        )
        weight = self.config.ctc_weight
        output.loss = (1 - weight) * output.decoder_loss + weight * output.ctc_loss

    def _add_length_loss(
        self,
        output: SpeechSeq2SeqOutput,
        encoded: SpeechEncoderOutput,
        transcript_lengths: torch.Tensor | None,
        divisor: torch.Tensor,
    ) -> None:
        if transcript_lengths is None:
            raise ValueError("a length head needs transcript_lengths: use MaskCtcCollator")
        output.length_logits = cast(LengthHead, self.length_head)(encoded.last_hidden_state, encoded.attention_mask)
        output.length_loss = length_loss(cast(torch.Tensor, output.length_logits), transcript_lengths, divisor)
        output.loss = cast(torch.Tensor, output.loss) + output.length_loss

    @property
    def ctc_blank(self) -> int:
        """Id of the CTC blank: the configured one, else 0 in a vocabulary of its own, else the padding token."""
        if self.config.ctc_blank_token_id is not None:
            return self.config.ctc_blank_token_id
        return 0 if self.config.ctc_vocab_size is not None else self._require_token_id("pad_token_id")

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels [B, S] to decoder inputs [B, S]: start token, then all but the last label; -100 becomes padding."""
        start, pad = self._require_token_id("decoder_start_token_id"), self._require_token_id("pad_token_id")
        shifted = nn.functional.pad(labels[:, :-1], [1, 0], value=start)
        return shifted.masked_fill(shifted == IGNORED_LABEL, pad)

    def _check_vocabulary(self, labels: torch.Tensor) -> None:
        """Only where looking costs nothing: an accelerator would have to stop for it, and tells by itself."""
        if labels.device.type != "cpu" or torch.compiler.is_compiling():
            return
        wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= self.config.vocab_size))]
        if len(wrong) > 0:
            raise ValueError(
                f"label {int(wrong[0])} is no token of the decoder's vocabulary of {self.config.vocab_size}: tokenize "
                "with the decoder's own tokenizer, or call resize_token_embeddings after adding tokens to it"
            )

    def _check_length(self, decoder_inputs: torch.Tensor | None) -> None:
        if decoder_inputs is None:
            raise ValueError("give labels, decoder_input_ids or decoder_inputs_embeds")
        limit = self.family.max_length(cast(PreTrainedConfig, self.config.decoder))
        if limit is not None and decoder_inputs.shape[1] > limit:
            raise ValueError(
                f"the text has {decoder_inputs.shape[1]} tokens, but the {self.config.decoder.model_type} decoder has "
                f"positions for {limit}: shorten or split the transcripts"
            )

    def _prepare_generation_config(self, generation_config: GenerationConfig | None, **kwargs: Any) -> Any:
        self.agree_on_token_ids()
        self._require_token_id("decoder_start_token_id")
        for name, default in (("ctc_weight", 0.0), ("ctc_candidates", None)):  # generate() takes what is there
            if not hasattr(self.generation_config, name):
                setattr(self.generation_config, name, default)
        return cast(Any, super())._prepare_generation_config(generation_config, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As in Transformers; hypotheses of one utterance share what cross-attention reads of it."""
        was_given = model_kwargs.get("past_key_values") is not None
        cast(Any, super())._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        n_each = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        if n_each > 1 and not was_given and isinstance(cache, EncoderDecoderCache):
            cross = cache.cross_attention_cache
            if isinstance(cross, DynamicCache) and not cross.offloading:
                self._share_cross_attention(cache, model_kwargs["encoder_outputs"], n_each)

    def _share_cross_attention(self, cache: EncoderDecoderCache, encoded: SpeechEncoderOutput, n_each: int) -> None:
        """Work out the keys and values of each utterance once, not once for each of its `n_each` hypotheses."""
        hidden_states = cast(torch.Tensor, encoded.last_hidden_state)[::n_each].contiguous()  # the rows are copies
        mask = None if encoded.attention_mask is None else encoded.attention_mask[::n_each]
        start = torch.full((len(hidden_states), 1), self.config.decoder_start_token_id, device=hidden_states.device)
        own = EncoderDecoderCache(DynamicCache(config=self.config.decoder), cache.cross_attention_cache)
        self.decoder(
            input_ids=start,
            encoder_hidden_states=hidden_states.to(self.decoder.dtype),
            encoder_attention_mask=mask,
            past_key_values=own,
            use_cache=True,
        )
        for layer in cast(Any, cache.cross_attention_cache).layers:
            for name in ("keys", "values"):  # [B, H, T, D / H]
                one = getattr(layer, name)
                shared = one.expand(n_each, -1, -1, -1) if len(one) == 1 else one.repeat_interleave(n_each, dim=0)
                setattr(layer, name, shared)
        cache.is_updated = dict(own.is_updated)

    def _reorder_cache(self, cache: Any, beam_idx: torch.Tensor) -> Any:
        """Follow beams to their parents, which are of the same utterance and so hear the same."""
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        cast(Any, own).reorder_cache(beam_idx)
        return cache

    def _get_logits_processor(
        self,
        generation_config: GenerationConfig,
        *args: Any,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers, and before all others the CTC head's, so that they see the joint score."""
        prepared = cast(Any, super())._get_logits_processor(
            generation_config, *args, model_kwargs=model_kwargs, **kwargs
        )
        weight = getattr(generation_config, "ctc_weight", 0.0)
        if weight:
            prepared.insert(0, self._ctc_logits_processor(weight, generation_config, cast(dict, model_kwargs)))
        return prepared

    def _ctc_logits_processor(
        self, weight: float, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
    ) -> CtcPrefixLogitsProcessor:
        if self.ctc_head is None:
            raise ValueError(
                f"ctc_weight={weight}: the model has no CTC head; train it with config.ctc_weight above 0"
            )
        spelling = self._spelling(weight) if self.config.ctc_vocab_size is not None else None
        encoded = model_kwargs["encoder_outputs"]
        # The rows of an utterance's hypotheses are copies of each other.
        n_each = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        hidden_states, mask = encoded.last_hidden_state[::n_each], encoded.attention_mask
        logits, totals = logits_of_ctc_head(self.ctc_head, hidden_states.to(self.ctc_head.weight.dtype))
        end, mask = generation_config.eos_token_id, None if mask is None else mask[::n_each]
        if spelling is None:
            scorer: Any = CtcPrefixScorer(logits, mask, self.ctc_blank, cast(Any, end), totals)
        else:
            characters = CtcPrefixScorer(logits, mask, self.ctc_blank, [], totals)
            scorer = SpelledPrefixScorer(characters, spelling, cast(Any, end))
        candidates = cast(Any, generation_config).ctc_candidates
        kept = 2 * (generation_config.num_beams or 1)  # by a beam search
        spelled = max(LEAST_SPELLED_CANDIDATES, kept) if candidates is None else candidates
        if candidates is None:
            candidates = max(LEAST_CTC_CANDIDATES, kept)
        return CtcPrefixLogitsProcessor(scorer, weight, self._prompt_length(generation_config), candidates, spelled)

    def _spelling(self, weight: float) -> TokenSpelling:
        if self.config.ctc_characters is None:
            raise ValueError(
                f"ctc_weight={weight}: the CTC head has a vocabulary of its own without config.ctc_characters, so "
                "nobody knows what it spells and it cannot score the decoder's tokens"
            )
        if self._tokenizer is None and not self._tokens_changed and self.name_or_path:
            commit = getattr(self.config, "_commit_hash", None)
            self._tokenizer = find_tokenizer(self.name_or_path, {} if commit is None else {"revision": commit})
        if self._tokenizer is None:
            raise ValueError(
                f"ctc_weight={weight}: the CTC head tells characters apart, so generate() needs to know what the "
                "decoder's tokens spell: give it tokenizer=processor.tokenizer"
            )
        if self._known_spelling is None:
            self._known_spelling = token_spelling(self._tokenizer, self.config.ctc_characters, self.config.vocab_size)
        return self._known_spelling

    def generate(self, *args: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
        """As in Transformers, with a CTC head, expected phrases and language models; see `ScoreFusionMixin.generate`.

        Args:
            args: see `ScoreFusionMixin.generate`.
            tokenizer: of the decoder. Joint decoding (`ctc_weight`) with a CTC head that tells characters apart asks
                it what tokens spell. It is remembered until another is given; that of the model's folder need not be.
            kwargs: see `ScoreFusionMixin.generate`. `ctc_weight` is the share of the CTC head's score, and
                `ctc_candidates` how many of the decoder's best tokens it scores for each hypothesis: by default twice
                the beams, at least `LEAST_CTC_CANDIDATES`, of which a CTC head of characters spells those to the end
                that it may like best by their first letter: twice the beams, at least `LEAST_SPELLED_CANDIDATES`.
        """
        if tokenizer is not None and tokenizer is not self._tokenizer:
            self._tokenizer, self._known_spelling = tokenizer, None
        with torch.no_grad(), quick_inference(self):
            return super().generate(*args, tokenizer=tokenizer, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, tokenizer: Any = None, **kwargs: Any) -> dict[str, Any]:
        """As in Transformers, which hands the tokenizer of `generate` on to the model here."""
        return cast(Any, super()).prepare_inputs_for_generation(*args, **kwargs)

    def _prepare_generated_length(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        of_checkpoint = generation_config.max_length == self.generation_config.max_length
        if generation_config.max_new_tokens is not None and of_checkpoint:
            generation_config.max_length = None  # nobody chose it for this call
        prepared = cast(Any, super())._prepare_generated_length(generation_config, *args, **kwargs)
        limit = self.family.max_length(cast(PreTrainedConfig, self.config.decoder))
        if limit is not None and prepared.max_length > limit:
            logger.warning_once(
                f"generation stops at {limit} tokens, the decoder's positions, before max_length={prepared.max_length}"
            )
            prepared.max_length = limit
        return prepared

    def _prepare_decoder_input_ids_for_generation(
        self, batch_size: int, model_input_name: str, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        was_given = "decoder_input_ids" in model_kwargs
        ids, model_kwargs = cast(Any, super())._prepare_decoder_input_ids_for_generation(
            batch_size, model_input_name, model_kwargs, *args, **kwargs
        )
        prompt = self.config.decoder_prompt_token_ids
        if prompt and not was_given:
            ids = torch.cat([ids, torch.tensor([prompt], device=ids.device).expand(len(ids), -1)], dim=1)
        return self._with_previous_text(ids, model_kwargs)

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode, project and mask once; the decoding steps that follow read the result and nothing else."""
        model_kwargs = cast(Any, super())._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, *args, **kwargs
        )
        mask = model_kwargs.pop("attention_mask", None)
        encoded = self._ready_encoder_outputs(model_kwargs["encoder_outputs"], mask)
        if encoded.attention_mask is not None and bool(encoded.attention_mask.all()):
            encoded = copy.copy(encoded)
            encoded.attention_mask = None
        # A copy, because beam search repeats its rows in place and the caller may use the original again.
        model_kwargs["encoder_outputs"] = SpeechEncoderOutput(**encoded)
        return model_kwargs


def _decoder_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    unknown = [name for name in kwargs if not name.startswith("decoder_")]
    if unknown:
        raise TypeError(f"SpeechSeq2SeqModel.forward does not know {', '.join(sorted(unknown))}")
    return {name.removeprefix("decoder_"): value for name, value in kwargs.items()}


def _native_decoder(decoder: Any) -> PreTrainedModel | None:
    """The decoder as the class of Transformers that AutoModelForCausalLM knows, None where there is none."""
    if hasattr(decoder, "to_native"):
        return decoder.to_native()
    wrapped = text_decoder_family(decoder.config).model_class
    return None if wrapped is not None and isinstance(decoder, wrapped) else decoder


def _moved_ids(value: int | list[int], places: Mapping[int, int], name: str) -> int | list[int]:
    ids = value if isinstance(value, list) else [value]
    if lost := [token_id for token_id in ids if token_id not in places]:
        raise ValueError(f"{name} is {value}: keep token {lost[0]} too")
    moved = [places[token_id] for token_id in ids]
    return moved if isinstance(value, list) else moved[0]


def _is_native_checkpoint(name_or_path: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a checkpoint was written by SpeechEncoderDecoderModel, judged by its own configuration file."""
    if name_or_path is None:
        return False
    hub = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    options = {name: kwargs[name] for name in hub if name in kwargs}
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(name_or_path, **options)
    except OSError:  # a folder of adapters, or of weights alone: loading says so itself where that is a mistake
        return False
    return config_dict.get("model_type") == NATIVE_MODEL_TYPE


AutoModel.register(SpeechSeq2SeqConfig, SpeechSeq2SeqModel, exist_ok=True)
AutoModelForSpeechSeq2Seq.register(SpeechSeq2SeqConfig, SpeechSeq2SeqModel, exist_ok=True)
# The pipeline tells sequence-to-sequence models from CTC models by class name, in this table alone.
cast(dict, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES)[SpeechSeq2SeqConfig.model_type] = SpeechSeq2SeqModel.__name__

__all__ = ["SpeechEncoder", "SpeechEncoderOutput", "SpeechSeq2SeqModel", "SpeechSeq2SeqOutput"]
