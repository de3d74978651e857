"""`speechgraft publish`: one command from a trained model to a folder, or a repository, that others can use."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from tiny_recognizers import save_clips, save_native, save_recognizer

from speechgraft.configuration import published_code
from speechgraft.scripts.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_recognizer(tmp_path_factory.mktemp("recognizer") / "model")


def publish(*words: object) -> int:
    return main(["publish", *map(str, words)])


def test_the_published_folder_has_weights_processor_code_and_a_card_with_what_was_measured(model, tmp_path, capsys):
    clips = save_clips(tmp_path / "clips", 2)
    results = tmp_path / "results.json"
    command = ["evaluate-asr", "--data", clips, "--model", model, "--num-beams", 1, 2, "--output", results]
    assert main([*map(str, command), "--max-new-tokens", "8"]) == 0
    assert publish(model, tmp_path / "out", "--metrics", results) == 0
    assert "read its README.md" in capsys.readouterr().err
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "processor_config.json", "tokenizer.json", "modeling_speech_seq2seq.py"} <= files
    measured = json.loads(results.read_text())["results"]
    card = (tmp_path / "out" / "README.md").read_text()
    for result in measured:
        assert f"{100 * result['wer']:.2f}" in card and f"{100 * result['cer']:.2f}" in card
    assert ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()["model-index"]


def test_the_results_of_a_training_serve_as_metrics(model, tmp_path):
    (tmp_path / "eval_results.json").write_text(json.dumps({"eval_wer": 0.125, "eval_cer": 0.0625, "epoch": 3.0}))
    assert publish(model, tmp_path / "out", "--metrics", tmp_path / "eval_results.json") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "12.50 %" in card and "6.25 %" in card


def test_native_models_are_published_too(tmp_path):
    assert publish(save_native(tmp_path / "native"), tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "speech_seq2seq"


def test_uploading_goes_to_the_repository_asked_for_with_its_name_in_the_card(model, tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(published_code, "upload", lambda *args, **options: calls.append((args, options)) or "there")
    assert publish(model, tmp_path / "out", "--push-to", "me/my-model", "--private") == 0
    assert calls == [((tmp_path / "out", "me/my-model"), {"private": True})]
    assert "uploaded: there" in capsys.readouterr().err
    assert 'from_pretrained("me/my-model"' in (tmp_path / "out" / "README.md").read_text()


def test_a_hub_that_refuses_is_told_in_one_line(model, tmp_path, capsys, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise huggingface_hub.errors.HfHubHTTPError(
            "401 Client Error: not logged in", response=SimpleNamespace(headers={}, request=None, status_code=401)
        )

    monkeypatch.setattr(published_code, "upload", refuse)
    assert publish(model, tmp_path / "out", "--push-to", "me/my-model") == 2
    err = capsys.readouterr().err
    assert "speechgraft publish: --push-to me/my-model: 401 Client Error" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/none", "{tmp}/out"], "{tmp}/none: no such model folder"),
        (["{model}", "{model}"], "{model}: exists already; name a new folder"),
        (["{model}", "{tmp}/out", "--private"], "--private: only with --push-to"),
        (["{model}", "{tmp}/out", "--metrics", "{tmp}/none.json"], "{tmp}/none.json: "),
        (["{model}", "{tmp}/out", "--metrics", "{tmp}/other.json"], "{tmp}/other.json: no error rates"),
        (["{bare}", "{tmp}/out"], "{bare}: no processor in this folder"),
    ],
)
def test_a_mistake_is_one_line_with_status_2_and_leaves_nothing(words, message, model, tmp_path, capsys):
    (tmp_path / "other.json").write_text("[1, 2]")
    bare = save_native(tmp_path / "bare", with_processor=False)
    places = {"tmp": tmp_path, "model": model, "bare": bare}
    assert publish(*(word.format(**places) for word in words)) == 2
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("speechgraft publish: ")]
    assert message.format(**places) in line and "Traceback" not in err
    assert not (tmp_path / "out").exists()
