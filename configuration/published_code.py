"""Checkpoints that carry their code, for people who have not installed this package.

Transformers copies the file that defines a class, and the neighbours that it imports, but cannot follow an import into
another folder: it fails before the weights are written. Here the modules that a class needs are copied from wherever
they lie and flattened into the checkpoint's one folder.
"""

import ast
import importlib
import inspect
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi
from transformers.utils import logging

logger = logging.get_logger(__name__)

OWN_PACKAGE = __name__.split(".")[0]
NOTICE = "# From the package speechgraft (Apache License 2.0), copied here when the checkpoint was published.\n"
MODEL_CARD = "README.md"
UPLOAD_ARGUMENTS = ("commit_description", "commit_message", "create_pr", "private", "revision", "token")


class PublishesItsCode:
    """A configuration, model or processor whose code can be saved beside it.

    It is, for every class that was registered with `register_for_auto_class` (as Transformers does with what it loads
    under `trust_remote_code`), and whenever something is pushed to the hub.
    """

    published_as: ClassVar[tuple[str, ...]] = ()  # names of the Auto classes that find the class in a checkpoint
    published_in: ClassVar[str] = "config.json"  # the file where they look
    publishes_code: bool = False  # set on a class by registering it, on an instance by those who upload it

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Save the code with every checkpoint from now on.

        Args:
            auto_class: an Auto class or its name; those of `published_as` are registered in any case.
        """
        name = getattr(auto_class, "__name__", auto_class)
        cls.publishes_code = True
        if name is not None and name not in cls.published_as:
            cls.published_as = (*cls.published_as, name)

    def published_classes(self) -> list[type]:
        """The classes that loading needs: this one, and for a model its configuration's."""
        config = getattr(self, "config", None)
        return [type(self)] if config is None else [type(config), type(self)]

    def publish_code(self, folder: str | Path) -> None:
        """Copy the code into a folder where this is saved, and note there which Auto class finds what."""
        classes = [one for one in self.published_classes() if _has_source(one)]
        for source_file in _source_files(classes):
            (Path(folder) / source_file.name).write_text(flattened(source_file), encoding="utf-8")
        names = {name: f"{_module_name(one)}.{one.__name__}" for one in classes for name in one.published_as}
        _write_auto_map(Path(folder) / self.published_in, names)

    def save_pretrained(self, save_directory: Any, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in Transformers; with the code, where the class is registered for it."""
        upload_arguments = {name: kwargs.pop(name) for name in ("repo_id", *UPLOAD_ARGUMENTS) if name in kwargs}
        saved = super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if not kwargs.get("is_main_process", True):
            return saved
        if self.publishes_code:
            self.publish_code(save_directory)
        else:  # a checkpoint that came with its code is saved without: nothing may point there
            _write_auto_map(Path(save_directory) / self.published_in, {})
        if push_to_hub:
            self.push_to_hub(upload_arguments.pop("repo_id", Path(save_directory).name), **upload_arguments)
        return saved

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Save with the code and upload.

        Args:
            repo_id: repository of the hub, created where it does not exist.
            kwargs: see `upload`; what else is given goes to `save_pretrained`.

        Returns:
            Address of the commit.
        """
        upload_arguments = {name: kwargs.pop(name) for name in UPLOAD_ARGUMENTS if name in kwargs}
        kwargs.pop("tags", None)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            self.publish_code(folder)
            return upload(folder, repo_id, **upload_arguments)


def upload(
    folder: str | Path,
    repo_id: str,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder to the hub, but no model card where the repository has one: people edit theirs there.

    Args:
        folder: what to upload.
        repo_id: repository, created where it does not exist.
        commit_message: first line of the commit's message.
        commit_description: the rest of it.
        private: whether only its owner sees a new repository; None leaves it to the owner's settings.
        token: of the hub; by default the stored one.
        revision: branch, created where it does not exist.
        create_pr: open a pull request.

    Returns:
        Address of the commit.
    """
    hub = HfApi(token=token)
    repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/"):
        hub.create_branch(repo_id, branch=revision, exist_ok=True)
    has_card = hub.file_exists(repo_id, MODEL_CARD, revision=revision)
    commit = hub.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        ignore_patterns=[MODEL_CARD] if has_card else None,
        commit_message=commit_message or "Upload with speechgraft",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )
    return str(commit)


def flattened(source_file: Path) -> str:
    """A module's text, with the imports of other modules that are copied too pointing to the same folder."""
    text = source_file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for node in _own_imports(text):
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        if node.level:
            lines[first] = re.sub(r"from\s+\.+(\w+\.)*", "from .", lines[first], count=1)
        else:
            names = [f"{alias.name} as {alias.asname}" if alias.asname else alias.name for alias in node.names]
            modules = [_definition_of(node, alias.name).stem for alias in node.names]
            indent = " " * node.col_offset
            pairs = zip(modules, names, strict=True)
            lines[first:last] = ["".join(f"{indent}from .{module} import {name}\n" for module, name in pairs)]
            lines[first + 1 : first + 1] = [""] * (last - first - 1)  # the lines below keep their numbers
    flat = "".join(lines)
    return flat if flat.startswith(NOTICE) or not _is_ours(source_file) else NOTICE + flat


def _is_ours(source_file: Path) -> bool:
    own_folder = Path(__file__).parent
    return source_file.is_relative_to(own_folder.parent if OWN_PACKAGE == "speechgraft" else own_folder)


def _own_imports(text: str) -> list[ast.ImportFrom]:
    """Statements that import from the module's own package, or by its full name from this one."""
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.module)
    return [node for node in nodes if node.level or str(node.module).split(".")[0] == OWN_PACKAGE]


def _definition_of(node: ast.ImportFrom, name: str) -> Path:
    """The file that defines what `from speechgraft import …` imports."""
    value = getattr(importlib.import_module(str(node.module)), name)
    return Path(str(inspect.getsourcefile(value)))


def _source_files(classes: Iterable[type]) -> list[Path]:
    """The files that define classes, and all that these import of their own packages.

    Raises:
        ValueError: two of them have the same name.
    """
    found: dict[str, Path] = {}
    waiting = [Path(str(inspect.getsourcefile(one))).resolve() for one in classes]
    while waiting:
        source_file = waiting.pop()
        if found.setdefault(source_file.name, source_file) != source_file:
            same_text = found[source_file.name].read_bytes() == source_file.read_bytes()
            if not same_text:  # Transformers unpacks published code twice, for a configuration and for its model
                raise ValueError(f"two modules cannot lie in one folder: {found[source_file.name]}, {source_file}")
            continue
        for node in _own_imports(source_file.read_text(encoding="utf-8")):
            if node.level:
                folder = source_file.parents[node.level - 1]
                imported = [folder.joinpath(*str(node.module).split(".")).with_suffix(".py")]
            else:
                imported = [_definition_of(node, alias.name) for alias in node.names]
            waiting += [file.resolve() for file in imported if file.resolve() not in found.values()]
    return sorted(found.values())


def _has_source(one: type) -> bool:
    if one.__module__ != "__main__":
        return True
    logger.warning(f"{one.__name__} is defined in a script or notebook: put it into a module to publish its code")
    return False


def _module_name(one: type) -> str:
    return one.__module__.split(".")[-1]


def _write_auto_map(file: Path, names: dict[str, str]) -> None:
    """Set what Auto classes look up in a JSON file, or take it out."""
    if not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    if names == content.pop("auto_map", {}):
        return
    if names:
        content["auto_map"] = names
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
