"""Tiny random text-to-speech models, ours and Transformers' own, with the inputs they read.

config = tiny_tts_config(reduction_factor=1)
model = tiny_synthesizer(hidden_size=12)                 # in evaluation mode, prenet dropout as configured
native = tiny_native_synthesizer()                       # a SpeechT5ForTextToSpeech of the same sizes
model(**tiny_tts_batch([(5, 9), (3, 4)]))                # rows of (tokens, frames), padded
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import SpeechT5Config, SpeechT5ForTextToSpeech, SpeechT5HifiGan, SpeechT5HifiGanConfig

from speechgraft import TextToSpectrogramConfig, TextToSpectrogramModel

TTS_VOCABULARY = 20  # tokens; 0 to 2 are the start, padding and end
TTS_MELS = 8  # mel bins
VOICE = 6  # width of a speaker embedding
TTS_SIZES: dict[str, Any] = {
    "vocab_size": TTS_VOCABULARY,
    "hidden_size": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "encoder_max_relative_position": 5,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 24,
    "num_mel_bins": TTS_MELS,
    "speaker_embedding_dim": VOICE,
    "speech_decoder_prenet_units": 12,
    "speech_decoder_postnet_units": 10,
    "speech_decoder_postnet_layers": 3,
    "max_text_positions": 40,
    "max_speech_positions": 60,
}
NO_DROPOUT = dict.fromkeys(
    (
        "positional_dropout",
        "hidden_dropout",
        "attention_dropout",
        "activation_dropout",
        "speech_decoder_prenet_dropout",
        "speech_decoder_postnet_dropout",
    ),
    0.0,
)
HIFIGAN_SIZES: dict[str, Any] = {
    "model_in_dim": TTS_MELS,
    "upsample_initial_channel": 16,
    "upsample_rates": [16, 16],
    "upsample_kernel_sizes": [32, 32],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
}


def tiny_tts_config(**fields: Any) -> TextToSpectrogramConfig:
    """Sizes of `TTS_SIZES`, with others where `fields` say so."""
    return TextToSpectrogramConfig(**{**TTS_SIZES, **fields})


def lively_weights(model: Any, scale: float = 0.3, seed: int = 0) -> Any:
    """Move every weight, and the statistics of batch normalisation, so that nothing is zero, one, or alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(scale * (noise.abs() if "running" in name else noise))
    return model


def tiny_synthesizer(scale: float = 0.3, seed: int = 0, **fields: Any) -> Any:
    """A random model in evaluation mode, with weights far enough from zero that every input is heard.

    Args:
        scale: of the noise that is added to the weights.
        seed: of the weights.
        fields: of `TextToSpectrogramConfig`.
    """
    torch.manual_seed(seed)
    return lively_weights(TextToSpectrogramModel(tiny_tts_config(**fields)), scale, seed).eval()


def repeatable_synthesizer(**fields: Any) -> Any:
    """The same without any dropout, that of the prenet included."""
    return tiny_synthesizer(**{**NO_DROPOUT, **fields})


def tiny_native_synthesizer(seed: int = 0, **fields: Any) -> Any:
    """A random `SpeechT5ForTextToSpeech` of the same sizes, in evaluation mode."""
    torch.manual_seed(seed)
    sizes = {**TTS_SIZES, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, **fields}
    return lively_weights(SpeechT5ForTextToSpeech(SpeechT5Config(**sizes)), seed=seed).eval()


def without_prenet_dropout(native: Any) -> Any:
    """The built-in class cannot switch it off: its p of 0 silences the prenet."""
    native.speecht5.decoder.prenet._consistent_dropout = lambda inputs_embeds, p: inputs_embeds
    return native


def tiny_hifigan(seed: int = 0, **fields: Any) -> Any:
    """A random vocoder for spectrograms of `TTS_MELS` bins, 256 samples a frame."""
    torch.manual_seed(seed)
    return lively_weights(SpeechT5HifiGan(SpeechT5HifiGanConfig(**{**HIFIGAN_SIZES, **fields})), 0.05).eval()


def tiny_tts_batch(sizes: Sequence[tuple[int, int]], seed: int = 0, mels: int = TTS_MELS) -> dict[str, torch.Tensor]:
    """A padded batch of rows of `sizes` (tokens, frames): input_ids, attention_mask, labels.

    A row is the same whichever batch it is in, as long as it comes at the same place.
    """
    rows = [torch.Generator().manual_seed(1000 * seed + index) for index in range(len(sizes))]
    texts = [
        torch.randint(3, TTS_VOCABULARY, (size[0],), generator=row) for size, row in zip(sizes, rows, strict=True)
    ]
    speech = [torch.randn(size[1], mels, generator=row) - 2 for size, row in zip(sizes, rows, strict=True)]
    input_ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
    lengths = torch.tensor([size[0] for size in sizes])
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
        "labels": nn.utils.rnn.pad_sequence(speech, batch_first=True, padding_value=-100.0),
    }


def row_alone(batch: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """One row of a batch, without its padding."""
    tokens = int(batch["attention_mask"][index].sum())
    frames = int((batch["labels"][index] != -100).any(dim=-1).sum())
    return {
        "input_ids": batch["input_ids"][index : index + 1, :tokens],
        "attention_mask": batch["attention_mask"][index : index + 1, :tokens],
        "labels": batch["labels"][index : index + 1, :frames],
    }
