"""The small pretrained parts that `speechgraft quickstart` grafts together, made on the spot.

Nothing is downloaded: a speech encoder is pretrained by CTC on spoken sentences, a BERT as a causal language model on
written ones. Each is saved as an ordinary Transformers folder, and stands for a checkpoint of the hub.

Shapes: `B` batch, `F` feature frames, `M` mel bins, `T` encoder frames, `S` text tokens, `V` vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertTokenizer,
    PreTrainedModel,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
)
from transformers.utils.generic import ModelOutput

from ..configuration.configuration_speech_seq2seq import SpeechEncoderConfig
from .modeling_speech_encoder import SpeechEncoder
from .sequence_losses import ctc_loss, normalizer

MEL_BINS = 40
WIDTH = 128
# Standard deviation of random weights. Transformers' usual 0.02 suits widths around 768: in layers as narrow as these
# it leaves new cross-attention, which takes it from the decoder's configuration, deaf for hundreds of steps.
ENCODER_INITIAL_STD = 0.04
DECODER_INITIAL_STD = 0.08
MAX_FEATURE_FRAMES = 1_000  # of 10 ms
MAX_TOKENS = 64
VOCABULARY_SIZE = 1_000  # most WordPiece tokens to learn: enough for every word of the corpus to be whole
# Spans of the input that are silenced in training: without them the encoder learns its few speakers by heart.
SPEC_AUGMENT = {
    "apply_spec_augment": True,
    "mask_time_prob": 0.03,
    "mask_time_length": 10,
    "mask_time_min_masks": 1,
    "mask_feature_prob": 0.1,
    "mask_feature_length": 5,
    "mask_feature_min_masks": 1,
}


def train_tokenizer(sentences: Iterable[str]) -> BertTokenizer:
    """BERT's tokenizer with a WordPiece vocabulary learnt from `sentences`."""
    tokenizer = BertTokenizer().train_new_from_iterator(sentences, vocab_size=VOCABULARY_SIZE, show_progress=False)
    tokenizer.model_max_length = MAX_TOKENS
    return cast(BertTokenizer, tokenizer)


def make_feature_extractor() -> Speech2TextFeatureExtractor:
    """Log-mel frames every 10 ms, each clip normalised to mean 0 and variance 1 in every band."""
    return Speech2TextFeatureExtractor(feature_size=MEL_BINS, num_mel_bins=MEL_BINS)


def make_text_decoder(tokenizer: BertTokenizer) -> BertLMHeadModel:
    """A small BERT with random weights that reads from left to right."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=DECODER_INITIAL_STD,
        pad_token_id=cast(int, tokenizer.pad_token_id),
        is_decoder=True,
    )
    return BertLMHeadModel(config)


@dataclass
class CtcPretrainingOutput(ModelOutput):
    """What `CtcPretrainingModel` returns.

    Args:
        loss: scalar, where labels were given.
        logits: [B, T, V].
        attention_mask: boolean [B, T], True where a frame is real.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None


class CtcPretrainingModel(nn.Module):
    """A small Speech2Text encoder with random weights, and the linear CTC head that it is pretrained with.

    Args:
        vocabulary_size: outputs of the head, the blank included.
        blank_token_id: the blank's place among them.
    """

    accepts_loss_kwargs = True

    def __init__(self, vocabulary_size: int, blank_token_id: int):
        super().__init__()
        backbone_config = Speech2TextConfig(
            d_model=WIDTH,
            num_conv_layers=3,  # one frame every 80 ms is enough for words, and quick to train on
            conv_kernel_sizes=[5, 5, 5],
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=2 * WIDTH,
            conv_channels=128,
            input_feat_per_channel=MEL_BINS,
            max_source_positions=MAX_FEATURE_FRAMES,
            activation_function="gelu",
            init_std=ENCODER_INITIAL_STD,
        )
        self.encoder = SpeechEncoder(SpeechEncoderConfig(encoder=backbone_config, **SPEC_AUGMENT))
        self.ctc_head = nn.Linear(WIDTH, vocabulary_size)
        self.blank_token_id = blank_token_id

    @property
    def backbone(self) -> PreTrainedModel:
        """The encoder alone, to be saved."""
        return cast(PreTrainedModel, self.encoder.backbone)

    def save_encoder(self, folder: Path) -> None:
        """Write the pretrained encoder, without the head, as a Transformers folder."""
        self.backbone.save_pretrained(folder)

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **_: Any,
    ) -> CtcPretrainingOutput:
        """Features [B, F, M] and labels [B, S] (-100 where padded, no end token) to the CTC loss."""
        encoded = self.encoder(input_features=input_features, attention_mask=attention_mask)
        logits, mask = self.ctc_head(encoded.last_hidden_state), encoded.attention_mask  # [B, T, V], [B, T]
        loss = None
        if labels is not None:
            divisor = normalizer(labels, num_items_in_batch)
            loss = ctc_loss(logits, mask, labels, self.blank_token_id, divisor)
        return CtcPretrainingOutput(loss=loss, logits=logits, attention_mask=mask)
