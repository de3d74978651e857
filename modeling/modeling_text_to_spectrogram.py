"""Text to speech: a text encoder, a decoder that writes a log-mel spectrogram frame by frame, a postnet, a vocoder.

Shapes: `B` batch, `S` text tokens, `N` decoder steps, `r` frames of a step, `T` frames, `M` mel bins, `D` width,
`H` heads, `V` width of a speaker embedding.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForTextToWaveform,
    EncoderDecoderCache,
    PreTrainedConfig,
    PreTrainedModel,
    SpeechT5ForTextToSpeech,
)
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

from ..configuration.configuration_text_to_spectrogram import NATIVE_TTS_MODEL_TYPE, TextToSpectrogramConfig
from ..configuration.published_code import PublishesItsCode
from .spectrogram_decoder import (
    DecoderStates,
    DecodingState,
    Generators,
    MaskedBatchNorm,
    Postnet,
    SpectrogramDecoder,
    new_cache,
)
from .spectrogram_generation import SpectrogramGenerationMixin
from .spectrogram_losses import guided_attention, real_frames, spectrogram_l1, stop_cross_entropy
from .speech_vocoders import build_vocoder, check_vocoder_agrees, load_vocoder
from .text_encoders import TextEncoder, TextEncoderOutput
from .text_warm_start import warm_start_text_encoder
from .transformer_layers import initialize_positions

logger = logging.get_logger(__name__)

# Beginnings of the keys of a `SpeechT5ForTextToSpeech` checkpoint, and ours; what follows is the same.
NATIVE_PREFIXES = {
    "speecht5.encoder.prenet.": "encoder.backbone.",
    "speecht5.encoder.wrapped_encoder.embed_positions.pe_k.": "encoder.backbone.relative_positions.",
    "speecht5.encoder.wrapped_encoder.": "encoder.backbone.",
    "speecht5.decoder.prenet.": "decoder.prenet.",
    "speecht5.decoder.wrapped_decoder.": "decoder.",
    "speech_decoder_postnet.feat_out.": "decoder.mel_head.",
    "speech_decoder_postnet.prob_out.": "decoder.stop_head.",
    "speech_decoder_postnet.layers.": "postnet.layers.",
}


@dataclass
class TextToSpectrogramOutput(ModelOutput):
    """What `TextToSpectrogramModel.forward` returns.

    Args:
        loss: scalar, the sum of the four below.
        l1_loss: scalar, of the frames before the postnet.
        postnet_l1_loss: scalar, of those after it.
        stop_loss: scalar.
        guided_attention_loss: scalar, times its weight.
        spectrogram: [B, T, M], after the postnet.
        spectrogram_before_postnet: [B, T, M].
        stop_logits: [B, T], whether speech ends with a frame.
        spectrogram_mask: boolean [B, T], True where a frame is real; None where all are.
        past_key_values: the decoder's cache.
        decoder_hidden_states: [B, N, D] for each layer and before the first.
        decoder_attentions: [B, H, N, N] for each layer.
        cross_attentions: [B, H, N, S] for each layer.
        encoder_last_hidden_state: [B, S, D].
        encoder_hidden_states: the text encoder's own, for each layer and before the first.
        encoder_attentions: [B, H, S, S] for each layer.
        encoder_attention_mask: boolean [B, S], True where a token is real; None where all are.
    """

    loss: torch.Tensor | None = None
    l1_loss: torch.Tensor | None = None
    postnet_l1_loss: torch.Tensor | None = None
    stop_loss: torch.Tensor | None = None
    guided_attention_loss: torch.Tensor | None = None
    spectrogram: torch.Tensor | None = None
    spectrogram_before_postnet: torch.Tensor | None = None
    stop_logits: torch.Tensor | None = None
    spectrogram_mask: torch.Tensor | None = None
    past_key_values: EncoderDecoderCache | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_attention_mask: torch.Tensor | None = None


@dataclass
class DecodedStep:
    """What `TextToSpectrogramModel.decode_step` returns.

    Args:
        frames: [B, r, M], before the postnet. The last of them is what the next step reads.
        stop_logits: [B, r].
        cross_attentions: [B, H, 1, S] for each layer, where asked for.
    """

    frames: torch.Tensor
    stop_logits: torch.Tensor
    cross_attentions: tuple[torch.Tensor, ...] | None = None


class TextToSpectrogramModel(SpectrogramGenerationMixin, PublishesItsCode, PreTrainedModel):
    """SpeechT5's text to speech (Ao et al. 2022), with its own text encoder or a pretrained one.

    Args:
        config: what the model is made of.
        encoder: a ready pretrained text encoder, such as a `BertModel`; None builds one from the configuration.

    Raises:
        ValueError: the family of the text encoder is not supported.
    """

    config: TextToSpectrogramConfig
    base_model_prefix = "text_to_spectrogram"
    published_as = ("AutoModel", "AutoModelForTextToSpectrogram", "AutoModelForTextToWaveform")
    main_input_name = "input_ids"
    input_modalities = "text"
    output_modalities = ("audio",)
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def __init__(self, config: TextToSpectrogramConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.encoder = TextEncoder(config, encoder)
        self.decoder = SpectrogramDecoder(config)
        self.postnet = Postnet(config)
        self.vocoder: Any = None if config.vocoder is None else build_vocoder(config).requires_grad_(False)
        self.default_speaker_embedding: torch.Tensor | None = None
        if config.has_default_speaker:
            self._store_default_speaker(torch.zeros(config.speaker_embedding_dim))
        self._no_split_modules = self._block_names()
        self.post_init()
        self._no_split_modules = self._block_names()

    def _block_names(self) -> set[str]:
        """Classes of the layers that must stay whole on one device."""
        return {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize_positions(module)
        if isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight)
        elif isinstance(module, MaskedBatchNorm) and module.begins_silent:
            init.zeros_(module.weight)
        elif isinstance(module, TextToSpectrogramModel) and module.default_speaker_embedding is not None:
            init.zeros_(module.default_speaker_embedding)

    def get_encoder(self, modality: str | None = None) -> TextEncoder:
        """The text encoder, whose output is as wide as the decoder."""
        return self.encoder

    def get_decoder(self) -> SpectrogramDecoder:
        """The spectrogram decoder."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's token embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's token embeddings."""
        self.encoder.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in Transformers, in the text encoder and its configuration."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        for config in (self.config, self.config.encoder):
            if config is not None:
                config.vocab_size = embeddings.num_embeddings
        return embeddings

    def get_output_embeddings(self) -> None:
        """None: the model writes frames, not tokens."""

    def freeze_encoder(self) -> None:
        """Exclude the text encoder from training; a projection behind it still learns."""
        cast(nn.Module, self.encoder.backbone).requires_grad_(False)

    def set_vocoder(self, vocoder: Any) -> None:
        """Make a HiFi-GAN part of the model and of its checkpoints, or take it out.

        Args:
            vocoder: folder or hub id of a `SpeechT5HifiGan`, or a ready one, which is copied; None for none.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: it makes sound from other spectrograms than this model's.
        """
        if vocoder is None:
            self.vocoder = self.config.vocoder = None
            return
        ready = load_vocoder(vocoder)
        check_vocoder_agrees(self.config, ready.config)
        self.vocoder = cast(nn.Module, ready).to(self.device, self.dtype).requires_grad_(False)
        self.config.vocoder = ready.config

    def set_default_speaker(self, speaker_embedding: torch.Tensor | None) -> None:
        """Store the voice that speaks where none is given, [V], in the model and in its checkpoints; None for none.

        Raises:
            ValueError: the width is wrong, or a value is not finite.
        """
        if speaker_embedding is None:
            self.default_speaker_embedding = None
        else:
            self._store_default_speaker(self._checked_speakers(speaker_embedding, 1)[0].to(self.device))
        self.config.has_default_speaker = speaker_embedding is not None

    @property
    def lacks_voice(self) -> bool:
        """Whether the model speaks with a voice that it must be given, as it has learned several and stores none."""
        return self.config.speaker_embedding_dim > 0 and self.default_speaker_embedding is None

    def _store_default_speaker(self, embedding: torch.Tensor) -> None:
        if "default_speaker_embedding" in self.__dict__:
            del self.__dict__["default_speaker_embedding"]  # the plain None that stood for no buffer
        self.register_buffer("default_speaker_embedding", embedding.detach().clone())

    def speakers(self, speaker_embeddings: Any, batch: int) -> torch.Tensor | None:
        """Unit-length embeddings [B, V] of those given, or of the default voice; None where there is neither.

        Args:
            speaker_embeddings: [V] for all rows or [B, V], of any floating dtype; None for the default voice.
            batch: B.

        Raises:
            ValueError: the width is wrong, a value is not finite, or the model has one voice only.
        """
        if speaker_embeddings is None:
            speaker_embeddings = self.default_speaker_embedding
        if speaker_embeddings is None:
            return None
        checked = self._checked_speakers(speaker_embeddings, batch)
        return nn.functional.normalize(checked.float()).to(self.decoder.prenet.encode_positions.alpha)

    def _checked_speakers(self, speaker_embeddings: Any, batch: int) -> torch.Tensor:
        width, given = self.config.speaker_embedding_dim, torch.as_tensor(speaker_embeddings)
        if width == 0:
            raise ValueError("this model has one voice (speaker_embedding_dim=0): leave speaker_embeddings out")
        if given.dim() == 1:
            given = given[None]
        if given.dim() != 2 or given.shape[1] != width or len(given) not in (1, batch):
            raise ValueError(
                f"speaker_embeddings must be [{width}] or [{batch}, {width}], got {list(torch.as_tensor(given).shape)}"
            )
        if not torch.compiler.is_compiling() and not bool(given.isfinite().all()):
            raise ValueError("speaker_embeddings holds values that are not finite (NaN or infinity)")
        return given.expand(batch, -1)

    def encode(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> TextEncoderOutput:
        """Encode text, once for an utterance; see `TextEncoder.forward`.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 1 where a token is real.
            kwargs: see `TextEncoder.forward`.
        """
        return self.encoder(input_ids, attention_mask, **kwargs)

    def start_decoding(
        self, encoded: TextEncoderOutput, speaker_embeddings: Any = None, max_steps: int | None = None
    ) -> DecodingState:
        """Prepare for `decode_step`: what depends on the text and the voice is computed here, once.

        Args:
            encoded: from `encode`.
            speaker_embeddings: [V] or [B, V]; None for the default voice.
            max_steps: makes a cache of fixed shape for so many steps, with which a compiled step needs one graph; None
                for a cache that grows.
        """
        states = cast(torch.Tensor, encoded.last_hidden_state)
        cache = new_cache(self.config, states, max_steps)
        for layer in self.decoder.layers:
            cast(Any, layer).text_keys_and_values(states, cache)
        return DecodingState(
            cache, _cross_mask(encoded.attention_mask), self.speakers(speaker_embeddings, len(states))
        )

    def decode_step(
        self,
        last_frame: torch.Tensor | None,
        state: DecodingState,
        generator: Generators = None,
        prenet_masks: Sequence[torch.Tensor] | None = None,
        output_attentions: bool = False,
    ) -> DecodedStep:
        """Write the next `r` frames. Nothing but attention looks at the frames before the last one.

        Args:
            last_frame: [B, M], the last frame of the step before; None, as zeros, for the first.
            state: from `start_decoding`; the step is added to it.
            generator: of the prenet's dropout; one, or one for each row. See `SpectrogramPrenet.draw_masks`.
            prenet_masks: masks drawn before, as a compiled step needs them; `[]` for no dropout.
            output_attentions: return cross-attentions.
        """
        layer: Any = state.cache.cross_attention_cache.layers[0]
        rows = len(layer.keys)
        if last_frame is None:
            last_frame = cast(torch.Tensor, layer.keys.new_zeros(rows, self.config.num_mel_bins))
        if prenet_masks is None:
            prenet_masks = self.decoder.prenet.draw_masks(rows, 1, generator)
        decoded = self.decoder(
            last_frame[:, None],
            None,
            state.cross_mask,
            state.speaker_embeddings,
            past_key_values=state.cache,
            prenet_masks=prenet_masks,
            output_cross_attentions=output_attentions,
        )
        frames, stop_logits = self.decoder.heads(decoded.last_hidden_state)
        return DecodedStep(frames, stop_logits, decoded.cross_attentions)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_values: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        speaker_embeddings: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        generator: Generators = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> TextToSpectrogramOutput | tuple:
        """Encode the text, decode the spectrogram, and with labels compute the losses.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 1 where a token is real. Where it is left out, padding tokens are not.
            decoder_input_values: [B, N, M], the frame that each decoder step reads; by default every r-th of the
                labels, behind a first frame of zeros.
            decoder_attention_mask: [B, N], 1 where a step is real, where there are no labels to tell.
            encoder_outputs: from `encode`, to spare encoding again.
            past_key_values: the decoder's cache; the steps are those after it.
            use_cache: return the cache; by default as the configuration says, and never with labels.
            output_attentions: return attention weights of encoder and decoder.
            output_hidden_states: return hidden states of encoder and decoder.
            return_dict: False for a tuple.
            speaker_embeddings: [V] or [B, V], of any floating dtype; None for the default voice, if there is one.
            labels: log-mel spectrogram [B, T, M] of any length, -100 in every bin where a frame is padding.
            inputs_embeds: embeddings in place of `input_ids`.
            token_type_ids: [B, S], for pretrained encoders that read them.
            generator: of the prenet's dropout, which is on outside training too.
            num_items_in_batch: values of the labels in the whole optimiser step, frames times mel bins, which summed
                losses are divided by.

        Raises:
            ValueError: text or speech is longer than there are positions, or an input has the wrong shape.
        """
        hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        weights = self.config.output_attentions if output_attentions is None else output_attentions
        if encoder_outputs is None:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            encoder_outputs = self.encode(
                input_ids,
                attention_mask,
                inputs_embeds=inputs_embeds,
                output_hidden_states=bool(hidden),
                output_attentions=bool(weights),
                **types,
            )
        elif not isinstance(encoder_outputs, TextEncoderOutput):
            mask = None if attention_mask is None else attention_mask.bool()
            encoder_outputs = TextEncoderOutput(**encoder_outputs, attention_mask=mask)
        frame_mask, frames = self._decoder_inputs(decoder_input_values, decoder_attention_mask, labels)
        guided = labels is not None and self.config.use_guided_attention_loss
        cache = self._cache(past_key_values, use_cache, labels)
        cross_mask = _cross_mask(encoder_outputs.attention_mask)
        speakers = self.speakers(speaker_embeddings, len(frames))
        if self.training and labels is not None and decoder_input_values is None:
            states = cast(torch.Tensor, encoder_outputs.last_hidden_state)
            frames = self._with_own_frames(frames, states, cross_mask, speakers)
        decoded = self.decoder(
            frames,
            encoder_outputs.last_hidden_state,
            cross_mask,
            speakers,
            past_key_values=cache,
            prenet_masks=self.decoder.prenet.draw_masks(frames.shape[0], frames.shape[1], generator),
            output_hidden_states=bool(hidden),
            output_attentions=bool(weights),
            output_cross_attentions=bool(weights) or guided,
        )
        output = self._output(decoded, encoder_outputs, frame_mask, None if labels is None else labels.shape[1])
        if labels is not None:
            self._add_losses(output, decoded, labels, num_items_in_batch)
        output.past_key_values = cache
        output.cross_attentions = decoded.cross_attentions if weights else None
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    def _decoder_inputs(
        self, frames: torch.Tensor | None, step_mask: torch.Tensor | None, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Which of the frames [B, N r] are real, and what the decoder reads, [B, N, M]."""
        r, mask = self.config.reduction_factor, None
        for given in (frames, labels):
            if given is not None and (given.dim() != 3 or given.shape[-1] != self.config.num_mel_bins):
                raise ValueError(
                    f"spectrograms must be [batch, frames, {self.config.num_mel_bins}], got {list(given.shape)}"
                )
            if given is not None and given.shape[1] == 0:
                raise ValueError("a spectrogram without any frame cannot be learned from")
        if labels is not None:
            mask = nn.functional.pad(real_frames(labels), (0, -labels.shape[1] % r))
            if frames is None:
                frames = self.prepare_decoder_input_values_from_labels(labels)
            elif frames.shape[1] * r != mask.shape[1]:
                raise ValueError(
                    f"labels of {labels.shape[1]} frames need {mask.shape[1] // r} decoder steps, but "
                    f"decoder_input_values has {frames.shape[1]}"
                )
        elif step_mask is not None:
            mask = step_mask.bool().repeat_interleave(r, dim=1)
        if frames is None:
            raise ValueError("give labels or decoder_input_values; to synthesise speech call generate()")
        return mask, frames

    @torch.no_grad()
    def _with_own_frames(
        self,
        frames: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        cross_mask: torch.Tensor | None,
        speakers: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the decoder reads [B, N, M], with a share of the steps reading what a first pass wrote for them."""
        rate, r = self.config.scheduled_sampling_rate, self.config.reduction_factor
        if rate == 0:
            return frames
        masks = self.decoder.prenet.draw_masks(frames.shape[0], frames.shape[1])
        decoded = self.decoder(frames, encoder_hidden_states, cross_mask, speakers, prenet_masks=masks)
        written, _ = self.decoder.heads(decoded.last_hidden_state)  # [B, N r, M]
        torch.clear_autocast_cache()  # older versions of PyTorch keep copies of the weights there without gradients
        own = nn.functional.pad(written[:, r - 1 :: r][:, :-1], (0, 0, 1, 0)).to(frames.dtype)
        chosen = torch.rand(frames.shape[:2], device=frames.device) < rate
        return torch.where(chosen[..., None], own, frames)

    def prepare_decoder_input_values_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels [B, T, M] to decoder inputs [B, N, M]: zeros, then the last frame of each step but the last."""
        r = self.config.reduction_factor
        steps = -(-labels.shape[1] // r)
        last_frames = labels[:, r - 1 :: r][:, : steps - 1]
        real = real_frames(last_frames)[..., None]
        return nn.functional.pad(last_frames.masked_fill(~real, 0), (0, 0, 1, 0))

    def _cache(
        self, given: EncoderDecoderCache | None, use_cache: bool | None, labels: torch.Tensor | None
    ) -> EncoderDecoderCache | None:
        if given is not None:
            if not isinstance(given, EncoderDecoderCache):
                raise TypeError(f"past_key_values must be an EncoderDecoderCache, got {type(given).__name__}")
            return given
        wanted = self.config.use_cache if use_cache is None else use_cache
        return new_cache(self.config) if wanted and labels is None and not self.training else None

    def _output(
        self,
        decoded: DecoderStates,
        encoded: TextEncoderOutput,
        frame_mask: torch.Tensor | None,
        length: int | None,
    ) -> TextToSpectrogramOutput:
        before, stop_logits = self.decoder.heads(decoded.last_hidden_state)  # [B, N r, M], [B, N r]
        after = self.postnet(before, frame_mask)
        return TextToSpectrogramOutput(
            spectrogram=after[:, :length],
            spectrogram_before_postnet=before[:, :length],
            stop_logits=stop_logits[:, :length],
            spectrogram_mask=None if frame_mask is None else frame_mask[:, :length],
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
            encoder_attention_mask=encoded.attention_mask,
        )

    def _add_losses(
        self,
        output: TextToSpectrogramOutput,
        decoded: DecoderStates,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> None:
        mask = cast(torch.Tensor, output.spectrogram_mask)
        frames = mask.sum()
        if num_items_in_batch is not None:  # counted in values, of which each frame has M
            frames = torch.as_tensor(num_items_in_batch, device=labels.device) / self.config.num_mel_bins
        frames = frames.clamp(min=1)
        before, after = output.spectrogram_before_postnet, output.spectrogram
        output.l1_loss = spectrogram_l1(cast(torch.Tensor, before), labels, mask, frames)
        output.postnet_l1_loss = spectrogram_l1(cast(torch.Tensor, after), labels, mask, frames)
        stop_logits = cast(torch.Tensor, output.stop_logits)
        output.stop_loss = stop_cross_entropy(stop_logits, mask, self.config.stop_positive_weight, frames)
        output.loss = output.l1_loss + output.postnet_l1_loss + output.stop_loss
        if self.config.use_guided_attention_loss:
            output.guided_attention_loss = self._guided_attention_loss(output, decoded, mask, frames)
            output.loss = output.loss + output.guided_attention_loss

    def _guided_attention_loss(
        self, output: TextToSpectrogramOutput, decoded: DecoderStates, mask: torch.Tensor, frames: torch.Tensor
    ) -> torch.Tensor:
        """Each row's mean over its cells, weighted by its frames as the other losses are."""
        r, text_mask = self.config.reduction_factor, output.encoder_attention_mask
        step_mask = mask[:, ::r]  # a step is real as soon as its first frame is
        if text_mask is None:
            text_mask = torch.ones(cast(Any, output.encoder_last_hidden_state).shape[:2], device=mask.device).bool()
        by_row = guided_attention(
            cast(tuple[torch.Tensor, ...], decoded.cross_attentions),
            self.config.guided_heads,
            step_mask,
            text_mask,
            self.config.guided_attention_loss_sigma,
        )  # [B]
        return self.config.guided_attention_loss_scale * (by_row * mask.sum(dim=-1)).sum() / frames

    @classmethod
    def from_text_encoder_pretrained(cls, text_checkpoint: Any, **kwargs: Any) -> "TextToSpectrogramModel":
        """Start from a pretrained text encoder; see `text_warm_start.warm_start_text_encoder` for the arguments."""
        return warm_start_text_encoder(cls, text_checkpoint, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As in Transformers. Folders of `SpeechT5ForTextToSpeech` load too.

        Raises:
            ValueError: a SpeechT5 checkpoint lacks weights, as those that were trained for another task do; or the
                vocoder that the configuration asks for is not there.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        is_native = _is_native_checkpoint(pretrained_model_name_or_path, kwargs)
        if is_native:
            renames = {f"^{re.escape(native)}": ours for native, ours in NATIVE_PREFIXES.items()}
            kwargs["key_mapping"] = renames | (kwargs.get("key_mapping") or {})
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = cast(tuple[TextToSpectrogramModel, dict], loaded)
        lost = sorted(info["missing_keys"])
        if any(key.startswith("vocoder.") for key in lost):
            raise ValueError(
                f"{pretrained_model_name_or_path} does not hold the vocoder that its configuration asks for: load it "
                "with vocoder=None, then call set_vocoder"
            )
        if is_native and lost:
            raise ValueError(
                f"{pretrained_model_name_or_path} is not a SpeechT5ForTextToSpeech checkpoint: it lacks {len(lost)} "
                f"weights, which would be random: {', '.join(lost[:5])}"
            )
        return (model, info) if wants_info else model

    def to_native(self) -> SpeechT5ForTextToSpeech:
        """A copy as a `SpeechT5ForTextToSpeech`, for people without this package; the vocoder is another checkpoint.

        Raises:
            ValueError: the model has parts that the native class cannot express.
        """
        foreign = {
            "a pretrained text encoder": self.config.encoder is not None,
            "a model without a speaker layer (speaker_embedding_dim=0)": self.config.speaker_embedding_dim == 0,
            "a postnet without layers": len(self.postnet.layers) == 0,
        }
        if has := [name for name, present in foreign.items() if present]:
            raise ValueError(f"SpeechT5ForTextToSpeech has no place for {' or '.join(has)}")
        if self.default_speaker_embedding is not None:
            logger.warning(
                "SpeechT5ForTextToSpeech stores no default voice: give speaker_embeddings to its generate()"
            )
        native: Any = SpeechT5ForTextToSpeech(self.config.to_native())
        native.to(self.device, self.dtype)
        ours, weights = self.state_dict(), {}
        for key in native.state_dict():
            prefix = next(prefix for prefix in NATIVE_PREFIXES if key.startswith(prefix))
            weights[key] = ours[NATIVE_PREFIXES[prefix] + key.removeprefix(prefix)]
        native.load_state_dict(weights)
        return native.train(self.training)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As in Transformers, always in this class's own layout: a Trainer resumes from nothing else.

        Raises:
            ValueError: the vocoder has weight norm, with which it would not load again.
        """
        if self.vocoder is not None and self.vocoder.has_weight_norm:
            raise ValueError("the vocoder has weight norm: call vocoder.remove_weight_norm() before saving")
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)


def _is_native_checkpoint(name_or_path: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a checkpoint was written by a class of SpeechT5, judged by its own configuration file."""
    if name_or_path is None:
        return False
    hub = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    options = {name: kwargs[name] for name in hub if name in kwargs}
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(name_or_path, **options)
    except OSError:  # a folder of adapters, or of weights alone: loading says so itself where that is a mistake
        return False
    return config_dict.get("model_type") == NATIVE_TTS_MODEL_TYPE


def _cross_mask(text_mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if text_mask is None else text_mask.bool()[:, None, None]  # [B, 1, 1, S]


AutoModel.register(TextToSpectrogramConfig, TextToSpectrogramModel, exist_ok=True)
AutoModelForTextToWaveform.register(TextToSpectrogramConfig, TextToSpectrogramModel, exist_ok=True)
# In a tuple, which the Auto class opens and the pipeline does not: the pipeline would download a vocoder for every
# class that it finds here, although this one brings its own and returns waveforms.
cast(Any, MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING).register(
    TextToSpectrogramConfig, (TextToSpectrogramModel,), exist_ok=True
)

__all__ = ["DecodedStep", "DecodingState", "TextToSpectrogramModel", "TextToSpectrogramOutput"]
