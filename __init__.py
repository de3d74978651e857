"""Speech models for Transformers: graft a pretrained speech encoder onto a pretrained text decoder.

Importing this package registers its classes with Transformers' Auto classes and pipelines, without importing torch
before somebody uses them.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration.configuration_spectrogram_classification import SpectrogramClassificationConfig
    from .configuration.configuration_speech_encoder_heads import (
        SpeechEncoderForAudioClassificationConfig,
        SpeechEncoderForAudioFrameClassificationConfig,
        SpeechEncoderForCTCConfig,
    )
    from .configuration.configuration_speech_seq2seq import SpeechEncoderConfig, SpeechSeq2SeqConfig
    from .configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
    from .modeling.alignment_diagnostics import SpeechAlignment, WordTiming
    from .modeling.confidence_calibration import (
        ConfidenceCalibration,
        ConfidenceCurve,
        expected_calibration_error,
        fit_confidences,
    )
    from .modeling.ctc_decoding import CtcHypothesis
    from .modeling.language_model_fusion import CausalLanguageModel
    from .modeling.live_transcription import LiveTranscription, PartialTranscript
    from .modeling.long_audio import LongAudioTranscriber, Transcription, TranscriptionOptions
    from .modeling.modeling_spectrogram_classification import SpectrogramClassificationModel
    from .modeling.modeling_speech_encoder import SpeechEncoder, SpeechEncoderOutput
    from .modeling.modeling_speech_encoder_classification import (
        SpeechEncoderForAudioClassification,
        SpeechEncoderForAudioFrameClassification,
    )
    from .modeling.modeling_speech_encoder_ctc import SpeechEncoderForCTC, SpeechEncoderForCTCOutput
    from .modeling.modeling_speech_seq2seq import SpeechSeq2SeqModel, SpeechSeq2SeqOutput
    from .modeling.modeling_text_to_spectrogram import TextToSpectrogramModel, TextToSpectrogramOutput
    from .modeling.ngram_language_model import NgramLanguageModel
    from .modeling.parameter_efficient import lora_config
    from .modeling.publishing import publish_pretrained
    from .modeling.spectrogram_generation import SpokenText, SynthesisOutput
    from .modeling.spectrogram_generation_config import SpectrogramGenerationConfig
    from .modeling.spectrogram_streams import SpeechStream
    from .modeling.speech_recognition_pipeline import SpeechRecognitionPipeline
    from .modeling.speech_timestamps import TimedWord
    from .modeling.speech_vocoders import GriffinLimVocoder, SpeechVocoder, load_vocoder
    from .modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer
    from .modeling.trainer_text_to_spectrogram import TextToSpectrogramTrainer
    from .modeling.transcript_merging import TimedSegment
    from .processing.audio_files import AudioError, load_audio
    from .processing.collation_speech_encoder import SpeechEncoderCollator
    from .processing.collation_speech_seq2seq import SpeechSeq2SeqCollator
    from .processing.collation_text_to_spectrogram import TextToSpectrogramCollator
    from .processing.hot_words import hot_word_ids
    from .processing.mask_ctc_collation import MaskCtcCollator
    from .processing.mel_spectrograms import LogMelFeatureExtractor, MelSettings, extract_log_mel
    from .processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor
    from .processing.processing_text_to_spectrogram import TextToSpectrogramProcessor
    from .processing.speaker_embeddings import SpeakerError, load_speaker_embedding
    from .processing.spectrogram_datasets import SpectrogramClips, read_spectrogram_clips
    from .processing.speech_datasets import DatasetError, drop_unusable, load_speech_dataset
    from .processing.speech_metrics import make_compute_metrics
    from .processing.speech_synthesis_metrics import SynthesisScores, compare_recordings, summarize_scores
    from .processing.text_front_end import (
        normalize_for_speech,
        register_text_normalizer,
        split_sentences,
        train_character_tokenizer,
    )
    from .processing.vocabulary_trimming import trim_vocabulary

__version__ = "0.1.0"

# Where each public name lives; its module is imported when the name is first used.
PUBLIC_NAMES = {
    "AudioError": "processing.audio_files",
    "CausalLanguageModel": "modeling.language_model_fusion",
    "ConfidenceCalibration": "modeling.confidence_calibration",
    "ConfidenceCurve": "modeling.confidence_calibration",
    "CtcHypothesis": "modeling.ctc_decoding",
    "DatasetError": "processing.speech_datasets",
    "GriffinLimVocoder": "modeling.speech_vocoders",
    "LiveTranscription": "modeling.live_transcription",
    "LogMelFeatureExtractor": "processing.mel_spectrograms",
    "LongAudioTranscriber": "modeling.long_audio",
    "MaskCtcCollator": "processing.mask_ctc_collation",
    "MelSettings": "processing.mel_spectrograms",
    "NgramLanguageModel": "modeling.ngram_language_model",
    "PartialTranscript": "modeling.live_transcription",
    "SpeakerError": "processing.speaker_embeddings",
    "SpectrogramClassificationConfig": "configuration.configuration_spectrogram_classification",
    "SpectrogramClassificationModel": "modeling.modeling_spectrogram_classification",
    "SpectrogramClips": "processing.spectrogram_datasets",
    "SpectrogramGenerationConfig": "modeling.spectrogram_generation_config",
    "SpeechAlignment": "modeling.alignment_diagnostics",
    "SpeechEncoder": "modeling.modeling_speech_encoder",
    "SpeechEncoderCollator": "processing.collation_speech_encoder",
    "SpeechEncoderConfig": "configuration.configuration_speech_seq2seq",
    "SpeechEncoderForAudioClassification": "modeling.modeling_speech_encoder_classification",
    "SpeechEncoderForAudioClassificationConfig": "configuration.configuration_speech_encoder_heads",
    "SpeechEncoderForAudioFrameClassification": "modeling.modeling_speech_encoder_classification",
    "SpeechEncoderForAudioFrameClassificationConfig": "configuration.configuration_speech_encoder_heads",
    "SpeechEncoderForCTC": "modeling.modeling_speech_encoder_ctc",
    "SpeechEncoderForCTCConfig": "configuration.configuration_speech_encoder_heads",
    "SpeechEncoderForCTCOutput": "modeling.modeling_speech_encoder_ctc",
    "SpeechEncoderOutput": "modeling.modeling_speech_encoder",
    "SpeechRecognitionPipeline": "modeling.speech_recognition_pipeline",
    "SpeechSeq2SeqCollator": "processing.collation_speech_seq2seq",
    "SpeechSeq2SeqConfig": "configuration.configuration_speech_seq2seq",
    "SpeechSeq2SeqModel": "modeling.modeling_speech_seq2seq",
    "SpeechSeq2SeqOutput": "modeling.modeling_speech_seq2seq",
    "SpeechSeq2SeqProcessor": "processing.processing_speech_seq2seq",
    "SpeechSeq2SeqTrainer": "modeling.trainer_speech_seq2seq",
    "SpeechStream": "modeling.spectrogram_streams",
    "SpeechVocoder": "modeling.speech_vocoders",
    "SpokenText": "modeling.spectrogram_generation",
    "SynthesisOutput": "modeling.spectrogram_generation",
    "SynthesisScores": "processing.speech_synthesis_metrics",
    "TextToSpectrogramCollator": "processing.collation_text_to_spectrogram",
    "TextToSpectrogramConfig": "configuration.configuration_text_to_spectrogram",
    "TextToSpectrogramModel": "modeling.modeling_text_to_spectrogram",
    "TextToSpectrogramOutput": "modeling.modeling_text_to_spectrogram",
    "TextToSpectrogramProcessor": "processing.processing_text_to_spectrogram",
    "TextToSpectrogramTrainer": "modeling.trainer_text_to_spectrogram",
    "TimedSegment": "modeling.transcript_merging",
    "TimedWord": "modeling.speech_timestamps",
    "Transcription": "modeling.long_audio",
    "TranscriptionOptions": "modeling.long_audio",
    "WordTiming": "modeling.alignment_diagnostics",
    "compare_recordings": "processing.speech_synthesis_metrics",
    "drop_unusable": "processing.speech_datasets",
    "expected_calibration_error": "modeling.confidence_calibration",
    "extract_log_mel": "processing.mel_spectrograms",
    "fit_confidences": "modeling.confidence_calibration",
    "hot_word_ids": "processing.hot_words",
    "load_audio": "processing.audio_files",
    "load_speaker_embedding": "processing.speaker_embeddings",
    "load_speech_dataset": "processing.speech_datasets",
    "load_vocoder": "modeling.speech_vocoders",
    "lora_config": "modeling.parameter_efficient",
    "make_compute_metrics": "processing.speech_metrics",
    "normalize_for_speech": "processing.text_front_end",
    "publish_pretrained": "modeling.publishing",
    "read_spectrogram_clips": "processing.spectrogram_datasets",
    "register_text_normalizer": "processing.text_front_end",
    "split_sentences": "processing.text_front_end",
    "summarize_scores": "processing.speech_synthesis_metrics",
    "train_character_tokenizer": "processing.text_front_end",
    "trim_vocabulary": "processing.vocabulary_trimming",
}
__all__ = sorted(PUBLIC_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]

# Transformers finds its own classes by name, in tables that map a model type to a class of the module
# `transformers.models.<model type>`, and imports that module when the class is first asked for. So do ours: these
# entries join the tables as soon as the module that holds them is imported.
AUTO_TABLES = {
    "transformers.models.auto.configuration_auto": {
        "CONFIG_MAPPING_NAMES": {
            "spectrogram_classification": "SpectrogramClassificationConfig",
            "speech_encoder": "SpeechEncoderConfig",
            "speech_encoder_audio_classification": "SpeechEncoderForAudioClassificationConfig",
            "speech_encoder_audio_frame_classification": "SpeechEncoderForAudioFrameClassificationConfig",
            "speech_encoder_ctc": "SpeechEncoderForCTCConfig",
            "speech_seq2seq": "SpeechSeq2SeqConfig",
            "text_to_spectrogram": "TextToSpectrogramConfig",
        },
    },
    "transformers.models.auto.modeling_auto": {
        "MODEL_MAPPING_NAMES": {
            "spectrogram_classification": "SpectrogramClassificationModel",
            "speech_encoder": "SpeechEncoder",
            "speech_seq2seq": "SpeechSeq2SeqModel",
            "text_to_spectrogram": "TextToSpectrogramModel",
        },
        "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES": {
            "spectrogram_classification": "SpectrogramClassificationModel",
            "speech_encoder_audio_classification": "SpeechEncoderForAudioClassification",
        },
        "MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES": {
            "speech_encoder_audio_frame_classification": "SpeechEncoderForAudioFrameClassification",
        },
        "MODEL_FOR_CTC_MAPPING_NAMES": {"speech_encoder_ctc": "SpeechEncoderForCTC"},
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": {"speech_seq2seq": "SpeechSeq2SeqModel"},
        "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES": {"text_to_spectrogram": "TextToSpectrogramModel"},
        # In a tuple, which the Auto class opens and the pipeline does not: the pipeline would download a vocoder for
        # every class that it finds here, although this one brings its own and returns waveforms.
        "MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING_NAMES": {"text_to_spectrogram": ("TextToSpectrogramModel",)},
    },
    "transformers.models.auto.feature_extraction_auto": {
        "FEATURE_EXTRACTOR_MAPPING_NAMES": {"text_to_spectrogram": "LogMelFeatureExtractor"},
    },
    "transformers.models.auto.processing_auto": {
        "PROCESSOR_MAPPING_NAMES": {
            "speech_seq2seq": "SpeechSeq2SeqProcessor",
            "text_to_spectrogram": "TextToSpectrogramProcessor",
        },
    },
}
# Modules that register their classes themselves, for when Transformers' tables were read before this package came.
REGISTERING = (
    "configuration.configuration_spectrogram_classification",
    "configuration.configuration_speech_encoder_heads",
    "configuration.configuration_speech_seq2seq",
    "configuration.configuration_text_to_spectrogram",
    "modeling.modeling_spectrogram_classification",
    "modeling.modeling_speech_encoder_classification",
    "modeling.modeling_speech_encoder_ctc",
    "modeling.modeling_speech_seq2seq",
    "modeling.modeling_text_to_spectrogram",
    "processing.mel_spectrograms",
    "processing.processing_speech_seq2seq",
    "processing.processing_text_to_spectrogram",
)
MODEL_TYPES = AUTO_TABLES["transformers.models.auto.configuration_auto"]["CONFIG_MAPPING_NAMES"]


class _AutoTables(MetaPathFinder, Loader):
    """Adds our entries to the tables, and answers for the modules that they name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in {f"transformers.models.{model_type}" for model_type in MODEL_TYPES}:
            return ModuleSpec(fullname, self)
        if fullname not in AUTO_TABLES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module: ModuleType) -> None:
                execute(module)
                _add_entries(module)

            spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Let a module of the tables hand out our public names."""
        module.__getattr__ = __getattr__  # type: ignore[method-assign]


def _add_entries(auto_module: ModuleType) -> None:
    for table, entries in AUTO_TABLES[auto_module.__name__].items():
        getattr(auto_module, table).update(entries)


def _register_lazily() -> None:
    already_read = [sys.modules[name] for name in AUTO_TABLES if name in sys.modules]
    sys.meta_path.insert(0, _AutoTables())
    for module in already_read:
        _add_entries(module)
    if already_read:
        for name in REGISTERING:
            importlib.import_module(f".{name}", __name__)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{PUBLIC_NAMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC_NAMES})


_register_lazily()
