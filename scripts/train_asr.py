"""`speechgraft train-asr`: fine-tune a speech-to-text model, warm-started or loaded."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from .common import CommandError, say


@dataclass
class ModelArguments:
    """Which model to train."""

    encoder: str | None = field(default=None, metadata={"help": "speech checkpoint to warm-start from: folder or hub id"})
    decoder: str | None = field(
        default=None,
        metadata={"help": "text checkpoint to warm-start from; leave out to take both halves of --encoder (Whisper)"},
    )
    model: str | None = field(default=None, metadata={"help": "trained model to go on from, instead of two parts"})
    cold: bool = field(default=False, metadata={"help": "same architecture with random weights, as a baseline"})
    tokenizer: str | None = field(default=None, metadata={"help": "tokenizer; by default the decoder's"})
    feature_extractor: str | None = field(
        default=None, metadata={"help": "feature extractor; by default the encoder's"}
    )
    set: list[str] = field(
        default_factory=list,
        metadata={"help": "fields of SpeechSeq2SeqConfig as NAME=VALUE, such as ctc_weight=0.3 mask_time_prob=0.05"},
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={"help": "parts to leave as they are: feature-encoder, encoder, decoder (all but its cross-attention)"},
    )


@dataclass
class DataArguments:
    """What to train on."""

    train: str | None = field(
        default=None, metadata={"help": "audio folder, CSV/TSV/JSONL manifest, or data set id to train on"}
    )
    validation: str | None = field(default=None, metadata={"help": "the same, to evaluate on"})
    train_split: str | None = field(default=None, metadata={"help": "split of --train, such as train[:10%%]"})
    validation_split: str | None = field(default=None, metadata={"help": "split of --validation"})
    dataset_name: str | None = field(default=None, metadata={"help": "configuration of a data set, such as its language"})
    audio_column: str | None = field(default=None, metadata={"help": "column of the recordings; by default the usual names"})
    text_column: str | None = field(default=None, metadata={"help": "column of the transcripts"})
    streaming: bool = field(default=False, metadata={"help": "read the data as training goes on (needs --max_steps)"})
    min_duration_s: float = field(default=0.0, metadata={"help": "skip shorter clips"})
    max_duration_s: float = field(default=30.0, metadata={"help": "skip longer clips"})
    normalizer: str = field(default="basic", metadata={"help": "of texts before counting errors: basic, english, none"})


def parser() -> HfArgumentParser:
    """The command's options: the model's, the data's, and everything that Transformers' Trainer knows."""
    return HfArgumentParser(
        [ModelArguments, DataArguments, Seq2SeqTrainingArguments],  # type: ignore[arg-type]
        prog="speechgraft train-asr",
        description="Fine-tune a speech-to-text model. Options come from the command line, or all from one YAML or JSON "
        "file: speechgraft train-asr config.yaml",
    )


def parse(arguments: list[str]) -> tuple[ModelArguments, DataArguments, Seq2SeqTrainingArguments]:
    """Read the options from the command line or from the one file that it names.

    Raises:
        CommandError: the file is missing, or has a key that no option knows.
    """
    options = parser()
    if len(arguments) == 1 and arguments[0].endswith((".yaml", ".yml", ".json")):
        path = Path(arguments[0])
        if not path.exists():
            raise CommandError(f"{path}: no such file")
        read = options.parse_json_file if path.suffix == ".json" else options.parse_yaml_file
        try:
            return read(path)  # type: ignore[return-value]
        except ValueError as error:
            raise CommandError(f"{path}: {error}") from None
    return options.parse_args_into_dataclasses(arguments)  # type: ignore[return-value]


def build(options: ModelArguments) -> tuple[Any, Any]:
    """The model, with parts frozen as asked, and its processor.

    Raises:
        CommandError: neither parts nor a model were named, or a part cannot be frozen.
    """
    from ..modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
    from ..processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor

    if (options.model is None) == (options.encoder is None):
        raise CommandError("give --encoder (and --decoder) to warm-start, or --model to go on training")
    fields = _fields(options.set)
    if options.model is not None:
        model = SpeechSeq2SeqModel.from_pretrained(options.model, **fields)
        processor = SpeechSeq2SeqProcessor.from_pretrained(options.model)
    else:
        tokenizer = options.tokenizer or options.decoder or options.encoder
        model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(
            options.encoder, options.decoder, tokenizer=tokenizer, **fields
        )
        if options.cold:
            generation = model.generation_config
            model = SpeechSeq2SeqModel(model.config)
            model.generation_config = generation
        processor = SpeechSeq2SeqProcessor.from_parts(
            options.feature_extractor or options.encoder, tokenizer, config=model.config
        )
    freezers = {
        "feature-encoder": model.freeze_feature_encoder,
        "encoder": model.freeze_encoder,
        "decoder": model.freeze_decoder,
    }
    for part in options.freeze:
        if part not in freezers:
            raise CommandError(f"--freeze {part}: the parts are {', '.join(freezers)}")
        freezers[part]()
    return model, processor


def _fields(assignments: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, the values read as YAML: 0.3, true, [1, 2], text."""
    import yaml

    fields = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise CommandError(f"--set {assignment}: write NAME=VALUE")
        fields[name] = yaml.safe_load(value)
    return fields


def load_data(options: DataArguments, processor: Any, model: Any) -> tuple[Any, Any]:
    """Training and validation data, without the clips that cannot be used, which are reported.

    Raises:
        CommandError: no training data was named.
    """
    from ..processing.speech_datasets import drop_unusable, load_speech_dataset

    def load(source: str | None, split: str | None) -> Any:
        if source is None:
            return None
        dataset = load_speech_dataset(
            source,
            split,
            name=options.dataset_name,
            audio_column=options.audio_column,
            text_column=options.text_column,
            streaming=options.streaming,
            strict=False,
        )
        limit = model.family.max_length(model.config.decoder)
        usable, _ = drop_unusable(
            dataset,
            min_duration_s=options.min_duration_s,
            max_duration_s=options.max_duration_s,
            max_label_length=limit,
            count_tokens=lambda text: len(processor.label_ids(text)),
        )
        return usable

    if options.train is None:
        raise CommandError("--train: name an audio folder, a manifest or a data set")
    return load(options.train, options.train_split), load(options.validation, options.validation_split)


def fine_tune(
    model_options: ModelArguments, data_options: DataArguments, training: Seq2SeqTrainingArguments
) -> dict[str, float]:
    """Train, save model and processor to `training.output_dir`, and draw the loss.

    A checkpoint in `output_dir` is gone on from, unless `overwrite_output_dir` forgets it.

    Returns:
        Metrics of the final evaluation: `wer` and `cer` as fractions where there is validation data.
    """
    from ..modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer
    from ..processing.collation_speech_seq2seq import SpeechSeq2SeqCollator
    from ..processing.speech_metrics import make_compute_metrics

    training.remove_unused_columns = False
    model, processor = build(model_options)
    train, validation = load_data(data_options, processor, model)
    trainer = SpeechSeq2SeqTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=SpeechSeq2SeqCollator(processor, model.config),
        processing_class=processor,
        compute_metrics=make_compute_metrics(processor, data_options.normalizer)
        if training.predict_with_generate
        else None,
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(training))
    trainer.save_model()
    metrics = trainer.evaluate() if validation is not None else {}
    trainer.save_state()
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name in ("eval_wer", "eval_cer")}


def _last_checkpoint(training: Seq2SeqTrainingArguments) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    if training.resume_from_checkpoint is not None:
        return training.resume_from_checkpoint
    folder = Path(str(training.output_dir))
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def main(arguments: list[str]) -> int:
    """Train, evaluate, save; print where the model lies."""
    options = parse(arguments)
    result = fine_tune(*options)
    say(f"saved to {options[2].output_dir}" + "".join(f"  {name} {value:.4f}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
