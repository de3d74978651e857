"""Vocoders: the native waveform, never over padding; streams that equal the whole; and sound without any weights."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import SpeechT5Config, SpeechT5FeatureExtractor, SpeechT5HifiGan, SpeechT5HifiGanConfig

from speechgraft.configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from speechgraft.modeling.speech_vocoders import (
    GriffinLimVocoder,
    SpeechVocoder,
    build_vocoder,
    check_vocoder_agrees,
    load_vocoder,
)

SETTINGS = TextToSpectrogramConfig()
SIZES = {
    "small": {"upsample_initial_channel": 32},
    "other strides": {
        "upsample_initial_channel": 16,
        "upsample_rates": [5, 3, 2],
        "upsample_kernel_sizes": [5, 9, 8],
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 2], [4]],
        "normalize_before": False,
        "leaky_relu_slope": 0.2,
    },
}


def config(size: str = "small", **changes) -> SpeechT5HifiGanConfig:
    return SpeechT5HifiGanConfig(**{"initializer_range": 0.1, **SIZES[size], **changes})


@torch.no_grad()
def native(size: str = "small", **changes) -> SpeechT5HifiGan:
    """Random weights, biases and statistics that all can be heard."""
    model = SpeechT5HifiGan(config(size, **changes)).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("bias") or name == "mean":
            tensor.normal_(std=0.1)
    model.scale.uniform_(0.5, 2.0)
    return model


@pytest.fixture(scope="module", params=SIZES)
def pair(request) -> tuple[SpeechT5HifiGan, SpeechVocoder]:
    torch.manual_seed(1)
    model = native(request.param)
    return model, load_vocoder(model)


def tones(seconds: float, pitch_hz: float = 140.0) -> np.ndarray:
    """A gliding voice-like sound: harmonics that come and go, and breath."""
    time = np.arange(int(16_000 * seconds)) / 16_000
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.2 * np.sin(2 * np.pi * 1.3 * time))) / 16_000
    harmonics = sum(np.sin(k * phase) / k * (1 + np.sin(2 * np.pi * (0.5 + 0.2 * k) * time)) for k in range(1, 30))
    loudness = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * time)
    return (loudness * (0.1 * harmonics + 0.01 * np.random.randn(len(time)))).astype(np.float32)


def log_mel(waveform: np.ndarray) -> torch.Tensor:
    (mel,) = SpeechT5FeatureExtractor()(audio_target=waveform, sampling_rate=16_000).input_values
    return torch.tensor(mel)


def test_the_waveform_is_that_of_the_native_class(pair):
    theirs, ours = pair
    spectrogram = torch.randn(23, 80)
    waveform = ours(spectrogram)
    assert waveform.shape == (23 * ours.hop_length,) and waveform.std() > 1e-3
    torch.testing.assert_close(waveform, theirs(spectrogram), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.waveforms(spectrogram[None]), theirs(spectrogram[None]), rtol=0, atol=1e-6)


def test_each_row_of_a_batch_sounds_as_it_does_alone_where_the_native_class_vocodes_the_padding(pair):
    theirs, ours = pair
    lengths, batch = [31, 40, 1], torch.randn(3, 40, 80)
    for row, length in zip(batch, lengths, strict=True):
        row[length:] = 0
    waveforms = ours(batch, lengths)
    assert isinstance(waveforms, list) and [len(one) for one in waveforms] == [n * ours.hop_length for n in lengths]
    for row, length, waveform in zip(batch, lengths, waveforms, strict=True):
        torch.testing.assert_close(waveform, theirs(row[:length]), rtol=0, atol=1e-4)
    batch[:, 31:] = float("nan")  # never read
    torch.testing.assert_close(ours(batch, torch.tensor([31, 31, 1]))[0], waveforms[0], rtol=0, atol=0)
    padded = theirs(torch.nn.functional.pad(batch[0, :31], (0, 0, 0, 9)))[: 31 * ours.hop_length]
    assert (padded - waveforms[0]).abs().max() > 1e-3


def test_a_batch_of_one_is_a_list_and_lengths_may_be_given_for_one_spectrogram():
    vocoder = load_vocoder(native())
    spectrogram = torch.randn(5, 80)
    (waveform,) = vocoder(spectrogram[None])
    assert torch.equal(waveform, vocoder(spectrogram))
    assert len(vocoder(spectrogram, 3)) == 3 * 256
    assert len(vocoder(spectrogram.requires_grad_(), torch.tensor([3]))) == 3 * 256


@pytest.mark.parametrize("make", [lambda: load_vocoder(native()), lambda: GriffinLimVocoder(SETTINGS)])
@pytest.mark.parametrize(
    ("spectrogram", "lengths", "message"),
    [
        (torch.zeros(0, 80), None, r"spectrogram: the spectrogram is empty \(0 frames\)"),
        (torch.zeros(2, 9, 80), [9, 0], r"row 1: the spectrogram is empty \(0 frames\)"),
        (torch.zeros(2, 9, 80), [9, 10], "row 1: 10 valid frames of 9"),
        (torch.zeros(2, 9, 80), [9], "2 spectrograms need as many lengths, got 1"),
        (torch.zeros(9, 40), None, r"takes 80 mel bins, \[frames, 80\], got \[9, 40\]"),
        (torch.zeros(80), None, r"got \[80\]"),
        (torch.full((3, 80), float("nan")), None, "3 of 3 frames have NaN or infinite values"),
        (torch.full((1, 3, 80), float("-inf")), None, "row 0: 3 of 3 frames"),
    ],
)
def test_what_cannot_be_vocoded_is_refused_instead_of_becoming_silence_or_noise(make, spectrogram, lengths, message):
    with pytest.raises(ValueError, match=message):
        make()(spectrogram, lengths)


@pytest.mark.parametrize("sizes", [[1] * 70, [70], [3, 0, 30, 1, 36], [64, 6]])
def test_streamed_chunks_add_up_to_the_whole(pair, sizes):
    vocoder, spectrogram = pair[1], torch.randn(70, 80)
    whole = vocoder(spectrogram)
    stream = vocoder.stream()
    parts, heard, spoken = [], 0, 0
    for chunk in spectrogram.split(sizes):
        parts.append(stream.push(chunk))
        heard, spoken = heard + len(chunk), spoken + len(parts[-1])
        assert spoken >= (heard - vocoder.lookahead_frames) * vocoder.hop_length
    streamed = torch.cat([*parts, stream.finish()])
    assert whole.abs().max() > 0.01 and streamed.shape == whole.shape
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-5)


def test_a_stream_says_how_far_it_lags(pair):
    vocoder = pair[1]
    spectrogram = torch.randn(90, 80, requires_grad=True)
    vocoder(spectrogram)[45 * vocoder.hop_length - 1].backward()  # the last sample of frame 44
    heard = spectrogram.grad.abs().sum(dim=1).nonzero().flatten()
    assert int(heard.max()) == 44 + vocoder.lookahead_frames


def test_chunks_are_yielded_as_they_come_and_streams_do_not_meet():
    vocoder = load_vocoder(native())
    asked = []

    def chunks():
        for index in range(20):
            asked.append(index)
            yield torch.randn(8, 80)

    waveforms = vocoder.stream().run(chunks())
    next(waveforms)
    assert len(asked) < 6
    one, other = vocoder.stream(), vocoder.stream()
    spectrogram = torch.randn(30, 80)
    parts = []
    for frame in spectrogram.split(1):
        parts.append(one.push(frame))
        other.push(torch.randn(1, 80))
    torch.testing.assert_close(torch.cat([*parts, one.finish()]), vocoder(spectrogram), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: load_vocoder(native()), lambda: GriffinLimVocoder(SETTINGS)])
def test_a_stream_refuses_what_would_be_silent_or_mixed_up(make):
    vocoder = make()
    with pytest.raises(ValueError, match=r"empty \(0 frames\)"):
        vocoder.stream().finish()
    with pytest.raises(ValueError, match="1 of 2 frames have NaN"):
        vocoder.stream().push(torch.cat([torch.full((1, 80), torch.nan), torch.zeros(1, 80)]))
    stream = vocoder.stream()
    stream.push(torch.randn(2, 80))
    stream.finish()
    for again in stream.finish, lambda: stream.push(torch.zeros(1, 80)):
        with pytest.raises(ValueError, match="finished"):
            again()


def test_weight_norm_goes_round_trip_where_the_native_class_raises():
    theirs = native()
    theirs.apply_weight_norm()
    with pytest.raises(ValueError, match="weight_norm"):
        theirs.remove_weight_norm()
    vocoder, spectrogram = load_vocoder(native()), torch.randn(9, 80)
    before, waveform = {k: v.clone() for k, v in vocoder.state_dict().items()}, vocoder(spectrogram)
    for _ in range(2):
        vocoder.apply_weight_norm()
        vocoder.apply_weight_norm()  # no second layer of it
        assert vocoder.has_weight_norm
        torch.testing.assert_close(vocoder(spectrogram), waveform, rtol=0, atol=1e-5)
        vocoder.remove_weight_norm()
        assert not vocoder.has_weight_norm
    torch.testing.assert_close(dict(vocoder.state_dict()), before)


@pytest.mark.parametrize("names", ["plain", "parametrizations", "weight_g and weight_v", "pickled"])
def test_folders_with_and_without_weight_norm_load(names, tmp_path):
    model, spectrogram = native(), torch.randn(9, 80)
    waveform = model(spectrogram)
    if names == "plain":
        model.save_pretrained(tmp_path)
    else:
        model.apply_weight_norm()
        state = model.state_dict()
        if names == "weight_g and weight_v":
            ends = {
                ".parametrizations.weight.original0": ".weight_g",
                ".parametrizations.weight.original1": ".weight_v",
            }
            for new, old in ends.items():
                state = {name.replace(new, old): tensor for name, tensor in state.items()}
            assert "conv_pre.weight_g" in state
        model.config.save_pretrained(tmp_path)
        if names == "pickled":
            torch.save(state, tmp_path / "pytorch_model.bin")
        else:
            save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    vocoder = load_vocoder(tmp_path)
    assert not vocoder.has_weight_norm and not vocoder.training
    torch.testing.assert_close(vocoder(spectrogram), waveform, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normed", [False, True])
def test_saved_folders_open_in_the_native_class(normed, tmp_path):
    vocoder, spectrogram = load_vocoder(native()), torch.randn(9, 80)
    if normed:
        vocoder.apply_weight_norm()
    vocoder.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["SpeechT5HifiGan"]
    theirs, info = SpeechT5HifiGan.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(theirs(spectrogram), vocoder(spectrogram), rtol=0, atol=1e-5)


def test_a_checkpoint_that_lacks_weights_is_refused_else_they_are_random(tmp_path):
    model = native()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("conv_post")}
    model.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 2 of the vocoder's weights \(conv_post.bias, conv_post.weight\)"):
        load_vocoder(tmp_path)


def test_missing_folders_and_other_models_are_told_in_a_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="/none: no such vocoder folder"):
        load_vocoder(tmp_path / "none")
    SpeechT5Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a speecht5 model, not a speecht5_hifigan vocoder"):
        load_vocoder(str(tmp_path))
    config().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=f"no file named model.safetensors.* {tmp_path}"):
        load_vocoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_rate": 22_050}, "sampling_rate is 16000 in the model and 22050 in the vocoder"),
        ({"upsample_rates": [4, 4, 4, 2]}, "hop_length is 256 in the model and 128 in the vocoder"),
        ({"model_in_dim": 40}, "num_mel_bins is 80 in the model and 40 in the vocoder"),
        ({"fmax": 8000.0, "win_length": 512}, "win_length is 1024 .* 512 .*; fmax is 7600 in the model and 8000.0"),
    ],
)
def test_a_vocoder_for_other_spectrograms_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_vocoder_agrees(SETTINGS, config(**changes))
    with pytest.raises(ValueError, match=message):
        build_vocoder(TextToSpectrogramConfig(vocoder=config(**changes)))


def test_a_vocoder_that_agrees_is_built_and_without_one_griffin_lim_speaks():
    agreeing = config(fmin=80, fmax=7600, win_length=1024)
    check_vocoder_agrees(SETTINGS, agreeing)
    vocoder = build_vocoder(TextToSpectrogramConfig(vocoder=agreeing))
    assert isinstance(vocoder, SpeechVocoder)
    assert (vocoder.sampling_rate, vocoder.hop_length, vocoder.num_mel_bins) == (16_000, 256, 80)
    without = build_vocoder(TextToSpectrogramConfig())
    assert isinstance(without, GriffinLimVocoder) and not without.state_dict()
    assert (without.sampling_rate, without.hop_length, without.num_mel_bins) == (16_000, 256, 80)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsample_kernel_sizes": [8, 8, 8]}, "must be equally many"),
        ({"upsample_kernel_sizes": [8, 8, 8, 7]}, "by 0, 2, 4"),
        ({"upsample_kernel_sizes": [8, 8, 8, 2]}, "by 0, 2, 4"),
        ({"resblock_kernel_sizes": [3, 7, 10]}, "must be odd"),
        ({"resblock_kernel_sizes": [3, 7]}, "as many as"),
        ({"upsample_initial_channel": 24}, "multiple of 16"),
    ],
)
def test_sizes_that_give_no_whole_number_of_samples_a_frame_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SpeechVocoder(config(**changes))


def test_bfloat16_spectrograms_and_weights_give_float32_sound():
    vocoder, spectrogram = load_vocoder(native()), torch.randn(9, 80)
    waveform = vocoder(spectrogram)
    assert vocoder(spectrogram.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(vocoder(spectrogram.bfloat16()), waveform, rtol=0, atol=0.02)
    half = load_vocoder(native()).bfloat16()
    assert half(spectrogram).dtype == torch.float32
    streamed = torch.cat(list(half.stream().run([spectrogram])))
    torch.testing.assert_close(streamed, half(spectrogram), rtol=0, atol=0.05)


def spectral_convergence_db(amplitudes: torch.Tensor, waveform: torch.Tensor) -> float:
    """How far a waveform's spectrogram is from the wanted one, relative to that."""
    heard = stft(waveform)[: len(amplitudes)].abs()
    return float(20 * torch.log10((heard - amplitudes).norm() / amplitudes.norm()))


def stft(waveform: torch.Tensor) -> torch.Tensor:
    window = torch.hann_window(1024)
    return torch.stft(waveform, 1024, 256, window=window, pad_mode="constant", return_complex=True).T


def griffin_lim_over_the_whole(amplitudes: torch.Tensor, iterations: int, momentum: float) -> torch.Tensor:
    """The algorithm as published, all frames at once."""
    phases = torch.polar(torch.ones_like(amplitudes), 2 * torch.pi * torch.rand(amplitudes.shape))
    last = torch.zeros_like(phases)
    window, samples = torch.hann_window(1024), len(amplitudes) * 256
    for _ in range(iterations + 1):
        waveform = torch.istft((amplitudes * phases).T, 1024, 256, window=window, length=samples)
        heard = stft(waveform)[: len(amplitudes)]
        phases, last = heard - momentum / (1 + momentum) * last, heard
        phases = phases / phases.abs().clamp_min(1e-16)
    return waveform


def test_griffin_lim_comes_as_close_as_the_published_algorithm_over_the_whole():
    spectrogram = log_mel(tones(1.5))
    vocoder = GriffinLimVocoder(SETTINGS)
    amplitudes = vocoder.amplitudes(spectrogram)
    ours, theirs = vocoder(spectrogram), griffin_lim_over_the_whole(amplitudes, 32, 0.99)
    assert ours.shape == theirs.shape == (len(spectrogram) * 256,)
    reached = spectral_convergence_db(amplitudes, ours)
    assert reached < -14 and reached < spectral_convergence_db(amplitudes, theirs) + 0.5


def test_griffin_lim_keeps_loudness_and_spectrum():
    waveform = tones(1.5)
    spectrogram = log_mel(waveform)
    sound = GriffinLimVocoder(SETTINGS)(spectrogram).numpy()
    assert np.std(sound[: len(waveform)]) == pytest.approx(np.std(waveform), rel=0.15)
    again = log_mel(sound)[: len(spectrogram)]
    assert (again - spectrogram).abs().mean() < 0.1  # 2 dB
    assert (log_mel(0.5 * waveform)[: len(spectrogram)] - spectrogram).abs().mean() > 0.25  # what 6 dB would be


def test_amplitudes_are_non_negative_and_fit_better_than_the_pseudo_inverse():
    spectrogram = log_mel(tones(0.5))
    filters = torch.tensor(SpeechT5FeatureExtractor().mel_filters).float()
    amplitudes = GriffinLimVocoder(SETTINGS).amplitudes(spectrogram)
    simple = (10**spectrogram @ torch.linalg.pinv(filters)).clamp_min(0)
    errors = [
        (torch.log10((found @ filters).clamp_min(1e-10)) - spectrogram).abs().mean() for found in (amplitudes, simple)
    ]
    assert (amplitudes >= 0).all() and errors[0] < 0.5 * errors[1]


def test_griffin_lim_says_the_same_whatever_the_chunks_the_batch_and_the_global_seed():
    vocoder, spectrogram = GriffinLimVocoder(SETTINGS), log_mel(tones(0.5))
    state = torch.get_rng_state()
    whole = vocoder(spectrogram)
    assert torch.equal(torch.get_rng_state(), state)
    for size in (1, 5, 8, 40):
        streamed = torch.cat(list(vocoder.stream().run(spectrogram.split(size))))
        torch.testing.assert_close(streamed, whole, rtol=0, atol=0)
    batch = torch.stack([spectrogram, torch.zeros_like(spectrogram)])
    torch.testing.assert_close(vocoder(batch, [len(spectrogram), 3])[0], whole, rtol=0, atol=0)
    other = GriffinLimVocoder(SETTINGS, seed=1)(spectrogram)
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 16, 17])
def test_short_utterances_have_their_length(frames):
    waveform = GriffinLimVocoder(SETTINGS)(log_mel(tones(0.4))[:frames])
    assert waveform.shape == (frames * 256,) and torch.isfinite(waveform).all() and waveform.abs().max() > 0.01


def test_a_griffin_lim_stream_lags_no_more_than_it_says():
    vocoder = GriffinLimVocoder(SETTINGS)
    stream, spoken = vocoder.stream(), 0
    for heard, frame in enumerate(log_mel(tones(1.0)).split(1), start=1):
        spoken += len(stream.push(frame))
        assert spoken >= (heard - vocoder.lookahead_frames) * vocoder.hop_length
    assert spoken > 0


def test_griffin_lim_in_inference_mode_leaves_filters_that_training_can_use():
    settings = SimpleNamespace(
        **{name: getattr(SETTINGS, name) for name in ("sampling_rate", "hop_length", "win_length")}
    )
    settings.n_fft, settings.fmin, settings.fmax, settings.num_mel_bins = 1024, 90, 7000, 20
    vocoder = GriffinLimVocoder(settings)
    with torch.inference_mode():
        vocoder(torch.zeros(3, 20))
    spectrogram = torch.zeros(3, 20, requires_grad=True)
    vocoder.amplitudes(spectrogram).sum().backward()
    assert torch.isfinite(spectrogram.grad).all()


def test_windows_that_hardly_overlap_are_refused():
    with pytest.raises(ValueError, match="win_length 400, hop_length 256, n_fft 1024"):
        GriffinLimVocoder(TextToSpectrogramConfig(win_length=400))


@pytest.mark.cuda
def test_vocoders_sound_the_same_on_a_gpu():
    spectrogram = log_mel(tones(0.5))
    vocoder = load_vocoder(native())
    waveform = vocoder(spectrogram)
    there = vocoder.cuda()
    with torch.backends.cudnn.flags(allow_tf32=False):
        torch.testing.assert_close(there(spectrogram.cuda()).cpu(), waveform, rtol=0, atol=1e-4)
        streamed = torch.cat(list(there.stream().run(spectrogram.cuda().split(7)))).cpu()
        torch.testing.assert_close(streamed, waveform, rtol=0, atol=1e-4)
    griffin_lim = GriffinLimVocoder(SETTINGS)
    here, there = griffin_lim(spectrogram), griffin_lim(spectrogram.cuda())
    assert there.is_cuda and spectral_convergence_db(stft(here).abs()[: len(spectrogram)], there.cpu()) < -20
