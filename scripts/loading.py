"""Trained models and their processors from wherever they are, with one clear line where they cannot be had."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..configuration.configuration_speech_seq2seq import NATIVE_MODEL_TYPE, SpeechSeq2SeqConfig
from ..configuration.configuration_text_to_spectrogram import NATIVE_TTS_MODEL_TYPE, TextToSpectrogramConfig
from ..modeling.long_audio import TranscriptionOptions
from ..modeling.mask_ctc import check_filling_arguments
from ..modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel
from ..modeling.modeling_text_to_spectrogram import TextToSpectrogramModel
from ..modeling.ngram_language_model import NgramLanguageModel
from ..modeling.speech_encoders import SPEECH_ENCODER_FAMILIES
from ..modeling.text_decoders import TEXT_DECODER_FAMILIES
from ..processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor
from ..processing.processing_text_to_spectrogram import TextToSpectrogramProcessor
from .common import CommandError, explained, one_line

OWN_MODEL_TYPES = {SpeechSeq2SeqConfig.model_type, NATIVE_MODEL_TYPE}
COUNTED_ORDER = 5  # tokens in the longest n-grams that are counted from a text
# Options of the commands for decoders that fill in masked tokens, and the arguments of generate_masked().
FILLING_OPTIONS = {"passes": "passes", "mask_threshold": "threshold", "length_candidates": "length_candidates"}
# Options for all others, with values that ask for nothing.
SEARCHING_OPTIONS: dict[str, tuple[Any, ...]] = {
    "num_beams": (1, [1]),
    "nbest": (1,),
    "temperatures": ((0.0,), TranscriptionOptions.temperatures),
    **dict.fromkeys(("ctc_weight", "language_model", "language_model_weight", "hot_words", "hot_word_weight"), ()),
    **dict.fromkeys(("condition_on_previous_text", "initial_prompt"), ()),
}
SYNTHESIZER_TYPES = {TextToSpectrogramConfig.model_type, NATIVE_TTS_MODEL_TYPE}


def load_model(
    source: str, dtype: str = "auto", attention: str | None = None, device: str | None = None, **fields: Any
) -> SpeechSeq2SeqModel:
    """Load a trained speech-to-text model, in evaluation mode.

    Args:
        source: folder or hub id of a `SpeechSeq2SeqModel`, a `SpeechEncoderDecoderModel`, or a checkpoint such as
            Whisper of which both halves are taken.
        dtype: number format of the weights; "auto" as they were saved.
        attention: which attention kernels to use; None leaves it to Transformers.
        device: where to put the model, such as "cpu" or "cuda:1"; None takes a GPU if there is one.
        fields: of `SpeechSeq2SeqConfig`, to change.

    Raises:
        CommandError: there is no such folder, it holds another kind of model, or the model does not load.
    """
    model_type = find_model_type(source)
    options = {"dtype": dtype, **fields} | ({} if attention is None else {"attn_implementation": attention})
    with explained(source):
        if model_type in OWN_MODEL_TYPES:
            model = SpeechSeq2SeqModel.from_pretrained(source, **options)
        else:
            model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(source, **options)
        return _placed(model, device)


def load_synthesizer(
    source: str, dtype: str = "auto", attention: str | None = None, device: str | None = None, **fields: Any
) -> TextToSpectrogramModel:
    """Load a trained text-to-speech model, in evaluation mode.

    Args:
        source: folder or hub id of a `TextToSpectrogramModel` or a `SpeechT5ForTextToSpeech`.
        dtype: number format of the weights; "auto" as they were saved.
        attention: which attention kernels to use; None leaves it to Transformers.
        device: where to put the model; None takes a GPU if there is one.
        fields: of `TextToSpectrogramConfig`, to change.

    Raises:
        CommandError: there is no such folder, it holds another kind of model, or the model does not load.
    """
    find_model_type(source, SYNTHESIZER_TYPES)
    options = {"dtype": dtype, **fields} | ({} if attention is None else {"attn_implementation": attention})
    with explained(source):
        return _placed(TextToSpectrogramModel.from_pretrained(source, **options), device)


def _placed(model: Any, device: str | None) -> Any:
    """In evaluation mode, on a device."""
    return model.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))).eval()


def find_model_type(source: str, known: Collection[str] | None = None) -> str:
    """The kind of model that a folder or hub id holds, which is one of `known`, or one that `load_model` can load.

    Raises:
        CommandError: there is none, or another kind.
    """
    check_is_model(source)
    known = OWN_MODEL_TYPES | both_halves() if known is None else known
    model_type = model_type_of(source)
    if model_type in known:
        return str(model_type)
    raise CommandError(
        f"{source}: holds a {model_type} model; this command runs models of the kinds {', '.join(sorted(known))}"
    )


def model_type_of(source: str) -> str | None:
    """The kind of model that a folder or hub id says it holds.

    Raises:
        CommandError: there is none.
    """
    try:
        return PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    except (OSError, ValueError) as error:
        reason = one_line(error).split(". ")[0]
        raise CommandError(f"{source}: neither a folder here nor a model that the hub gives ({reason})") from error


def both_halves() -> set[str]:
    """Model types whose checkpoints hold a speech encoder and a text decoder that both tables know."""
    encoders, decoders = (
        {model_type for family in families for model_type in family.model_types}
        for families in (SPEECH_ENCODER_FAMILIES, TEXT_DECODER_FAMILIES)
    )
    return encoders & decoders


def check_is_model(source: str) -> None:
    """Tell a folder that is missing or empty from a hub id, before the hub is asked for a folder's name.

    Raises:
        CommandError: there is no such folder, or it holds no model.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = sorted(folder.parent.name for folder in path.glob("*/config.json"))
            hint = f"; there are models in its folders {', '.join(inside)}" if inside else ""
            raise CommandError(f"{source}: no config.json in this folder, so it holds no model{hint}")
    elif path.exists():
        raise CommandError(f"{source}: a file, but a model is a folder or a hub id")
    elif source.startswith(("/", ".", "~")) or source.count("/") > 1 or ("/" in source and path.parent.is_dir()):
        raise CommandError(f"{source}: no such model folder")


def load_processor(source: str, model: SpeechSeq2SeqModel, asked: str = "--processor") -> SpeechSeq2SeqProcessor:
    """Load the processor that belongs to a model.

    Args:
        source: folder or hub id with a feature extractor and a tokenizer.
        model: its configuration settles the decoder's prompt and the input window.
        asked: option that names another source, for the message.

    Raises:
        CommandError: the folder lacks the feature extractor or the tokenizer.
    """
    parts = "a feature extractor and a tokenizer"
    return _loaded_processor(
        lambda: SpeechSeq2SeqProcessor.from_parts(source, source, config=model.config), source, asked, parts
    )


def load_language_model(source: str, processor: SpeechSeq2SeqProcessor, device: str | None = None) -> Any:
    """Load what `generate(language_model=...)` takes.

    Args:
        source: an ARPA file of words (`.arpa`, `.arpa.gz`); a text file with a sentence in each line, whose tokens
            are counted; or a folder or hub id of a causal language model with the decoder's tokenizer.
        processor: of the model that transcribes.
        device: where to put a causal language model.

    Raises:
        CommandError: there is no such file or model, or it cannot be read.
    """
    path, tokenizer = Path(source).expanduser(), processor.tokenizer
    with explained(f"--language-model {source}"):
        if path.name.endswith((".arpa", ".arpa.gz")):
            return NgramLanguageModel.from_arpa(path).scorer(tokenizer)
        if path.is_file():
            sentences = [tokenizer.tokenize(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if not any(sentences):
                raise ValueError("no text in this file")
            return NgramLanguageModel.from_texts(filter(None, sentences), COUNTED_ORDER).scorer(tokenizer, "token")
    check_is_model(source)
    with explained(f"--language-model {source}"):
        return _placed(AutoModelForCausalLM.from_pretrained(source), device)


def decoding_arguments(args: Any, model: SpeechSeq2SeqModel, processor: SpeechSeq2SeqProcessor) -> dict[str, Any]:
    """Arguments of `generate()`, or of `generate_masked()`, that a command's options for decoding ask for.

    Raises:
        CommandError: an option is for another kind of decoder; see also `fusion_arguments`.
    """
    filling = {name: getattr(args, option) for option, name in FILLING_OPTIONS.items()}
    if model.config.mask_token_id is None:
        if given := [option for option, name in FILLING_OPTIONS.items() if filling[name] is not None]:
            raise CommandError(
                f"{_spelled(given[0])}: the model's decoder writes from left to right, it fills nothing in: leave the "
                "option out"
            )
        return fusion_arguments(args, processor)
    for option, harmless in SEARCHING_OPTIONS.items():
        if getattr(args, option, None) not in (None, False, *harmless):
            raise CommandError(
                f"{_spelled(option)}: the model's decoder fills in masked tokens, it does not search: leave the "
                "option out"
            )
    arguments = {name: value for name, value in filling.items() if value is not None}
    with explained():
        check_filling_arguments(model, **arguments)
    return arguments


def _spelled(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def fusion_arguments(args: Any, processor: SpeechSeq2SeqProcessor) -> dict[str, Any]:
    """Arguments of `generate()` for the language model and the expected phrases that a command was given.

    Raises:
        CommandError: the language model cannot be had, a phrase cannot be spelled, or there is nothing for a weight.
    """
    for weight, weighed in (("language_model_weight", "language_model"), ("hot_word_weight", "hot_words")):
        if getattr(args, weight) is not None and getattr(args, weighed) is None:
            raise CommandError(f"{_spelled(weight)} is without effect: give {_spelled(weighed)} too")
    arguments: dict[str, Any] = {}
    if args.language_model is not None:
        arguments["language_model"] = load_language_model(args.language_model, processor, args.device)
    if args.hot_words is not None:
        with explained("--hot-words"):
            arguments["hot_words"] = processor.hot_word_ids(args.hot_words)
    weights = {name: getattr(args, name) for name in ("language_model_weight", "hot_word_weight")}
    return arguments | {name: weight for name, weight in weights.items() if weight is not None}


def load_synthesizer_processor(
    source: str, model: TextToSpectrogramModel, asked: str = "--processor"
) -> TextToSpectrogramProcessor:
    """Load the processor that belongs to a text-to-speech model.

    Args:
        source: folder or hub id of a processor, or of a tokenizer alone.
        model: whose spectrograms it computes.
        asked: option that names another source, for the message.

    Raises:
        CommandError: the folder has no tokenizer.
    """

    def load() -> TextToSpectrogramProcessor:
        if (Path(source).expanduser() / TextToSpectrogramProcessor.published_in).is_file():
            return TextToSpectrogramProcessor.from_pretrained(source)
        return TextToSpectrogramProcessor.from_parts(source, config=model.config)

    return _loaded_processor(load, source, asked, "a tokenizer")


def _loaded_processor(load: Callable[[], Any], source: str, asked: str, parts: str) -> Any:
    try:
        return load()
    except (ValueError, OSError, TypeError, KeyError, AttributeError) as error:
        raise CommandError(
            f"{source}: no processor in this folder ({parts}): name a folder that has it with {asked}, such as the "
            f"one that the model was trained from ({one_line(error)[:120]})"
        ) from error
