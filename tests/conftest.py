"""What every test gets: no network, no shared caches, one thread, seeds; and where to find optional data."""

import atexit
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

# Libraries read these when they are imported, so they are set before any test module is. The cache is new in every
# process: code of a published checkpoint, once cached, would be what the next test runs.
HUB_CACHE = tempfile.mkdtemp(prefix="speechgraft-tests-")
atexit.register(shutil.rmtree, HUB_CACHE, ignore_errors=True)
os.environ.update(
    HF_HOME=HUB_CACHE,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent

# Tiny models lose more to threads that wait for each other than they gain, and pytest-xdist already fills the cores.
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Same random numbers whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def pretrained_folder() -> Callable[[str], Path]:
    """A function from a checkpoint's name to its folder under $SPEECHGRAFT_PRETRAINED, by default ~/.cache/pretrained.

    The test is skipped where the folder is absent: real checkpoints come from a hub that tests do not reach.
    """
    root = Path(os.environ.get("SPEECHGRAFT_PRETRAINED", "~/.cache/pretrained")).expanduser()

    def folder(name: str) -> Path:
        if not (root / name / "config.json").is_file():
            pytest.skip(f"no checkpoint {name} in {root} (set SPEECHGRAFT_PRETRAINED)")
        return root / name

    return folder


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Recorded English: a folder with train/ and validation/, each an audio folder with its metadata.csv.

    Looked for in $SPEECHGRAFT_RECORDINGS, then beside the checkout; the test is skipped where they are absent.
    """
    beside = REPOSITORY.parent / "shared" / "data" / "english"
    folder = Path(os.environ.get("SPEECHGRAFT_RECORDINGS", beside)).expanduser()
    if not (folder / "validation").is_dir():
        pytest.skip(f"no recordings in {folder} (set SPEECHGRAFT_RECORDINGS)")
    return folder
