"""The command `speechgraft` answers at once, explains itself, and ends in a way that scripts can rely on."""

import importlib
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from speechgraft import __version__
from speechgraft.scripts.cli import COMMANDS, TRAINING, main, make_parser
from speechgraft.scripts.common import CommandError, did_you_mean, explained, one_line, run


def python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["transcribe", "--help"], ["evaluate-asr", "--help"], ["--version"]])
def test_help_and_version_load_neither_torch_nor_transformers(words, tmp_path):
    code = (
        "import sys\nfrom speechgraft.scripts.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    assert python(code, tmp_path)


def test_options_are_refused_before_anything_heavy_is_loaded(tmp_path):
    code = (
        "import sys\nfrom speechgraft.scripts.cli import main\n"
        "try:\n    main(['transcribe', 'a.wav', '--model', 'm', '--nbest', 'many'])\n"
        "except SystemExit as stop:\n    assert stop.code == 2\nassert 'torch' not in sys.modules\nprint('refused')"
    )
    assert python(code, tmp_path) == "refused\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in TRAINING])
def test_every_command_explains_itself_and_each_of_its_options(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    parser = make_parser(command)
    (subparsers,) = (action for action in parser._actions if action.dest == "command")
    for action in dict(subparsers.choices or {})[command]._actions:
        assert action.help, action.dest
        assert (action.option_strings or [action.metavar])[-1] in text


def test_the_help_lists_every_command_with_its_purpose(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, (_, purpose) in COMMANDS.items():
        assert f"{name} {purpose}" in text


def test_version_and_no_command_at_all(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"speechgraft {__version__}\n"
    assert main([]) == 2
    assert "transcribe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["transcribble"], "invalid choice: 'transcribble'"),
        (["transcribe"], "speechgraft transcribe: the following arguments are required: AUDIO, --model"),
        (
            ["transcribe", "a.wav", "--model", "m", "--batch-size", "0"],
            "argument --batch-size: must be at least 1, got 0",
        ),
        (["evaluate-asr", "--data", "d", "--model", "m", "--normalizer", "french"], "invalid choice: 'french'"),
    ],
)
def test_a_wrong_option_is_one_line_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_mistakes_become_one_line_and_faults_of_the_program_keep_their_traceback(capsys):
    def mistake() -> int:
        raise CommandError("a.wav: several\n   lines")

    def fault() -> int:
        raise ZeroDivisionError

    assert run("transcribe", mistake) == 2
    assert capsys.readouterr().err == "speechgraft transcribe: a.wav: several lines\n"
    with pytest.raises(CommandError):
        run("transcribe", mistake, debug=True)
    with pytest.raises(ZeroDivisionError):
        run("transcribe", fault)


def test_ctrl_c_is_told_without_a_traceback(capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run("transcribe", interrupted) == 130
    assert capsys.readouterr().err == "speechgraft transcribe: interrupted\n"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    code = (
        "import sys\nfrom speechgraft.scripts.common import run\n"
        "def endless():\n    while True:\n        print('line', flush=True)\n"
        "sys.exit(run('transcribe', endless))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None and process.stderr.read() == ""
    process.stderr.close()


def test_what_libraries_raise_names_the_input_once():
    for raised, told in (
        (ValueError("bad\nvalue"), "model: bad value"),
        (OSError("model: not there"), "model: not there"),
        (KeyError(), "model: KeyError"),
    ):
        with pytest.raises(CommandError) as error, explained("model"):
            raise raised
        assert str(error.value) == told
    assert one_line(ValueError()) == "ValueError"


def test_suggestions_are_close_or_absent():
    assert did_you_mean("learning_rat", ["learning_rate", "seed"]) == "; did you mean learning_rate?"
    assert did_you_mean("zzz", ["learning_rate"]) == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["speechgraft.scripts.cli", "--version"], f"speechgraft {__version__}"),
        (["speechgraft.scripts.train_asr", "missing.yaml"], "speechgraft train-asr: missing.yaml: no such file"),
    ],
)
def test_the_modules_run_as_the_command_does_for_launchers(words, told, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == (2 if "missing" in told else 0)
    assert told in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_about_commands_explains_every_option(command, repository):
    page = (repository / "docs" / "commands.md").read_text()
    section = page.split(f"\n## {command}\n")[1].split("\n## ")[0]
    if command in TRAINING:
        kinds = importlib.import_module(f"speechgraft.scripts.{COMMANDS[command][0]}").COMMAND.kinds
        options = {f"--{option.name}" for kind in kinds[:-1] for option in fields(kind)}
    else:
        (subparsers,) = (action for action in make_parser(command)._actions if action.dest == "command")
        options = {
            name for action in dict(subparsers.choices or {})[command]._actions for name in action.option_strings
        }
    missing = [option for option in options - {"-h", "--help", "--debug"} if f"`{option}" not in section]
    assert missing == []
