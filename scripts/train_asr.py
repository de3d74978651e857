"""`speechgraft train-asr`: fine-tune a speech-to-text model, warm-started or loaded."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import yaml
from torch import OutOfMemoryError
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

from .common import DONE, CommandError, did_you_mean, explained, one_line, say

DESCRIPTION = """\
Fine-tune a speech-to-text model: graft a pretrained speech encoder onto a pretrained text decoder (--encoder,
--decoder), or go on with a trained model (--model). Options come from the command line, or from a YAML or JSON file
named first, whose keys are the options' names; those on the command line win. A run that was interrupted goes on from
its last checkpoint when it is started again."""

EXAMPLES = """\
exit status: 0 trained; 2 nothing was done (a wrong option, no such model or data); other: training failed.
Recordings that cannot be trained on are reported and left out.

examples:
  speechgraft train-asr --encoder facebook/wav2vec2-base --decoder google-bert/bert-base-uncased \\
      --train recordings/train --validation recordings/validation --output_dir my-model --num_train_epochs 10
  speechgraft train-asr my-training.yaml --learning_rate 1e-4
  accelerate launch -m speechgraft.scripts.train_asr my-training.yaml"""

# What differs from Trainer's defaults. The collator reads columns that the model's forward does not name; and every
# parameter gets a gradient here, so that distributed training need not look for those without.
TRAINING_DEFAULTS = {
    "remove_unused_columns": False,
    "predict_with_generate": True,
    "ddp_find_unused_parameters": False,
}

# Training options that most people need; --help_all explains the others.
EVERYDAY_OPTIONS = (
    *("output_dir", "num_train_epochs", "max_steps", "seed", "use_cpu", "bf16", "fp16", "torch_compile"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("activation_checkpointing", "gradient_checkpointing"),  # the old name, all that older versions know
    *("learning_rate", "warmup_steps", "lr_scheduler_type", "weight_decay", "label_smoothing_factor"),
    *("train_sampling_strategy", "length_column_name", "dataloader_num_workers"),
    *("eval_strategy", "eval_steps", "predict_with_generate", "generation_max_length", "generation_num_beams"),
    *("logging_steps", "report_to", "save_steps", "save_total_limit", "resume_from_checkpoint"),
    *("load_best_model_at_end", "metric_for_best_model"),
)


@dataclass
class ModelArguments:
    """Which model to train."""

    _argument_group_name = "model"

    encoder: str | None = field(
        default=None, metadata={"help": "speech checkpoint to warm-start from: folder or hub id"}
    )
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
        metadata={
            "help": "fields of SpeechSeq2SeqConfig as NAME=VALUE, such as ctc_weight=0.3 mask_time_prob=0.05",
            "metavar": "NAME=VALUE",
        },
    )
    ctc_units: str = field(
        default="tokens",
        metadata={
            "help": "what the CTC head of --set ctc_weight=... tells apart: the decoder's tokens, or the characters of"
            " the training transcripts, which small data teaches sooner and cost less to compute",
            "choices": ["tokens", "characters"],
        },
    )
    vocabulary_min_count: int = field(
        default=0,
        metadata={
            "help": "keep only the decoder's word pieces that the training transcripts hold this many times, and"
            " single characters: rarer ones cannot be learned (WordPiece tokenizers; 0 keeps all)"
        },
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "parts to leave as they are: feature-encoder, encoder, decoder (all but its cross-attention)",
            "metavar": "PART",
        },
    )
    attn: str | None = field(
        default=None,
        metadata={"help": "attention kernels: eager, sdpa, flash_attention_2; by default the best that PyTorch has"},
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "number format of the weights; for mixed precision leave float32 and give --bf16",
            "choices": ["float32", "bfloat16", "float16"],
        },
    )


@dataclass
class DataArguments:
    """What to train on."""

    _argument_group_name = "data"

    train: str | None = field(
        default=None,
        metadata={"help": "audio folder with metadata.csv, CSV/TSV/JSONL manifest, or data set id to train on"},
    )
    validation: str | None = field(default=None, metadata={"help": "the same, to evaluate on"})
    train_split: str | None = field(default=None, metadata={"help": "split of --train, such as train[:10%%]"})
    validation_split: str | None = field(default=None, metadata={"help": "split of --validation"})
    dataset_name: str | None = field(
        default=None, metadata={"help": "configuration of a data set, such as its language"}
    )
    audio_column: str | None = field(
        default=None, metadata={"help": "column of the recordings; by default the usual names"}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "column of the transcripts; by default the usual names"}
    )
    streaming: bool = field(default=False, metadata={"help": "read the data as training goes on (needs --max_steps)"})
    min_duration_s: float = field(default=0.0, metadata={"help": "leave out shorter clips"})
    max_duration_s: float = field(default=30.0, metadata={"help": "leave out longer clips"})
    normalizer: str = field(
        default="basic",
        metadata={"help": "of texts before counting errors", "choices": ["basic", "english", "none"]},
    )
    start_over: bool = field(
        default=False,
        metadata={"help": "begin anew although --output_dir holds checkpoints of a run that could go on"},
    )


class TrainingParser(HfArgumentParser):
    """The command's options: the model's, the data's, and everything that Transformers' Trainer knows."""

    def __init__(self, everything: bool = False) -> None:
        """Declare the options; `everything` explains all of Trainer's in the help."""
        super().__init__(
            [ModelArguments, DataArguments, Seq2SeqTrainingArguments],  # type: ignore[arg-type]
            prog="speechgraft train-asr",
            usage="speechgraft train-asr [FILE.yaml] [--option value ...]",
            description=DESCRIPTION,
            formatter_class=_HelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        self.set_defaults(**TRAINING_DEFAULTS)
        ours = {f.name for kind in (ModelArguments, DataArguments) for f in fields(kind)}
        others = [action for action in self._actions if not _is_everyday(action, ours)]
        if not everything:
            for action in others:
                action.help = argparse.SUPPRESS
        self.add_argument("--help", "-h", action="help", help="explain the options that most people need")
        self.add_argument("--help_all", action=_HelpOnEverything, help="explain all options of Trainer too")
        self.epilog = "" if everything else _list_options(others)
        self._optionals.title = "training"
        self._action_groups.append(self._action_groups.pop(self._action_groups.index(self._optionals)))

    def format_help(self) -> str:
        """The help, with examples that keep their line breaks."""
        return f"{super().format_help()}\n{EXAMPLES}\n"

    @property
    def names(self) -> set[str]:
        """The names of all options, which are the keys of a file."""
        return {action.dest for action in self._actions} - {"help", argparse.SUPPRESS}

    def error(self, message: str) -> Any:
        """A wrong value is told as all mistakes are."""
        raise CommandError(message)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows one spelling of each option, and a default only where it says something."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {values}".strip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", [], False) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class _HelpOnEverything(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, *_: Any, **__: Any) -> None:
        TrainingParser(everything=True).print_help()
        sys.exit(DONE)


def _is_everyday(action: argparse.Action, ours: set[str]) -> bool:
    is_old_name = (action.help or "").startswith("Deprecated")
    return action.dest in ours or (action.dest in EVERYDAY_OPTIONS and not is_old_name)


def _list_options(actions: list[argparse.Action]) -> str:
    names = sorted({action.option_strings[0] for action in actions if action.option_strings})
    return f"Trainer's other options, which --help_all explains: {' '.join(names)}"


def parse(arguments: list[str]) -> tuple[ModelArguments, DataArguments, Seq2SeqTrainingArguments]:
    """Read the options from the command line, and from the file that it may name first.

    Raises:
        CommandError: the file is missing or broken, or an option or its value is wrong; file and option are named.
    """
    parser = TrainingParser()
    path = Path(arguments[0]) if arguments and arguments[0].endswith((".yaml", ".yml", ".json")) else None
    if path is not None:
        from_file = list(_options_in_file(path, parser.names))
        try:
            parser.parse_known_args(from_file)
        except CommandError as error:
            raise CommandError(f"{path}: {error}") from error
        arguments = [*from_file, *arguments[1:]]
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].lstrip("-").replace("-", "_").partition("=")[0]
        raise CommandError(f"no option {unknown[0]}{did_you_mean(name, parser.names)}")
    with explained("" if path is None else str(path)):
        return cast(Any, parser.parse_args_into_dataclasses(arguments, look_for_args_file=False))


def _options_in_file(path: Path, names: set[str]) -> Iterator[str]:
    """The options of a YAML or JSON file as words of a command line, so that the same checks apply to them."""
    if not path.is_file():
        raise CommandError(f"{path}: no such file")
    read = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        options = read(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CommandError(f"{path}: not {path.suffix[1:].upper()} ({one_line(error)})") from error
    if not isinstance(options, dict):
        raise CommandError(f"{path}: options and their values are expected, such as 'learning_rate: 1e-4'")
    for key, value in options.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise CommandError(f"{path}: no option {key!r}{did_you_mean(name, names)}")
        if value is not None:
            yield from _words(name, value)


def _words(name: str, value: Any) -> list[str]:
    """One option as on the command line."""
    if name == "set" and isinstance(value, Mapping):
        value = [f"{key}={json.dumps(one)}" for key, one in value.items()]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)] if value else []
    return [f"--{name}={json.dumps(value) if isinstance(value, Mapping) else value}"]


def check(model: ModelArguments, data: DataArguments, training: Seq2SeqTrainingArguments) -> None:
    """Find before anything is loaded what would fail after it.

    Raises:
        CommandError: options are missing or contradict each other.
    """
    if (model.model is None) == (model.encoder is None):
        raise CommandError("give --encoder (and --decoder) to warm-start, or --model to go on training")
    if model.model is not None and (model.decoder is not None or model.cold):
        raise CommandError("--model brings its own decoder and weights: leave --decoder and --cold out")
    if data.train is None:
        raise CommandError("--train: name an audio folder, a manifest or a data set")
    if data.streaming and training.max_steps <= 0:
        raise CommandError("--streaming needs --max_steps: a stream does not tell how long it is")
    if data.validation is None and training.eval_strategy != "no":
        raise CommandError(f"--eval_strategy {IntervalStrategy(training.eval_strategy).value} needs --validation")
    if model.ctc_units == "characters":
        if data.streaming:
            raise CommandError("--ctc_units characters reads all transcripts before training: leave --streaming out")
        if model.model is not None:
            raise CommandError("--ctc_units: --model brings its own CTC head: leave the option out")
    if model.vocabulary_min_count > 0:
        if data.streaming:
            raise CommandError("--vocabulary_min_count reads all transcripts before training: leave --streaming out")
        if model.model is not None:
            raise CommandError("--vocabulary_min_count: --model brings its own vocabulary: leave the option out")
    wrong = [part for part in model.freeze if part not in ("feature-encoder", "encoder", "decoder")]
    if wrong:
        raise CommandError(f"--freeze {wrong[0]}: the parts are feature-encoder, encoder and decoder")


def build(options: ModelArguments, texts: Sequence[str] = ()) -> tuple[Any, Any]:
    """The model, with parts frozen as asked, and its processor.

    Args:
        options: of the command line.
        texts: the training transcripts, which settle the alphabet of a CTC head that spells and a trimmed vocabulary.

    Raises:
        CommandError: a folder, family or field is not what it should be.
    """
    model, processor = _load(options) if options.model is not None else _warm_start(options, texts)
    freezers = {
        "feature-encoder": model.freeze_feature_encoder,
        "encoder": model.freeze_encoder,
        "decoder": model.freeze_decoder,
    }
    for part in options.freeze:
        freezers[part]()
    return model, processor


def _load(options: ModelArguments) -> tuple[Any, Any]:
    from ..configuration.configuration_speech_seq2seq import SpeechSeq2SeqConfig
    from .loading import load_model, load_processor

    changes, known = _fields(options.set), {f.name for f in fields(SpeechSeq2SeqConfig)}
    for name in changes:
        if name not in known:
            raise CommandError(f"--set {name}: no field of SpeechSeq2SeqConfig{did_you_mean(name, known)}")
    source = cast(str, options.model)
    model = load_model(source, options.dtype, options.attn, device="cpu", **changes)
    if options.tokenizer or options.feature_extractor:
        return model, _processor(options.feature_extractor or source, options.tokenizer or source, model)
    return model, load_processor(source, model, "--tokenizer and --feature_extractor")


def _warm_start(options: ModelArguments, texts: Sequence[str]) -> tuple[Any, Any]:
    from ..modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
    from ..processing.vocabulary_trimming import trim_vocabulary

    encoder = cast(str, options.encoder)
    tokenizer = options.tokenizer or options.decoder or encoder
    set_fields = _fields(options.set)
    if options.ctc_units == "characters":
        set_fields["ctc_characters"] = alphabet(texts)
    with explained():
        model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(
            encoder,
            options.decoder,
            tokenizer=tokenizer,
            dtype=options.dtype,
            **({} if options.attn is None else {"attn_implementation": options.attn}),
            **set_fields,
        )
    processor = _processor(options.feature_extractor or encoder, tokenizer, model)
    if options.vocabulary_min_count > 0:
        with explained("--vocabulary_min_count"):
            processor.tokenizer, kept = trim_vocabulary(processor.tokenizer, texts, options.vocabulary_min_count)
            say(f"{len(kept)} of {model.config.vocab_size} tokens are kept")
            model.select_tokens(kept)
    if options.cold:
        generation = model.generation_config
        model = cast(Any, SpeechSeq2SeqModel(model.config)).to(model.dtype)
        model.generation_config = generation
    return model, processor


def _processor(feature_extractor: str, tokenizer: str, model: Any) -> Any:
    from ..processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor

    with explained(f"feature extractor of {feature_extractor}, tokenizer of {tokenizer}"):
        return SpeechSeq2SeqProcessor.from_parts(feature_extractor, tokenizer, config=model.config)


def _fields(assignments: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, the values read as YAML: 0.3, true, [1, 2], text."""
    found = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise CommandError(f"--set {assignment}: write NAME=VALUE")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise CommandError(f"--set {assignment}: the value is not YAML ({one_line(error)})") from error
    return found


def load_data(options: DataArguments) -> tuple[Any, Any]:
    """Training and validation data, as their folders, manifests or data sets hold them.

    Raises:
        CommandError: there is no such data.
    """
    from ..processing.speech_datasets import load_speech_dataset

    def load(source: str | None, split: str | None) -> Any:
        if source is None:
            return None
        with explained(source):
            return load_speech_dataset(
                source,
                split,
                name=options.dataset_name,
                audio_column=options.audio_column,
                text_column=options.text_column,
                streaming=options.streaming,
                strict=False,
            )

    return load(options.train, options.train_split), load(options.validation, options.validation_split)


def keep_usable(
    source: str | None, dataset: Any, options: DataArguments, processor: Any, model: Any, progress: bool = True
) -> Any:
    """A data set without the clips that cannot be used, which are reported.

    Raises:
        CommandError: nothing in it can be used.
    """
    from ..processing.speech_datasets import drop_unusable

    if dataset is None:
        return None
    with explained(str(source)):
        usable, report = drop_unusable(
            dataset,
            min_duration_s=options.min_duration_s,
            max_duration_s=options.max_duration_s,
            max_label_length=model.family.max_length(model.config.decoder),
            count_tokens=lambda text: len(processor.label_ids(text)),
            progress=progress,
        )
    if not options.streaming and len(usable) == 0:
        raise CommandError(f"{source}: no clip can be used: {report.summary()}")
    return usable


def alphabet(texts: Iterable[str]) -> str:
    """The characters of transcripts, in order; any white space is a space."""
    found = set().union(*(" ".join(text.split()) for text in texts))
    return "".join(sorted(found))


def fine_tune(
    model_options: ModelArguments, data_options: DataArguments, training: Seq2SeqTrainingArguments
) -> dict[str, float]:
    """Train, save model and processor to `training.output_dir`, and draw the loss.

    Returns:
        Metrics of the final evaluation: `wer` and `cer` as fractions where there is validation data.
    """
    from ..modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer
    from ..processing.collation_speech_seq2seq import SpeechSeq2SeqCollator
    from ..processing.speech_metrics import make_compute_metrics
    from .loading import check_is_model

    check(model_options, data_options, training)
    for source in filter(None, (model_options.model, model_options.encoder, model_options.decoder)):
        check_is_model(source)
    train, validation = load_data(data_options)
    spells = model_options.ctc_units == "characters"
    reads = spells or model_options.vocabulary_min_count > 0
    set_seed(training.seed)  # of new weights
    model, processor = build(model_options, [text for text in train["text"] if text] if reads else ())
    if spells and not model.config.has_ctc_head:
        raise CommandError("--ctc_units characters: give the CTC loss a weight too, such as --set ctc_weight=0.3")
    checks = (data_options, processor, model, training.process_index == 0)
    train = keep_usable(data_options.train, train, *checks)
    validation = keep_usable(data_options.validation, validation, *checks)
    with explained():
        collator = SpeechSeq2SeqCollator(processor, model.config)
    trainer = SpeechSeq2SeqTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collator,
        processing_class=processor,
        compute_metrics=make_compute_metrics(processor, data_options.normalizer)
        if training.predict_with_generate
        else None,
    )
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(training, data_options.start_over))
    except OutOfMemoryError as error:
        raise CommandError(
            "out of memory: give a smaller --per_device_train_batch_size and more --gradient_accumulation_steps, or "
            "--gradient_checkpointing, or a smaller --max_duration_s"
        ) from error
    trainer.save_model()
    metrics = trainer.evaluate() if validation is not None else {}
    if metrics:
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    if trainer.is_world_process_zero():
        draw_losses(trainer.state.log_history, Path(str(training.output_dir)) / "loss.png")
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name in ("eval_wer", "eval_cer")}


def last_checkpoint(training: Seq2SeqTrainingArguments, start_over: bool = False) -> str | None:
    """Where to go on from: what was asked for, else the last checkpoint in `output_dir`.

    Raises:
        CommandError: the folder asked for holds no checkpoint.
    """
    wanted, folder = training.resume_from_checkpoint, Path(str(training.output_dir))
    if wanted is not None and not (Path(wanted) / "trainer_state.json").is_file():
        raise CommandError(f"--resume_from_checkpoint {wanted}: no checkpoint of a training in this folder")
    if wanted is None and not start_over and folder.is_dir():
        wanted = get_last_checkpoint(str(folder))
    if wanted is not None and training.process_index == 0:
        say(f"going on from {wanted} (--start_over true begins anew)")
    return wanted


def draw_losses(log_history: list[dict[str, float]], path: Path) -> None:
    """Draw every loss that was logged; without matplotlib, say what is missing."""
    from ..modeling.speech_figures import FiguresNotInstalledError, losses_by_step, plot_losses

    logged = {name for entry in log_history for name in entry if name.endswith("loss")} - {"train_loss"}
    parts = sorted(name for name in logged if name not in ("loss", "eval_loss"))
    names = ["loss", *(parts if len(parts) > 1 else []), "eval_loss"]  # a single part is the loss
    titles = {name: name.replace("eval", "validation").replace("_", " ") for name in names if name in logged}
    curves = {title: losses_by_step(log_history, name) for name, title in titles.items()}
    if not curves:
        return
    try:
        plot_losses({"fine-tuning": curves}, path)
        say(f"losses drawn in {path}")
    except FiguresNotInstalledError as error:
        say(str(error))


def main(arguments: list[str]) -> int:
    """Train, evaluate, save; say where the model lies."""
    model, data, training = parse(arguments)
    result = fine_tune(model, data, training)
    if training.process_index == 0:
        rates = "".join(f", {name.upper()} {value:.2%}" for name, value in result.items())
        say(f"model saved to {training.output_dir}{rates}")
    return DONE


if __name__ == "__main__":
    from .cli import main as speechgraft

    sys.exit(speechgraft(["train-asr", *sys.argv[1:]]))
