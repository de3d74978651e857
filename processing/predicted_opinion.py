"""How natural listeners would probably find speech: a mean opinion score that DistillMOS predicts.

DistillMOS (Stahl and Gamper 2025) is optional: it brings its own weights and is not among this package's dependencies.
"""

import importlib
import importlib.util
import sys
import types
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from .audio_files import load_audio

SAMPLING_RATE = 16_000  # Hz, of what it hears
SHORTEST_S = 0.5  # its convolutions need some frames
INSTALL_HINT = "pip install --no-deps distillmos xls-r-sqa"


class OpinionNotInstalledError(ImportError):
    """The optional package that predicts opinion scores is not installed."""


class PredictedOpinion:
    """Predicts mean opinion scores, from 1 (bad) to 5 (excellent).

    Raises:
        OpinionNotInstalledError: the optional package is missing.
    """

    def __init__(self) -> None:
        package = _distillmos()
        with redirect_stdout(sys.stderr):  # it tells where its weights are
            self._model = package.ConvTransformerSQAModel().eval()

    def __call__(self, audio: Any) -> float:
        """The score of one recording: anything that `load_audio` takes, a bare waveform having 16 kHz.

        Raises:
            AudioError: empty or broken audio.
        """
        import torch

        waveform = load_audio(audio, SAMPLING_RATE)
        missing = round(SHORTEST_S * SAMPLING_RATE) - len(waveform)
        waveform = np.pad(waveform, (0, max(missing, 0)))
        with torch.inference_mode():
            return float(self._model(torch.from_numpy(waveform)[None]))


def _distillmos() -> Any:
    """The package, which imports torchaudio without using it for this; the newest torch has none for it."""
    if importlib.util.find_spec("distillmos") is None:
        raise OpinionNotInstalledError(
            f"predicted opinion scores need DistillMOS, which is not installed: {INSTALL_HINT}"
        )
    stand_ins = {}
    if importlib.util.find_spec("torchaudio") is None:
        stand_ins = {name: types.ModuleType(name) for name in ("torchaudio", "torchaudio.functional")}
        stand_ins["torchaudio"].functional = stand_ins["torchaudio.functional"]  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("distillmos")
    except ImportError as error:
        raise OpinionNotInstalledError(f"DistillMOS lacks {error.name}: {INSTALL_HINT}") from error
    finally:
        for name in stand_ins:
            del sys.modules[name]
