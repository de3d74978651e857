"""What README and docs show works as it stands; CONTRIBUTING.md says how that is checked."""

import ast
import functools
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import HfArgumentParser

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not {"_build", "generated"} & set(page.parts)]

CHECKED_LANGUAGES = {"python", "bash"}
OTHER_LANGUAGES = {"text", "json", "yaml", "toml", "csv", "diff", "bibtex", "mermaid"}
COMMAND_MODULE = "speechgraft.scripts.cli"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, the line of the page it starts on, and what it needs, if marked."""

    language: str
    code: str
    line: int
    needs: str | None


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    needs, at = None, 0
    while at < len(lines):
        if fence := re.fullmatch(r"(\s*)(`{3,})([^\s`]*).*", lines[at]):
            indent, ticks, language = fence.groups()
            end = next(n for n in range(at + 1, len(lines)) if lines[n].strip() == ticks)
            code = "\n".join(line.removeprefix(indent) for line in lines[at + 1 : end])
            yield Block(language, code, at + 2, needs)
            needs, at = None, end
        elif lines[at].strip():
            marked = re.fullmatch(r"\s*<!-- needs: (.+) -->\s*", lines[at])
            needs = marked[1] if marked else None
        at += 1


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command: lines joined at backslashes, split at && | ; and cut at redirections."""
    lexer = shlex.shlex(code.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in {";", "&&", "||", "|", "&"}:
            if words:
                yield words[: next((n for n, w in enumerate(words) if set(w) <= set("<>")), len(words))]
            words = []
        elif words or not re.fullmatch(r"[A-Z_]+=.*", word):  # OMP_NUM_THREADS=1 before a command
            words.append(word)


class Parsed(BaseException):
    """Raised when a parser accepted its arguments, so that the command goes no further."""


def parse_own_command(arguments: list[str]) -> None:
    """Run the command as its entry point does, up to where the arguments are accepted."""

    def stopping(parse):
        def parse_and_stop(parser, args=None, *more, **options):
            parsed = parse(parser, args, *more, **options)
            if args is None or list(args)[-1:] == arguments[-1:]:  # else a subcommand's own parser gets the rest
                raise Parsed
            return parsed

        return parse_and_stop

    shown = shlex.join(["speechgraft", *arguments])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["speechgraft", *arguments])
        for owner, name in (ArgumentParser, "parse_args"), (HfArgumentParser, "parse_args_into_dataclasses"):
            patch.setattr(owner, name, stopping(getattr(owner, name)))
        try:
            status = importlib.import_module("speechgraft.scripts.cli").main()
            pytest.fail(f"{shown}: not parsed, status {status}")
        except Parsed:
            pass
        except SystemExit as stop:  # --help and --version leave this way, with 0
            assert not stop.code, shown


@functools.cache
def help_of(*words: str) -> str:
    command = [sys.executable, *words, "--help"]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


def check_options(program: list[str], arguments: list[str]) -> None:
    """The program answers --help, and that lists each option given."""
    unknown = {word.split("=")[0] for word in arguments if word.startswith("--")}
    unknown -= set(re.findall(r"--[\w-]+", help_of(*program)))
    assert not unknown, f"{shlex.join(program)} does not know {sorted(unknown)}"


def check_own_command(arguments: list[str], needs: str | None) -> None:
    if needs:
        check_options(["-m", COMMAND_MODULE, *arguments[:1]], arguments[1:])
    else:
        parse_own_command(arguments)


def check_command(words: list[str], needs: str | None = None) -> None:
    if COMMAND_MODULE in words:  # after `python -m` or `accelerate launch -m`
        check_own_command(words[words.index(COMMAND_MODULE) + 1 :], needs)
    elif words[0] == "speechgraft":
        check_own_command(words[1:], needs)
    elif words[0] in {"python", "python3"} and words[1] == "-m":
        assert importlib.util.find_spec(words[2]), f"no module {words[2]}"
        check_options(words[1:3], words[3:])
    elif words[0] in {"python", "python3"} and words[1] != "-c":
        assert (REPOSITORY / words[1]).is_file(), f"no file {words[1]}"
        check_options(words[1:2], words[2:])


def check_imports(code: str, name: str) -> None:
    """Names that code imports from this package exist; nothing is run."""
    for node in ast.walk(ast.parse(code, filename=name)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "speechgraft":
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def pages_with(language: str) -> list:
    found = [page for page in PAGES if any(block.language == language for block in blocks(page))]
    return [pytest.param(page, id=page.relative_to(REPOSITORY).as_posix()) for page in found]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_every_block_names_a_language_else_nothing_checks_it(page):
    known = CHECKED_LANGUAGES | OTHER_LANGUAGES
    wrong = [(b.line, b.language) for b in blocks(page) if b.language not in known and not b.language.startswith("{")]
    assert wrong == []


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_shown_are_commands_that_exist(page):
    for block in blocks(page):
        if block.language == "bash":
            for words in commands(re.sub(r"(^|\s)#.*", "", block.code)):
                check_command(words, block.needs)


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_shown_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python" and block.needs:
            check_imports(block.code, str(page))
        elif block.language == "python":
            code = "\n" * (block.line - 1) + block.code  # so that a traceback shows the line of the page
            exec(compile(code, str(page), "exec"), namespace)


def test_the_checks_notice_what_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- needs: a hub -->\n\n```python\nfrom speechgraft.configuration import nothing\n```\n"
        "- item\n  ```bash\n  A=1 python missing.py \\\n    --x > out && speechgraft a 'b c' # why\n  ```\n"
    )
    snippet, shell = blocks(page)
    assert (snippet.needs, snippet.line, shell.needs) == ("a hub", 4, None)
    with pytest.raises(AssertionError):
        check_imports(snippet.code, "page.md")
    found = list(commands(re.sub(r"(^|\s)#.*", "", shell.code)))
    assert found == [["python", "missing.py", "--x"], ["speechgraft", "a", "b c"]]
    with pytest.raises(AssertionError, match="missing.py"):
        check_command(found[0])


def test_own_commands_are_parsed_and_go_no_further(monkeypatch):
    def main() -> None:
        parser = ArgumentParser()
        parser.add_argument("--beams", type=int)
        parser.parse_args()
        raise RuntimeError("it went on")

    monkeypatch.setitem(sys.modules, COMMAND_MODULE, SimpleNamespace(main=main))
    parse_own_command(["--beams", "5"])
    for wrong in ["--beams", "five"], ["--beans", "5"]:
        with pytest.raises(AssertionError, match="speechgraft --bea"):
            parse_own_command(wrong)
