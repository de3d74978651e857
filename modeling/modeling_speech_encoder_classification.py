"""Classes of whole clips (commands, speakers, languages, emotions) or of every frame (who speaks when).

Shapes: `B` batch, `N` input length (audio samples or feature frames), `T` encoder frames, `D` width, `L` labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForAudioClassification, AutoModelForAudioFrameClassification
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING,
)

from ..configuration.configuration_speech_encoder_heads import (
    SpeechEncoderForAudioClassificationConfig,
    SpeechEncoderForAudioFrameClassificationConfig,
)
from .modeling_speech_encoder import SpeechEncoderOutput
from .sequence_losses import IGNORED_LABEL, normalizer
from .speech_encoder_heads import SpeechEncoderHeadModel

MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"


@dataclass
class SpeechEncoderForAudioFrameClassificationOutput(TokenClassifierOutput):
    """What `SpeechEncoderForAudioFrameClassification.forward` returns, beyond `TokenClassifierOutput`.

    Args:
        attention_mask: boolean [B, T], True where a frame is real; None where the input had no mask.
    """

    attention_mask: torch.Tensor | None = None


def with_named_labels(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a classifier with `labels`, the names of its classes, as fields of the configuration.

    Raises:
        ValueError: a name comes twice, or nothing says which classes there are.
    """
    kwargs = dict(kwargs)
    labels: Sequence[str] | None = kwargs.pop("labels", None)
    if labels is not None:
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels: a name comes more than once in {list(labels)}")
        kwargs["id2label"] = dict(enumerate(labels))
        kwargs["label2id"] = {label: index for index, label in enumerate(labels)}
    if not {"id2label", "num_labels"} & set(kwargs):
        raise ValueError("which classes shall the model tell apart? Give labels=[…] or num_labels=…")
    return kwargs


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str | None,
    num_items_in_batch: torch.Tensor | int | None,
) -> torch.Tensor:
    """The loss of clips' classes, summed and divided once.

    Args:
        logits: [B, L].
        labels: [B], -100 where ignored, or [B, L]; see `SpeechEncoderForAudioClassification.forward`.
        problem_type: of the configuration.
        num_items_in_batch: labels in the whole optimiser step; None takes those of this batch.

    Returns:
        Scalar.
    """
    divisor, logits = normalizer(labels, num_items_in_batch), logits.float()
    if problem_type == REGRESSION or (problem_type is None and logits.shape[-1] == 1):
        errors = nn.functional.mse_loss(logits, labels.float().view_as(logits), reduction="none")
        return errors.sum() / divisor
    if problem_type == MULTI_LABEL or (problem_type is None and labels.shape == logits.shape):
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / divisor
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum") / divisor


class _SpeechClassifier(SpeechEncoderHeadModel):
    """What both classifiers share: labels with names, and the mixture of layers."""

    config: SpeechEncoderForAudioFrameClassificationConfig

    def _add_head(self) -> None:
        if self.config.use_weighted_layer_sum:
            layers = self._layer_count()
            self.layer_weights = nn.Parameter(torch.ones(layers) / layers)

    def _layer_count(self) -> int:
        """Layers of the backbone, and what they start from."""
        encoder = cast(Any, self.config.encoder)
        names = ("encoder_layers", "encoder_num_hidden_layers", "num_hidden_layers")
        return 1 + next(getattr(encoder, name) for name in names if hasattr(encoder, name))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.use_weighted_layer_sum:
            init.constant_(self.layer_weights, 1 / len(self.layer_weights))

    @classmethod
    def _describe_head(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        return with_named_labels(kwargs)

    def _read(
        self,
        input_values: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        input_features: torch.Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> tuple[torch.Tensor, SpeechEncoderOutput]:
        """The frames to classify, [B, T, D], and all that the encoder returned."""
        mixes = self.config.use_weighted_layer_sum
        encoded = self._encode(
            input_values, attention_mask, input_features, output_attentions, output_hidden_states or mixes or None
        )
        frames = cast(torch.Tensor, encoded.last_hidden_state)
        if not mixes:
            return frames, encoded
        layers = torch.stack(cast(tuple, encoded.hidden_states), dim=1)  # [B, layers, T, D]
        if layers.shape[2] != frames.shape[1]:
            raise ValueError(
                f"use_weighted_layer_sum: the layers of a {cast(Any, self.config.encoder).model_type} encoder have "
                f"{layers.shape[2]} frames, its output {frames.shape[1]}"
            )
        if not (output_hidden_states or self.config.output_hidden_states):
            encoded.hidden_states = None
        return torch.einsum("l,bltd->btd", self.layer_weights.softmax(dim=-1), layers), encoded


class SpeechEncoderForAudioClassification(_SpeechClassifier):
    """A speech encoder with a classifier of whole clips: frames are projected, pooled, and classified.

    Start from an encoder with `from_encoder_pretrained`, or load a trained one, of this class or of a native one
    (`Wav2Vec2ForSequenceClassification`, `WhisperForAudioClassification`, …), with `from_pretrained`.
    """

    config: SpeechEncoderForAudioClassificationConfig
    published_as = ("AutoModelForAudioClassification",)
    native_classes = MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING
    native_heads = {"projector": ("projector",), "classifier": ("classifier",)}

    def _add_head(self) -> None:
        super()._add_head()
        width = self.config.classifier_proj_size
        self.projector = nn.Linear(self.encoder_width, width)
        self.pooling_scores = nn.Linear(width, 1) if self.config.pooling == "attentive" else None
        self.classifier = nn.Linear(width, cast(int, self.config.num_labels))

    def _foreign_parts(self) -> list[str]:
        return [*super()._foreign_parts(), *(["attentive pooling"] if self.pooling_scores is not None else [])]

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
    ) -> SequenceClassifierOutput | tuple:
        """Classify clips, and with labels compute the loss.

        Args:
            input_values: [B, N], audio samples, for encoders that read waveforms.
            attention_mask: [B, N], 1 where the input is real. Padding is not pooled.
            labels: [B], -100 where ignored. With `config.problem_type` "multi_label_classification" [B, L] of zeros
                and ones; with "regression" numbers, [B] or [B, L]. None takes them for regression where there is one
                label, for several labels at once where they are [B, L], else for one class of each clip.
            input_features: feature frames, for encoders that read log-mel features.
            output_attentions: return the encoder's attentions; computes them eagerly for this call.
            output_hidden_states: return the encoder's hidden states.
            return_dict: False for a tuple.
            num_items_in_batch: labels in the whole optimiser step, which the summed loss is divided by.

        Returns:
            `logits` [B, L], and the loss.
        """
        frames, encoded = self._read(
            input_values, attention_mask, input_features, output_attentions, output_hidden_states
        )
        logits = self.classifier(self._pool(self.projector(frames), encoded.attention_mask))  # [B, L]
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        output = SequenceClassifierOutput(
            loss=cast(Any, loss), logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return output.to_tuple() if return_dict is False else output

    def _pool(self, frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Frames [B, T, D] to one vector of each clip, [B, D]."""
        real = torch.ones_like(frames[..., 0], dtype=torch.bool) if mask is None else mask  # [B, T]
        if self.pooling_scores is None:
            weights = real.to(frames.dtype) / real.sum(dim=-1, keepdim=True)
        else:
            scores = self.pooling_scores(frames).squeeze(-1).float().masked_fill(~real, -torch.inf)
            weights = scores.softmax(dim=-1).to(frames.dtype)
        return (frames * weights[..., None]).sum(dim=1)


class SpeechEncoderForAudioFrameClassification(_SpeechClassifier):
    """A speech encoder with a classifier of each of its frames.

    Start from an encoder with `from_encoder_pretrained`, or load a trained one, of this class or of a native one
    (`Wav2Vec2ForAudioFrameClassification`, …), with `from_pretrained`.
    """

    published_as = ("AutoModelForAudioFrameClassification",)
    native_classes = MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING
    native_heads = {"classifier": ("classifier",)}

    def _add_head(self) -> None:
        super()._add_head()
        self.classifier = nn.Linear(self.encoder_width, cast(int, self.config.num_labels))

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
    ) -> SpeechEncoderForAudioFrameClassificationOutput | tuple:
        """Classify frames, and with labels compute the loss over those that are real.

        Args:
            input_values: [B, N], audio samples, for encoders that read waveforms.
            attention_mask: [B, N], 1 where the input is real.
            labels: [B, T], a class of each frame, -100 where ignored; or [B, T, L] of zeros and ones, -100 where
                ignored, which with `config.problem_type` "multi_label_classification" are independent of each other,
                else one class.
            input_features: feature frames, for encoders that read log-mel features.
            output_attentions: return the encoder's attentions; computes them eagerly for this call.
            output_hidden_states: return the encoder's hidden states.
            return_dict: False for a tuple.
            num_items_in_batch: labels in the whole optimiser step, which the summed loss is divided by.

        Returns:
            `logits` [B, T, L], `attention_mask` [B, T], and the loss.

        Raises:
            ValueError: there are not as many labels as frames; see also `SpeechEncoder.forward`.
        """
        frames, encoded = self._read(
            input_values, attention_mask, input_features, output_attentions, output_hidden_states
        )
        logits = self.classifier(frames)  # [B, T, L]
        loss = None
        if labels is not None:
            loss = self._loss(logits, labels, encoded.attention_mask, num_items_in_batch)
        output = SpeechEncoderForAudioFrameClassificationOutput(
            loss=cast(Any, loss),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            attention_mask=encoded.attention_mask,
        )
        return output.to_tuple() if return_dict is False else output

    def _loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        if labels.shape[:2] != logits.shape[:2]:
            raise ValueError(
                f"labels of {labels.shape[1]} frames, but the encoder makes {logits.shape[1]} of this audio: one "
                f"label for each {self.config.inputs_to_logits_ratio} samples at 16 kHz; encoder.output_lengths tells "
                "how many"
            )
        if mask is not None:
            labels = labels.masked_fill(~(mask if labels.dim() == 2 else mask[..., None]), IGNORED_LABEL)
        divisor, logits = normalizer(labels, num_items_in_batch), logits.float()
        if labels.dim() == 3 and self.config.problem_type == MULTI_LABEL:
            counted = labels != IGNORED_LABEL
            losses = nn.functional.binary_cross_entropy_with_logits(
                logits, labels.float().masked_fill(~counted, 0.0), reduction="none"
            )
            return losses.masked_fill(~counted, 0.0).sum() / divisor
        if labels.dim() == 3:
            divisor = divisor / labels.shape[-1]
            labels = labels.argmax(dim=-1).masked_fill((labels == IGNORED_LABEL).any(dim=-1), IGNORED_LABEL)
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )
        return losses / divisor


AutoModelForAudioClassification.register(
    SpeechEncoderForAudioClassificationConfig, SpeechEncoderForAudioClassification, exist_ok=True
)
AutoModelForAudioFrameClassification.register(
    SpeechEncoderForAudioFrameClassificationConfig, SpeechEncoderForAudioFrameClassification, exist_ok=True
)

__all__ = [
    "SpeechEncoderForAudioClassification",
    "SpeechEncoderForAudioFrameClassification",
    "SpeechEncoderForAudioFrameClassificationOutput",
]
