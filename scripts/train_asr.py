"""`speechgraft train-asr`: fine-tune a speech-to-text model, warm-started or loaded."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

from transformers import AutoTokenizer, Seq2SeqTrainingArguments, set_seed

from .common import DONE, CommandError, explained, say
from .training_options import (
    DTYPE_OPTION,
    EVERYDAY_OPTIONS,
    TRAINING_DEFAULTS,
    DataOptions,
    TrainingCommand,
    check_data_options,
    fields_to_set,
    load_data,
    train_and_evaluate,
)

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
    non_autoregressive: bool = field(
        default=False,
        metadata={
            "help": "teach the decoder to fill in masked tokens instead of writing one after another, for transcripts"
            " in a few runs of it: needs a decoder with a mask token, such as BERT, and --set ctc_weight=..."
            " (Mask-CTC) or --set max_predicted_length=... (Mask-Predict)"
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
    dtype: str = field(default="float32", metadata=DTYPE_OPTION)


@dataclass
class DataArguments(DataOptions):
    """What to train on."""

    normalizer: str = field(
        default="basic",
        metadata={"help": "of texts before counting errors", "choices": ["basic", "english", "none"]},
    )


COMMAND = TrainingCommand(
    "train-asr",
    (ModelArguments, DataArguments, Seq2SeqTrainingArguments),
    DESCRIPTION,
    EXAMPLES,
    {**TRAINING_DEFAULTS, "predict_with_generate": True},
    (
        *EVERYDAY_OPTIONS,
        *("label_smoothing_factor", "predict_with_generate", "generation_max_length", "generation_num_beams"),
    ),
)


def parse(arguments: list[str]) -> tuple[ModelArguments, DataArguments, Seq2SeqTrainingArguments]:
    """Read the options; see `TrainingCommand.parse`."""
    return COMMAND.parse(arguments)


def check(model: ModelArguments, data: DataArguments, training: Seq2SeqTrainingArguments) -> None:
    """Find before anything is loaded what would fail after it.

    Raises:
        CommandError: options are missing or contradict each other.
    """
    if (model.model is None) == (model.encoder is None):
        raise CommandError("give --encoder (and --decoder) to warm-start, or --model to go on training")
    if model.model is not None and (model.decoder is not None or model.cold):
        raise CommandError("--model brings its own decoder and weights: leave --decoder and --cold out")
    check_data_options(data, training)
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
    from ..modeling.mask_ctc import check_filling_arguments

    model, processor = _load(options) if options.model is not None else _warm_start(options, texts)
    if model.config.mask_token_id is not None:
        with explained("--non_autoregressive"):
            check_filling_arguments(model)
    freezers = {
        "feature-encoder": model.freeze_feature_encoder,
        "encoder": model.freeze_encoder,
        "decoder": model.freeze_decoder,
    }
    for part in options.freeze:
        freezers[part]()
    return model, processor


def mask_token(source: str) -> int:
    """Id of the token that hides others until they are filled in.

    Raises:
        CommandError: the tokenizer of this folder or hub id has none.
    """
    with explained(f"tokenizer of {source}"):
        found = AutoTokenizer.from_pretrained(source).mask_token_id
    if found is None:
        raise CommandError(
            f"--non_autoregressive: the tokenizer of {source} has no mask token, which hides others until they are"
            " filled in: take a decoder that has one, such as BERT or RoBERTa"
        )
    return found


def _load(options: ModelArguments) -> tuple[Any, Any]:
    from ..configuration.configuration_speech_seq2seq import SpeechSeq2SeqConfig
    from .loading import load_model, load_processor

    known = {one.name for one in fields(SpeechSeq2SeqConfig)}
    changes = fields_to_set(options.set, known, "SpeechSeq2SeqConfig")
    source = cast(str, options.model)
    if options.non_autoregressive:
        changes["mask_token_id"] = mask_token(options.tokenizer or source)
    model = load_model(source, options.dtype, options.attn, device="cpu", **changes)
    if options.tokenizer or options.feature_extractor:
        return model, _processor(options.feature_extractor or source, options.tokenizer or source, model)
    return model, load_processor(source, model, "--tokenizer and --feature_extractor")


def _warm_start(options: ModelArguments, texts: Sequence[str]) -> tuple[Any, Any]:
    from ..modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
    from ..processing.vocabulary_trimming import trim_vocabulary

    encoder = cast(str, options.encoder)
    tokenizer = options.tokenizer or options.decoder or encoder
    set_fields = fields_to_set(options.set)
    if options.ctc_units == "characters":
        set_fields["ctc_characters"] = alphabet(texts)
    if options.non_autoregressive:
        set_fields["mask_token_id"] = mask_token(tokenizer)
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


def keep_usable(
    source: str | None, dataset: Any, options: DataArguments, processor: Any, model: Any, progress: bool = True
) -> Any:
    """A data set without the clips that cannot be used, which are reported.

    Raises:
        CommandError: nothing in it can be used.
    """
    from ..processing.mask_ctc_collation import longest_labels
    from ..processing.speech_datasets import drop_unusable

    if dataset is None:
        return None
    limits = [model.family.max_length(model.config.decoder)]
    if model.config.mask_token_id is not None:
        limits.append(longest_labels(model.config))
    with explained(str(source)):
        usable, report = drop_unusable(
            dataset,
            min_duration_s=options.min_duration_s,
            max_duration_s=options.max_duration_s,
            max_label_length=min((limit for limit in limits if limit is not None), default=None),
            count_tokens=lambda text: len(processor.label_ids(text)),
            alphabet=processor.ctc_characters if model.config.has_ctc_head else None,
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
    from ..processing.mask_ctc_collation import MaskCtcCollator
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
    fills_in = model.config.mask_token_id is not None
    if fills_in and (training.generation_num_beams or 1) > 1:
        raise CommandError(
            "--generation_num_beams: a decoder that fills in masked tokens does not search: leave it out"
        )
    with explained():
        collator = (MaskCtcCollator if fills_in else SpeechSeq2SeqCollator)(processor, model.config)
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
    metrics = train_and_evaluate(trainer, data_options.start_over)
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name in ("eval_wer", "eval_cer")}


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
