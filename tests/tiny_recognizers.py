"""Folders that the commands work on: tiny models with their processors, and recordings, good and bad.

model = save_recognizer(tmp_path / "model")
clips = save_clips(tmp_path / "clips", 3)                 # an audio folder with metadata.csv
bad = save_bad_clips(tmp_path / "bad")                    # {"NaN samples": path, ...}
"""

from pathlib import Path

import numpy as np
import soundfile
import torch
from tiny_models import MELS, encoder_config, randomize, tiny_model
from tiny_tokenizers import tiny_tokenizer
from transformers import (
    BertConfig,
    SpeechEncoderDecoderConfig,
    SpeechEncoderDecoderModel,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from speechgraft.processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor

RATE = 16_000  # Hz
SCALE, SEED = 20, 1  # with these weights every recording gets another text
WINDOW_S = 1  # of the tiny Whisper encoder
TRANSCRIPTS = ["hello world", "the cat sat", "one two three", "a b c d", "the world", "one cat"]


def save_recognizer(folder: Path, encoder: str = "wav2vec2-layer", **fields) -> Path:
    """A random model with a BERT decoder and its processor; with "whisper", its window is one second."""
    if encoder == "whisper":
        extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=WINDOW_S)
        model = tiny_model(
            encoder_config("whisper", max_source_positions=50 * WINDOW_S), scale=SCALE, seed=SEED, **fields
        )
    else:
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
        model = tiny_model(encoder, scale=SCALE, seed=SEED, **fields)
    model.save_pretrained(folder)
    SpeechSeq2SeqProcessor.from_parts(extractor, tiny_tokenizer("bert"), config=model.config).save_pretrained(folder)
    return folder


def save_native(folder: Path, width: int = 12, with_processor: bool = True) -> Path:
    """A random SpeechEncoderDecoderModel, with a projection where `width`, of its decoder, is not 16."""
    decoder = BertConfig(
        vocab_size=20, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder_config("wav2vec2-layer"), decoder)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 2, 3, 0
    torch.manual_seed(SEED)
    randomize(SpeechEncoderDecoderModel(config), SCALE).save_pretrained(folder)
    if with_processor:
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
        tiny_tokenizer("bert").save_pretrained(folder)
    return folder


def noise(duration_s: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """White noise, float32 [samples]."""
    return 0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * rate)).astype(np.float32)


def save_clips(folder: Path, count: int = 3) -> Path:
    """An audio folder: clips of different lengths, with transcripts in metadata.csv."""
    folder.mkdir(parents=True)
    lines = ["file_name,text"]
    for index in range(count):
        soundfile.write(folder / f"clip{index}.wav", noise(0.3 + 0.1 * index, index), RATE)
        lines.append(f"clip{index}.wav,{TRANSCRIPTS[index % len(TRANSCRIPTS)]}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def save_odd_clips(folder: Path) -> dict[str, Path]:
    """Recordings that are unusual, and must be transcribed."""
    folder.mkdir(parents=True)
    soundfile.write(folder / "stereo.flac", np.stack([noise(0.4, 1), noise(0.4, 2)], axis=1), RATE)
    soundfile.write(folder / "8khz.ogg", noise(0.4, 3, 8000), 8000)
    soundfile.write(folder / "10ms.wav", noise(0.01, 4), RATE)
    soundfile.write(folder / "silence.wav", np.zeros(RATE // 2, np.float32), RATE)
    return {path.stem: path for path in sorted(folder.iterdir())}


def save_bad_clips(folder: Path) -> dict[str, Path]:
    """Recordings that cannot be transcribed, each under what its message says."""
    folder.mkdir(parents=True)
    (folder / "no-bytes.wav").touch()
    soundfile.write(folder / "no-samples.wav", np.zeros(0, np.float32), RATE)
    (folder / "broken.flac").write_bytes(b"fLaC, or not")
    samples = noise(0.4)
    samples[100:103] = np.nan
    soundfile.write(folder / "nan.wav", samples, RATE, subtype="FLOAT")
    soundfile.write(folder / "hour.wav", np.zeros(3600 * 1000, np.float32), 1000, subtype="PCM_U8")
    return {
        "empty file (0 bytes)": folder / "no-bytes.wav",
        "empty audio (0 samples)": folder / "no-samples.wav",
        "cannot be decoded": folder / "broken.flac",
        "3 of 6400 samples are NaN": folder / "nan.wav",
        "3600.0 s long": folder / "hour.wav",
        "no such file": folder / "missing.wav",
    }
