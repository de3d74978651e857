"""Build a speech-to-text model from pretrained parts, and prove that nothing pretrained was lost on the way."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from ..configuration.configuration_speech_seq2seq import (
    SPEC_AUGMENT_DEFAULTS,
    SpeechSeq2SeqConfig,
    make_cross_attending_decoder,
)
from .speech_encoders import speech_encoder_config, speech_encoder_family
from .text_decoders import text_decoder_config, text_decoder_family

logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# What generation keeps of any decoder's own settings: tokens that it must not write.
KEPT_OF_TEXT_DECODERS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
# And of a full speech-to-text checkpoint; those of a translator or summariser do not fit transcripts.
KEPT_OF_SPEECH_MODELS = (*KEPT_OF_TEXT_DECODERS, "max_length", "no_repeat_ngram_size", "length_penalty")
# Parts of a backbone that fine-tuning adds by its configuration, which no pretraining checkpoint need hold.
OPTIONAL_IN_ENCODER = re.compile(r"^(masked_spec_embed|adapter\.)")


def warm_start(model_class: Any, encoder: Any, decoder: Any = None, **kwargs: Any) -> Any:
    """Join a pretrained speech encoder and a pretrained text decoder.

    Args:
        model_class: `SpeechSeq2SeqModel` or a subclass.
        encoder: folder or hub id of a speech checkpoint, or a ready backbone.
        decoder: folder or hub id of a text checkpoint, or a ready decoder. None takes both halves of `encoder`, a
            full speech-to-text checkpoint such as Whisper.
        kwargs: `tokenizer` (a tokenizer or its folder; by default the decoder's own, whose special tokens settle
            start, end and padding); `dtype` and `attn_implementation` for both parts; fields of
            `SpeechSeq2SeqConfig`; token ids; fields of `GenerationConfig` such as `max_length`; hub arguments such as
            `revision`. With the prefix `encoder_` or `decoder_`: one part's whole `config`, fields of its
            configuration, or hub arguments for it alone.

    Returns:
        The model, in evaluation mode. `config.newly_initialized` names what no checkpoint supplied.

    Raises:
        TypeError: an argument is unknown.
        ValueError: a family is not supported, or a tensor that a checkpoint should have supplied is random.
    """
    options = _sort_arguments(kwargs)
    text_source = encoder if decoder is None else decoder
    if isinstance(encoder, PreTrainedModel) and isinstance(text_source, PreTrainedModel):
        _refuse(options["hub"]["encoder"], "both parts are ready modules, so hub arguments have no effect")
    parts: dict[str, PreTrainedModel] = {}
    random_keys: list[str] = []
    for side, source in (("encoder", encoder), ("decoder", text_source)):
        if isinstance(source, PreTrainedModel):
            parts[side] = _take_ready(source, side, options)
            continue
        load = _load_encoder if side == "encoder" else _load_decoder
        parts[side], missing = load(source, side, options)
        random_keys += [f"{side}.{'backbone.' if side == 'encoder' else ''}{key}" for key in missing]
    config = SpeechSeq2SeqConfig(encoder=parts["encoder"].config, decoder=parts["decoder"].config, **options["fields"])
    hub = options["hub"]["decoder"]
    tokenizer = options["tokenizer"] if options["tokenizer"] is not None else find_tokenizer(text_source, hub)
    if isinstance(tokenizer, (str, Path)):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    _settle_token_ids(config, tokenizer, options["token_ids"])
    generation = _find_generation_config(text_source, hub)
    if config.decoder_prompt_token_ids == []:
        config.decoder_prompt_token_ids = _whisper_prompt(generation)
    model = model_class(config, **parts)
    _settle_dtype(model)
    _note_new_modules(model, random_keys)
    kept = KEPT_OF_SPEECH_MODELS if text_source is encoder else KEPT_OF_TEXT_DECODERS
    _adopt_generation(model, generation, kept, options["generation"])
    if tokenizer is not None:
        model.learn_languages(tokenizer)
    return model.eval()


def _sort_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Each argument to the one place that uses it; those that nothing uses are refused."""
    config_fields = {field.name for field in fields(SpeechSeq2SeqConfig)} - {"encoder", "decoder"}
    generation_fields = set(GenerationConfig().to_dict()) - config_fields
    sorted_out: dict[str, Any] = {name: {} for name in ("encoder", "decoder", "fields", "token_ids", "generation")}
    hub: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {}}
    sorted_out["tokenizer"] = kwargs.pop("tokenizer", None)
    sorted_out["dtype"] = kwargs.pop("dtype", None)
    sorted_out["attention"] = _attention_by_part(kwargs.pop("attn_implementation", None))
    unknown = []
    for name, value in kwargs.items():
        side, _, rest = name.partition("_")
        if name == "decoder_start_token_id" or name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            sorted_out["token_ids"][name] = value
        elif name in HUB_ARGUMENTS:
            hub = {part: {name: value, **own} for part, own in hub.items()}  # an argument of one part wins
        elif name in config_fields:
            sorted_out["fields"][name] = value
        elif name in generation_fields:
            sorted_out["generation"][name] = value
        elif side in hub and rest in HUB_ARGUMENTS:
            hub[side][rest] = value
        elif side in hub and rest == "dtype":
            raise TypeError(f"{name}: the parts of a model share one dtype, give dtype")
        elif side in hub and rest:
            sorted_out[side][rest] = value
        else:
            unknown.append(name)
    if unknown:
        raise TypeError(
            f"from_encoder_decoder_pretrained does not know {', '.join(sorted(unknown))}: give fields of "
            "SpeechSeq2SeqConfig or GenerationConfig, dtype, attn_implementation, tokenizer, hub arguments, or fields "
            "of one part with the prefix encoder_ or decoder_"
        )
    return sorted_out | {"hub": hub}


def _attention_by_part(attention: Any) -> dict[str, str | None]:
    if isinstance(attention, dict):
        if unknown := set(attention) - {"encoder", "decoder", ""}:
            raise TypeError(f"attn_implementation knows the parts encoder and decoder, got {', '.join(unknown)}")
        return {side: attention.get(side, attention.get("")) for side in ("encoder", "decoder")}
    return {"encoder": attention, "decoder": attention}


def _refuse(arguments: dict[str, Any], why: str) -> None:
    if arguments:
        raise TypeError(f"{why}: {', '.join(sorted(arguments))}")


def _take_ready(module: PreTrainedModel, side: str, options: dict[str, Any]) -> PreTrainedModel:
    _refuse(options[side], f"{side} is a ready module, so {side}_… arguments have no effect")
    if (attention := options["attention"][side]) is not None:
        module.set_attn_implementation(_best_attention(type(module), attention))
    return module if options["dtype"] is None else cast(Any, module).to(_as_dtype(options["dtype"]))


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _load_encoder(source: Any, side: str, options: dict[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    config, _ = _configure(source, options[side], options["hub"][side], speech_encoder_config)
    for name in SPEC_AUGMENT_DEFAULTS.keys() & options["fields"].keys():
        if hasattr(config, name):  # before loading: whether the backbone has a mask embedding depends on these
            setattr(config, name, options["fields"][name])
    family = speech_encoder_family(config)
    model, info = _load(family.backbone_class(config), source, side, config, options, dict(family.checkpoint_renames))
    lost = [key for key in info["missing_keys"] if not OPTIONAL_IN_ENCODER.match(key)]
    _raise_if_random(lost, source, side)
    return model, sorted(info["missing_keys"])


def _load_decoder(source: Any, side: str, options: dict[str, Any]) -> tuple[PreTrainedModel, list[str]]:
    config, is_half = _configure(source, options[side], options["hub"][side], text_decoder_config)
    family = text_decoder_family(config)
    make_cross_attending_decoder(config)
    decoder_class = family.decoder_class(config)
    model, info = _load(decoder_class, source, side, config, options, {r"^decoder\.": ""} if is_half else {})
    if family.checkpoint_renames and info["missing_keys"] and info["unexpected_keys"]:
        # The checkpoint may keep its embeddings once, for both of its halves, under a name of their own.
        model, info = _load(decoder_class, source, side, config, options, dict(family.checkpoint_renames))
    missing = set(info["missing_keys"])
    tied = set(model.all_tied_weights_keys)  # these come with the tensors that they are tied to
    own = {name for name, _ in model.named_parameters()} - tied
    # A checkpoint may lack the whole of either, never a part: then it is damaged.
    cross_attention = {name for name in own if any(part in family.cross_attention for part in name.split("."))}
    head = {name for name in own if family.head and name.startswith(family.head)}
    new = set().union(*(part for part in (cross_attention, head) if part <= missing))
    _raise_if_random(missing - new - tied, source, side)
    return model, sorted(new)


def _configure(
    source: Any, own: dict[str, Any], hub: dict[str, Any], part_of: Callable[[PreTrainedConfig], PreTrainedConfig]
) -> tuple[PreTrainedConfig, bool]:
    """One part's configuration, loaded or given, with what was asked of it; and whether the checkpoint has more."""
    own = dict(own)
    config = own.pop("config", None)
    config = AutoConfig.from_pretrained(source, **hub) if config is None else copy.deepcopy(config)
    whole, config = config, part_of(config)
    unknown = [name for name in own if not hasattr(config, name)]
    if unknown:
        raise TypeError(f"the {config.model_type} configuration does not know {', '.join(sorted(unknown))}")
    for name, value in own.items():
        setattr(config, name, value)
    return config, config is not whole


def _load(
    part_class: Any,
    source: Any,
    side: str,
    config: PreTrainedConfig,
    options: dict[str, Any],
    renames: dict[str, str],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    wanted = dict(options["hub"][side])
    if options["dtype"] is not None:
        wanted["dtype"] = options["dtype"]
    if (attention := options["attention"][side]) is not None:
        wanted["attn_implementation"] = _best_attention(part_class, attention)
    with _quiet():
        model, info = part_class.from_pretrained(
            source, config=config, key_mapping=renames or None, output_loading_info=True, **wanted
        )
    if info["mismatched_keys"]:
        raise ValueError(f"{source}: shapes differ from the configuration's: {sorted(info['mismatched_keys'])[:5]}")
    return model, info


def _best_attention(part_class: type[PreTrainedModel], attention: str) -> str:
    """The attention asked for, or eager where a part (WavLM) has no sdpa: the result is the same."""
    if attention == "sdpa" and not part_class._supports_sdpa:
        logger.info(f"{part_class.__name__} has no sdpa attention: it runs eager")
        return "eager"
    return attention


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers' report of missing keys quiet: half a checkpoint is loaded on purpose, and checked here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _raise_if_random(keys: Iterable[str], source: Any, side: str) -> None:
    if lost := sorted(keys):
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise ValueError(
            f"{source} does not supply these {side} weights, which would be random: {', '.join(lost[:5])}{more}"
        )


def find_tokenizer(source: Any, hub: dict[str, Any]) -> Any:
    """The decoder's own tokenizer, where its folder holds one; its special tokens settle start and end."""
    if isinstance(source, PreTrainedModel):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        logger.info(f"{source} has no tokenizer that loads ({error}): token ids come from its configuration")
        return None
    # Where a folder has none, Transformers makes some families' up, with ids that the model does not share.
    files = {"tokenizer_config.json", *tokenizer.vocab_files_names.values()}
    there = (cached_file(source, file, _raise_exceptions_for_missing_entries=False, **hub) for file in sorted(files))
    return tokenizer if any(there) else None


def _find_generation_config(source: Any, hub: dict[str, Any]) -> GenerationConfig | None:
    if isinstance(source, PreTrainedModel):
        return cast(GenerationConfig | None, getattr(source, "generation_config", None))
    try:
        return GenerationConfig.from_pretrained(source, **hub)
    except OSError:
        return None


def _settle_token_ids(config: SpeechSeq2SeqConfig, tokenizer: Any, given: dict[str, int]) -> None:
    decoder_config = cast(PreTrainedConfig, config.decoder)
    found = text_decoder_family(decoder_config).token_ids(decoder_config, tokenizer)
    for name, value in (found | given).items():
        setattr(config, name, value)


def _whisper_prompt(generation: GenerationConfig | None) -> list[int]:
    """Tokens that Whisper's generation settings put behind the start token of an English-only checkpoint."""
    no_timestamps = getattr(generation, "no_timestamps_token_id", None)
    if no_timestamps is None:
        return []
    if not getattr(generation, "is_multilingual", True):
        return [no_timestamps]
    languages, tasks = getattr(generation, "lang_to_id", None), getattr(generation, "task_to_id", None)
    if not languages or not tasks:
        return [no_timestamps]
    language = getattr(generation, "language", None) or "<|en|>"
    logger.warning(
        f"the model transcribes {language}: for another language call model.set_language(…), or give generate() "
        "language=…"
    )
    return [languages[language], tasks["transcribe"], no_timestamps]


def _settle_dtype(model: Any) -> None:
    """One dtype for all parts, the decoder's: a saved model knows no other."""
    dtypes = {part: getattr(model, part).dtype for part in ("encoder", "decoder")}
    if len(set(dtypes.values())) > 1:
        logger.warning(
            f"the encoder comes in {dtypes['encoder']}, the decoder in {dtypes['decoder']}: taking the latter"
        )
    model.to(dtypes["decoder"])


def _note_new_modules(model: Any, random_keys: list[str]) -> None:
    """Record, as module names, what no checkpoint supplied: what was missing there, and what only this model has."""
    own = [
        name
        for name, _ in model.named_parameters()
        if name.startswith(("encoder.adapter.", "encoder.projection.", "ctc_head.", "length_head."))
    ]
    new = set(random_keys) | set(own)
    model.config.newly_initialized = sorted(_modules_of(model, new))
    if new:
        logger.warning(f"newly initialised, to be trained: {', '.join(model.config.newly_initialized)}")


def _modules_of(model: nn.Module, names: set[str]) -> set[str]:
    """The highest modules whose parameters are all among `names`, and single parameters that stand alone."""
    found: set[str] = set()

    def visit(module: nn.Module, path: str) -> None:
        below = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if path and below and names.issuperset(below):
            found.add(path)
            return
        for name, _ in module.named_parameters(recurse=False):
            if (full := f"{path}.{name}" if path else name) in names:
                found.add(full)
        for name, child in module.named_children():
            visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    return found


def _adopt_generation(
    model: Any, generation: GenerationConfig | None, kept: Iterable[str], wanted: dict[str, Any]
) -> None:
    """Keep what of the checkpoint's own settings holds for transcripts; what was asked for comes first."""
    for name in kept:
        value = getattr(generation, name, None)
        if value is not None:
            setattr(model.generation_config, name, value)
    limit = model.family.max_length(model.config.decoder)
    if limit is not None and (model.generation_config.max_length or 0) > limit:
        model.generation_config.max_length = limit
    for name, value in wanted.items():
        setattr(model.generation_config, name, value)
    model.generation_config.validate()
