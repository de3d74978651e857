"""Run by torchrun in the distributed tests: the same 8 clips as one process would take, on every process a part.

    torchrun --nproc_per_node 2 distributed_training_run.py FOLDER

Writes what each run logged to FOLDER/<name>.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from tiny_training import arguments, collator, repeatable_model, rows
from torch.distributed.fsdp import FullyShardedDataParallel

from speechgraft.modeling.trainer_speech_seq2seq import SpeechSeq2SeqTrainer

RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointed": {"gradient_checkpointing": True},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "tokens of each process": {"average_tokens_across_devices": False},
    "smoothed": {"label_smoothing_factor": 0.1},
}


def train(folder: Path, **options: Any) -> list[dict[str, float]]:
    """One optimiser step over 8 clips, then one more epoch: unused parameters show at the second step."""
    model = repeatable_model(ctc_weight=0.3)
    processes = 1
    if torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        options = {"ddp_find_unused_parameters": False, "ddp_backend": "gloo", **options}
    args = arguments(folder, **{"per_device_train_batch_size": 8 // processes, "num_train_epochs": 2, **options})
    trainer = SpeechSeq2SeqTrainer(model=model, args=args, train_dataset=rows(), data_collator=collator(model))
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def sharded_loss() -> float:
    """The loss of a model whose layers are sharded by the policy that Trainer and accelerate use."""
    model = repeatable_model(ctc_weight=0.3).train()
    batch = collator(model)(rows())
    plugin = FullyShardedDataParallelPlugin(auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    sharded = FullyShardedDataParallel(
        model, auto_wrap_policy=plugin.auto_wrap_policy, device_id=torch.device("cpu"), use_orig_params=True
    )
    assert sum(isinstance(module, FullyShardedDataParallel) for module in sharded.modules()) >= 1 + 2 + 2
    loss = sharded(**batch).loss
    loss.backward()
    return float(loss.detach())


def main() -> None:
    """Every run, then the sharded model."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    logged = {name: train(folder / "run", **options) for name, options in RUNS.items()}
    logged["sharded"] = [{"loss": sharded_loss()}]
    if torch.distributed.get_rank() == 0:
        (folder / "logged.json").write_text(json.dumps(logged))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
