"""The stock pipeline for text to speech, and the Auto classes that it looks through, take our folders, offline."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny_speech_synthesizers import VOICE, lively_weights, tiny_hifigan, tiny_synthesizer
from transformers import (
    AutoModel,
    AutoModelForTextToSpectrogram,
    AutoModelForTextToWaveform,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)
from transformers.models.auto import modeling_auto
from transformers.pipelines import text_to_audio

from speechgraft import (
    TextToSpectrogramModel,
    TextToSpectrogramProcessor,
    publish_pretrained,
    train_character_tokenizer,
)

TASK = "text-to-speech"
RATE, HOP = 16_000, 256
SHORT, LONG = "Hi", "The quick brown fox sat there"
VOICES = {"max_speech_positions": 400, "max_text_positions": 60}


def save_speaker(folder: Path, with_vocoder: bool = True, **fields: Any) -> Path:
    """A random model that does not stop by itself, and its processor."""
    letters = "abcdefghijklmnopqrstuvwxyz .,!?'-"
    tokenizer = train_character_tokenizer([letters])
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = tiny_synthesizer(vocab_size=len(tokenizer), **{**VOICES, **ids, **fields})
    with torch.no_grad():
        model.decoder.stop_head.bias.fill_(-30)
    if with_vocoder:
        model.set_vocoder(lively_weights(tiny_hifigan(), 0.2))
    model.save_pretrained(folder)
    TextToSpectrogramProcessor.from_parts(tokenizer, config=model.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_speaker(tmp_path_factory.mktemp("speaker"))


def by_hand(folder: Path, text: Any, seed: int = 0, **options: Any) -> list[np.ndarray]:
    """The processor and the model, without a pipeline."""
    model: Any = TextToSpectrogramModel.from_pretrained(folder)
    processor = TextToSpectrogramProcessor.from_pretrained(folder)
    torch.manual_seed(seed)
    output = model.generate(**processor(text, return_tensors="pt"), **options)
    return [one.numpy() for one in output.waveform]


def say(speak: Any, text: Any, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return speak(text, **options)


def test_two_words_make_sound_without_a_network_a_voice_or_an_option(folder):
    """The built-in class downloads a vocoder and demands a voice."""
    speak = pipeline(TASK, model=str(folder))
    assert type(speak.model) is TextToSpectrogramModel
    found = say(speak, SHORT)
    assert found["sampling_rate"] == RATE
    assert found["audio"].dtype == np.float32 and found["audio"].ndim == 1
    np.testing.assert_array_equal(found["audio"], by_hand(folder, SHORT)[0])
    assert found["audio"].std() > 0.1, "a sound, not a constant"


def test_the_pipeline_does_not_cut_speech_at_its_own_256_frames(folder):
    """Transformers' default counts tokens; taken for frames it ends every text after four seconds."""
    speak = pipeline(TASK, model=str(folder))
    tokens = len(LONG) + 1
    assert len(say(speak, LONG)["audio"]) == 20 * tokens * HOP > 256 * HOP
    assert len(say(speak, LONG, generate_kwargs={"max_new_tokens": 300})["audio"]) == 300 * HOP
    assert len(say(pipeline(TASK, model=str(folder), max_new_tokens=280), LONG)["audio"]) == 280 * HOP


def test_each_text_of_a_batch_is_trimmed_to_its_own_sound(folder):
    speak = pipeline(TASK, model=str(folder))
    texts = [SHORT, LONG, "fox"]
    for batch_size in (1, 2, 3):
        found = say(speak, list(texts), batch_size=batch_size)
        assert [len(one["audio"]) for one in found] == [20 * (len(text) + 1) * HOP for text in texts]
    drawn = [torch.Generator().manual_seed(4) for _ in range(2)]  # the loader of batches uses the global one too
    together = say(speak, list(texts), batch_size=3, forward_params={"generator": drawn[0]})
    expected = by_hand(folder, texts, generator=drawn[1])
    for one, waveform in zip(together, expected, strict=True):
        np.testing.assert_allclose(one["audio"], waveform, atol=1e-4)


def test_a_voice_a_generator_and_settings_go_through_the_pipeline(folder):
    speak = cast(Any, pipeline(TASK, model=str(folder)))
    options = {"speaker_embeddings": torch.ones(VOICE), "speed": 2.0, "max_new_tokens": 40}
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    found = speak(LONG, forward_params={**options, "generator": generators[0]})
    np.testing.assert_array_equal(found["audio"], by_hand(folder, LONG, **options, generator=generators[1])[0])
    assert len(found["audio"]) == 20 * HOP
    with pytest.raises(ValueError, match="num_beams"):
        speak(SHORT, generate_kwargs={"num_beams": 3})


def test_another_vocoder_may_be_given_for_a_call(folder):
    speak, other = cast(Any, pipeline(TASK, model=str(folder))), lively_weights(tiny_hifigan(seed=5), 0.2)
    found = say(speak, SHORT, forward_params={"vocoder": other})
    np.testing.assert_array_equal(found["audio"], by_hand(folder, SHORT, vocoder=other)[0])
    assert np.abs(found["audio"] - say(speak, SHORT)["audio"]).max() > 0.01


def test_settings_of_the_checkpoint_are_those_of_the_pipeline(folder, tmp_path):
    model: Any = TextToSpectrogramModel.from_pretrained(folder)
    model.generation_config.max_new_tokens = 30
    model.save_pretrained(tmp_path)
    TextToSpectrogramProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    assert len(say(pipeline(TASK, model=str(tmp_path)), LONG)["audio"]) == 30 * HOP


def test_a_checkpoint_without_a_vocoder_gives_sound_and_not_its_spectrogram(tmp_path):
    found = say(pipeline(TASK, model=str(save_speaker(tmp_path, with_vocoder=False))), SHORT)
    assert found["audio"].shape == (20 * 3 * HOP,)


def test_the_sampling_rate_is_the_model_s(tmp_path):
    folder = save_speaker(tmp_path, with_vocoder=False, sampling_rate=22_050, fmax=8_000)
    assert say(pipeline(TASK, model=str(folder)), SHORT)["sampling_rate"] == 22_050


def test_the_pipeline_takes_ready_objects(folder):
    model = TextToSpectrogramModel.from_pretrained(folder)
    processor = TextToSpectrogramProcessor.from_pretrained(folder)
    speak = pipeline(TASK, model=model, tokenizer=processor.tokenizer, processor=processor)
    np.testing.assert_array_equal(say(speak, SHORT)["audio"], by_hand(folder, SHORT)[0])


def test_the_pipeline_speaks_in_half_precision(folder):
    speak = pipeline(TASK, model=str(folder), dtype=torch.bfloat16)
    assert speak.model.dtype == torch.bfloat16
    assert np.isfinite(say(speak, SHORT)["audio"]).all()


def test_a_class_that_the_table_names_plainly_needs_the_network_for_a_vocoder(folder, monkeypatch):
    """What befalls the built-in class, and would befall ours: hence the tuple in the table."""
    mapping: Any = modeling_auto.MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING
    asked = []

    class Named:
        def values(self):
            return [TextToSpectrogramModel]

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    assert TextToSpectrogramModel not in list(mapping.values())
    monkeypatch.setattr(text_to_audio, "MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING", Named())
    monkeypatch.setattr("transformers.models.speecht5.modeling_speecht5.SpeechT5HifiGan.from_pretrained", refuse)
    with pytest.raises(OSError, match="no network"):
        pipeline(TASK, model=str(folder))
    assert asked == [("microsoft/speecht5_hifigan",)]


def test_auto_classes_find_each_part_of_a_folder(folder):
    for auto in (AutoModel, AutoModelForTextToSpectrogram, AutoModelForTextToWaveform):
        assert type(auto.from_pretrained(folder)) is TextToSpectrogramModel
    assert type(AutoProcessor.from_pretrained(folder)) is TextToSpectrogramProcessor
    own = TextToSpectrogramProcessor.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == own.tokenizer.get_vocab()


FRESH = """
import json, sys
blocked = sys.argv[1] == "none"
if blocked:
    sys.modules["speechgraft"] = None
else:
    for name in sys.argv[1].split(","):
        __import__(name)
import torch
from transformers import AutoProcessor, pipeline

options = {"trust_remote_code": True} if blocked else {}
speak = pipeline("text-to-speech", sys.argv[2], **options)
torch.manual_seed(0)
found = speak("Hi")
torch.save(torch.from_numpy(found["audio"]), sys.argv[3])
model, processor = speak.model, AutoProcessor.from_pretrained(sys.argv[2], **options)
chunks = list(model.stream_text("Hi. Hi!", processor, max_new_tokens=12))
print(json.dumps({
    "rate": found["sampling_rate"],
    "classes": [type(one).__name__ for one in (model, processor, model.generation_config)],
    "module": type(model).__module__.split(".")[0],
    "streamed": sum(map(len, chunks)),
}))
"""


def in_a_fresh_process(imports: str, folder: Path, work: Path) -> tuple[dict[str, Any], torch.Tensor]:
    command = [sys.executable, "-c", FRESH, imports, str(folder), str(work / "sound.pt")]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), torch.load(work / "sound.pt")


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["speechgraft,transformers", "transformers.pipelines,speechgraft"])
def test_importing_the_package_is_all_that_the_pipeline_needs(imports, folder, tmp_path):
    """In a fresh process, before or after Transformers has read its tables."""
    report, sound = in_a_fresh_process(imports, folder, tmp_path)
    assert report["rate"] == RATE and report["module"] == "speechgraft"
    np.testing.assert_allclose(sound.numpy(), by_hand(folder, SHORT)[0], atol=1e-6)


@pytest.mark.slow
def test_a_published_folder_speaks_through_the_pipeline_without_this_package(folder, tmp_path):
    model = TextToSpectrogramModel.from_pretrained(folder)
    publish_pretrained(model, tmp_path / "published", TextToSpectrogramProcessor.from_pretrained(folder))
    report, sound = in_a_fresh_process("none", tmp_path / "published", tmp_path)
    assert report["classes"] == [
        "TextToSpectrogramModel",
        "TextToSpectrogramProcessor",
        "SpectrogramGenerationConfig",
    ]
    assert report["module"] == "transformers_modules", "not a line of the installed package"
    assert report["rate"] == RATE and report["streamed"] == 2 * 12 * HOP + round(0.2 * RATE)
    np.testing.assert_allclose(sound.numpy(), by_hand(folder, SHORT)[0], atol=1e-6)
