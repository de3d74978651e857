"""The language that is asked for is the one that the decoder is told, by the tokens of its family."""

import copy
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers as hf
from lively_models import lively
from tiny_models import VOCABULARY, audio, decoder_config, save_decoder, save_encoder
from tiny_tokenizers import tiny_tokenizer
from transformers import GenerationMixin, Wav2Vec2FeatureExtractor
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from speechgraft import SpeechSeq2SeqCollator, SpeechSeq2SeqModel, SpeechSeq2SeqProcessor
from speechgraft.configuration.decoder_languages import (
    THREE_LETTERS,
    language_prompt,
    language_token,
    language_tokens,
    task_tokens,
)


@pytest.fixture(scope="module")
def sentencepieces(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("m2m100")
    (folder / "text.txt").write_text("the cat sat on the mat\nhello world\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "spm"), vocab_size=20, minloglevel=2
    )
    (folder / "vocab.json").write_text('{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "▁the": 4}')
    return folder


def native_tokenizers(folder: Path) -> dict[str, Any]:
    return {
        "mbart": hf.MBartTokenizer(),
        "mbart50": hf.MBart50Tokenizer(),
        "nllb": hf.NllbTokenizer(),
        "m2m100": hf.M2M100Tokenizer(folder / "vocab.json", folder / "spm.model"),
    }


def test_every_language_of_every_family_is_found_by_its_own_code(sentencepieces):
    counts = {"mbart": 25, "mbart50": 52, "nllb": 202, "m2m100": 100}
    for family, tokenizer in native_tokenizers(sentencepieces).items():
        known = language_tokens(tokenizer)
        assert len(known) == counts[family]
        for token, token_id in known.items():
            assert language_token(token, known) == token
            assert tokenizer.convert_tokens_to_ids(token) == token_id != tokenizer.unk_token_id
        assert task_tokens(tokenizer) == {}


def test_english_names_and_short_codes_mean_the_same_in_every_family(sentencepieces):
    found = {}
    for family, tokenizer in native_tokenizers(sentencepieces).items():
        known = language_tokens(tokenizer)
        for name in ("de", "German", "deutsch"[:2].upper()):
            found.setdefault(family, set()).add(language_token(name, known))
        assert language_token("english", known) == language_token("en", known)
    assert found == {"mbart": {"de_DE"}, "mbart50": {"de_DE"}, "nllb": {"deu_Latn"}, "m2m100": {"__de__"}}


def test_the_table_of_codes_covers_what_whisper_and_nllb_share():
    nllb = language_tokens(hf.NllbTokenizer())
    three = {token.split("_")[0] for token in nllb}
    assert set(THREE_LETTERS) <= set(LANGUAGES)
    assert set(THREE_LETTERS.values()) <= three
    assert set(LANGUAGES) - set(THREE_LETTERS) == {"la", "br", "haw", "yue"}  # not in NLLB, or by its own code
    assert language_token("cantonese", nllb) == "yue_Hant"
    with pytest.raises(ValueError, match="is one of zho_Hans, zho_Hant: say which"):
        language_token("chinese", nllb)


def test_whisper_is_told_what_its_own_tokenizer_says(whisper_tokenizer):
    languages, tasks = language_tokens(whisper_tokenizer), task_tokens(whisper_tokenizer)
    no_timestamps = whisper_tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    english = [languages["<|en|>"], tasks["transcribe"], no_timestamps]
    names = [name for name, code in TO_LANGUAGE_CODE.items() if code != "yue"]  # which came with large-v3
    for name in [*list(LANGUAGES)[:-1], *names][::9]:
        for task in ("transcribe", "translate"):
            expected = [token for _, token in whisper_tokenizer.get_decoder_prompt_ids(language=name, task=task)]
            assert language_prompt(english, languages, tasks, name, task) == expected


@pytest.fixture(scope="module")
def whisper_tokenizer() -> Any:
    folder = Path.home() / ".cache/pretrained/whisper-base"
    if not folder.exists():
        pytest.skip(f"no checkpoint in {folder}")
    return hf.AutoTokenizer.from_pretrained(folder)


def test_wrong_names_are_told_in_a_line_that_lists_the_known_ones():
    known = language_tokens(tiny_tokenizer("mbart50"))
    assert list(known) == ["en_XX", "de_DE"]
    with pytest.raises(ValueError, match="^unknown language 'klingon'; known: de_DE, en_XX$"):
        language_token("klingon", known)
    with pytest.raises(ValueError, match="the decoder is told no tasks"):
        language_prompt([4], known, {}, task="translate")
    with pytest.raises(ValueError, match="unknown task 'sing'; known: transcribe$"):
        language_prompt([2, 4, 5], {"<|en|>": 2}, {"transcribe": 4}, task="sing")


def test_whisper_generates_as_its_native_class_does(tmp_path):
    native = save_encoder(tmp_path / "whisper", "whisper")
    tiny_tokenizer("whisper").save_pretrained(tmp_path / "whisper")
    known: dict[str, Any] = {"lang_to_id": {"<|en|>": 2, "<|de|>": 3}, "task_to_id": {"transcribe": 4, "translate": 6}}
    config = native.generation_config
    for name, value in {**known, "is_multilingual": True, "no_timestamps_token_id": 5, "max_length": 20}.items():
        setattr(config, name, value)
    config._from_model_config = False  # or what is only known to Whisper is not read back
    native.save_pretrained(tmp_path / "whisper")
    model = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(tmp_path / "whisper")
    model.generation_config.task_to_id = known["task_to_id"]  # the tiny tokenizer does not translate
    features = audio("whisper", 9600, 9600, mask=False)["input_features"]
    assert model.config.decoder_prompt_token_ids == [2, 4, 5]
    for language, task in (("de", "translate"), ("german", "transcribe"), ("en", "translate"), (["de", "en"], None)):
        found = model.generate(features, language=language, task=task, max_new_tokens=6)
        settings: Any = copy.deepcopy(config)
        settings.return_timestamps = False
        native._set_language_and_task(language, task or "transcribe", None, settings)
        start = native._retrieve_init_tokens(features, 2, settings, native.config, 120, {})
        assert torch.equal(found[:, : start.shape[1]], start)
        expected = GenerationMixin.generate(native, features, decoder_input_ids=found[:, :4], max_new_tokens=6)
        assert torch.equal(found, expected)


def multilingual(tmp_path: Path, start: int | None = None) -> SpeechSeq2SeqModel:
    save_encoder(tmp_path / "speech", "wav2vec2-layer")
    save_decoder(tmp_path / "text", "mbart")
    tiny_tokenizer("mbart50").save_pretrained(tmp_path / "text")
    options = {} if start is None else {"decoder_start_token_id": start}
    return SpeechSeq2SeqModel.from_encoder_decoder_pretrained(
        tmp_path / "speech", tmp_path / "text", ctc_weight=0.3, **options
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "ctc_weight": 0.4}], ids=str)
def test_a_batch_of_languages_decodes_as_its_rows_alone(tmp_path, options):
    model = multilingual(tmp_path)
    inputs = audio("wav2vec2-layer", 9600, 6400)
    together = model.generate(**inputs, language=["de", "en_XX"], max_new_tokens=6, **options)
    assert together[:, 1].tolist() == [5, 4]
    for row, (length, language) in enumerate(((9600, "german"), (6400, "en"))):
        alone = {name: value[row : row + 1, :length] for name, value in inputs.items()}
        found = model.generate(**alone, language=language, max_new_tokens=6, **options)
        assert torch.equal(found[0], together[row, : found.shape[1]])
    start = torch.tensor([[2, 5], [2, 4]])
    if "ctc_weight" not in options:  # which would take a prompt that is given for words
        assert torch.equal(together, model.generate(**inputs, decoder_input_ids=start, max_new_tokens=6, **options))
    with pytest.raises(ValueError, match="give either"):
        model.generate(**inputs, language="de", decoder_input_ids=start)
    with pytest.raises(ValueError, match="3 languages for 2 recordings"):
        model.generate(**inputs, language=["de"] * 3)
    with pytest.raises(ValueError, match="unknown language 'xx'; known: de_DE, en_XX"):
        model.generate(**inputs, language="xx")


def test_decoders_that_start_with_the_language_start_with_the_one_asked_for(tmp_path):
    model = multilingual(tmp_path, start=4)
    inputs = audio("wav2vec2-layer", 9600, 6400)
    assert model.generate(**inputs, max_new_tokens=3)[:, 0].tolist() == [4, 4]
    assert model.generate(**inputs, max_new_tokens=3, language="de")[:, 0].tolist() == [5, 5]
    assert model.generate(**inputs, max_new_tokens=3, language=["en", "de"])[:, 0].tolist() == [4, 5]
    model.set_language("de")
    assert (model.config.decoder_start_token_id, model.config.decoder_prompt_token_ids) == (5, [])
    assert model.generate(**inputs, max_new_tokens=3)[:, 0].tolist() == [5, 5]


def test_the_language_is_saved_with_model_and_processor_and_labels_begin_with_it(tmp_path):
    model = multilingual(tmp_path)
    model.set_language("de")
    processor = SpeechSeq2SeqProcessor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tiny_tokenizer("mbart50"))
    with pytest.raises(ValueError):
        SpeechSeq2SeqCollator(processor, model.config)
    processor.set_language("german")
    SpeechSeq2SeqCollator(processor, model.config)
    for saved in (model, processor):
        saved.save_pretrained(tmp_path / "saved")
    loaded = SpeechSeq2SeqProcessor.from_pretrained(tmp_path / "saved")
    assert loaded(text="the cat")["labels"][0] == 5
    again = SpeechSeq2SeqModel.from_pretrained(tmp_path / "saved")
    inputs = audio("wav2vec2-layer", 9600)
    assert again.generate(**inputs, max_new_tokens=3)[0, :2].tolist() == [2, 5]
    assert again.generate(**inputs, max_new_tokens=3, language="english")[0, :2].tolist() == [2, 4]


def test_models_without_languages_say_so():
    model = lively("wav2vec2-layer", decoder_config("bert"))
    assert model.config.vocab_size == VOCABULARY
    with pytest.raises(ValueError, match="the model knows no languages"):
        model.generate(**audio("wav2vec2-layer", 6400), language="de")
