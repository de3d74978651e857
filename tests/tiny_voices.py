"""Folders that the text-to-speech commands work on: tiny models with their processors, vocoders, voices.

model = save_synthesizer(tmp_path / "model")                # of one voice; speaker_embedding_dim=6 for several
vocoder = save_vocoder(tmp_path / "vocoder")
"""

import string
from pathlib import Path
from typing import Any

import numpy as np
from tiny_speech_synthesizers import TTS_MELS, TTS_SIZES, tiny_hifigan, tiny_native_synthesizer, tiny_synthesizer
from transformers import BertConfig, BertModel

from speechgraft import TextToSpectrogramProcessor, train_character_tokenizer

LETTERS = string.ascii_lowercase + " ,.?!'-"
# Options of `train-tts` for a model of this size.
TINY = [
    f"{name}={value}"
    for name, value in TTS_SIZES.items()
    if name not in ("vocab_size", "speaker_embedding_dim", "max_text_positions")
]


def letters_tokenizer() -> Any:
    """Of small letters and marks; 0 to 2 are padding, unknown and end."""
    return train_character_tokenizer([LETTERS])


def save_synthesizer(folder: Path, seed: int = 0, vocoder: bool = True, **fields: Any) -> Path:
    """A random model with its processor, and its vocoder: of such spectrograms Griffin-Lim makes chaos."""
    tokenizer = letters_tokenizer()
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    model = tiny_synthesizer(seed=seed, **{**ids, "speaker_embedding_dim": 0, **fields})
    if vocoder:
        model.set_vocoder(tiny_hifigan(model_in_dim=TTS_MELS))
    model.save_pretrained(folder)
    TextToSpectrogramProcessor.from_parts(tokenizer, config=model.config).save_pretrained(folder)
    return folder


def save_native_synthesizer(folder: Path, with_tokenizer: bool = True) -> Path:
    """A random `SpeechT5ForTextToSpeech`, and a tokenizer."""
    tokenizer = letters_tokenizer()
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2}
    tiny_native_synthesizer(**ids).save_pretrained(folder)
    if with_tokenizer:
        tokenizer.save_pretrained(folder)
    return folder


def save_text_encoder(folder: Path) -> Path:
    """A random BERT whose tokens are characters."""
    tokenizer = letters_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=0, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_vocoder(folder: Path, **fields: Any) -> Path:
    """A random HiFi-GAN for the spectrograms of these models."""
    tiny_hifigan(**{"model_in_dim": TTS_MELS, **fields}).save_pretrained(folder)
    return folder


def save_voice(file: Path, width: int = 6, seed: int = 0) -> Path:
    """A random speaker embedding."""
    np.save(file, np.random.default_rng(seed).normal(size=width).astype(np.float32))
    return file
