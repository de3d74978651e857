"""Speech models for Transformers: graft a pretrained speech encoder onto a pretrained text decoder.

Importing this package registers its classes with Transformers' Auto classes and pipelines, without importing torch
before somebody uses them.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration.configuration_speech_seq2seq import SpeechEncoderConfig, SpeechSeq2SeqConfig
    from .modeling.modeling_speech_encoder import SpeechEncoder, SpeechEncoderOutput
    from .modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel, SpeechSeq2SeqOutput
    from .modeling.parameter_efficient import lora_config
    from .modeling.publishing import publish_pretrained
    from .modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer
    from .processing.audio_files import AudioError, load_audio
    from .processing.collation_speech_seq2seq import SpeechSeq2SeqCollator
    from .processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor
    from .processing.speech_datasets import DatasetError, drop_unusable, load_speech_dataset
    from .processing.speech_metrics import make_compute_metrics

__version__ = "0.1.0"

# Where each public name lives; its module is imported when the name is first used.
PUBLIC_NAMES = {
    "AudioError": "processing.audio_files",
    "DatasetError": "processing.speech_datasets",
    "SpeechEncoder": "modeling.modeling_speech_encoder",
    "SpeechEncoderConfig": "configuration.configuration_speech_seq2seq",
    "SpeechEncoderOutput": "modeling.modeling_speech_encoder",
    "SpeechSeq2SeqCollator": "processing.collation_speech_seq2seq",
    "SpeechSeq2SeqConfig": "configuration.configuration_speech_seq2seq",
    "SpeechSeq2SeqModel": "modeling.modeling_speech_seq2seq",
    "SpeechSeq2SeqOutput": "modeling.modeling_speech_seq2seq",
    "SpeechSeq2SeqProcessor": "processing.processing_speech_seq2seq",
    "SpeechSeq2SeqTrainer": "modeling.trainer_speech_seq2seq",
    "drop_unusable": "processing.speech_datasets",
    "load_audio": "processing.audio_files",
    "load_speech_dataset": "processing.speech_datasets",
    "lora_config": "modeling.parameter_efficient",
    "make_compute_metrics": "processing.speech_metrics",
    "publish_pretrained": "modeling.publishing",
}
__all__ = sorted(PUBLIC_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]

# Each of our modules registers its classes when it is imported; it is imported right after the Auto class it needs.
REGISTERED_AFTER = {
    "transformers.models.auto.configuration_auto": ["configuration.configuration_speech_seq2seq"],
    "transformers.models.auto.modeling_auto": ["modeling.modeling_speech_seq2seq"],
    "transformers.models.auto.processing_auto": ["processing.processing_speech_seq2seq"],
}


class _RegisterAfterImport(MetaPathFinder):
    """Imports our modules as soon as the module of Transformers that they register with has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in REGISTERED_AFTER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(fullname)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register(auto_module: str) -> None:
    for ours in REGISTERED_AFTER[auto_module]:
        importlib.import_module(f".{ours}", __name__)


def _register_lazily() -> None:
    sys.meta_path.insert(0, _RegisterAfterImport())
    for auto_module in REGISTERED_AFTER:
        if auto_module in sys.modules:
            _register(auto_module)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{PUBLIC_NAMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC_NAMES})


_register_lazily()
