"""A pipeline for speech recognition of any length, with times, confidence and n-best lists."""

from collections.abc import Mapping
from typing import Any

from transformers import Pipeline

from .long_audio import Transcription

UNITS = {True: "segment", "segment": "segment", "word": "word", "char": "char", False: None, None: None}


class SpeechRecognitionPipeline(Pipeline):
    """Speech to text by `SpeechSeq2SeqModel.transcribe`, called as Transformers' own pipeline is.

    ```python
    recognize = pipeline("automatic-speech-recognition", folder, pipeline_class=SpeechRecognitionPipeline)
    recognize("lecture.mp3", return_timestamps="word")
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Transcribe.

        Args:
            inputs: a recording or a list of them: anything that the processor reads, or
                `{"raw": samples, "sampling_rate": Hz}`.
            options: `return_timestamps`: True (or "segment"), "word" or "char" for `chunks` with times;
                `num_return_sequences`: how many hypotheses to return, under `nbest`; `batch_size`: pieces of
                recordings to decode at once; others of `TranscriptionOptions`.

        Returns:
            For each recording `text` and `confidence`, and where they were asked for `chunks`, each with `text`,
            `timestamp` (start and end in seconds) and `confidence`, and `nbest`, each with `text` and `score`.

        Raises:
            ValueError: an option is wrong, or a recording cannot be read.
            TypeError: an option is unknown.
        """
        if "batch_size" in options:  # of pieces, not of recordings, which may be hours long
            options["pieces_at_once"] = options.pop("batch_size")
        return super().__call__(inputs, **options)

    def _sanitize_parameters(self, return_timestamps: Any = None, **options: Any) -> tuple[dict, dict, dict]:
        if return_timestamps not in UNITS:
            raise ValueError(f"return_timestamps is True, 'word' or 'char', not {return_timestamps!r}")
        renamed = {"num_return_sequences": "n_best", "pieces_at_once": "batch_size"}
        options = {renamed.get(name, name): value for name, value in options.items()}
        unit = UNITS[return_timestamps]
        return {}, options | {"timestamps": unit}, {"unit": unit, "n_best": options.get("n_best", 1)}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        """Name the samples as `datasets` does."""
        if isinstance(input_, Mapping) and "raw" in input_:
            input_ = {"array": input_["raw"], "sampling_rate": input_.get("sampling_rate")}
        return {"recording": _Kept(input_)}

    def _forward(self, input_tensors: dict[str, Any], **options: Any) -> dict[str, Any]:
        model: Any = self.model
        return {"transcription": model.transcribe(input_tensors["recording"].value, self.processor, **options)}

    def postprocess(
        self, model_outputs: dict[str, Any], unit: str | None = None, n_best: int = 1, **_: Any
    ) -> dict[str, Any]:
        """In the form of Transformers' own pipeline."""
        found: Transcription = model_outputs["transcription"]
        result: dict[str, Any] = {"text": found.text, "confidence": found.confidence}
        if unit is not None:
            items: Any = found.segments if unit == "segment" else found.words
            if unit == "char":
                items = [character for word in items for character in word.characters]
            result["chunks"] = [
                {"text": item.text, "timestamp": (item.start_s, item.end_s), "confidence": item.confidence}
                for item in items
            ]
        if n_best > 1:
            result["nbest"] = [{"text": one.text, "score": one.score} for one in found.hypotheses]
        return result


class _Kept:
    """A recording, hidden from what moves tensors to the model's device."""

    def __init__(self, value: Any):
        self.value = value


__all__ = ["SpeechRecognitionPipeline"]
