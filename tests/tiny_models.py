"""Tiny random models of every family in the tables, with the inputs they read, alone or as checkpoint folders.

config = tiny_config("whisper", "gpt2", ctc_weight=0.3)
model = tiny_model("wav2vec2", "bert")                  # in evaluation mode
model(**audio("wav2vec2", 9600, 16000), labels=labels(3, 5))
native = save_encoder(folder, "whisper")                # a full WhisperForConditionalGeneration
save_decoder(folder, "bart", tokenizer=True)            # a full BartForConditionalGeneration
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tiny_tokenizers import tiny_tokenizer
from torch import nn
from transformers.pytorch_utils import Conv1D

from speechgraft.configuration.configuration_speech_seq2seq import SpeechSeq2SeqConfig
from speechgraft.modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
from speechgraft.modeling.speech_encoders import SPEECH_ENCODER_FAMILIES
from speechgraft.modeling.text_decoders import TEXT_DECODER_FAMILIES

VOCABULARY = 20  # tokens; more than any of the tiny tokenizers has
WIDTH = 16  # hidden units of the encoders, and of Whisper's decoder
TEXT_WIDTH = 12  # hidden units of the other decoders
MELS = 8  # mel bins
SAMPLES_PER_FRAME = 160  # 10 ms at 16 kHz

CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (4,) * 7,
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),  # 20 ms to a frame, as in the real models
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
}
LAYERS: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": VOCABULARY,
}
WAV2VEC2: dict[str, Any] = {**LAYERS, **CONVOLUTIONS, "num_conv_pos_embeddings": 6, "num_conv_pos_embedding_groups": 2}
CONFORMER: dict[str, Any] = {"conv_depthwise_kernel_size": 5, "max_source_positions": 200}
HALVES: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": VOCABULARY,
}
LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPER: dict[str, Any] = {"num_mel_bins": MELS, "max_source_positions": 60, "max_target_positions": 32}
WHISPER_IDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 1}


def _parakeet(wrapper: type, **options: Any) -> Any:
    encoder = hf.ParakeetEncoderConfig(
        **{name: value for name, value in LAYERS.items() if name != "vocab_size"},
        num_mel_bins=MELS,
        subsampling_conv_channels=4,
        conv_kernel_size=5,
        max_position_embeddings=200,
    )
    return wrapper(encoder_config=encoder, **options)


# name: (configuration, class of the full checkpoint that people have)
ENCODERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "wav2vec2": (lambda: hf.Wav2Vec2Config(**WAV2VEC2), hf.Wav2Vec2ForCTC),
    "wav2vec2-layer": (lambda: hf.Wav2Vec2Config(**WAV2VEC2, **LAYER_NORM), hf.Wav2Vec2ForCTC),
    "wav2vec2-conformer": (
        lambda: hf.Wav2Vec2ConformerConfig(**WAV2VEC2, **CONFORMER, feat_extract_norm="layer"),
        hf.Wav2Vec2ConformerForCTC,
    ),
    "wav2vec2-bert": (
        lambda: hf.Wav2Vec2BertConfig(**LAYERS, **CONFORMER, feature_projection_input_dim=2 * MELS),
        hf.Wav2Vec2BertForCTC,
    ),
    "hubert": (lambda: hf.HubertConfig(**WAV2VEC2), hf.HubertForCTC),
    "hubert-layer": (lambda: hf.HubertConfig(**WAV2VEC2, **LAYER_NORM), hf.HubertForCTC),
    "wavlm": (lambda: hf.WavLMConfig(**WAV2VEC2, num_buckets=16, max_bucket_distance=32), hf.WavLMForCTC),
    "wavlm-layer": (
        lambda: hf.WavLMConfig(**WAV2VEC2, **LAYER_NORM, num_buckets=16, max_bucket_distance=32),
        hf.WavLMForCTC,
    ),
    "data2vec-audio": (
        lambda: hf.Data2VecAudioConfig(
            **{**WAV2VEC2, "num_conv_pos_embeddings": 2}, conv_pos_kernel_size=5, conv_bias=True
        ),
        hf.Data2VecAudioForCTC,
    ),
    "unispeech": (lambda: hf.UniSpeechConfig(**WAV2VEC2), hf.UniSpeechForCTC),
    "unispeech-layer": (lambda: hf.UniSpeechConfig(**WAV2VEC2, **LAYER_NORM), hf.UniSpeechForCTC),
    "unispeech-sat": (lambda: hf.UniSpeechSatConfig(**WAV2VEC2), hf.UniSpeechSatForCTC),
    "unispeech-sat-layer": (lambda: hf.UniSpeechSatConfig(**WAV2VEC2, **LAYER_NORM), hf.UniSpeechSatForCTC),
    "sew": (lambda: hf.SEWConfig(**WAV2VEC2), hf.SEWForCTC),
    "sew-d": (
        lambda: hf.SEWDConfig(**WAV2VEC2, max_position_embeddings=100, position_buckets=16),
        hf.SEWDForCTC,
    ),
    "whisper": (
        lambda: hf.WhisperConfig(**HALVES, **WHISPER, **WHISPER_IDS, suppress_tokens=None, begin_suppress_tokens=None),
        hf.WhisperForConditionalGeneration,
    ),
    "speech_to_text": (
        lambda: hf.Speech2TextConfig(
            **HALVES, input_feat_per_channel=MELS, conv_channels=8, max_source_positions=200, max_target_positions=32
        ),
        hf.Speech2TextForConditionalGeneration,
    ),
    "moonshine": (
        lambda: hf.MoonshineConfig(
            hidden_size=WIDTH,
            intermediate_size=24,
            encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=200,
        ),
        hf.MoonshineForConditionalGeneration,
    ),
    "parakeet": (
        lambda: _parakeet(hf.ParakeetCTCConfig, vocab_size=VOCABULARY, pad_token_id=VOCABULARY - 1),
        hf.ParakeetForCTC,
    ),
}

BERT: dict[str, Any] = {**LAYERS, "hidden_size": TEXT_WIDTH, "max_position_embeddings": 40}
BART: dict[str, Any] = {**HALVES, "d_model": TEXT_WIDTH, "max_position_embeddings": 40, "forced_eos_token_id": None}

# name: (configuration, class of the full checkpoint that people have)
DECODERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "bert": (lambda: hf.BertConfig(**BERT, pad_token_id=0), hf.BertForMaskedLM),
    "roberta": (
        lambda: hf.RobertaConfig(**BERT, bos_token_id=0, pad_token_id=1, eos_token_id=2),
        hf.RobertaForMaskedLM,
    ),
    "xlm-roberta": (
        lambda: hf.XLMRobertaConfig(**BERT, bos_token_id=0, pad_token_id=1, eos_token_id=2),
        hf.XLMRobertaForMaskedLM,
    ),
    "gpt2": (
        lambda: hf.GPT2Config(
            n_embd=TEXT_WIDTH,
            n_layer=2,
            n_head=2,
            n_positions=40,
            vocab_size=VOCABULARY,
            bos_token_id=0,
            eos_token_id=0,
        ),
        hf.GPT2LMHeadModel,
    ),
    "bart": (lambda: hf.BartConfig(**BART), hf.BartForConditionalGeneration),
    "mbart": (lambda: hf.MBartConfig(**BART), hf.MBartForConditionalGeneration),
    "marian": (
        lambda: hf.MarianConfig(**BART, eos_token_id=0, pad_token_id=2, decoder_start_token_id=2),
        hf.MarianMTModel,
    ),
    "pegasus": (
        lambda: hf.PegasusConfig(**BART, pad_token_id=0, eos_token_id=1),
        hf.PegasusForConditionalGeneration,
    ),
    "m2m_100": (
        lambda: hf.M2M100Config(**{**HALVES, "d_model": TEXT_WIDTH}, max_position_embeddings=40),
        hf.M2M100ForConditionalGeneration,
    ),
    "whisper": ENCODERS["whisper"],
    "xglm": (
        lambda: hf.XGLMConfig(
            d_model=TEXT_WIDTH,
            ffn_dim=24,
            num_layers=2,
            attention_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=40,
        ),
        hf.XGLMForCausalLM,
    ),
    "trocr": (
        lambda: hf.TrOCRConfig(
            d_model=TEXT_WIDTH,
            decoder_layers=2,
            decoder_attention_heads=2,
            decoder_ffn_dim=24,
            vocab_size=VOCABULARY,
            max_position_embeddings=40,
            cross_attention_hidden_size=WIDTH,  # it alone reads states of another width, so there is no projection
        ),
        hf.TrOCRForCausalLM,
    ),
}
# Decoders whose special tokens one of the tiny tokenizers has, at the ids that the configuration gives.
TOKENIZER_OF = {
    "bert": "bert",
    "roberta": "bart",
    "xlm-roberta": "bart",
    "gpt2": "gpt2",
    "bart": "bart",
    "mbart": "mbart",
    "marian": "marian",
    "m2m_100": "mbart",
    "whisper": "whisper",
    "xglm": "bart",
    "trocr": "bart",
}
BERT_IDS = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}  # [CLS], [SEP], [PAD]


def encoder_config(name: str, **fields: Any) -> Any:
    """Configuration of a tiny encoder, with fields edited."""
    config = ENCODERS[name][0]()
    return _edit(getattr(config, "encoder_config", config), fields)


def decoder_config(name: str, **fields: Any) -> Any:
    """Configuration of a tiny decoder, with fields edited."""
    return _edit(DECODERS[name][0](), fields)


def _edit(config: Any, fields: dict[str, Any]) -> Any:
    for name, value in fields.items():
        assert hasattr(config, name), f"{type(config).__name__} has no {name}"
        setattr(config, name, value)
    return config


def tiny_config(encoder: Any = "wav2vec2", decoder: Any = "bert", **fields: Any) -> SpeechSeq2SeqConfig:
    """A configuration with all token ids set.

    Args:
        encoder: a name of `ENCODERS`, or a ready configuration.
        decoder: a name of `DECODERS`, or a ready configuration.
        fields: of `SpeechSeq2SeqConfig`, token ids included.
    """
    ids = {name: fields.pop(name) for name in BERT_IDS if name in fields}
    encoder = encoder_config(encoder) if isinstance(encoder, str) else encoder
    decoder = decoder_config(decoder) if isinstance(decoder, str) else decoder
    if decoder.model_type == "bert":
        ids = BERT_IDS | ids
    config = SpeechSeq2SeqConfig(encoder=encoder, decoder=decoder, **fields)
    defaults = {"decoder_start_token_id": config.bos_token_id, "pad_token_id": config.eos_token_id}
    for name, value in ids.items():
        setattr(config, name, value)
    for name, value in defaults.items():
        if getattr(config, name) is None:
            setattr(config, name, value)
    return config


def tiny_model(
    encoder: Any = "wav2vec2", decoder: Any = "bert", seed: int = 0, scale: float = 5.0, **fields: Any
) -> Any:
    """A model with random weights, in evaluation mode.

    Args:
        encoder: see `tiny_config`.
        decoder: see `tiny_config`.
        seed: of the weights.
        scale: by which linear weights exceed the usual initial ones, so that what is wrong changes the output by more
            than rounding; 1 for the usual.
        fields: of `SpeechSeq2SeqConfig`.
    """
    torch.manual_seed(seed)
    return randomize(SpeechSeq2SeqModel(tiny_config(encoder, decoder, **fields)), scale).eval()


def randomize(model: Any, scale: float = 5.0) -> Any:
    """Scale linear weights, let the signal through convolutions, draw biases: what is lost or ignored is noticed."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, Conv1D)):  # GPT-2's linear layers bear the latter name
                module.weight.mul_(scale)
            elif isinstance(module, (nn.Conv1d, nn.Conv2d)) and "weight" in module._parameters:
                nn.init.kaiming_normal_(module.weight)
            for name, parameter in module.named_parameters(recurse=False):
                if "bias" in name:
                    parameter.normal_(std=0.1)
    return model


def family_name(encoder: str) -> str:
    """The encoder's row in the table: "wav2vec2" for "wav2vec2-layer"."""
    return encoder_config(encoder).model_type


def input_name(encoder: str) -> str:
    """`input_values` or `input_features`."""
    return next(row.input_name for row in SPEECH_ENCODER_FAMILIES if family_name(encoder) in row.model_types)


def fits_window(encoder: str, samples: int) -> int:
    """Feature frames of a clip, which fill the window where the encoder has one."""
    if family_name(encoder) == "whisper":
        return 2 * WHISPER["max_source_positions"]
    return max(samples // SAMPLES_PER_FRAME, 1)


def audio(encoder: str, *samples: int, mask: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of noise as the encoder reads it, zero in the padding.

    Args:
        encoder: a name of `ENCODERS`.
        samples: length of each clip at 16 kHz; feature encoders get a frame for each 160.
        mask: add `attention_mask`, over samples or feature frames.
        seed: of the noise. A clip's values depend on its place in the batch, not on its neighbours' lengths.
    """
    waveform = input_name(encoder) == "input_values"
    lengths = torch.tensor([count if waveform else max(count // SAMPLES_PER_FRAME, 1) for count in samples])
    size = int(lengths.max())
    if family_name(encoder) == "whisper":
        size = fits_window(encoder, size)
    shape = () if waveform else (_bins(encoder),)
    clips = [
        torch.randn(20_000 if waveform else 200, *shape, generator=_generator(seed, row))
        for row in range(len(lengths))
    ]
    batch = torch.stack([clip[:size] for clip in clips])  # [B, N] or [B, N, M]
    real = torch.arange(size) < lengths[:, None]
    batch = batch * real.view(*real.shape, *[1] * len(shape))
    if family_name(encoder) == "whisper":
        batch = batch.transpose(1, 2)
    inputs = {input_name(encoder): batch.contiguous()}
    return inputs | {"attention_mask": real.long()} if mask else inputs


def _generator(seed: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + row)


def _bins(encoder: str) -> int:
    return 2 * MELS if encoder == "wav2vec2-bert" else MELS


def labels(*lengths: int, end: int | None = None, seed: int = 0) -> torch.Tensor:
    """Random transcripts [B, S], padded with -100; token ids from 6 stand for words in every tiny tokenizer.

    Args:
        lengths: tokens of each transcript, the end token included.
        end: id that each transcript ends with, usually `config.eos_token_id`; None leaves it out.
        seed: of the tokens.
    """
    rows = torch.full((len(lengths), max(lengths)), -100)
    for row, length in enumerate(lengths):
        rows[row, :length] = torch.randint(6, VOCABULARY - 4, (length,), generator=_generator(seed, row))
        if end is not None:
            rows[row, length - 1] = end
    return rows


def save_encoder(folder: Path, name: str, seed: int = 0, **fields: Any) -> Any:
    """Save a full speech checkpoint of the family, with the heads that people's have; returns the native model."""
    torch.manual_seed(seed)
    make, model_class = ENCODERS[name]
    config = make()
    _edit(getattr(config, "encoder_config", config), fields)
    return _save(folder, model_class(config))


def save_decoder(folder: Path, name: str, seed: int = 0, tokenizer: bool = False, **fields: Any) -> Any:
    """Save a full text checkpoint of the family, with its tokenizer if asked; returns the native model."""
    torch.manual_seed(seed)
    make, model_class = DECODERS[name]
    model = _save(folder, model_class(_edit(make(), fields)))
    if tokenizer:
        tiny_tokenizer(TOKENIZER_OF[name]).save_pretrained(folder)
    return model


def _save(folder: Path, model: Any) -> Any:
    randomize(model).eval().save_pretrained(folder)
    return model


def every_encoder_type() -> set[str]:
    """Model types of the encoder table."""
    return {model_type for row in SPEECH_ENCODER_FAMILIES for model_type in row.model_types}


def every_decoder_type() -> set[str]:
    """Model types of the decoder table."""
    return {model_type for row in TEXT_DECODER_FAMILIES for model_type in row.model_types}
