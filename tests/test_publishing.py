"""Published checkpoints: people without this package load them, use them, and pass them on."""

import ast
import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from tiny_models import audio, encoder_config, tiny_config, tiny_model
from tiny_recognizers import noise, save_recognizer
from transformers import (
    AutoConfig,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from speechgraft import (
    SpeechEncoder,
    SpeechEncoderConfig,
    SpeechSeq2SeqConfig,
    SpeechSeq2SeqModel,
    SpeechSeq2SeqProcessor,
    SpeechSeq2SeqTrainer,
    publish_pretrained,
)
from speechgraft.configuration import published_code

AUTO_MAP = {
    "AutoConfig": "configuration_speech_seq2seq.SpeechSeq2SeqConfig",
    "AutoModel": "modeling_speech_seq2seq.SpeechSeq2SeqModel",
    "AutoModelForSpeechSeq2Seq": "modeling_speech_seq2seq.SpeechSeq2SeqModel",
}

# Run where speechgraft cannot be imported: load, transcribe, save.
STRANGER = """
import json, sys
from pathlib import Path

sys.modules["speechgraft"] = None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

folder, work = Path(sys.argv[1]), Path(sys.argv[2])
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
given = torch.load(work / "given.pt")
with torch.no_grad():
    logits = model(**given["inputs"], decoder_input_ids=given["ids"]).logits
    assert torch.equal(AutoModel.from_pretrained(folder, trust_remote_code=True)(
        **given["inputs"], decoder_input_ids=given["ids"]).logits, logits)
waveform = given["waveform"].numpy()
features = processor(waveform, sampling_rate=16_000, return_tensors="pt")
recognize = pipeline("automatic-speech-recognition", model=str(folder), trust_remote_code=True)
text = recognize({"raw": waveform, "sampling_rate": 16_000}, generate_kwargs={"num_beams": 1})["text"]
model.save_pretrained(sys.argv[3])
processor.save_pretrained(sys.argv[3])
torch.save({"logits": logits, "features": dict(features), "labels": processor(text="hello world")["labels"]},
           work / "found.pt")
print(json.dumps({
    "classes": [type(one).__name__ for one in (config, model, processor)],
    "modules": sorted({type(one).__module__.split(".")[0] for one in (config, model, processor)}),
    "text": text,
}))
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[Any, Any]:
    """A model and its processor."""
    folder = save_recognizer(tmp_path_factory.mktemp("recognizer"))
    return SpeechSeq2SeqModel.from_pretrained(folder), SpeechSeq2SeqProcessor.from_pretrained(folder)


def as_stranger(folder: Path, work: Path, again: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What somebody without this package finds in a folder: JSON, and tensors."""
    command = [sys.executable, "-c", STRANGER, str(folder), str(work), str(again)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), torch.load(work / "found.pt")


def python_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["wav2vec2-layer", "whisper"])
def test_a_published_folder_works_without_this_package_and_can_be_passed_on(encoder, tmp_path):
    """Loaded in a fresh process, saved from there, and that loaded in another fresh process: bit-equal each time."""
    source = save_recognizer(tmp_path / "source", encoder, ctc_weight=0.3, adapter_layers=1)
    model, processor = SpeechSeq2SeqModel.from_pretrained(source), SpeechSeq2SeqProcessor.from_pretrained(source)
    publish_pretrained(model, tmp_path / "published", processor)
    waveform, ids = noise(0.6), torch.tensor([[2, 7, 8, 9]])
    inputs = dict(processor(waveform, sampling_rate=16_000, return_tensors="pt"))
    torch.save({"inputs": inputs, "ids": ids, "waveform": torch.tensor(waveform)}, tmp_path / "given.pt")
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=ids).logits
    text = processor.batch_decode(model.generate(**inputs, num_beams=1), skip_special_tokens=True)[0]
    folder = tmp_path / "published"
    for again in ("first", "second"):
        report, tensors = as_stranger(folder, tmp_path, tmp_path / again)
        assert report["classes"] == ["SpeechSeq2SeqConfig", "SpeechSeq2SeqModel", "SpeechSeq2SeqProcessor"]
        assert report["modules"] == ["transformers_modules"], "not a line of the installed package"
        assert torch.equal(tensors["logits"], expected)
        assert all(torch.equal(tensors["features"][name], inputs[name]) for name in inputs)
        assert tensors["labels"] == processor(text="hello world")["labels"]
        assert report["text"] == text
        assert python_files(tmp_path / again) == python_files(tmp_path / "published")
        folder = tmp_path / again


def test_the_published_code_is_flat_and_complete(parts, tmp_path):
    """Transformers copies no more than the files beside it: an import that leaves the folder would not be found."""
    publish_pretrained(parts[0], tmp_path, parts[1])
    files = python_files(tmp_path)
    assert {"modeling_speech_seq2seq.py", "configuration_speech_seq2seq.py", "processing_speech_seq2seq.py"} <= {
        *files
    }
    for name in files:
        for node in ast.walk(ast.parse((tmp_path / name).read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("speechgraft") for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in files, ast.unparse(node)
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] != "speechgraft"


def test_the_saved_files_say_where_each_class_is(parts, tmp_path):
    publish_pretrained(parts[0], tmp_path, parts[1])
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    processor = json.loads((tmp_path / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": "processing_speech_seq2seq.SpeechSeq2SeqProcessor"}
    for module, _, name in (entry.partition(".") for entry in AUTO_MAP.values()):
        tree = ast.parse((tmp_path / f"{module}.py").read_text())
        assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def test_a_folder_saved_plainly_points_to_no_code(parts, tmp_path):
    """Also where the model came from a published folder: entries without their files break loading elsewhere."""
    publish_pretrained(parts[0], tmp_path / "published", parts[1])
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "published")
    processor = AutoProcessor.from_pretrained(tmp_path / "published")
    assert type(model) is SpeechSeq2SeqModel and type(processor) is SpeechSeq2SeqProcessor, "installed code wins"
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    AutoConfig.from_pretrained(tmp_path / "published").save_pretrained(tmp_path / "config")
    assert python_files(tmp_path / "plain") == []
    for file in ("plain/config.json", "plain/processor_config.json", "config/config.json"):
        assert "auto_map" not in (tmp_path / file).read_text()


@pytest.fixture
def registered():
    """Undo `register_for_auto_class`, which holds for the whole process."""
    classes = (SpeechEncoder, SpeechEncoderConfig, SpeechSeq2SeqConfig, SpeechSeq2SeqModel, SpeechSeq2SeqProcessor)
    before = [(one.publishes_code, one.published_as) for one in classes]
    yield
    for one, (publishes_code, published_as) in zip(classes, before, strict=True):
        one.publishes_code, one.published_as = publishes_code, published_as


@pytest.mark.parametrize("auto_class", ["AutoModelForSpeechSeq2Seq", AutoModelForSpeechSeq2Seq, "AutoModel"])
def test_register_for_auto_class_saves_weights_and_code(auto_class, parts, registered, tmp_path):
    """Transformers' own fails on an import from another folder, before a weight is written."""
    model, processor = parts
    SpeechSeq2SeqModel.register_for_auto_class(auto_class)
    SpeechSeq2SeqProcessor.register_for_auto_class()
    SpeechSeq2SeqConfig.register_for_auto_class()
    model.save_pretrained(tmp_path / "registered")
    processor.save_pretrained(tmp_path / "registered")
    publish_pretrained(model, tmp_path / "published", processor)
    for name in ("model.safetensors", "config.json", "processor_config.json", *python_files(tmp_path / "published")):
        assert (tmp_path / "registered" / name).read_bytes() == (tmp_path / "published" / name).read_bytes()
    model.config.save_pretrained(tmp_path / "config")
    assert json.loads((tmp_path / "config" / "config.json").read_text())["auto_map"] == {
        "AutoConfig": AUTO_MAP["AutoConfig"]
    }


def test_a_subclass_in_a_module_of_ones_own_is_published_with_what_it_inherits(tmp_path, monkeypatch):
    package = tmp_path / "my_models"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "my_helpers.py").write_text("FACTOR = 2\n")
    (package / "modeling_mine.py").write_text(
        "import torch\n"
        "from speechgraft import (\n    SpeechSeq2SeqModel,\n    SpeechSeq2SeqOutput as Output,\n)\n"
        "from speechgraft.modeling.sequence_losses import ctc_loss\n"
        "from .my_helpers import FACTOR\n\n\n"
        "class MyModel(SpeechSeq2SeqModel):\n"
        '    published_as = ("AutoModelForSpeechSeq2Seq",)\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from my_models.modeling_mine import MyModel  # pyright: ignore[reportMissingImports]

    MyModel.register_for_auto_class("AutoModelForSpeechSeq2Seq")
    MyModel(tiny_config()).save_pretrained(tmp_path / "saved")
    code = (tmp_path / "saved" / "modeling_mine.py").read_text()
    assert code.startswith(
        "import torch\n"
        "from .modeling_speech_seq2seq import SpeechSeq2SeqModel\n"
        "from .modeling_speech_seq2seq import SpeechSeq2SeqOutput as Output\n"
    )
    assert "from .sequence_losses import ctc_loss\nfrom .my_helpers import FACTOR\n" in code
    assert {"my_helpers.py", "modeling_speech_seq2seq.py", "warm_start.py"} <= set(python_files(tmp_path / "saved"))
    auto_map = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForSpeechSeq2Seq"] == "modeling_mine.MyModel"
    assert not SpeechSeq2SeqModel.publishes_code, "registering a subclass changes nobody else"


def test_a_class_made_in_a_notebook_is_saved_without_code_and_that_is_told(tmp_path, caplog):
    here = type("Here", (SpeechSeq2SeqModel,), {"__module__": "__main__"})
    here.register_for_auto_class()
    here(tiny_config()).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert "put it into a module" in caplog.text
    assert "AutoModelForSpeechSeq2Seq" not in json.loads((tmp_path / "config.json").read_text())["auto_map"]


# The hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch) -> dict[str, Any]:
    """A hub in memory: what was uploaded where."""
    state: dict[str, Any] = {"files": {}, "calls": [], "card_exists": False}

    class Hub:
        def __init__(self, token=None):
            state["token"] = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            state["calls"].append(("create_repo", repo_id, private, exist_ok))
            return type("Url", (), {"repo_id": f"me/{repo_id}" if "/" not in repo_id else repo_id})

        def create_branch(self, repo_id, branch, exist_ok):
            state["calls"].append(("create_branch", repo_id, branch, exist_ok))

        def file_exists(self, repo_id, filename, revision=None):
            return state["card_exists"] and filename == "README.md"

        def upload_folder(self, repo_id, folder_path, ignore_patterns, **options):
            files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
            state["files"] = {name: data for name, data in files.items() if name not in (ignore_patterns or ())}
            state["options"] = {"repo_id": repo_id, **options}
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(published_code, "HfApi", Hub)
    return state


def test_push_to_hub_publishes_the_code_too(parts, hub, tmp_path):
    model, processor = parts
    address = model.push_to_hub("me/model", processor, {"wer": 0.125}, private=True, token="secret", tags=["polite"])
    assert address == "https://hub/me/model/commit/1" and hub["token"] == "secret"
    assert hub["calls"] == [("create_repo", "me/model", True, True)]
    publish_pretrained(model, tmp_path, processor)
    wanted = {file.name for file in tmp_path.iterdir()}
    assert set(hub["files"]) == wanted >= {"README.md", "modeling_speech_seq2seq.py", "processor_config.json"}
    assert json.loads(hub["files"]["config.json"])["auto_map"] == AUTO_MAP
    card = hub["files"]["README.md"].decode()
    assert 'from_pretrained("me/model", trust_remote_code=True)' in card and "12.50 %" in card and "- polite" in card


def test_saving_with_push_to_hub_uploads_the_same(parts, hub, tmp_path):
    model, processor = parts
    model.save_pretrained(tmp_path / "my-model", push_to_hub=True, commit_message="better", revision="draft")
    assert hub["options"]["repo_id"] == "me/my-model" and hub["options"]["commit_message"] == "better"
    assert ("create_branch", "me/my-model", "draft", True) in hub["calls"]
    assert json.loads(hub["files"]["config.json"])["auto_map"] == AUTO_MAP and "README.md" in hub["files"]
    assert (tmp_path / "my-model" / "model.safetensors").exists()
    processor.save_pretrained(tmp_path / "my-model", push_to_hub=True, repo_id="me/other")
    assert hub["options"]["repo_id"] == "me/other" and "processing_speech_seq2seq.py" in hub["files"]
    assert "auto_map" in json.loads(hub["files"]["processor_config.json"])


def test_configuration_and_processor_push_their_code(parts, hub):
    model, processor = parts
    processor.push_to_hub("processor")
    assert {"processing_speech_seq2seq.py", "audio_files.py", "tokenizer.json"} <= set(hub["files"])
    model.config.push_to_hub("config")
    assert {"configuration_speech_seq2seq.py", "config.json"} <= set(hub["files"])


def test_a_model_card_that_somebody_wrote_is_not_overwritten(parts, hub, tmp_path):
    hub["card_exists"] = True
    parts[0].push_to_hub("me/model")
    assert "README.md" not in hub["files"] and "config.json" in hub["files"]
    (tmp_path / "README.md").write_text("mine")
    publish_pretrained(parts[0], tmp_path, metrics={"wer": 0.1})
    assert (tmp_path / "README.md").read_text() == "mine"


def test_trainer_pushes_the_code_too(parts, tmp_path, monkeypatch):
    """Trainer uploads its own folder, by a way of its own: what it saves there must be complete."""
    model, processor = SpeechSeq2SeqModel(parts[0].config), copy.copy(parts[1])
    arguments = Seq2SeqTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = SpeechSeq2SeqTrainer(model, arguments, processing_class=processor)
    trainer.save_model()
    assert python_files(tmp_path) == []
    monkeypatch.setattr(Seq2SeqTrainer, "push_to_hub", lambda self: self.save_model())
    trainer.push_to_hub()
    assert {"modeling_speech_seq2seq.py", "processing_speech_seq2seq.py"} <= set(python_files(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    assert "auto_map" in settings and "publishes_code" not in settings
    assert not SpeechSeq2SeqModel.publishes_code and not SpeechSeq2SeqProcessor.publishes_code


def test_an_encoder_alone_is_published_too(registered, tmp_path):
    SpeechEncoder.register_for_auto_class("AutoModel")
    encoder = SpeechEncoder(SpeechEncoderConfig(encoder=encoder_config("wav2vec2"), adapter_layers=1))
    encoder.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_speech_seq2seq.SpeechEncoderConfig",
        "AutoModel": "modeling_speech_encoder.SpeechEncoder",
    }
    assert "speech_encoders.py" in python_files(tmp_path)
    again = SpeechEncoder.from_pretrained(tmp_path)
    inputs = audio("wav2vec2", 3000)
    assert torch.equal(again(**inputs).last_hidden_state, encoder.eval()(**inputs).last_hidden_state)


# The model card --------------------------------------------------------------------------------------------------


def test_the_card_tells_what_the_model_is_and_what_was_measured(parts, tmp_path):
    publish_pretrained(parts[0], tmp_path, parts[1], {"wer": 0.1234, "cer": 0.05, "epochs": 3}, name="me/recognizer")
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "automatic-speech-recognition"
    assert data["metrics"] == ["wer", "cer"]
    (measured,) = data["model-index"]
    values = {metric["type"]: metric["value"] for metric in measured["results"][0]["metrics"]}
    assert values == {"wer": 12.34, "cer": 5.0}, "in percent, as the hub shows them"
    assert "wav2vec2 speech encoder" in card.text and "bert text decoder" in card.text
    assert "12.34 %" in card.text and "| 3 |" in card.text


def test_the_card_takes_what_evaluate_asr_wrote(parts, tmp_path):
    results = [
        {"num_beams": 1, "wer": 0.2, "cer": 0.1, "rtfx": 12.0, "substitutions": 4},
        {"num_beams": 5, "wer": 0.15, "cer": 0.1, "rtfx": 3.25, "substitutions": 3},
    ]
    metrics = {"data": "speech/test", "split": "test", "normalizer": "english", "results": results, "utterances": {}}
    publish_pretrained(parts[0], tmp_path, parts[1], metrics)
    card = ModelCard.load(tmp_path / "README.md")
    lines = [line for line in card.text.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in lines] == [5] * 4
    assert "20.00 %" in lines[2] and "15.00 %" in lines[3] and "3.25" in lines[3]
    assert "speech/test, test" in card.text and "`english`" in card.text
    result = card.data.to_dict()["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == 15.0 and result["dataset"]["name"] == "speech/test, test"


def test_without_metrics_the_card_claims_none(parts, tmp_path):
    publish_pretrained(parts[0], tmp_path / "my-model")
    card = ModelCard.load(tmp_path / "my-model" / "README.md")
    assert "Results" not in card.text and "model-index" not in card.data.to_dict() and "# my-model" in card.text


def test_the_example_of_the_card_runs(parts, tmp_path):
    import soundfile

    publish_pretrained(parts[0], tmp_path / "published", parts[1], name=str(tmp_path / "published"))
    example = (tmp_path / "published" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    soundfile.write(tmp_path / "speech.wav", noise(0.5), 16_000)
    code = example.replace('"speech.wav"', repr(str(tmp_path / "speech.wav")))
    assert code != example
    printed: list[str] = []
    exec(compile(code, "README.md", "exec"), {"print": printed.append})
    (text,) = printed
    tokens = parts[0].generate(
        **parts[1](noise_of_file(tmp_path / "speech.wav"), sampling_rate=16_000, return_tensors="pt")
    )
    assert text == parts[1].batch_decode(tokens, skip_special_tokens=True)[0]


def noise_of_file(path: Path) -> np.ndarray:
    import soundfile

    return soundfile.read(path, dtype="float32")[0]


def test_what_is_not_of_this_package_is_refused():
    with pytest.raises(TypeError, match="merge_and_unload"):
        publish_pretrained(torch.nn.Linear(2, 2), "anywhere")


def test_a_sharded_model_is_published_whole(tmp_path):
    model = tiny_model("wav2vec2", "bart")
    publish_pretrained(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = SpeechSeq2SeqModel.from_pretrained(tmp_path)
    batch, ids = audio("wav2vec2", 3000), torch.tensor([[2, 7]])
    assert torch.equal(again(**batch, decoder_input_ids=ids).logits, model(**batch, decoder_input_ids=ids).logits)
