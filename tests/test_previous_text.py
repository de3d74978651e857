"""Decoders that go on from previous text: told what was said before, they write what follows, and nothing twice."""

from typing import Any

import numpy as np
import pytest
import torch
from lively_models import lively
from tiny_models import MELS, VOCABULARY, audio, decoder_config, encoder_config, save_encoder, tiny_model
from tiny_tokenizers import tiny_tokenizer
from transformers import GenerationMixin, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from speechgraft import SpeechSeq2SeqModel, SpeechSeq2SeqProcessor
from speechgraft.modeling import language_model_fusion, phrase_biasing
from speechgraft.modeling.long_audio import _Heard
from speechgraft.modeling.previous_text import PreviousTextPrompts, SaidBefore
from speechgraft.modeling.speech_chunks import SpeechChunk, cut_at_silence
from speechgraft.modeling.speech_timestamps import TimedWord, score_texts, time_words

RATE = 16_000
START = 18  # <|startofprev|>, behind the words
PROMPTS = [[START, 7, 9, 12], [], [START, 15, 6, 8, 8, 10, 11], [START, 14]]
CUTS: dict[str, Any] = {"min_chunk_s": 0.4, "max_chunk_s": 1.0, "overlap_s": 0.0}
PLAIN: dict[str, Any] = {**CUTS, "temperatures": (0.0,), "max_new_tokens": 6, "timing": "attention"}


def whisper_tokenizer() -> Any:
    tokenizer: Any = tiny_tokenizer("whisper")
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, "<|startofprev|>"]})
    assert tokenizer.convert_tokens_to_ids("<|startofprev|>") == START < VOCABULARY
    return tokenizer


def whisper(seed: int = 0, **fields: Any) -> Any:
    """A model that says other things behind other previous text."""
    part = encoder_config("whisper", max_source_positions=50)
    fields = {"decoder_start_token_id": 1, "eos_token_id": 0, "pad_token_id": 0} | fields
    model = lively(part, decoder_config("whisper"), volume=2, seed=seed, scale=8, **fields)
    look_back(model.decoder)
    model.generation_config.begin_suppress_tokens = [0]  # or it may say nothing
    model.generation_config.suppress_tokens = [*range(1, 6), START, 19]
    return model


def look_back(decoder: torch.nn.Module) -> None:
    """Make a decoder listen to its own text: random ones repeat the last token whatever came before."""
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "self_attn." in name and parameter.dim() > 1:
                parameter.mul_(6)


def recognizer(**fields: Any) -> tuple[Any, SpeechSeq2SeqProcessor]:
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=1)
    model = whisper(**fields)
    return model, SpeechSeq2SeqProcessor.from_parts(extractor, whisper_tokenizer(), config=model.config)


def recording(bursts: int, seed: int) -> np.ndarray:
    """Noises of other pitch and length, with pauses to cut in."""
    random = np.random.default_rng(seed)
    parts = []
    for _ in range(bursts):
        length = round(RATE * random.uniform(0.3, 0.6))
        tone = np.sin(2 * np.pi * random.uniform(200, 3000) * np.arange(length) / RATE)
        parts += [0.2 * tone + 0.02 * random.standard_normal(length), np.zeros(RATE // 3)]
    return np.concatenate(parts).astype(np.float32)


def features(rows: int) -> torch.Tensor:
    return audio("whisper", *[9600] * rows, mask=False)["input_features"][..., :100]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_prompt_does_what_it_does_in_whispers_own_class(tmp_path, num_beams):
    native = save_encoder(tmp_path / "whisper", "whisper")
    with torch.no_grad():
        native.model.decoder.embed_tokens.weight.normal_()
    look_back(native.model.decoder)
    settings: dict[str, Any] = {
        "prev_sot_token_id": START,
        "max_length": 20,
        "suppress_tokens": [1, 2, 3, 4, 5, 18, 19],
    }
    for name, value in settings.items():
        setattr(native.generation_config, name, value)
    native.generation_config._from_model_config = False
    native.save_pretrained(tmp_path / "whisper")
    whisper_tokenizer().save_pretrained(tmp_path / "whisper")
    model: Any = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(tmp_path / "whisper")
    heard = audio("whisper", 9600, 9600, mask=False)["input_features"]
    texts = []
    for prompt in (PROMPTS[0], PROMPTS[2], None):
        told = {} if prompt is None else {"prompt_ids": torch.tensor(prompt)}
        options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 6}
        first = torch.tensor([[*(prompt or []), 1]]).expand(len(heard), -1)
        expected = GenerationMixin.generate(native, heard, decoder_input_ids=first, **options)
        texts.append(model.generate(heard, **told, **options).tolist())
        assert texts[-1] == expected[:, len(prompt or []) :].tolist()
        if prompt:  # its own generate() leaves start and end out
            own = native.generate(heard, **told, **options).tolist()
            assert [[token for token in row if token] for row in own] == [
                [token for token in row[1:] if token] for row in texts[-1]
            ]
    assert texts[0] != texts[2] and texts[1] != texts[2]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"ctc_weight": 0.4}])
def test_rows_behind_previous_text_of_any_length_say_what_they_say_alone(options):
    model = whisper(ctc_weight=0.3)
    inputs = features(len(PROMPTS))
    settings: dict[str, Any] = {"max_new_tokens": 7, **options}
    together = model.generate(inputs, prompt_ids=PROMPTS, **settings)
    alone = [
        model.generate(inputs[row : row + 1], prompt_ids=prompt, **settings) for row, prompt in enumerate(PROMPTS)
    ]
    assert (together[:, 0] == 1).all()
    for row, tokens in enumerate(alone):
        assert together[row, : tokens.shape[1]].tolist() == tokens[0].tolist()
    assert alone[1].tolist() == model.generate(inputs[1:2], **settings).tolist()  # empty: nothing was said
    untold = model.generate(inputs, **settings)
    assert any(row[0].tolist() != untold[place, : row.shape[1]].tolist() for place, row in enumerate(alone))


def test_scores_and_times_are_those_of_the_transcript_given_what_came_before():
    model, processor = recognizer()
    encoded = model.get_encoder()(input_features=features(len(PROMPTS)))
    sequences = model.generate(encoder_outputs=encoded, prompt_ids=PROMPTS, max_new_tokens=7)
    scored = score_texts(model, processor.tokenizer, encoded, sequences, prompt_ids=PROMPTS)
    for row, (prompt, one) in enumerate(zip(PROMPTS, scored, strict=True)):
        whole = torch.tensor([[*prompt, *sequences[row].tolist()]])
        logits = model(input_features=features(len(PROMPTS))[row : row + 1], decoder_input_ids=whole).logits
        chosen = logits.log_softmax(dim=-1)[0, :-1].gather(1, whole[0, 1:, None])[len(prompt) :, 0].tolist()
        assert one.token_ids and [chosen[place - 1] for place in one.places] == pytest.approx(one.log_probs, abs=1e-4)
        stop = one.places[-1] + (0 in sequences[row].tolist())
        assert one.mean_log_prob == pytest.approx(np.mean(chosen[:stop]), abs=1e-4)
    arguments: Any = (model, processor, encoded, sequences, [1.0] * len(PROMPTS))
    for method in ("attention", None):
        timed = time_words(*arguments, method=method, prompt_ids=PROMPTS)
        for (text, words, _), one in zip(timed, scored, strict=True):
            assert text == processor.decode(one.token_ids) and 0 <= words[0].start_s <= words[-1].end_s <= 1


def test_language_models_hot_words_and_the_ctc_head_see_the_transcript_alone(monkeypatch):
    model, seen = whisper(ctc_weight=0.3), []
    inputs, settings = features(4), {"max_new_tokens": 4}

    def scorer(said: torch.Tensor) -> torch.Tensor:
        seen.append(said.shape[1])
        return torch.zeros(len(said), VOCABULARY)

    model.generate(inputs, prompt_ids=PROMPTS, language_model=scorer, **settings)
    assert seen == [0, 1, 2, 3]
    follow, phrases = phrase_biasing.PhraseBiasLogitsProcessor._follow, []
    monkeypatch.setattr(
        phrase_biasing.PhraseBiasLogitsProcessor,
        "_follow",
        lambda self, said: phrases.append(said) or follow(self, said),
    )
    model.generate(inputs, prompt_ids=PROMPTS, hot_words=[[12, 13]], **settings)
    assert {len(said) for said in phrases} == {0, 1, 2, 3} and not any(START in said for said in phrases)
    before, texts = language_model_fusion.InternalLanguageModel._before, []
    monkeypatch.setattr(
        language_model_fusion.InternalLanguageModel,
        "_before",
        lambda self, said: texts.append(said) or before(self, said),
    )
    model.generate(inputs, prompt_ids=PROMPTS, internal_language_model_weight=0.2, **settings)
    assert texts[0].tolist() == [[1]] * 4
    by_ctc: dict[str, Any] = {"ctc_weight": 1.0, "ctc_candidates": VOCABULARY, **settings}
    assert torch.equal(model.generate(inputs, prompt_ids=PROMPTS, **by_ctc), model.generate(inputs, **by_ctc))


def by_hand(model: Any, processor: Any, samples: np.ndarray, initial: list[int]) -> list[str]:
    """The texts of a recording's chunks, each told the last of what was said before."""
    said: list[int] = []
    texts = []
    for chunk in cut_at_silence([samples], RATE, 0.4, 1.0, 0.0):
        inputs = processor(audio=chunk.samples, sampling_rate=RATE, return_tensors="pt")
        told = [*initial, *said[-(15 - len(initial)) :]]
        tokens = model.generate(**inputs, prompt_ids=[START, *told] if told else [], max_new_tokens=6)
        texts.append(processor.decode(tokens[0], skip_special_tokens=True).strip())
        said += processor.tokenizer(texts[-1], add_special_tokens=False)["input_ids"]
    return texts


@pytest.mark.parametrize("initial", [None, "the cat"])
def test_chunks_go_on_from_those_before_them_whatever_else_is_transcribed(initial):
    model, processor = recognizer()
    recordings = [recording(count, count) for count in (5, 2, 4)]
    ids = [] if initial is None else processor.get_prompt_ids(initial)[1:]
    parts = [by_hand(model, processor, samples, ids) for samples in recordings]
    options = {**PLAIN, "condition_on_previous_text": True, "initial_prompt": initial, "log_prob_threshold": None}
    for batch_size in (1, 2, 8):
        found = model.transcribe(recordings, processor, batch_size=batch_size, **options)
        assert [one.text for one in found] == [" ".join(texts) for texts in parts]
    alone = model.transcribe(recordings[2], processor, **options)
    assert alone == found[2] or alone.text == found[2].text
    assert [word.confidence for word in alone.words] == pytest.approx([w.confidence for w in found[2].words], abs=1e-4)
    untold = model.transcribe(recordings, processor, **PLAIN, log_prob_threshold=None)
    assert any(len(texts) > 2 for texts in parts) and [one.text for one in untold] != [one.text for one in found]


def test_an_initial_prompt_alone_is_told_before_each_chunk():
    model, processor = recognizer()
    samples = recording(4, 4)
    prompt = processor.get_prompt_ids("one two three")
    assert prompt[0] == START and processor.decode(prompt[1:]) == "one two three"
    texts = []
    for chunk in cut_at_silence([samples], RATE, 0.4, 1.0, 0.0):
        inputs = processor(audio=chunk.samples, sampling_rate=RATE, return_tensors="pt")
        tokens = model.generate(**inputs, prompt_ids=prompt, max_new_tokens=6)
        texts.append(processor.decode(tokens[0], skip_special_tokens=True).strip())
    found = model.transcribe(samples, processor, initial_prompt="one two three", log_prob_threshold=None, **PLAIN)
    assert found.text == " ".join(texts) and found.text != model.transcribe(samples, processor, **PLAIN).text


def chunk(start_s: float, overlap_s: float = 0.0) -> SpeechChunk:
    return SpeechChunk(np.zeros(RATE, np.float32), start_s, RATE, overlap_s)


def heard(text: str, temperature: float = 0.0, start_s: float = 0.0) -> _Heard:
    words = tuple(TimedWord(w, start_s + i / 4, start_s + (i + 0.9) / 4, 1.0) for i, w in enumerate(text.split()))
    return _Heard(text, words, 0.0, 0.0, 1, 0.0, temperature)


def test_guesses_and_silence_are_not_gone_on_from_and_an_overlap_is_not_told_before_it_is_heard():
    model, processor = recognizer()
    prompts = PreviousTextPrompts(model, processor.tokenizer, True, "a b")

    def told(*before: tuple[SpeechChunk, Any], now: SpeechChunk) -> str:
        said = SaidBefore()
        for one, result in before:
            prompts.prompt_ids(said, one)
            prompts.hear(said, one, result)
        ids = prompts.prompt_ids(said, now)
        assert ids[0] == START
        return processor.decode(ids[1:])

    first, second = (chunk(0), heard("the cat sat")), (chunk(1), heard("one two"))
    assert told(now=chunk(0)) == "a b"
    assert told(first, second, now=chunk(2)) == "a b the cat sat one two"
    assert told(first, (chunk(1), heard("one two", 0.6)), now=chunk(2)) == "a b"
    assert told(first, (chunk(1), heard("one two", 0.4)), now=chunk(2)) == "a b the cat sat one two"
    assert told(first, (chunk(1), None), now=chunk(2)) == "a b"
    assert told(first, second, now=chunk(12.5)) == "a b"
    overlapping = chunk(0.5, 0.5)
    assert told(first, now=overlapping) == "a b the cat"
    assert told(first, (overlapping, heard("sat one", start_s=0.5)), now=chunk(2)) == "a b the cat sat one"
    long = told(*((chunk(i), heard("three " * 6)) for i in range(4)), now=chunk(4))
    assert long == "a b" + " three" * 13  # half of 32 positions, with the token that starts it
    quiet = PreviousTextPrompts(model, processor.tokenizer, True, None)
    assert quiet.prompt_ids(SaidBefore(), chunk(0)) == []


def test_what_cannot_be_told_is_an_error_and_says_what_to_do():
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    bert = tiny_model("wav2vec2-layer", "bert")
    processor = SpeechSeq2SeqProcessor.from_parts(extractor, tiny_tokenizer("bert"), config=bert.config)
    for option in ({"condition_on_previous_text": True}, {"initial_prompt": "the cat"}):
        with pytest.raises(ValueError, match="the bert decoder cannot be told .*prev_sot_token_id to .*startofprev"):
            bert.transcribe(recording(1, 0), processor, **option)
    with pytest.raises(ValueError, match="has no <|startofprev|>"):
        processor.get_prompt_ids("the cat")
    bert.generation_config.prev_sot_token_id = 19  # of a decoder that was trained so, with any token
    bert.transcribe(recording(1, 0), processor, initial_prompt="the cat", max_new_tokens=4, temperatures=(0.0,))
    model, processor = recognizer()
    with pytest.raises(ValueError, match="initial_prompt has 16 tokens: at most 15"):
        model.transcribe(recording(1, 0), processor, initial_prompt="a " * 16)
    with pytest.raises(ValueError, match="n_best=2: with condition_on_previous_text"):
        model.transcribe(recording(1, 0), processor, condition_on_previous_text=True, n_best=2, num_beams=2)
    with pytest.raises(ValueError, match="give initial_prompt"):
        model.transcribe(recording(1, 0), processor, generate_kwargs={"prompt_ids": [START]})
    for options, message in (
        ({"repetition_penalty": 1.2}, "repetition_penalty would count"),
        ({"decoder_input_ids": torch.tensor([[1, 2]])}, "give either"),
        ({"prompt_ids": [START] * 17}, "have 17 tokens; at most 16"),
        ({"prompt_ids": [[START], [START], [START]]}, "3 prompt_ids for 2 recordings"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(features(2), **{"prompt_ids": [START, 7], **options})
    bart = tiny_model("wav2vec2-layer", "bart")
    with pytest.raises(ValueError, match="a bart decoder takes no position ids"):
        bart.generate(**audio("wav2vec2-layer", 3000, 3000), prompt_ids=[[19, 7], [19]])


@pytest.mark.slow
def test_the_real_whisper_goes_on_from_a_prompt_as_its_own_class_does(pretrained_folder, recordings):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from speechgraft.processing.audio_files import load_audio

    folder = pretrained_folder("whisper-tiny.en")
    files = sorted((recordings / "validation").glob("*.flac"), key=lambda file: -file.stat().st_size)[:2]
    theirs: Any = WhisperForConditionalGeneration.from_pretrained(folder)
    own: Any = WhisperProcessor.from_pretrained(folder)
    model: Any = SpeechSeq2SeqModel.from_encoder_decoder_pretrained(folder)
    processor = SpeechSeq2SeqProcessor.from_parts(str(folder), str(folder), config=model.config)
    prompt = processor.get_prompt_ids("ALL OF THIS IS WRITTEN IN CAPITALS, AND SO IS THE REST")
    assert prompt == own.get_prompt_ids("ALL OF THIS IS WRITTEN IN CAPITALS, AND SO IS THE REST").tolist()
    for file in files:
        inputs = processor(audio=load_audio(file), sampling_rate=RATE, return_tensors="pt")
        options: dict[str, Any] = {"prompt_ids": torch.tensor(prompt), "max_new_tokens": 40}
        expected = own.decode(theirs.generate(**inputs, **options)[0], skip_special_tokens=True)
        found = processor.decode(model.generate(**inputs, **options)[0], skip_special_tokens=True)
        assert found == expected and len(found) > 10
