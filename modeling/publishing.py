"""Trained models as folders that anybody can use: weights, processor, code, and a card that says what they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from ..configuration.published_code import MODEL_CARD, PublishesItsCode

logger = logging.get_logger(__name__)

TASK = "automatic-speech-recognition"
SPEAKING_TASK = "text-to-speech"
CLASSIFYING_TASK = "audio-classification"
TASKS = {  # of models that the Auto class finds; TASK of all others
    "AutoModelForTextToWaveform": SPEAKING_TASK,
    "AutoModelForAudioClassification": CLASSIFYING_TASK,
    "AutoModelForAudioFrameClassification": CLASSIFYING_TASK,
}
METRICS = {"wer": "word error rate", "cer": "character error rate", "rtfx": "seconds of audio per second of computing"}
PERCENTAGES = ("wer", "cer")  # measured as fractions

USAGE = """\
```python
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

model = AutoModelForSpeechSeq2Seq.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
tokens = model.generate(**processor(audio="speech.wav", return_tensors="pt"))
print(processor.batch_decode(tokens, skip_special_tokens=True)[0])
```

The code that `trust_remote_code` runs lies in this repository; with `pip install speechgraft` and `import speechgraft`
the argument is not needed."""

SPEAKING_USAGE = """\
```python
import soundfile
from transformers import pipeline

speech = pipeline("text-to-speech", "{name}", trust_remote_code=True)("Hello world.")
soundfile.write("speech.wav", speech["audio"].squeeze(), speech["sampling_rate"])
```

The code that `trust_remote_code` runs lies in this repository; with `pip install speechgraft` and `import speechgraft`
the argument is not needed."""

ENCODER_USAGE = """\
```python
import soundfile
from transformers import pipeline

samples, _ = soundfile.read("speech.wav", dtype="float32")  # 16 kHz, mono
print(pipeline("{task}", "{name}", trust_remote_code=True)(samples))
```

The code that `trust_remote_code` runs lies in this repository; with `pip install speechgraft` and `import speechgraft`
the argument is not needed."""

FRAME_USAGE = """\
```python
import soundfile
from transformers import AutoFeatureExtractor, AutoModelForAudioFrameClassification

model = AutoModelForAudioFrameClassification.from_pretrained("{name}", trust_remote_code=True)
samples, rate = soundfile.read("speech.wav", dtype="float32")  # 16 kHz, mono
inputs = AutoFeatureExtractor.from_pretrained("{name}")(samples, sampling_rate=rate, return_tensors="pt")
print(model(**inputs).logits.argmax(-1))  # a class of each frame
```

The code that `trust_remote_code` runs lies in this repository; with `pip install speechgraft` and `import speechgraft`
the argument is not needed."""


def publish_pretrained(
    model: Any,
    folder: str | Path,
    processor: Any = None,
    metrics: Mapping[str, Any] | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    **kwargs: Any,
) -> None:
    """Save a model with everything that people need who have not installed this package.

    Args:
        model: a `SpeechSeq2SeqModel`, a `TextToSpectrogramModel`, or another model of this package.
        folder: where to; a model card that is there already is kept.
        processor: its processor, saved beside it. Without one nobody can prepare the audio.
        metrics: what was measured: numbers by name (`{"wer": 0.12}`), or what `speechgraft evaluate-asr --output`
            wrote. Error rates are fractions.
        name: of the model in the card's examples, by default the folder's.
        tags: for the card, beside its own.
        kwargs: for `save_pretrained`, such as `max_shard_size`.

    Raises:
        TypeError: the model is wrapped, by PEFT for instance, or of another package.
    """
    if not isinstance(model, PublishesItsCode):
        raise TypeError(
            f"{type(model).__name__} cannot be published: give a model of this package, and merge adapters into "
            "theirs with merge_and_unload()"
        )
    model.save_pretrained(folder, **kwargs)
    model.publish_code(folder)
    if processor is not None:
        processor.save_pretrained(folder)
        if isinstance(processor, PublishesItsCode):
            processor.publish_code(folder)
    card = Path(folder) / MODEL_CARD
    if card.exists():
        logger.warning(f"{card} is kept as it is" + (", without the metrics" if metrics else ""))
    else:
        model_card(model, metrics, name or Path(folder).resolve().name, tags).save(card)


def model_card(
    model: Any, metrics: Mapping[str, Any] | None = None, name: str = "model", tags: Sequence[str] = ()
) -> ModelCard:
    """What the hub shows of a model: what it is, how it is used, what was measured."""
    results = _results(metrics)
    task = next((TASKS[name] for name in model.published_as if name in TASKS), TASK)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=[task, "speechgraft", *tags],
        metrics=[metric for metric in PERCENTAGES if any(metric in result for result in results)] or None,
        model_name=name if results and task == TASK else None,
        eval_results=(task == TASK and _eval_results(metrics, results)) or None,
    )
    parts = ["---", data.to_yaml(), "---", "", f"# {name.split('/')[-1]}", "", _description(model)]
    parts += ["", "## Use", "", _usage(model).format(name=name, task=task)]
    if results:
        parts += ["", "## Results", "", *_results_table(metrics, results)]
    return ModelCard("\n".join(parts) + "\n")


def _speaks(model: Any) -> bool:
    return "AutoModelForTextToWaveform" in model.published_as


def _usage(model: Any) -> str:
    if _speaks(model):
        return SPEAKING_USAGE
    if "AutoModelForAudioFrameClassification" in model.published_as:
        return FRAME_USAGE
    if not hasattr(model.config, "decoder"):
        return ENCODER_USAGE
    return USAGE if model.config.mask_token_id is None else USAGE.replace("model.generate(", "model.generate_masked(")


def _description(model: Any) -> str:
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    if _speaks(model):
        encoder = "SpeechT5's text encoder" if model.config.encoder is None else f"a {model.config.encoder.model_type}"
        vocoder = "Griffin-Lim" if model.config.vocoder is None else "HiFi-GAN"
        return (
            f"Text to speech in the manner of SpeechT5: {encoder} and a spectrogram decoder, heard through {vocoder}; "
            f"{size:.0f} million parameters. Made with [speechgraft](https://pypi.org/project/speechgraft)."
        )
    if not hasattr(model.config, "decoder"):
        head = "a CTC head" if hasattr(model, "ctc_head") else f"a classifier of {model.config.num_labels} classes"
        encoder = getattr(model, "description", f"A {model.config.encoder.model_type} speech encoder")
        return (
            f"{encoder} with {head}; {size:.0f} million parameters. "
            "Made with [speechgraft](https://pypi.org/project/speechgraft)."
        )
    encoder, decoder = model.config.encoder.model_type, model.config.decoder.model_type
    ctc = ", trained jointly with CTC" if model.config.has_ctc_head else ""
    ctc += ", which fills in masked tokens" if model.config.mask_token_id is not None else ""
    return (
        f"Speech to text: a {encoder} speech encoder grafted onto a {decoder} text decoder{ctc}; {size:.0f} million "
        "parameters. Made with [speechgraft](https://pypi.org/project/speechgraft)."
    )


def _results(metrics: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """One mapping of numbers for each setting that was measured."""
    if not metrics:
        return []
    results = metrics.get("results", [metrics])
    return [{key: value for key, value in result.items() if isinstance(value, int | float)} for result in results]


def _data_name(metrics: Mapping[str, Any] | None) -> str:
    parts = (str(metrics[key]) for key in ("data", "dataset_name", "split") if metrics and metrics.get(key))
    return ", ".join(parts) or "unnamed data"


def _eval_results(metrics: Mapping[str, Any] | None, results: list[Mapping[str, Any]]) -> list[EvalResult]:
    """For the hub's own tables: the best setting's error rates, in percent."""
    if not results:
        return []
    best = min(results, key=lambda result: result.get("wer", float("inf")))
    data = _data_name(metrics)
    return [
        EvalResult(TASK, data, data, metric, round(100 * best[metric], 2), metric_name=METRICS[metric])
        for metric in PERCENTAGES
        if metric in best
    ]


def _results_table(metrics: Mapping[str, Any] | None, results: list[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table, a column for each metric and a row for each setting."""
    shown = [key for key in results[0] if key in METRICS or key == "num_beams" or "results" not in (metrics or {})]
    normalizer = (metrics or {}).get("normalizer")
    caption = f"On {_data_name(metrics)}" + (f", transcripts normalised by `{normalizer}`" if normalizer else "") + "."
    rows = [[_shown(key, result.get(key)) for key in shown] for result in results]
    header = [METRICS.get(key, key.replace("_", " ")) for key in shown]
    lines = [header, ["---"] * len(shown), *rows]
    return [caption, "", *("| " + " | ".join(line) + " |" for line in lines)]


def _shown(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in PERCENTAGES:
        return f"{100 * value:.2f} %"
    return f"{value:g}"
