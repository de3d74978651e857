"""What a recogniser hears in speech: ours, or any that Transformers' pipeline loads."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import pipeline

from ..processing.audio_files import load_audio
from .common import CommandError, one_line, say, without_warnings
from .loading import OWN_MODEL_TYPES, check_is_model, load_model, load_processor, model_type_of
from .transcription import DecodingOptions, Recording, Transcriber

MOST_TOKENS = 200  # of a transcript: in noise a recogniser may hear words without end
SHOWN_CHARACTERS = 120  # of an error of other libraries
Recognizer = Callable[[Sequence[Any]], list[str | None]]


def make_recognizer(source: str, device: str | None, batch_size: int, language: str | None = None) -> Recognizer:
    """A function from recordings, anything that `load_audio` takes, to texts; None for one that cannot be heard.

    Args:
        source: folder or hub id of a model.
        device: where to compute; None takes a GPU if there is one.
        batch_size: recordings at once.
        language: that is spoken, for models of many languages, such as "en".

    Raises:
        CommandError: there is no such model, or it recognises no speech.
    """
    check_is_model(source)
    if model_type_of(source) in OWN_MODEL_TYPES:
        return _own_recognizer(source, device, batch_size, language)
    return _pipeline_recognizer(source, device, batch_size, language)


def _own_recognizer(source: str, device: str | None, batch_size: int, language: str | None) -> Recognizer:
    if language is not None:
        raise CommandError(f"--asr-language: {source} is not a model of many languages: leave the option out")
    model = load_model(source, device=device)
    transcriber = Transcriber(model, load_processor(source, model, "--asr-model"), DecodingOptions(batch_size))

    def hear(recordings: Sequence[Any]) -> list[str | None]:
        heard: list[str | None] = []
        for transcript in transcriber(Recording(f"clip {i}", audio) for i, audio in enumerate(recordings)):
            if transcript.fault is not None:
                say(f"not heard: {transcript.fault}")
            heard.append(None if transcript.fault is not None else transcript.texts[0])
        return heard

    return hear


def _pipeline_recognizer(source: str, device: str | None, batch_size: int, language: str | None) -> Recognizer:
    try:
        recognize: Any = pipeline("automatic-speech-recognition", model=source, device=device)
    except Exception as error:  # whatever each of the classes that it tries makes of the folder, at length
        reason = one_line(error)[:SHOWN_CHARACTERS]
        raise CommandError(f"--asr-model {source}: no model that recognises speech ({reason})") from error
    asked: dict[str, Any] = {}
    if recognize.model.can_generate():
        asked = {"generate_kwargs": {"num_beams": 1, "max_new_tokens": MOST_TOKENS}}
    if getattr(getattr(recognize.model, "generation_config", None), "is_multilingual", False):
        asked["generate_kwargs"] |= {"task": "transcribe"} | ({"language": language} if language else {})
    elif language is not None:
        raise CommandError(f"--asr-language: {source} is not a model of many languages: leave the option out")
    rate = recognize.feature_extractor.sampling_rate

    def hear(recordings: Sequence[Any]) -> list[str | None]:
        inputs = ({"raw": load_audio(audio, rate), "sampling_rate": rate} for audio in recordings)
        try:
            with without_warnings():  # of Transformers, about the way in which its pipeline calls its model
                return [found["text"].strip() for found in recognize(inputs, batch_size=batch_size, **asked)]
        except ValueError as error:
            raise CommandError(f"--asr-model {source}: {one_line(error)}") from error

    return hear
