"""Build a text-to-speech model on a pretrained text encoder, and prove that nothing pretrained was lost on the way."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, cast

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from .text_encoders import text_encoder_family

logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Fields that describe SpeechT5's own text encoder, and say nothing of a pretrained one.
OWN_ENCODER_FIELDS = {
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "encoder_max_relative_position",
    "max_text_positions",
    "vocab_size",
}


def warm_start_text_encoder(model_class: Any, source: Any, **kwargs: Any) -> Any:
    """Join a pretrained text encoder and a new spectrogram decoder.

    Args:
        model_class: `TextToSpectrogramModel` or a subclass.
        source: folder or hub id of a text checkpoint, or a ready encoder.
        kwargs: `dtype` and `attn_implementation`; fields of `TextToSpectrogramConfig`, of which width and heads of the
            decoder are by default the encoder's; hub arguments such as `revision`; with the prefix `encoder_`, the
            encoder's whole `config` or fields of its configuration.

    Returns:
        The model, in evaluation mode. `config.newly_initialized` names what no checkpoint supplied.

    Raises:
        TypeError: an argument is unknown.
        ValueError: the family is not supported, or a tensor that the checkpoint should have supplied is random.
    """
    options = _sort_arguments(kwargs)
    if isinstance(source, PreTrainedModel):
        if unused := sorted({*options["hub"], *options["encoder"]}):
            raise TypeError(f"the encoder is a ready module, so these have no effect: {', '.join(unused)}")
        encoder = source
    else:
        encoder = _load(source, options)
    config = TextToSpectrogramConfig(**_decoder_sizes(encoder.config) | options["fields"], encoder=encoder.config)
    if (attention := options["attention"]) is not None:
        cast(Any, config)._attn_implementation = {"encoder": encoder.config._attn_implementation, "": attention}
    model = model_class(config, encoder=encoder)
    if options["dtype"] is not None:
        dtype = options["dtype"]
        model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    elif encoder.dtype != torch.float32:
        model.to(encoder.dtype)
    new = ["decoder", "postnet"] + (["encoder.projection"] if model.encoder.projection is not None else [])
    model.config.newly_initialized = sorted(new)
    logger.warning(f"newly initialised, to be trained: {', '.join(model.config.newly_initialized)}")
    return model.eval()


def _sort_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Each argument to the one place that uses it; those that nothing uses are refused."""
    known = {one.name for one in fields(TextToSpectrogramConfig)} - {"encoder"}
    found: dict[str, Any] = {"encoder": {}, "hub": {}, "fields": {}}
    found["dtype"], found["attention"] = kwargs.pop("dtype", None), kwargs.pop("attn_implementation", None)
    for name, value in kwargs.items():
        if name in OWN_ENCODER_FIELDS:
            raise TypeError(f"{name} describes SpeechT5's own text encoder, and has no effect on a pretrained one")
        if name in known:
            found["fields"][name] = value
        elif name in HUB_ARGUMENTS:
            found["hub"][name] = value
        elif name.startswith("encoder_"):
            found["encoder"][name.removeprefix("encoder_")] = value
        else:
            raise TypeError(
                f"from_text_encoder_pretrained does not know {name}: give fields of TextToSpectrogramConfig, dtype, "
                "attn_implementation, hub arguments, or fields of the encoder with the prefix encoder_"
            )
    return found


def _decoder_sizes(encoder: PreTrainedConfig) -> dict[str, int]:
    """A decoder as wide as the encoder, so that nothing need be projected."""
    width = encoder.hidden_size
    return {
        "hidden_size": width,
        "decoder_attention_heads": encoder.num_attention_heads,
        "decoder_ffn_dim": 4 * width,
    }


def _load(source: Any, options: dict[str, Any]) -> PreTrainedModel:
    config = _configure(source, options["encoder"], options["hub"])
    family = text_encoder_family(config)
    wanted = dict(options["hub"])
    for name, value in (("dtype", options["dtype"]), ("attn_implementation", options["attention"])):
        if value is not None:
            wanted[name] = value
    encoder_class: Any = family.backbone_class(config)
    if wanted.get("attn_implementation") == "sdpa" and not encoder_class._supports_sdpa:
        wanted["attn_implementation"] = "eager"
    with _quiet():
        encoder, info = encoder_class.from_pretrained(
            source, config=config, output_loading_info=True, **family.build_options(), **wanted
        )
    if info["mismatched_keys"]:
        raise ValueError(f"{source}: shapes differ from the configuration's: {sorted(info['mismatched_keys'])[:5]}")
    if lost := sorted(info["missing_keys"]):
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise ValueError(
            f"{source} does not supply these weights of the text encoder, which would be random: "
            f"{', '.join(lost[:5])}{more}"
        )
    return encoder


def _configure(source: Any, own: dict[str, Any], hub: dict[str, Any]) -> PreTrainedConfig:
    own = dict(own)
    config = own.pop("config", None)
    config = AutoConfig.from_pretrained(source, **hub) if config is None else copy.deepcopy(config)
    if unknown := [name for name in own if not hasattr(config, name)]:
        raise TypeError(f"the {config.model_type} configuration does not know {', '.join(sorted(unknown))}")
    for name, value in own.items():
        setattr(config, name, value)
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers' report of unused heads quiet: they are left out on purpose, and the rest is checked here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
