"""Several processes: no parameter without a gradient, layers that can be sharded, and the loss of one process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed_training_run
import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from tiny_models import DECODERS, ENCODERS, audio, labels, tiny_model
from torch.nn.parallel import DistributedDataParallel


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone: its reducer counts parameters as that of many does."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def two_steps(model: Any, encoder: str) -> None:
    """The second forward pass raises if the first left a parameter without a gradient."""
    wrapped = DistributedDataParallel(model.train())
    for seed in range(2):
        batch = {**audio(encoder, 9600, 12800, seed=seed), "labels": labels(3, 5, end=model.config.eos_token_id)}
        wrapped(**batch).loss.backward()


@pytest.mark.parametrize("encoder", ["wav2vec2", "hubert", "wavlm", "wav2vec2-conformer", "whisper", "sew"])
@pytest.mark.parametrize("spec_augment", [False, True])
def test_data_parallel_training_finds_no_unused_parameter(
    process_group: None, encoder: str, spec_augment: bool
) -> None:
    model = tiny_model(encoder, ctc_weight=0.3, mask_time_prob=0.3, apply_spec_augment=spec_augment)
    model.gradient_checkpointing_enable()
    two_steps(model, encoder)


@pytest.mark.parametrize("freeze", ["freeze_feature_encoder", "freeze_encoder", "freeze_decoder"])
def test_data_parallel_training_of_frozen_models_finds_no_unused_parameter(process_group: None, freeze: str) -> None:
    model = tiny_model("wav2vec2", mask_time_prob=0.3, apply_spec_augment=True)
    getattr(model, freeze)()
    two_steps(model, "wav2vec2")


def test_native_class_stops_at_the_unused_mask_embedding(process_group: None) -> None:
    native = tiny_model(mask_time_prob=0.3, apply_spec_augment=True).to_native()
    native.config.decoder_start_token_id, native.config.pad_token_id = 2, 0
    native.encoder.config.apply_spec_augment = False
    with pytest.raises(RuntimeError, match="not used in producing loss"):
        wrapped = DistributedDataParallel(native.train())
        for _ in range(2):
            wrapped(**audio("wav2vec2", 9600), labels=labels(3)).loss.backward()


def wrapped_classes(model: Any) -> set[str]:
    plugin = FullyShardedDataParallelPlugin(auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    policy: Any = plugin.auto_wrap_policy
    return {layer.__name__ for layer in policy.keywords["transformer_layer_cls"]}


@pytest.mark.parametrize(
    ("encoder", "decoder"), [(name, "bert") for name in ENCODERS] + [("wav2vec2", name) for name in DECODERS]
)
def test_sharding_wraps_the_layers_of_both_halves(encoder: str, decoder: str) -> None:
    model = tiny_model(encoder, decoder)
    classes = wrapped_classes(model)
    for half in (model.encoder, model.decoder):
        layers = [module for module in half.modules() if type(module).__name__ in classes]
        assert len(layers) >= 2


def test_sharding_finds_the_layers_after_loading(tmp_path: Path) -> None:
    model = tiny_model("wav2vec2", "bart")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert wrapped_classes(loaded) == wrapped_classes(model) >= {"BartDecoderLayer", "Wav2Vec2EncoderLayer"}


def test_native_class_does_not_know_the_layers_of_its_encoder() -> None:
    native = tiny_model("wav2vec2", "bart").to_native()
    try:
        found = wrapped_classes(native)
    except (ValueError, TypeError, AttributeError):
        return
    assert "Wav2Vec2EncoderLayer" not in found


@pytest.mark.slow
def test_two_processes_log_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    script = Path(distributed_training_run.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logged = json.loads((tmp_path / "logged.json").read_text())
    names = ("loss", "grad_norm", "decoder_loss", "ctc_loss")
    for run, options in distributed_training_run.RUNS.items():
        one = {name: value for name, value in options.items() if name == "label_smoothing_factor"}
        alone = distributed_training_run.train(tmp_path / "alone", **one)
        for entry, expected in zip(logged[run], alone, strict=True):
            for name in names:
                tolerance = 0.3 if run == "tokens of each process" else 1e-3
                assert entry[name] == pytest.approx(expected[name], rel=tolerance), (run, name)
            parts = 0.7 * entry["decoder_loss"] + 0.3 * entry["ctc_loss"]
            assert entry["loss"] == pytest.approx(parts, rel=1e-3), run
    assert logged["sharded"][0]["loss"] == pytest.approx(logged["plain"][0]["loss"], rel=1e-3)
