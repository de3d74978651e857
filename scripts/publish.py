"""`speechgraft publish`: a trained model as a folder that anybody can use, with or without this package."""

import argparse
import json
from pathlib import Path
from typing import Any

from .common import DONE, CommandError, explained, one_line, say

DESCRIPTION = """\
Make a trained model ready to share: its weights and processor, a model card with what was measured, and a copy of
the code that it needs, so that people without speechgraft can load it with trust_remote_code=True."""

EPILOG = """\
exit status: 0 published; 2 not published, with the reason

examples:
  speechgraft evaluate-asr --data recordings/test --model my-model --output results.json
  speechgraft publish my-model to-share --metrics results.json
  speechgraft publish my-model to-share --metrics results.json --push-to my-name/my-model"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `speechgraft publish`."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("model", metavar="MODEL", help="folder or hub id of the trained model")
    parser.add_argument("output", type=Path, metavar="FOLDER", help="new folder for what is published")
    parser.add_argument(
        "--processor", metavar="FOLDER", help="its feature extractor and tokenizer, if they lie elsewhere"
    )
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="what was measured, for the model card: what `speechgraft evaluate-asr --output FILE.json` wrote, or the "
        "eval_results.json of a training",
    )
    parser.add_argument(
        "--push-to", metavar="REPO", help="then upload to this repository of the hub, such as me/my-model"
    )
    parser.add_argument("--private", action="store_true", help="with --push-to: only you can see a new repository")


def main(args: argparse.Namespace) -> int:
    """Publish; returns the exit status."""
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise CommandError(f"{args.output}: exists already; name a new folder")
    if args.private and args.push_to is None:
        raise CommandError("--private: only with --push-to")
    metrics = None if args.metrics is None else read_metrics(args.metrics)
    from ..configuration.published_code import upload
    from ..modeling.publishing import publish_pretrained
    from .loading import load_model, load_processor

    model = load_model(args.model, device="cpu")
    processor = load_processor(args.processor or args.model, model)
    with explained(str(args.output)):
        publish_pretrained(model, args.output, processor, metrics, name=args.push_to)
    say(f"{args.model} published in {args.output}; read its README.md before you share it")
    if args.push_to is not None:
        with explained(f"--push-to {args.push_to}"):
            say(f"uploaded: {upload(args.output, args.push_to, private=args.private or None)}")
    return DONE


def read_metrics(path: Path) -> dict[str, Any]:
    """What `speechgraft evaluate-asr` wrote, or the numbers of a training's `eval_results.json`.

    Raises:
        CommandError: the file is missing or something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"--metrics {path}: {one_line(error)}") from error
    document = document if isinstance(document, dict) else {}
    if document.get("results"):
        return document
    rates = {name: document.get(name, document.get(f"eval_{name}")) for name in ("wer", "cer")}
    if None in rates.values():
        raise CommandError(f"--metrics {path}: no error rates; write it with speechgraft evaluate-asr --output")
    return rates
