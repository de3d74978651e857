"""Speech to text without a decoder: a pretrained speech encoder and a CTC head.

Shapes: `B` batch, `N` input length (audio samples or feature frames), `T` encoder frames, `S` text tokens,
`V` vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCTC, AutoTokenizer
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING
from transformers.utils import logging

from ..configuration.configuration_speech_encoder_heads import SpeechEncoderForCTCConfig
from .ctc_decoding import CtcHypothesis, greedy_ctc, prefix_beam_search
from .quick_inference import quick_inference
from .sequence_losses import IGNORED_LABEL, ctc_loss, normalizer
from .speech_encoder_heads import SpeechEncoderHeadModel

logger = logging.get_logger(__name__)


@dataclass
class SpeechEncoderForCTCOutput(CausalLMOutput):
    """What `SpeechEncoderForCTC.forward` returns, beyond `CausalLMOutput`.

    Args:
        attention_mask: boolean [B, T], True where a frame is real; None where the input had no mask.
    """

    attention_mask: torch.Tensor | None = None


class SpeechEncoderForCTC(SpeechEncoderHeadModel):
    """A speech encoder with a head for connectionist temporal classification (Graves et al. 2006).

    Start from an encoder with `from_encoder_pretrained`, or load a trained one, of this class or of a native one
    (`Wav2Vec2ForCTC`, `HubertForCTC`, `ParakeetForCTC`, …), with `from_pretrained`.
    """

    config: SpeechEncoderForCTCConfig
    published_as = ("AutoModelForCTC",)
    native_classes = MODEL_FOR_CTC_MAPPING
    native_heads = {"ctc_head": ("lm_head", "ctc_head")}

    def _add_head(self) -> None:
        self.dropout = nn.Dropout(float(self.config.final_dropout or 0))
        self.ctc_head = nn.Linear(self.encoder_width, self.config.vocab_size)

    @classmethod
    def _describe_head(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs = dict(kwargs)
        tokenizer = kwargs.pop("tokenizer", None)
        if isinstance(tokenizer, (str, Path)):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        if tokenizer is not None:
            if tokenizer.pad_token_id is None:
                raise ValueError("the tokenizer has no padding token, which is CTC's blank: give it one")
            kwargs = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | kwargs
        if "vocab_size" not in kwargs:
            raise ValueError("how many outputs shall the CTC head have? Give tokenizer=… or vocab_size=…")
        return kwargs

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> SpeechEncoderForCTCOutput | tuple:
        """Tell the tokens of each frame, and with labels compute the loss.

        Args:
            input_values: [B, N], audio samples, for encoders that read waveforms.
            attention_mask: [B, N], 1 where the input is real. Frames of padding are the blank for certain.
            labels: [B, S], -100 where padded. A clip without labels, or with more than its frames can hold, counts 0
                in the loss, with a warning.
            input_features: feature frames, for encoders that read log-mel features.
            output_attentions: return the encoder's attentions; computes them eagerly for this call.
            output_hidden_states: return the encoder's hidden states.
            return_dict: False for a tuple.
            num_items_in_batch: labels in the whole optimiser step, which the summed loss is divided by.

        Raises:
            ValueError: a label is the blank or outside the vocabulary; see also `SpeechEncoder.forward`.
        """
        if labels is not None:
            self._check_labels(labels)
        encoded = self._encode(input_values, attention_mask, input_features, output_attentions, output_hidden_states)
        logits = self.ctc_head(self.dropout(encoded.last_hidden_state))  # [B, T, V]
        logits = self._silence_padding(logits, encoded.attention_mask)
        loss = None
        if labels is not None:
            divisor, counted = normalizer(labels, num_items_in_batch), (labels != IGNORED_LABEL).any(dim=-1)
            loss = ctc_loss(logits, encoded.attention_mask, labels, self.config.pad_token_id, divisor, counted)
        output = SpeechEncoderForCTCOutput(
            loss=cast(Any, loss),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            attention_mask=encoded.attention_mask,
        )
        return output.to_tuple() if return_dict is False else output

    def _silence_padding(self, logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Make padding frames blanks: whoever reads the logits without the mask, as pipelines do, hears silence."""
        if mask is None:
            return logits
        others = torch.arange(logits.shape[-1], device=logits.device) != self.config.pad_token_id
        return logits.masked_fill(~mask[..., None] & others, torch.finfo(logits.dtype).min / 2)

    def _check_labels(self, labels: torch.Tensor) -> None:
        """Only where looking costs nothing: an accelerator would have to stop for it."""
        if labels.device.type != "cpu" or torch.compiler.is_compiling():
            return
        real = labels != IGNORED_LABEL
        wrong = labels[real & ((labels < 0) | (labels >= self.config.vocab_size))]
        if len(wrong) > 0:
            raise ValueError(f"label {int(wrong[0])} is outside the vocabulary of {self.config.vocab_size} tokens")
        if bool((labels == self.config.pad_token_id).any()):
            raise ValueError(
                f"label {self.config.pad_token_id} is the blank: pad labels with {IGNORED_LABEL}, which is ignored"
            )
        if not bool(real.any(dim=-1).all()):
            logger.warning_once("clips without a transcript do not contribute to the CTC loss: drop them")

    @torch.no_grad()
    def decode_ctc(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        num_beams: int = 1,
        **search: Any,
    ) -> list[list[CtcHypothesis]]:
        """Transcribe.

        Args:
            input_values: [B, N], audio samples, for encoders that read waveforms.
            attention_mask: [B, N], 1 where the input is real.
            input_features: feature frames, for encoders that read log-mel features.
            num_beams: 1 for the best path, more for prefix beam search.
            search: `language_model` and other arguments of `ctc_decoding.prefix_beam_search`.

        Returns:
            For each clip its hypotheses, best first, one where `num_beams` is 1. Their `token_ids` hold no blanks and
            no repeats to join: decode them with `tokenizer.decode(token_ids, group_tokens=False)`.
        """
        with quick_inference(self):
            output = cast(SpeechEncoderForCTCOutput, self(input_values, attention_mask, input_features=input_features))
        log_probs = cast(torch.Tensor, output.logits).float().log_softmax(dim=-1)
        blank, mask = self.config.pad_token_id, output.attention_mask
        if num_beams == 1 and not search:
            return [[hypothesis] for hypothesis in greedy_ctc(log_probs, mask, blank)]
        return prefix_beam_search(log_probs, mask, blank, num_beams, **search)


AutoModelForCTC.register(SpeechEncoderForCTCConfig, SpeechEncoderForCTC, exist_ok=True)

__all__ = ["SpeechEncoderForCTC", "SpeechEncoderForCTCOutput"]
