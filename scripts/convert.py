"""`speechgraft convert`: SpeechEncoderDecoderModel folders to speechgraft's own, and back."""

import argparse
from pathlib import Path
from typing import Any

from .common import DONE, CommandError, explained, say

DESCRIPTION = """\
Write a model in the other of two layouts: that of Transformers' SpeechEncoderDecoderModel, which people without
speechgraft can load, and that of speechgraft's SpeechSeq2SeqModel. The weights stay as they are; the processor goes
along. Converting to speechgraft's layout is never needed to use a model: it reads both."""

EPILOG = """\
exit status: 0 converted; 2 not converted, with the reason

examples:
  speechgraft convert my-native-model my-model
  speechgraft convert my-model for-others --to native"""

NATIVE, OURS = "native", "speechgraft"
ROUNDING = 1e-5  # of logits, relative to the largest: what the two classes may differ by


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft convert`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of the model to convert")
    parser.add_argument("output", type=Path, metavar="FOLDER", help="new folder for the converted model")
    parser.add_argument(
        "--to",
        choices=(NATIVE, OURS),
        help="layout to write: native is SpeechEncoderDecoderModel's (default: the one that MODEL does not have)",
    )


def main(args: argparse.Namespace) -> int:
    """Convert, check, and say what was done; returns the exit status."""
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise CommandError(f"{args.output}: exists already; name a new folder")
    from ..configuration.configuration_speech_seq2seq import NATIVE_MODEL_TYPE, SpeechSeq2SeqConfig
    from .loading import find_model_type, load_model

    kind = find_model_type(args.model)
    layout = {SpeechSeq2SeqConfig.model_type: OURS, NATIVE_MODEL_TYPE: NATIVE}.get(kind, kind)
    to = args.to or (NATIVE if layout == OURS else OURS)
    if layout == to:
        raise CommandError(f"{args.model}: has the {to} layout already")
    model = load_model(args.model, device="cpu")
    with explained(args.model):
        converted = model if to == OURS else model.to_native()
    with explained(str(args.output)):
        converted.save_pretrained(args.output)
    say(f"{args.model} ({layout}) written to {args.output} ({to}: {type(converted).__name__})")
    for line in describe(model):
        say(f"  {line}")
    processor = find_processor(args.model, model)
    say(f"  processor: {save_processor(processor, args.output, to)}")
    say(f"  check: {check(model, type(converted), args.output, processor)}")
    return DONE


def describe(model: Any) -> list[str]:
    """What the model consists of, one line each."""
    config, projection = model.config, model.encoder.projection
    width = "none, the widths are equal"
    if projection is not None:
        width = f"{projection.in_features} to {projection.out_features}"
    ids = {name: getattr(config, f"{name}_token_id") for name in ("decoder_start", "eos", "pad")}
    return [
        f"weights: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million, {str(model.dtype).split('.')[-1]}",
        f"encoder: {config.encoder.model_type}, decoder: {config.decoder.model_type}, projection: {width}",
        "token ids: " + ", ".join(f"{name} {value}" for name, value in ids.items()),
    ]


def find_processor(source: str, model: Any) -> Any:
    """The processor that lies with the model, or None."""
    from .loading import load_processor

    try:
        return load_processor(source, model)
    except CommandError:
        return None


def save_processor(processor: Any, folder: Path, to: str) -> str:
    """Save a processor in the form that the layout's users load; says what happened."""
    if processor is None:
        return "none lies with the model, so none is written"
    if to == OURS:
        processor.save_pretrained(folder)
        return "written"
    processor.feature_extractor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return "written as a feature extractor and a tokenizer"


def check(model: Any, converted_class: Any, folder: Path, processor: Any) -> str:
    """Reload what was written and compare the logits on a second of noise; says how they compare.

    Raises:
        CommandError: they differ.
    """
    import torch

    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    if processor is not None:
        inputs = dict(processor(audio=noise.numpy(), sampling_rate=processor.sampling_rate, return_tensors="pt"))
    elif model.main_input_name == "input_values":
        inputs = {"input_values": noise[None]}
    else:
        return "left out, as it needs the processor"
    inputs["decoder_input_ids"] = torch.arange(1, 5)[None]
    reloaded = converted_class.from_pretrained(folder).eval()
    with torch.inference_mode():
        before, after = (one(**inputs).logits.float() for one in (model, reloaded))
    difference = ((before - after).abs().max() / before.abs().max()).item()
    if not difference <= ROUNDING:
        raise CommandError(f"{folder}: the logits of the converted model differ by {difference:.1e}: do not use it")
    return "reloaded; the logits are equal " + ("bit for bit" if difference == 0 else f"to {difference:.0e}")
