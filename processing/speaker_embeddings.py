"""Speaker embeddings from files and data sets: one vector for a voice, checked before a model hears it."""

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np


class SpeakerError(ValueError):
    """A speaker embedding that cannot be used. The message is one line naming it and what is wrong with it."""


def load_speaker_embedding(source: Any, width: int | None = None, *, name: str | None = None) -> np.ndarray:
    """Read one speaker embedding.

    Args:
        source: a .npy file, a .pt or .pth file with a tensor, or the numbers themselves: [V] or [1, V].
        width: V, where it is known.
        name: what to call it in errors, where it is no file.

    Returns:
        float32 [V].

    Raises:
        SpeakerError: no such file, or it holds something else; another width; NaN, infinite or only zero values.
    """
    if isinstance(source, str | PathLike):
        name, source = fspath(source), _read(Path(source))
    name = name or "speaker embedding"
    if hasattr(source, "detach"):
        source = source.detach().cpu().float().numpy()
    try:
        embedding = np.asarray(source, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise SpeakerError(f"{name}: not a vector of numbers ({type(source).__name__})") from error
    shape, embedding = list(embedding.shape), embedding.squeeze(axis=0) if embedding.shape[:1] == (1,) else embedding
    if embedding.ndim != 1 or not len(embedding):
        raise SpeakerError(f"{name}: one vector is expected, got an array of shape {shape}")
    if width is not None and len(embedding) != width:
        raise SpeakerError(f"{name}: {len(embedding)} values, but the model's speaker embeddings have {width}")
    if wrong := np.count_nonzero(~np.isfinite(embedding)):
        raise SpeakerError(f"{name}: {wrong} of {len(embedding)} values are NaN or infinite")
    if not embedding.any():
        raise SpeakerError(f"{name}: all {len(embedding)} values are zero")
    return embedding


def _read(path: Path) -> Any:
    if not path.is_file():
        raise SpeakerError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix.lower() in (".pt", ".pth"):
            import torch

            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes of unpickling
        reason = " ".join(str(error).split())[:80]
        raise SpeakerError(f"{path}: cannot be read ({reason or type(error).__name__})") from error
    raise SpeakerError(f"{path}: a speaker embedding is a .npy or .pt file")
