"""espeak-ng speaks what it is told, in the voice it is told, the same every time, and tells when."""

import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgraft.processing import espeak_speech
from speechgraft.processing.espeak_speech import (
    INSTALL_HINT,
    EspeakError,
    EspeakNotInstalledError,
    EspeakSynthesizer,
    EspeakVoice,
    speak_all,
)

pytestmark = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason=f"needs {INSTALL_HINT}")
SENTENCE = "turn on the light in the kitchen"


@pytest.fixture
def synthesizer():
    with EspeakSynthesizer() as synthesizer:
        yield synthesizer


def level(audio: np.ndarray, sampling_rate: int, start_s: float, end_s: float) -> float:
    """Root mean square of a stretch of audio."""
    stretch = audio[round(start_s * sampling_rate) : round(end_s * sampling_rate)]
    return float(np.sqrt(np.mean(stretch**2)))


def fundamental_hz(audio: np.ndarray, sampling_rate: int) -> float:
    """Pitch of the loudest 50 ms, by autocorrelation."""
    size = sampling_rate // 20
    frames = audio[: len(audio) // size * size].reshape(-1, size)
    frame = frames[np.argmax((frames**2).sum(axis=1))]
    correlation = np.correlate(frame, frame, mode="full")[size - 1 :]
    shortest, longest = sampling_rate // 400, sampling_rate // 60
    return sampling_rate / (shortest + int(np.argmax(correlation[shortest:longest])))


def test_what_is_heard_lasts_as_long_as_the_file_that_soundfile_reads(synthesizer, tmp_path):
    spoken = synthesizer.speak(SENTENCE)
    assert spoken.audio.dtype == np.float32 and spoken.audio.ndim == 1
    assert 0.1 < np.abs(spoken.audio).max() <= 1
    soundfile.write(tmp_path / "spoken.wav", spoken.audio, spoken.sampling_rate)
    info = soundfile.info(tmp_path / "spoken.wav")
    assert info.samplerate == 16_000
    assert info.duration == pytest.approx(spoken.duration_s)
    assert 1 < spoken.duration_s < 2.5  # seven words at 175 words a minute


def test_resampling_keeps_duration_and_pitch():
    voice = EspeakVoice("en+m3")
    with EspeakSynthesizer() as slow, EspeakSynthesizer(sampling_rate=22_050) as native:
        assert native.native_sampling_rate == 22_050
        ours, theirs = slow.speak(SENTENCE, voice), native.speak(SENTENCE, voice)
    assert ours.duration_s == pytest.approx(theirs.duration_s, abs=1e-3)
    assert fundamental_hz(ours.audio, 16_000) == pytest.approx(fundamental_hz(theirs.audio, 22_050), rel=0.05)


def test_words_come_in_order_and_fill_the_utterance(synthesizer):
    spoken = synthesizer.speak(SENTENCE)
    assert " ".join(word.text for word in spoken.words) == SENTENCE
    assert spoken.words[0].start_s == 0
    assert spoken.words[-1].end_s == pytest.approx(spoken.duration_s, abs=1e-3)
    for word, following in zip(spoken.words, spoken.words[1:], strict=False):
        assert 0 < word.end_s - word.start_s < 1
        assert word.end_s == following.start_s


def test_word_times_agree_with_what_is_heard(synthesizer):
    spoken = synthesizer.speak("Apples. Bicycles.")
    first, second = spoken.words
    assert (first.text, second.text) == ("Apples.", "Bicycles.")
    loud = level(spoken.audio, 16_000, second.start_s, second.start_s + 0.4)
    pause = level(spoken.audio, 16_000, second.start_s - 0.15, second.start_s - 0.02)
    assert pause < 0.02 * loud


def test_numbers_are_one_place_of_the_text_though_several_words(synthesizer):
    words = synthesizer.speak("she paid 250 pounds").words
    assert [word.text for word in words] == ["she", "paid", "250", "pounds"]
    assert words[2].end_s - words[2].start_s > 2 * (words[0].end_s - words[0].start_s)


def test_positions_count_characters_not_bytes(synthesizer):
    assert [word.text for word in synthesizer.speak("Zoë's café opens").words] == ["Zoë's", "café", "opens"]


def test_a_faster_voice_is_shorter_and_a_higher_one_is_higher(synthesizer):
    plain, fast = synthesizer.speak(SENTENCE, "en"), synthesizer.speak(SENTENCE, EspeakVoice("en", 250))
    assert fast.duration_s < 0.85 * plain.duration_s
    low, high = (synthesizer.speak("aaah", EspeakVoice("en", pitch=pitch)) for pitch in (20, 80))
    assert fundamental_hz(high.audio, 16_000) > 1.2 * fundamental_hz(low.audio, 16_000)


def test_the_same_list_gives_the_same_samples_whatever_was_spoken_before():
    texts, voices = [SENTENCE] * 3, [EspeakVoice(name) for name in ("en-us+f1", "en+whisper", "en-us+klatt2")]
    first = speak_all(texts, voices)
    with EspeakSynthesizer() as other:
        other.speak("something else", "en-gb-scotland+f2")
        second = speak_all(texts, voices)
    assert all(np.array_equal(one.audio, two.audio) for one, two in zip(first, second, strict=True))
    assert not np.array_equal(first[0].audio, first[1].audio)


def test_two_threads_with_a_synthesizer_each_do_not_disturb_each_other():
    jobs = [([SENTENCE] * 20, [EspeakVoice(name)] * 20) for name in ("en-us+f1", "en+m3")]
    alone = [speak_all(*job) for job in jobs]
    together: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda index=index: together.update({index: speak_all(*jobs[index])}))
        for index in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        for one, two in zip(alone[index], together[index], strict=True):
            assert np.array_equal(one.audio, two.audio)


@pytest.mark.parametrize("voice", ["xx", "en-us+nobody", "en+../../en"])
def test_an_unknown_voice_is_named_not_replaced_by_the_plain_one(synthesizer, voice):
    with pytest.raises(EspeakError, match="nobody|'xx'|en"):
        synthesizer.speak("hello", voice)


def test_variants_are_those_that_speak(synthesizer):
    variants = synthesizer.variants()
    assert {"f1", "m3", "whisper"} <= set(variants)
    assert "\n" not in "".join(variants)


def test_silence_is_an_error(synthesizer):
    with pytest.raises(EspeakError, match="nothing to speak"):
        synthesizer.speak("")


def test_a_deep_installation_speaks_though_espeak_cuts_long_paths(monkeypatch, tmp_path):
    library, data = espeak_speech._installed_espeak()
    deep = tmp_path.joinpath(*["folder-of-a-deep-installation"] * 6)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(data)
    monkeypatch.setattr(espeak_speech, "_installed_espeak", lambda: (library, deep / "espeak-ng-data"))
    assert speak_all(["hello"], [EspeakVoice("en")])[0].duration_s > 0.2


def test_a_missing_installation_is_told_in_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EspeakNotInstalledError, match="quickstart") as raised:
        EspeakSynthesizer()
    assert INSTALL_HINT in str(raised.value) and "\n" not in str(raised.value)


def test_temporary_files_are_removed():
    synthesizer = EspeakSynthesizer()
    folder = Path(synthesizer._folder.name)
    assert folder.is_dir()
    synthesizer.close()
    assert not folder.exists()
    synthesizer.close()


def test_as_many_voices_as_texts_are_needed():
    with pytest.raises(ValueError, match="2 texts but 1 voices"):
        speak_all(["a", "b"], [EspeakVoice("en")])
