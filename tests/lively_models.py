"""Tiny models that say different things of different audio; merely random ones repeat a token whatever they hear."""

from typing import Any, cast

import torch
from tiny_models import decoder_config, tiny_model

from speechgraft import SpeechSeq2SeqModel


def lively(encoder: Any, decoder: Any, volume: float = 3, **fields: Any) -> SpeechSeq2SeqModel:
    """A model whose embeddings are apart from its output layer, and whose cross-attention is loud.

    Args:
        encoder: see `tiny_models.tiny_config`.
        decoder: likewise.
        volume: by which the weights of cross-attention exceed those of `tiny_model`.
        fields: of `SpeechSeq2SeqConfig`.
    """
    decoder = decoder_config(decoder) if isinstance(decoder, str) else decoder
    decoder.tie_word_embeddings = False  # or the likeliest token is the last one, again
    model = tiny_model(encoder, decoder, **fields)
    with torch.no_grad():
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            cast(torch.Tensor, embeddings.weight).normal_()
        for name, parameter in model.decoder.named_parameters():
            if any(part in model.family.cross_attention for part in name.split(".")) and parameter.dim() > 1:
                parameter.mul_(volume)
    return model
