"""What the tests of training share: models without chance in them, rows of noise with transcripts, quick trainers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import tiny_model
from tiny_tokenizers import WORDS, tiny_tokenizer
from transformers import Seq2SeqTrainingArguments, Wav2Vec2FeatureExtractor

from speechgraft.processing.collation_speech_seq2seq import SpeechSeq2SeqCollator
from speechgraft.processing.processing_speech_seq2seq import SpeechSeq2SeqProcessor

Row = dict[str, Any]


def without_chance(model: Any) -> Any:
    """Switch every dropout off, those in configurations included, so that a training step can be repeated."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("dropout" in name or name == "drop_prob") and isinstance(value, float):
                setattr(module, name, 0.0)
    for config in (model.config, model.config.encoder, model.config.decoder):
        for name in vars(config):
            if "dropout" in name or name.endswith("pdrop"):
                setattr(config, name, 0.0)
    return model


def repeatable_model(encoder: str = "wav2vec2-layer", decoder: str = "bert", **fields: Any) -> Any:
    """A tiny model that gives the same training loss every time, padded or not."""
    return without_chance(tiny_model(encoder, decoder, **{"apply_spec_augment": False, "scale": 2.0, **fields}))


def rows(count: int = 8, seed: int = 0) -> list[Row]:
    """Noise of 0.2 s and more with transcripts of 1 to 6 words: no two lengths in a batch are alike."""
    random = np.random.default_rng(seed)
    return [
        {
            "audio": random.normal(size=3200 + 640 * index).astype(np.float32),
            "text": " ".join(random.choice(WORDS[:-1], size=1 + 5 * index % 6)),
        }
        for index in range(count)
    ]


def collator(model: Any, tokenizer: str = "bert") -> SpeechSeq2SeqCollator:
    """The shipped collator, for models that read waveforms with a mask."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    processor = SpeechSeq2SeqProcessor(extractor, tiny_tokenizer(tokenizer))
    return SpeechSeq2SeqCollator(processor, model.config)


def arguments(folder: Path, **options: Any) -> Seq2SeqTrainingArguments:
    """Arguments of a run on the CPU that logs every step and writes nothing unless asked."""
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "remove_unused_columns": False,
        "max_grad_norm": 1e9,  # the norm is computed, and changes nothing
        "dataloader_pin_memory": False,
    }
    return Seq2SeqTrainingArguments(output_dir=str(folder), **{**defaults, **options})


def train(
    trainer_class: Any, model: Any, folder: Path, dataset: list[Row] | None = None, **options: Any
) -> tuple[Any, list[dict[str, float]]]:
    """Train one epoch (or as `options` say); gives the trainer and what it logged at each step."""
    options = {"num_train_epochs": 1, "learning_rate": 1e-3, **options}
    trainer = trainer_class(
        model=model,
        args=arguments(folder, **options),
        train_dataset=rows() if dataset is None else dataset,
        data_collator=collator(model),
    )
    trainer.train()
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


def gradients(model: Any, **batch: Any) -> dict[str, torch.Tensor]:
    """Gradients of the loss by parameter."""
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
