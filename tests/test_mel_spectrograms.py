"""The spectrogram that a model learns is the one that its vocoder was made for."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor, SpeechT5FeatureExtractor

from speechgraft.configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from speechgraft.processing.audio_files import AudioError
from speechgraft.processing.mel_spectrograms import (
    LogMelFeatureExtractor,
    MelSettings,
    check_mel_agreement,
    extract_log_mel,
)

LJSPEECH = MelSettings(sampling_rate=22_050, fmax=8000)  # 11.6 ms from frame to frame
SETTINGS = [
    MelSettings(),
    LJSPEECH,
    MelSettings(sampling_rate=24_000, hop_length=240, win_length=1008, fmax=11_000, num_mel_bins=100),
    MelSettings(n_fft=2048, win_length=800, hop_length=200, mel_floor=1e-5),
]


def speechlike(duration_s: float = 0.5, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    t = np.arange(round(duration_s * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.02, len(t))
    return (0.3 * np.sin(2 * np.pi * 150 * t) + 0.1 * np.sin(2 * np.pi * 1250 * t) + noise).astype(np.float32)


@pytest.mark.parametrize("n_samples", [1, 100, 255, 256, 4000, 8001])
def test_the_spectrogram_is_speecht5s(n_samples):
    audio = speechlike()[:n_samples]
    native = SpeechT5FeatureExtractor()(audio_target=audio, sampling_rate=16_000, return_tensors="np").input_values[0]
    ours = extract_log_mel(audio)
    assert ours.dtype == np.float32 and ours.shape == (MelSettings().n_frames(n_samples), 80)
    np.testing.assert_allclose(ours, native, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_spectrogram_is_what_torch_computes(settings):
    """Against another Fourier transform; the mel filters are SpeechT5's."""
    audio = speechlike(0.4, settings.sampling_rate)
    transform = torch.stft(
        torch.from_numpy(audio),
        settings.n_fft,
        settings.hop_length,
        settings.win_length,
        torch.hann_window(settings.win_length),
        return_complex=True,
    )
    filters = torch.from_numpy(settings.feature_extractor().mel_filters).float()
    wanted = torch.log10((transform.abs().T @ filters).clamp_min(settings.mel_floor)).numpy()
    ours = extract_log_mel(audio, settings)
    assert len(ours) == settings.n_frames(len(audio)) == len(wanted)
    border = 0 if settings.win_length == settings.n_fft else 8  # torch mirrors more of the signal than the window sees
    inside = slice(border, len(ours) - border)
    np.testing.assert_allclose(ours[inside], wanted[inside], rtol=0, atol=2e-3)


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_survive_extractor_config_and_saving(settings, tmp_path):
    extractor = settings.feature_extractor()
    assert MelSettings.from_feature_extractor(extractor) == settings
    extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is type(extractor) and MelSettings.from_feature_extractor(loaded) == settings
    config = TextToSpectrogramConfig(**{name: getattr(settings, name) for name in MelSettings.__dataclass_fields__})
    assert MelSettings.from_config(config) == settings
    audio = speechlike(0.1, settings.sampling_rate)
    np.testing.assert_array_equal(extract_log_mel(audio, loaded), extract_log_mel(audio, settings))


def test_people_without_this_package_can_read_the_usual_extractor():
    assert type(MelSettings().feature_extractor()) is SpeechT5FeatureExtractor
    assert type(LJSPEECH.feature_extractor()) is LogMelFeatureExtractor


def test_integers_are_scaled_not_taken_as_loud():
    """SpeechT5's extractor takes int16 samples as they are: everything is 4.5 decades too loud."""
    audio = speechlike()
    as_int16 = (audio * 32_768).astype(np.int16)
    np.testing.assert_allclose(extract_log_mel(as_int16), extract_log_mel(audio), rtol=0, atol=0.05)


def test_files_of_another_rate_are_resampled(tmp_path):
    soundfile.write(tmp_path / "a.wav", speechlike(0.5, 44_100), 44_100)
    mel = extract_log_mel(tmp_path / "a.wav")
    assert mel.shape == (MelSettings().n_frames(8000), 80)
    same = extract_log_mel({"array": speechlike(0.5, 44_100), "sampling_rate": 44_100})
    np.testing.assert_allclose(mel[:, 5:60], same[:, 5:60], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("audio", "problem"),
    [
        (np.zeros(0, np.float32), "empty audio"),
        (np.array([0.0, np.nan, 0.1]), "1 of 3 samples are NaN"),
        ("/no/such.wav", "/no/such.wav: no such file"),
    ],
)
def test_bad_audio_is_one_clear_line(audio, problem):
    with pytest.raises(AudioError, match=problem):
        extract_log_mel(audio)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"fmax": 9000}, "fmax 9000 Hz must lie"),
        ({"fmin": 7600}, "fmin 7600"),
        ({"win_length": 2048}, "win_length 2048 exceeds n_fft 1024"),
        ({"hop_length": 0}, "hop_length must be at least 1"),
        ({"mel_floor": 0}, "mel_floor must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        MelSettings(**settings)


def test_a_model_and_a_processor_that_differ_are_told_apart():
    config = TextToSpectrogramConfig()
    check_mel_agreement(config, SpeechT5FeatureExtractor())
    with pytest.raises(ValueError, match="fmin: config 80, feature extractor 0; fmax: config 7600, feature"):
        check_mel_agreement(config, SpeechT5FeatureExtractor(fmin=0, fmax=8000))


def test_seconds_and_frames():
    assert MelSettings().duration_s(125) == 2.0
    assert [MelSettings().n_frames(n) for n in (0, 255, 256, 16_000)] == [1, 1, 2, 63]
