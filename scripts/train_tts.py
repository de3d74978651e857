"""`speechgraft train-tts`: teach a text-to-speech model a voice, from nothing, a text encoder or a trained model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from transformers import TrainingArguments, set_seed

from .common import DONE, CommandError, explained, say
from .training_options import (
    DTYPE_OPTION,
    TRAINING_DEFAULTS,
    DataOptions,
    TrainingCommand,
    check_data_options,
    fields_to_set,
    load_data,
    train_and_evaluate,
)

DESCRIPTION = """\
Train a text-to-speech model on recordings with their texts: a new one (--size), one on a pretrained text encoder
(--encoder), or a trained one that goes on (--model), such as a SpeechT5 folder. Options come from the command line, or
from a YAML or JSON file named first, whose keys are the options' names; those on the command line win. A run that was
interrupted goes on from its last checkpoint when it is started again."""

EXAMPLES = """\
At every evaluation the model speaks one validation sentence: --output_dir/samples has its sound, and a picture of its
spectrogram and of its attention, whose line should become a diagonal.

exit status: 0 trained; 2 nothing was done (a wrong option, no such model or data); other: training failed.
Recordings that cannot be trained on are reported and left out.

examples:
  speechgraft train-tts --train recordings/train --validation recordings/validation --output_dir my-voice \\
      --num_train_epochs 200 --learning_rate 5e-4 --warmup_steps 2000 --eval_strategy epoch
  speechgraft train-tts --encoder google-bert/bert-base-uncased --train recordings --output_dir my-voice
  speechgraft train-tts --model microsoft/speecht5_tts --vocoder microsoft/speecht5_hifigan --train recordings \\
      --output_dir my-voice
  speechgraft train-tts my-training.yaml --learning_rate 1e-4"""

# Sizes of a new model, as fields of its configuration; `base` is SpeechT5's.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 128,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 512,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 512,
        "speech_decoder_prenet_units": 128,
        "speech_decoder_postnet_units": 128,
    },
    "small": {
        "hidden_size": 256,
        "encoder_layers": 4,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 1024,
        "decoder_layers": 4,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 1024,
    },
    "medium": {
        "hidden_size": 512,
        "encoder_layers": 6,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "decoder_layers": 6,
        "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048,
    },
    "base": {},
}
DEFAULT_SIZE = "small"


@dataclass
class ModelArguments:
    """Which model to train."""

    _argument_group_name = "model"

    size: str | None = field(
        default=None,
        metadata={
            "help": f"of a new model, or of the decoder behind --encoder: {', '.join(SIZES)} (SpeechT5's); by default"
            f" {DEFAULT_SIZE}, or a decoder as wide as the encoder",
            "choices": list(SIZES),
        },
    )
    encoder: str | None = field(
        default=None, metadata={"help": "text checkpoint to warm-start the text encoder from: folder or hub id"}
    )
    model: str | None = field(
        default=None, metadata={"help": "trained model to go on with: speechgraft's, or SpeechT5's text to speech"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "tokenizer; by default that of --encoder or --model, or for a new model one of the characters in"
            " the training texts"
        },
    )
    vocoder: str | None = field(
        default=None,
        metadata={
            "help": "trained HiFi-GAN to store in the model: folder or hub id; without one the model speaks by"
            " Griffin-Lim"
        },
    )
    language: str | None = field(
        default=None,
        metadata={"help": "of the texts, whose normaliser reads numbers and the like (default: en, or --model's own)"},
    )
    normalize: bool = field(
        default=True, metadata={"help": "read numbers and the like; no_normalize where the texts are words already"}
    )
    speaker: str | None = field(
        default=None,
        metadata={"help": "speaker embedding (.npy or .pt) of all clips; it becomes the model's default voice"},
    )
    set: list[str] = field(
        default_factory=list,
        metadata={
            "help": "fields of TextToSpectrogramConfig as NAME=VALUE, such as hidden_size=192 reduction_factor=1",
            "metavar": "NAME=VALUE",
        },
    )
    freeze: list[str] = field(
        default_factory=list, metadata={"help": "parts to leave as they are: encoder", "metavar": "PART"}
    )
    attn: str | None = field(
        default=None, metadata={"help": "attention kernels: eager, sdpa; by default the best that PyTorch has"}
    )
    dtype: str = field(default="float32", metadata=DTYPE_OPTION)


@dataclass
class DataArguments(DataOptions):
    """What to train on."""

    max_duration_s: float = field(default=20.0, metadata={"help": "leave out longer clips"})
    trim_silence_db: float | None = field(
        default=None,
        metadata={
            "help": "cut off at both ends of clips, all but 50 ms, what is quieter than the loudest moment by so many"
            " decibels, such as 40; by default clips stay as they are"
        },
    )
    speaker_column: str | None = field(
        default=None,
        metadata={
            "help": "column of speaker embeddings: numbers, or .npy or .pt files; their mean becomes the default voice"
        },
    )
    mel_cache: str | None = field(
        default=None,
        metadata={
            "help": "folder that keeps the spectrograms, for data larger than memory and for later runs; by default"
            " they are computed once and kept in memory"
        },
    )


COMMAND = TrainingCommand(
    "train-tts", (ModelArguments, DataArguments, TrainingArguments), DESCRIPTION, EXAMPLES, TRAINING_DEFAULTS
)


def parse(arguments: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Read the options; see `TrainingCommand.parse`."""
    return COMMAND.parse(arguments)


def check(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Find before anything is loaded what would fail after it.

    Raises:
        CommandError: options are missing or contradict each other.
    """
    if model.model is not None:
        for name in ("encoder", "size"):
            if getattr(model, name) is not None:
                raise CommandError(f"--model brings its own architecture: leave --{name} out")
    check_data_options(data, training)
    if data.streaming and model.model is None and model.encoder is None and model.tokenizer is None:
        raise CommandError("--streaming needs --tokenizer: its characters cannot be found before the texts are read")
    if data.trim_silence_db is not None and not data.trim_silence_db > 0:
        raise CommandError(f"--trim_silence_db must be above 0, got {data.trim_silence_db:g}")
    for name in ("speaker_column", "mel_cache", "trim_silence_db"):
        if data.streaming and getattr(data, name) is not None:
            raise CommandError(f"--{name} reads all clips before training: leave --streaming out")
    if model.speaker is not None and data.speaker_column is not None:
        raise CommandError("give --speaker, one voice of all clips, or --speaker_column, a voice of each, not both")
    if wrong := [part for part in model.freeze if part != "encoder"]:
        raise CommandError(f"--freeze {wrong[0]}: the part that can be frozen is encoder")


def build(options: ModelArguments, texts: Sequence[str] = (), speaker_width: int | None = None) -> tuple[Any, Any]:
    """The model, with parts frozen as asked, and its processor.

    Args:
        options: of the command line.
        texts: the training texts, whose characters a new model's tokenizer gets where none is named.
        speaker_width: values of a speaker embedding, where the data have them.

    Raises:
        CommandError: a folder, family or field is not what it should be.
    """
    make = _load if options.model is not None else _warm_start if options.encoder is not None else _new
    model, processor = make(options, texts, speaker_width)
    if options.language is not None:
        processor.language = options.language
        with explained("--language"):
            processor.spoken_text("a")
    if not options.normalize:
        processor.normalize = False
    if options.vocoder is not None:
        with explained(f"--vocoder {options.vocoder}"):
            model.set_vocoder(options.vocoder)
    if "encoder" in options.freeze:
        model.freeze_encoder()
    return model, processor


def _load(options: ModelArguments, texts: Sequence[str], speaker_width: int | None) -> tuple[Any, Any]:
    from .loading import load_synthesizer, load_synthesizer_processor

    source = cast(str, options.model)
    changes = _known_fields(options)
    model = load_synthesizer(source, options.dtype, options.attn, device="cpu", **changes)
    return model, load_synthesizer_processor(options.tokenizer or source, model, "--tokenizer")


def _warm_start(options: ModelArguments, texts: Sequence[str], speaker_width: int | None) -> tuple[Any, Any]:
    from ..modeling.modeling_text_to_spectrogram import TextToSpectrogramModel
    from ..processing.processing_text_to_spectrogram import TextToSpectrogramProcessor

    encoder = cast(str, options.encoder)
    sizes = SIZES[options.size] if options.size is not None else {}
    chosen = {name: value for name, value in sizes.items() if not name.startswith("encoder_")}
    chosen |= {"speaker_embedding_dim": speaker_width or 0, **fields_to_set(options.set)}
    attention = {} if options.attn is None else {"attn_implementation": options.attn}
    with explained():
        model = TextToSpectrogramModel.from_text_encoder_pretrained(
            encoder, dtype=options.dtype, **attention, **chosen
        )
    tokenizer = options.tokenizer or encoder
    with explained(f"tokenizer of {tokenizer}"):
        return model, TextToSpectrogramProcessor.from_parts(tokenizer, config=model.config)


def _new(options: ModelArguments, texts: Sequence[str], speaker_width: int | None) -> tuple[Any, Any]:
    import torch

    from ..configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
    from ..modeling.modeling_text_to_spectrogram import TextToSpectrogramModel
    from ..processing.processing_text_to_spectrogram import TextToSpectrogramProcessor

    tokenizer = options.tokenizer or _character_tokenizer(options, texts)
    with explained(f"tokenizer of {options.tokenizer}" if options.tokenizer else ""):
        processor = TextToSpectrogramProcessor.from_parts(tokenizer)
    ids = {name: getattr(processor.tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    chosen = SIZES[options.size or DEFAULT_SIZE] | {
        "vocab_size": len(processor.tokenizer),
        "speaker_embedding_dim": speaker_width or 0,
        **ids,
        **_known_fields(options),
    }
    with explained():
        config = TextToSpectrogramConfig(**cast(Any, chosen))
        if options.attn is not None:
            cast(Any, config)._attn_implementation = options.attn
        model = TextToSpectrogramModel(config).to(getattr(torch, options.dtype))
        return model, TextToSpectrogramProcessor.from_parts(processor.tokenizer, config=config)


def _character_tokenizer(options: ModelArguments, texts: Sequence[str]) -> Any:
    from ..processing.text_front_end import get_text_normalizer, train_character_tokenizer

    with explained("--language"):
        normalizer = get_text_normalizer(options.language or "en")
    with explained("--train"):
        return train_character_tokenizer(map(normalizer, texts) if options.normalize else texts)


def _known_fields(options: ModelArguments) -> dict[str, Any]:
    from ..configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig

    known = {one.name for one in fields(TextToSpectrogramConfig)} - {"encoder", "vocoder"}
    return fields_to_set(options.set, known, "TextToSpectrogramConfig")


def read_clips(
    source: str | None, dataset: Any, options: DataArguments, processor: Any, model: Any, speakers: Any, tell: bool
) -> Any:
    """A data set as token ids and spectrograms, without the clips that cannot be used, which are reported.

    Raises:
        CommandError: nothing in it can be used.
    """
    from ..processing.collation_text_to_spectrogram import TextToSpectrogramCollator
    from ..processing.spectrogram_datasets import ClipLimits, read_spectrogram_clips
    from ..processing.speech_datasets import drop_unusable

    if dataset is None:
        return None
    with explained():
        collator = TextToSpectrogramCollator(processor, config=model.config)
    with explained(str(source)):
        if options.streaming:
            return drop_unusable(
                dataset,
                min_duration_s=options.min_duration_s,
                max_duration_s=options.max_duration_s,
                max_label_length=collator.max_text_tokens or sys.maxsize,
                count_tokens=lambda text: len(processor.token_ids(text)),
            )[0]
        limits = ClipLimits(
            options.min_duration_s, options.max_duration_s, collator.max_text_tokens, collator.max_frames
        )
        clips, report = read_spectrogram_clips(
            dataset, processor, limits, speakers, options.mel_cache, tell, options.trim_silence_db
        )
    if len(clips) == 0:
        raise CommandError(f"{source}: no clip can be used: {report.summary()}")
    return clips


def train_voice(
    model_options: ModelArguments, data_options: DataArguments, training: TrainingArguments
) -> dict[str, float]:
    """Train, save model and processor to `training.output_dir`, draw the loss and what the model says.

    Returns:
        Metrics of the final evaluation, where there is validation data.
    """
    from ..modeling.trainer_text_to_spectrogram import TextToSpectrogramTrainer
    from ..processing.collation_text_to_spectrogram import TextToSpectrogramCollator
    from .loading import check_is_model
    from .speakers import check_speakers, speakers_of
    from .synthesis_samples import SampleCallback

    check(model_options, data_options, training)
    for source in filter(None, (model_options.model, model_options.encoder, model_options.vocoder)):
        check_is_model(source)
    train, validation = load_data(data_options)
    voices = (model_options.speaker, data_options.speaker_column)
    speakers = speakers_of(train, data_options.train, *voices)
    set_seed(training.seed)  # of new weights
    reads = not data_options.streaming
    texts = [text for text in train["text"] if text] if reads else ()
    model, processor = build(model_options, texts, None if speakers is None else speakers.width)
    if speakers is not None:
        check_speakers(model, speakers)
    of_validation = speakers_of(validation, data_options.validation, *voices)
    rest = (data_options, processor, model)
    is_main = training.process_index == 0
    train_clips = read_clips(data_options.train, train, *rest, speakers, is_main)
    validation_clips = read_clips(data_options.validation, validation, *rest, of_validation, is_main)
    if speakers is not None:
        set_default_voice(model, train_clips)
    with explained():
        collator = TextToSpectrogramCollator(processor, config=model.config)
    trainer = TextToSpectrogramTrainer(
        model=model,
        args=training,
        train_dataset=train_clips,
        eval_dataset=validation_clips,
        data_collator=collator,
        processing_class=processor,
    )
    spoken = validation_clips if validation_clips is not None else train_clips
    if reads:
        trainer.add_callback(SampleCallback(spoken, processor, Path(str(training.output_dir)) / "samples"))
    return train_and_evaluate(trainer, data_options.start_over)


def set_default_voice(model: Any, clips: Any) -> None:
    """Store the mean of the voices, which speaks where none is given."""
    import numpy as np
    import torch

    unit = [voice / np.linalg.norm(voice) for voice in clips.speakers]
    with explained("speaker embeddings"):
        model.set_default_speaker(torch.from_numpy(np.mean(unit, axis=0)))


def main(arguments: list[str]) -> int:
    """Train, evaluate, save; say where the model lies."""
    model, data, training = parse(arguments)
    result = train_voice(model, data, training)
    if training.process_index == 0:
        losses = f", validation loss {result['eval_loss']:.4f}" if "eval_loss" in result else ""
        say(f"model saved to {training.output_dir}{losses}")
    return DONE


if __name__ == "__main__":
    from .cli import main as speechgraft

    sys.exit(speechgraft(["train-tts", *sys.argv[1:]]))
