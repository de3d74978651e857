"""The programs that measure speed still run, and both classes still do the same work in them."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    program: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(sys, "argv", [name, *words, "--threads", "1", "--rounds", "1"])
    program.main()


@pytest.fixture(autouse=True)
def there_are_benchmarks():
    if not BENCHMARKS.is_dir():
        pytest.skip("the benchmarks are not installed")


def test_decoding_is_measured_on_the_same_tokens_with_one_mask_for_each_call(monkeypatch, capsys):
    run("decode_speech_seq2seq", monkeypatch, "--pairs", "tiny", "--seconds", "1", "--tokens", "3")
    rows = [line for line in capsys.readouterr().out.splitlines() if "same tokens" in line]
    assert [re.split(r"  +", row)[0] for row in rows] == [
        "greedy, batch 1",
        "greedy, batch 8",
        "beam 5, batch 1",
        "beam 5, batch 8",
    ]
    assert all("-> (0, 1)" in row for row in rows)


@pytest.mark.parametrize("option, said", [("--share", "decode step"), ("--ctc", "letters, batch 8")])
def test_the_parts_of_decoding_are_measured(option, said, monkeypatch, capsys):
    run("decode_speech_seq2seq", monkeypatch, "--pairs", "tiny", "--seconds", "1", "--tokens", "3", option)
    assert said in capsys.readouterr().out


def test_synthesis_is_measured(monkeypatch, capsys):
    words = ["--tiny", "--batches", "1", "2", "--step", "20", "--early", "10", "--late", "40", "--speech-steps", "60"]
    run("synthesize_speech", monkeypatch, *words)
    out = capsys.readouterr().out
    assert all(part in out for part in ("batch 2", "step(40) / step(10)", "first audio"))
