"""What the training commands share: options from the command line or a file, data, checkpoints, drawn losses."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import yaml
from torch import OutOfMemoryError
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

from .common import DONE, CommandError, did_you_mean, explained, one_line, say

# What differs from Trainer's defaults. The collator reads columns that the model's forward does not name; and every
# parameter gets a gradient here, so that distributed training need not look for those without.
TRAINING_DEFAULTS = {"remove_unused_columns": False, "ddp_find_unused_parameters": False}

# Training options that most people need; --help_all explains the others.
EVERYDAY_OPTIONS = (
    *("output_dir", "num_train_epochs", "max_steps", "seed", "use_cpu", "bf16", "fp16", "torch_compile"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("activation_checkpointing", "gradient_checkpointing"),  # the old name, all that older versions know
    *("learning_rate", "warmup_steps", "lr_scheduler_type", "weight_decay"),
    *("train_sampling_strategy", "length_column_name", "dataloader_num_workers"),
    *("eval_strategy", "eval_steps", "logging_steps", "report_to"),
    *("save_steps", "save_total_limit", "resume_from_checkpoint"),
    *("load_best_model_at_end", "metric_for_best_model"),
)


# The field `dtype` of each command's model options.
DTYPE_OPTION = {
    "help": "number format of the weights; for mixed precision leave float32 and give --bf16",
    "choices": ["float32", "bfloat16", "float16"],
}


@dataclass
class DataOptions:
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
    start_over: bool = field(
        default=False,
        metadata={"help": "begin anew although --output_dir holds checkpoints of a run that could go on"},
    )


@dataclass(frozen=True)
class TrainingCommand:
    """One of the training commands, as far as its options go.

    Args:
        name: of the command.
        kinds: the data classes whose fields are its options: the model's, the data's, Trainer's.
        description: for the help.
        examples: for its end.
        defaults: options of Trainer that have another default here.
        everyday: options of Trainer that the help explains.
    """

    name: str
    kinds: tuple[type, ...]
    description: str
    examples: str
    defaults: Mapping[str, Any]
    everyday: Sequence[str] = EVERYDAY_OPTIONS

    def parse(self, arguments: list[str]) -> Any:
        """Read the options from the command line, and from the file that it may name first.

        Returns:
            One object of each kind.

        Raises:
            CommandError: the file is missing or broken, or an option or its value is wrong; file and option are named.
        """
        parser = TrainingParser(self)
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


class TrainingParser(HfArgumentParser):
    """A training command's options: the model's, the data's, and everything that Transformers' Trainer knows."""

    def __init__(self, command: TrainingCommand, everything: bool = False) -> None:
        """Declare the options; `everything` explains all of Trainer's in the help."""
        self.command = command
        super().__init__(
            command.kinds,  # type: ignore[arg-type]
            prog=f"speechgraft {command.name}",
            usage=f"speechgraft {command.name} [FILE.yaml] [--option value ...]",
            description=command.description,
            formatter_class=_HelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        self.set_defaults(**command.defaults)
        explained_here = {one.name for kind in command.kinds[:-1] for one in fields(kind)} | set(command.everyday)
        others = [action for action in self._actions if not _is_everyday(action, explained_here)]
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
        return f"{super().format_help()}\n{self.command.examples}\n"

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

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        TrainingParser(cast(TrainingParser, parser).command, everything=True).print_help()
        sys.exit(DONE)


def _is_everyday(action: argparse.Action, explained_here: set[str]) -> bool:
    is_old_name = (action.help or "").startswith("Deprecated")
    return action.dest in explained_here and not is_old_name


def _list_options(actions: list[argparse.Action]) -> str:
    names = sorted({action.option_strings[0] for action in actions if action.option_strings})
    return f"Trainer's other options, which --help_all explains: {' '.join(names)}"


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


def check_data_options(data: DataOptions, training: TrainingArguments) -> None:
    """Find before anything is loaded what would fail after it.

    Raises:
        CommandError: options are missing or contradict each other.
    """
    if data.train is None:
        raise CommandError("--train: name an audio folder, a manifest or a data set")
    if data.streaming and training.max_steps <= 0:
        raise CommandError("--streaming needs --max_steps: a stream does not tell how long it is")
    if data.validation is None and training.eval_strategy != "no":
        raise CommandError(f"--eval_strategy {IntervalStrategy(training.eval_strategy).value} needs --validation")


def fields_to_set(assignments: list[str], known: Iterable[str] | None = None, owner: str = "") -> dict[str, Any]:
    """NAME=VALUE pairs, the values read as YAML: 0.3, true, [1, 2], text.

    Args:
        assignments: values of `--set`.
        known: the names that there are; None leaves the check to who gets them.
        owner: whose names these are, for the message.

    Raises:
        CommandError: a pair is not written so, or its name is not known.
    """
    found = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise CommandError(f"--set {assignment}: write NAME=VALUE")
        if known is not None and name not in known:
            raise CommandError(f"--set {name}: no field of {owner}{did_you_mean(name, known)}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise CommandError(f"--set {assignment}: the value is not YAML ({one_line(error)})") from error
    return found


def load_data(options: DataOptions) -> tuple[Any, Any]:
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


def last_checkpoint(training: TrainingArguments, start_over: bool = False) -> str | None:
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


@contextmanager
def enough_memory() -> Iterator[None]:
    """Around training: what helps where memory runs out."""
    try:
        yield
    except OutOfMemoryError as error:
        raise CommandError(
            "out of memory: give a smaller --per_device_train_batch_size and more --gradient_accumulation_steps, or "
            "--gradient_checkpointing, or a smaller --max_duration_s"
        ) from error


def train_and_evaluate(trainer: Any, start_over: bool = False) -> dict[str, float]:
    """Train, or go on, save the model with all that was logged, and draw the losses.

    Args:
        trainer: with everything it needs.
        start_over: begin anew although there are checkpoints.

    Returns:
        Metrics of the final evaluation, where there is validation data.

    Raises:
        CommandError: memory does not suffice, or there is no checkpoint where one was named.
    """
    with enough_memory():
        trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args, start_over))
    trainer.save_model()
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if metrics:
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    if trainer.is_world_process_zero():
        draw_losses(trainer.state.log_history, Path(str(trainer.args.output_dir)) / "loss.png")
    return metrics


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
