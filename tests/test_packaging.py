"""What is installed is what the repository shows: nothing missing from the wheel, nothing more, a light import."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import tomli

REPOSITORY = Path(__file__).resolve().parent.parent
METADATA = tomli.loads((REPOSITORY / "pyproject.toml").read_text())
NOT_PACKAGED = {"tests", "docs", "benchmarks", "build", "dist", "runs"}

# Which of the folders a module may import from; its own folder goes without saying.
ARROWS = {
    "configuration": set(),
    "modeling": {"configuration"},
    "processing": {"configuration"},
    "scripts": {"configuration", "modeling", "processing"},
}


def source_folders() -> list[Path]:
    """Folders of the checkout that are packages: those that hold an __init__.py."""
    found = [
        init.parent
        for init in REPOSITORY.rglob("__init__.py")
        if not any(part in NOT_PACKAGED or part.startswith(".") for part in init.relative_to(REPOSITORY).parts)
    ]
    return sorted(folder for folder in found if "site-packages" not in folder.parts)


def source_files() -> list[Path]:
    return sorted(file for folder in source_folders() for file in folder.glob("*.py"))


def published_files() -> list[Path]:
    """Those that may be copied into a checkpoint's folder: all but the command's."""
    return [file for file in source_files() if file.parent.name in ARROWS and file.parent.name != "scripts"]


def module_name(file: Path) -> str:
    parts = ("speechgraft", *file.relative_to(REPOSITORY).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[str]:
    return [module_name(file) for file in source_files()]


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in requirements}


def run_python(code: str, folder: Path, *args: str) -> str:
    """Run code in a fresh interpreter outside the checkout, where `modeling` is not importable by accident."""
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_of_code_is_in_the_package_list_else_the_wheel_lacks_it():
    listed = METADATA["tool"]["setuptools"]["packages"]
    found = {module_name(folder / "__init__.py") for folder in source_folders()} | {"speechgraft"}
    assert sorted(listed) == sorted(found)


def test_every_folder_with_code_has_an_init():
    packages = set(source_folders())
    code = {
        file.parent for name in ARROWS for file in (REPOSITORY / name).rglob("*.py") if "__pycache__" not in file.parts
    }
    assert code <= packages


def test_wheel_installs_all_of_speechgraft_and_nothing_but_speechgraft(tmp_path):
    # From a copy: setuptools builds in the source tree and would pick up leftovers of earlier builds.
    ignore = shutil.ignore_patterns(".git", ".venv", "venv", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, tmp_path / "source", ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    done = subprocess.run([*command, str(tmp_path / "source")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {f"speechgraft/{file.relative_to(REPOSITORY).as_posix()}" for file in source_files()}
    assert installed == wanted | {"speechgraft/py.typed"}


def test_basenames_are_unique_else_a_published_checkpoint_loses_a_file_when_flattened():
    counts = Counter(file.name for file in source_files() if file.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []


def test_basenames_hide_no_installed_module():
    """Flattened beside a checkpoint, or run as a script, `evaluate.py` would be imported instead of the library."""
    taken = set(sys.stdlib_module_names) | requirement_names(METADATA["project"]["dependencies"])
    assert [file for file in source_files() if file.stem in taken] == []


def own_imports(file: Path) -> list[ast.Import | ast.ImportFrom]:
    """Import statements of this package's own modules, whichever way they are written."""
    own = {"speechgraft", *ARROWS}

    def is_own(node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            return node.level > 0 or (node.module or "").split(".")[0] in own
        return isinstance(node, ast.Import) and any(alias.name.split(".")[0] in own for alias in node.names)

    tree = ast.parse(file.read_text(), filename=str(file))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and is_own(node)]


@pytest.mark.parametrize("file", source_files(), ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_own_imports_are_relative_else_a_checkout_of_another_name_breaks(file):
    wrong = [f"{file.name}:{node.lineno}" for node in own_imports(file) if not getattr(node, "level", 0)]
    assert wrong == [], "write `from .module import name` or `from ..folder.module import name`"


@pytest.mark.parametrize("file", published_files(), ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_own_imports_name_a_module_and_what_they_take_else_published_code_cannot_be_flattened(file):
    wrong = [
        f"{file.name}:{node.lineno}: {ast.unparse(node)}"
        for node in own_imports(file)
        if not (isinstance(node, ast.ImportFrom) and node.module) or any(alias.name == "*" for alias in node.names)
    ]
    assert wrong == [], "published code is flattened: `from .module import name`, never `from . import module`"


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_between_folders_run_one_way(folder):
    wrong = [
        f"{file.name}:{node.lineno}: {ast.unparse(node)}"
        for file in sorted((REPOSITORY / folder).glob("*.py"))
        for node in own_imports(file)
        if isinstance(node, ast.ImportFrom)
        and node.level == 2
        and node.module  # else a name of the root package, such as the version
        and node.module.split(".")[0] not in ARROWS[folder]
    ]
    assert wrong == []


def test_every_module_imports_with_the_minimal_dependencies(tmp_path):
    """Somebody who installed no extra can import everything; an extra is asked for when it is used."""
    extras = METADATA["project"]["optional-dependencies"]
    optional = set().union(*(requirement_names(extra) for extra in extras.values()))
    optional -= requirement_names(METADATA["project"]["dependencies"]) | {"speechgraft", "setuptools", "tomli"}
    blocked = sorted(name.replace("-", "_") for name in optional)
    code = """
import importlib, json, sys
blocked, modules = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))
for module in modules:
    importlib.import_module(module)
"""
    run_python(code, tmp_path, json.dumps([blocked, modules()]))


@pytest.mark.slow
@pytest.mark.parametrize("module", modules())
def test_each_module_can_be_the_first_one_imported(module, tmp_path):
    """Registering happens while Transformers' modules load, so a module of ours may be found half loaded."""
    run_python(f"import {module}", tmp_path)


def imported_by(statement: str, folder: Path) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted(sys.modules), sep='\\n')"
    return set(run_python(code, folder).split())


def test_import_is_as_light_as_that_of_transformers(tmp_path):
    """Importing registers the models; their code, torch and the data libraries load when they are first used."""
    heavy = {"torch", "datasets", "evaluate", "accelerate", "jiwer", "matplotlib", "pandas", "soundfile", "soxr"}
    ours = imported_by("import speechgraft", tmp_path)
    theirs = imported_by("import transformers", tmp_path)
    assert heavy & ours <= heavy & theirs
    # A tenth more, or fifty modules: what registering with the Auto classes takes.
    assert len(ours) <= max(1.1 * len(theirs), len(theirs) + 50), sorted(ours - theirs)


def test_the_command_that_the_package_installs_exists():
    scripts = METADATA["project"]["scripts"]
    assert list(scripts) == ["speechgraft"]
    module, function = scripts["speechgraft"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_version_is_that_of_the_project_file():
    package: ModuleType = importlib.import_module("speechgraft")
    assert package.__version__ == METADATA["project"]["version"]


def test_the_package_under_test_is_this_checkout():
    """Tests of an older, installed copy would pass whatever is written here."""
    if "SPEECHGRAFT_TEST_INSTALLED" in os.environ:
        pytest.skip("asked to test an installed copy")
    path = importlib.import_module("speechgraft.configuration").__file__
    assert path is not None and Path(path).resolve().parent == REPOSITORY / "configuration"
