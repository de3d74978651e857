"""Training a vocoder: the published losses, the extractor's spectrograms, runs that go on, and folders that open."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import SpeechT5FeatureExtractor, SpeechT5HifiGan, SpeechT5HifiGanConfig

from speechgraft.configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from speechgraft.modeling.hifigan_training import (
    HifiGanDiscriminators,
    HifiGanLearner,
    PeriodDiscriminator,
    ScaleDiscriminator,
    SegmentDraws,
    adversarial_loss,
    check_fits,
    cut_segment,
    discriminator_loss,
    feature_matching_loss,
    log_mel_spectrogram,
    mel_loss,
    new_vocoder,
)
from speechgraft.modeling.speech_vocoders import SpeechVocoder, load_vocoder
from speechgraft.scripts.cli import main

RATE, HOP = 16_000, 256
SETTINGS = TextToSpectrogramConfig()


def voice(seconds: float, pitch_hz: float = 140.0, quiet: float = 0.003) -> np.ndarray:
    """Harmonics of a gliding pitch, and breath."""
    time = np.arange(int(RATE * seconds)) / RATE
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.1 * np.sin(2 * np.pi * time))) / RATE
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 20))
    return (0.1 * harmonics + quiet * np.random.randn(len(time))).astype(np.float32)


def extracted(waveform: np.ndarray, **settings) -> torch.Tensor:
    """The spectrogram that Transformers' own extractor makes."""
    extractor = SpeechT5FeatureExtractor(**settings)
    (mel,) = extractor(audio_target=waveform, sampling_rate=RATE).input_values
    return torch.tensor(mel)


@pytest.mark.parametrize("samples", [513, 16_000, 16_001, 15_999])
def test_the_log_mel_is_the_feature_extractors(samples):
    waveform = voice(1.1)[:samples]
    ours, theirs = log_mel_spectrogram(torch.tensor(waveform), SETTINGS), extracted(waveform)
    assert ours.shape == theirs.shape == (1 + samples // HOP, 80)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    batch = log_mel_spectrogram(torch.tensor(np.stack([waveform, 2 * waveform])), SETTINGS)
    torch.testing.assert_close(batch[0], theirs, rtol=0, atol=1e-4)


def test_in_float64_the_log_mel_is_the_extractors_in_silence_too():
    waveform = voice(1.0, quiet=0.0)  # nothing above 3 kHz
    waveform[5_000:9_000] = 0
    theirs = extracted(waveform)
    assert theirs.min() == -10
    ours = log_mel_spectrogram(torch.tensor(waveform).double(), SETTINGS)
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=1e-4)


def test_other_settings_are_followed():
    settings = TextToSpectrogramConfig(
        num_mel_bins=24, hop_length=160, win_length=400, n_fft=512, fmin=50, fmax=8000, mel_floor=1e-5
    )
    theirs = extracted(
        waveform := voice(0.5), num_mel_bins=24, hop_length=10, win_length=25, fmin=50, fmax=8000, mel_floor=1e-5
    )
    torch.testing.assert_close(log_mel_spectrogram(torch.tensor(waveform), settings), theirs, rtol=0, atol=1e-4)


def test_slopes_are_finite_in_digital_silence():
    waveform = torch.zeros(2, 4096, requires_grad=True)
    mel_loss(torch.tensor(voice(0.256))[:4096].expand(2, -1), waveform, SETTINGS).backward()
    assert torch.isfinite(waveform.grad).all()
    with pytest.raises(ValueError, match="512 samples are too few"):
        log_mel_spectrogram(torch.zeros(512), SETTINGS)


def test_the_mel_loss_is_the_mean_difference_of_spectrograms():
    one, other = voice(0.3), 0.5 * voice(0.3, 200)
    logarithms = [torch.log10(10 ** extracted(waveform) + 1e-5) for waveform in (one, other)]
    by_hand = (logarithms[0] - logarithms[1]).abs().mean()
    ours = mel_loss(torch.tensor(one)[None], torch.tensor(other)[None], SETTINGS)
    torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-5)


def test_discriminators_have_the_published_sizes():
    with torch.device("meta"):
        judges = HifiGanDiscriminators()
    shapes = [tuple(layer.weight.shape) for layer in judges.by_period[0].convolutions]
    assert shapes == [(32, 1, 5, 1), (128, 32, 5, 1), (512, 128, 5, 1), (1024, 512, 5, 1), (1024, 1024, 5, 1)]
    shapes = [tuple(layer.weight.shape) for layer in judges.by_scale[0].convolutions]
    assert shapes[1:4] == [(128, 32, 41), (256, 8, 41), (512, 16, 41)]  # per group
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (judges.by_period, judges.by_scale)]
    assert millions == pytest.approx([41.1, 29.6], abs=0.1)


def test_a_period_discriminator_hears_each_phase_by_itself():
    judge, waveform = PeriodDiscriminator(3, channels=2), torch.randn(1, 301)
    changed = waveform.clone()
    changed[0, 100] += 1  # 100 = 1 modulo 3
    for before, after in zip(judge(waveform)[1], judge(changed)[1], strict=True):
        difference = (after - before).abs().sum(dim=(0, 1, 2))  # for each of 3 columns
        assert difference[1] > 0 and difference[0] == difference[2] == 0
    assert judge(waveform)[0].shape == (1, 6)  # 101 rows, a third four times (34, 12, 4, 2), of 3 columns


def test_scales_hear_the_waveform_at_lower_rates():
    judges, waveform = HifiGanDiscriminators(channels=2, periods=(), scales=3), torch.randn(2, 4096)
    halved = torch.nn.functional.avg_pool1d(waveform[:, None], 4, 2, padding=2)[:, 0]
    scores = [score for score, _ in judges(waveform)]
    torch.testing.assert_close(scores[1], judges.by_scale[1](halved)[0])
    assert [score.shape[1] for score in scores] == [64, 33, 17]
    assert isinstance(judges.by_scale[0], ScaleDiscriminator) and len(judges.by_scale[0](waveform)[1]) == 8


def test_losses_are_the_papers_equations():
    real = [(torch.tensor([[0.9, 0.5]]), [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]), (torch.tensor([[1.0]]), [])]
    fake = [(torch.tensor([[0.2, 0.4]]), [torch.tensor([0.0, 4.0]), torch.tensor([2.5])]), (torch.tensor([[0.5]]), [])]
    wanted = (0.1**2 + 0.5**2) / 2 + (0.2**2 + 0.4**2) / 2 + 0 + 0.5**2
    assert discriminator_loss(real, fake).item() == pytest.approx(wanted)
    assert adversarial_loss(fake).item() == pytest.approx((0.8**2 + 0.6**2) / 2 + 0.5**2)
    assert feature_matching_loss(real, fake).item() == pytest.approx((1 + 2) / 2 + 0.5)


@pytest.mark.parametrize("draw", [0.0, 0.31, 0.5, 0.77, 0.999999])
def test_a_segment_is_the_recordings_with_the_frames_that_the_whole_has_there(draw):
    waveform = voice(1.0)
    whole = extracted(waveform)  # 63 frames
    segment = cut_segment(torch.tensor(waveform), 12, draw, SETTINGS)
    start = int(draw * (63 - 12 + 1))
    torch.testing.assert_close(segment.spectrogram, whole[start : start + 12], rtol=0, atol=1e-4)
    wanted = np.pad(waveform, (0, HOP))[start * HOP : (start + 12) * HOP]
    np.testing.assert_array_equal(segment.waveform.numpy(), wanted)
    model = torch.randn(64, 80)  # one frame more than the recording has: models write several at a time
    given = cut_segment(torch.tensor(waveform), 12, draw, SETTINGS, model)
    assert torch.equal(given.spectrogram, model[start : start + 12]) and torch.equal(given.waveform, segment.waveform)


def test_short_recordings_are_followed_by_silence_which_is_not_zero_in_a_logarithm():
    waveform = torch.tensor(voice(0.2))  # 3200 samples, 13 frames
    segment = cut_segment(waveform, 20, 0.9, SETTINGS)
    torch.testing.assert_close(segment.spectrogram[:13], extracted(waveform.numpy()), rtol=0, atol=1e-4)
    assert (segment.spectrogram[13:] == -10).all() and (segment.waveform[3200:] == 0).all()
    assert segment.spectrogram.shape == (20, 80) and segment.waveform.shape == (20 * HOP,)
    assert cut_segment(waveform, 1, 0.99, SETTINGS).spectrogram.shape == (1, 80)


@pytest.mark.parametrize(
    ("samples", "spectrogram", "message"),
    [
        (500, None, "500 samples are fewer than half a window"),
        (3200, torch.zeros(13, 40), r"\[frames, 80\] is expected, got \[13, 40\]"),
        (3200, torch.zeros(30, 80), "has 30 frames, and the recording 13"),
        (3200, torch.full((13, 80), torch.nan), "NaN"),
    ],
)
def test_spectrograms_that_do_not_belong_to_a_recording_are_refused(samples, spectrogram, message):
    with pytest.raises(ValueError, match=message):
        check_fits(torch.zeros(samples), spectrogram, SETTINGS)


def test_every_recording_is_heard_once_in_a_pass_wherever_the_run_began_and_however_it_is_shared():
    whole = list(SegmentDraws(5, 4, seed=3, first_step=0, steps=10))
    assert [len(batch) for batch in whole] == [4] * 10
    indices = [index for batch in whole for index, _ in batch]
    for turn in range(8):
        assert sorted(indices[5 * turn : 5 * turn + 5]) == [0, 1, 2, 3, 4]
    assert len({place for batch in whole for _, place in batch}) == 40
    assert list(SegmentDraws(5, 4, seed=3, first_step=7, steps=10)) == whole[7:]
    shares = [list(SegmentDraws(5, 4, 3, 0, 10, process, 2)) for process in range(2)]
    assert [sorted(one + other) for one, other in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]
    assert list(SegmentDraws(5, 4, seed=4, first_step=0, steps=10)) != whole


def tiny_vocoder() -> SpeechVocoder:
    config = SpeechT5HifiGanConfig(
        upsample_initial_channel=16,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        upsample_rates=[16, 16],
        upsample_kernel_sizes=[32, 32],
    )
    return SpeechVocoder(config)


def learner(**options) -> HifiGanLearner:
    judges = HifiGanDiscriminators(channels=2, periods=(2, 3), scales=2)
    return HifiGanLearner(tiny_vocoder(), judges, SETTINGS, Accelerator(cpu=True), **options)


def test_a_whisper_has_a_slope_to_follow_else_new_vocoders_stay_silent():
    recording = torch.tensor(voice(0.256))[None, :4096]
    whisper = (1e-9 * torch.randn(1, 4096)).requires_grad_()
    mel_loss(recording, whisper, SETTINGS).backward()
    assert whisper.grad.abs().max() > 1
    loudness = new_vocoder(tiny_vocoder().config)(torch.randn(40, 80)).std()
    assert 1e-3 < loudness < 0.5


def segments(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    cut = [cut_segment(torch.tensor(voice(0.5, 100 + 30 * row)), 16, 0.5, SETTINGS) for row in range(rows)]
    return torch.stack([one.spectrogram for one in cut]), torch.stack([one.waveform for one in cut])


def test_a_step_moves_the_generator_by_its_losses_alone_and_the_discriminators_by_theirs():
    one = learner(learning_rate=1e-3, decay=0.5, steps_in_pass=2)
    before = {name: tensor.clone() for name, tensor in one.vocoder.state_dict().items()}
    judges = {name: tensor.clone() for name, tensor in one.discriminators.state_dict().items()}
    spectrogram, waveform = segments()
    losses = one.learn(spectrogram, waveform)
    assert set(losses) == {"loss", "mel_loss", "adversarial_loss", "feature_matching_loss", "discriminator_loss"}
    total = 45 * math.log(10) * losses["mel_loss"] + losses["adversarial_loss"] + 2 * losses["feature_matching_loss"]
    torch.testing.assert_close(losses["loss"], total)
    assert any(not torch.equal(before[name], tensor) for name, tensor in one.vocoder.state_dict().items())
    moved = {name: tensor.clone() for name, tensor in one.discriminators.state_dict().items()}
    assert any(not torch.equal(judges[name], tensor) for name, tensor in moved.items())
    assert set(one.learn(spectrogram, waveform, adversarial=False)) == {"loss", "mel_loss"}
    assert all(torch.equal(moved[name], tensor) for name, tensor in one.discriminators.state_dict().items())
    one.learn(spectrogram, waveform)
    assert one.generator_adam.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5 ** (2 / 2))
    assert all(parameter.requires_grad for parameter in one.discriminators.parameters())


def test_discriminators_learn_to_tell_recordings_from_what_a_bad_vocoder_says():
    one, (spectrogram, waveform) = learner(learning_rate=1e-3), segments()
    first = one.learn(spectrogram, waveform)["discriminator_loss"]
    for _ in range(15):
        last = one.learn(spectrogram, waveform)["discriminator_loss"]
    assert last < 0.8 * first


QUICK = ("--cpu", "--batch-size", "2", "--segment-frames", "16", "--discriminator-channels", "2", "--log-every", "1")
TINY = ("--channels", "16", "--upsample-rates", "16", "16", "--resblock-kernels", "3")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Five recordings of another sampling rate, one of them in a folder below."""
    np.random.seed(0)
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "more").mkdir()
    for index in range(5):
        path = folder / ("more" if index == 4 else "") / f"clip{index}.wav"
        soundfile.write(path, np.repeat(voice(0.4 + 0.05 * index, 120 + 20 * index), 2), 2 * RATE)
    return folder


def train(recordings: Path, output: Path, *words: object) -> int:
    return main(["train-vocoder", "--train", str(recordings), "--output-dir", str(output), *QUICK, *map(str, words)])


def told(capsys) -> str:
    """The one line in which a mistake is told."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("speechgraft train-vocoder: ")]
    return line


def test_a_new_vocoder_is_trained_and_opens_in_both_libraries(recordings, tmp_path, capsys):
    output = tmp_path / "vocoder"
    options = ("--steps", 3, "--save-every", 2, "--keep", 1, "--mel-only-steps", 1, "--validation", recordings)
    assert train(recordings, output, *TINY, *options) == 0
    assert f"vocoder saved to {output}, mel loss" in capsys.readouterr().err
    ours, theirs = load_vocoder(output), SpeechT5HifiGan.from_pretrained(output)
    spectrogram = extracted(voice(0.3))
    torch.testing.assert_close(ours(spectrogram), theirs(spectrogram))
    config = json.loads((output / "config.json").read_text())
    assert (config["fmin"], config["fmax"], config["n_fft"], config["win_length"]) == (80, 7600, 1024, 1024)
    files = sorted((recordings / "clip0.wav", *recordings.glob("*.wav"), *recordings.glob("*/*.wav")))
    mels = torch.cat([extracted(soundfile.read(file)[0][::2].astype(np.float32)) for file in dict.fromkeys(files)])
    torch.testing.assert_close(ours.mean, mels.mean(dim=0), rtol=0, atol=0.2)  # of recordings that soxr resampled
    log = json.loads((output / "training_log.json").read_text())
    assert [row["step"] for row in log] == [1, 2, 2, 3, 3]
    assert set(log[0]) == {"step", "loss", "mel_loss"} and set(log[2]) == {"step", "validation_mel_loss"}
    assert {"adversarial_loss", "feature_matching_loss", "discriminator_loss"} <= set(log[1])
    assert [path.name for path in output.glob("*checkpoint*")] == ["checkpoint-3"]
    sample, rate = soundfile.read(output / "samples" / "clip0-step3.wav")
    assert rate == RATE and len(sample) == (1 + int(0.4 * RATE) // HOP) * HOP
    assert (output / "samples" / "clip0-recorded.wav").is_file()
    pytest.importorskip("matplotlib")
    for picture in "loss.png", "spectrogram.png":
        assert (output / picture).stat().st_size > 5000


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_an_interrupted_run_goes_on_to_the_same_weights_and_losses(recordings, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = (*TINY, "--mel-only-steps", 1, "--save-every", 2, "--log-every", 3)
    assert train(recordings, whole, *options, "--steps", 5) == 0
    assert train(recordings, cut, *options, "--steps", 2) == 0
    assert "going on" not in capsys.readouterr().err
    (cut / "partial-checkpoint-4").mkdir()  # what is left where saving was interrupted
    assert train(recordings, cut, *options, "--steps", 5) == 0
    assert f"going on from {cut / 'checkpoint-2'}" in capsys.readouterr().err
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], tensor, rtol=0, atol=1e-6)
    logs = [json.loads((folder / "training_log.json").read_text()) for folder in (whole, cut)]
    assert [row["step"] for row in logs[0]] == [2, 3, 4, 5]
    for one, other in zip(*logs, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    assert train(recordings, cut, *options, "--steps", 5, "--batch-size", 1) == 0
    assert "not quite as one run would: batch_size was 2 and is 1" in capsys.readouterr().err
    assert train(recordings, cut, *options, "--steps", 6, "--channels", 32) == 2
    assert "upsample_initial_channel was 16 and is 32): give the same sizes, or --start-over" in told(capsys)
    assert train(recordings, cut, *options, "--steps", 1, "--channels", 32, "--start-over") == 0
    assert "going on" not in capsys.readouterr().err
    assert weights(cut)["conv_pre.weight"].shape[0] == 32


def test_a_trained_vocoder_goes_on_with_its_own_statistics(recordings, tmp_path):
    vocoder = tiny_vocoder()
    vocoder.mean.fill_(-2.5)
    vocoder.apply_weight_norm()
    folder = tmp_path / "before"
    vocoder.save_pretrained(folder)
    assert train(recordings, tmp_path / "after", "--vocoder", folder, "--steps", 1) == 0
    before, after = weights(folder), weights(tmp_path / "after")
    assert before.keys() == after.keys() and torch.equal(after["mean"], before["mean"])
    change = (after["conv_pre.weight"] - before["conv_pre.weight"]).abs().max()
    assert 0 < change < 5e-3  # a step of 2e-4 in direction and length


def test_spectrograms_of_a_model_are_what_the_vocoder_hears(recordings, tmp_path, capsys):
    mels = tmp_path / "mels"
    (mels / "more").mkdir(parents=True)
    for index in range(5):
        frames = 1 + int((0.4 + 0.05 * index) * RATE) // HOP
        folder = mels / "more" if index == 4 else mels
        np.save(folder / f"clip{index}.npy", np.full((frames + index % 2, 80), -1.5, dtype=np.float16))
    np.save(mels / "clip1.npy", np.zeros((200, 80), dtype=np.float32))
    (mels / "clip2.npy").unlink()
    assert train(recordings, tmp_path / "vocoder", *TINY, "--mels", mels, "--steps", 1) == 0
    err = capsys.readouterr().err
    assert "clip1.wav: the spectrogram has 200 frames, and the recording 29" in err
    assert "clip2.wav: no spectrogram" in err and "left out 2 of 5 recordings" in err
    torch.testing.assert_close(load_vocoder(tmp_path / "vocoder").mean, torch.full((80,), -1.5))


def test_settings_come_from_the_model_that_the_vocoder_is_for(recordings, tmp_path, capsys):
    model = tmp_path / "tts"
    TextToSpectrogramConfig(num_mel_bins=20, fmin=50, fmax=6000, mel_floor=1e-5).save_pretrained(model)
    assert train(recordings, tmp_path / "vocoder", *TINY, "--model", model, "--steps", 1) == 0
    config = load_vocoder(tmp_path / "vocoder").config
    assert (config.model_in_dim, config.fmin, config.fmax, config.mel_floor) == (20, 50, 6000, 1e-5)
    assert (
        train(recordings, tmp_path / "again", "--vocoder", tmp_path / "vocoder", "--model", model, "--steps", 1) == 0
    )
    TextToSpectrogramConfig(num_mel_bins=20, fmin=50, fmax=7000).save_pretrained(model)
    assert train(recordings, tmp_path / "other", "--vocoder", tmp_path / "vocoder", "--model", model) == 2
    assert "fmax is 7000 in the model and 6000 in the vocoder" in told(capsys)


def test_other_rates_and_bins_are_asked_for_on_the_command_line(recordings, tmp_path):
    options = ("--sampling-rate", 8000, "--mel-bins", 20, "--win-length", 400, "--fmax", 3800, "--fmin", 60)
    rates = ("--channels", 8, "--upsample-rates", 5, 32, "--resblock-kernels", 3)
    assert train(recordings, tmp_path, *rates, *options, "--steps", 1) == 0
    config = load_vocoder(tmp_path).config
    assert (config.sampling_rate, config.model_in_dim, config.n_fft, config.fmax) == (8000, 20, 512, 3800)
    assert len(load_vocoder(tmp_path)(torch.zeros(3, 20))) == 3 * 160


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "{tmp}/none"], "{tmp}/none: no such file or folder"),
        (["--train", "{tmp}"], "{tmp}: no audio files"),
        (["--train", "{tmp}/none.csv"], "{tmp}/none.csv: no such manifest"),
        (["--vocoder", "{tmp}/none"], "{tmp}/none: no such model folder"),
        (["--vocoder", "{tmp}"], "{tmp}: no config.json in this folder"),
        (["--model", "{tmp}/none"], "{tmp}/none: no such model folder"),
        (["--mels", "{tmp}/none"], "--mels {tmp}/none: no such folder"),
        (["--mels", "{tmp}"], "none of 5 recordings can be used; the first: "),
        (["--vocoder", "a", "--channels", "16"], "--channels is for a new vocoder: --vocoder brings its own"),
        (["--model", "a", "--fmax", "7000"], "--fmax: --model settles what its spectrograms are"),
        (["--fmax", "9000"], "fmin 80 and fmax 9000.0 Hz must lie in this order between 0 and half of"),
        (["--channels", "17"], "upsample_initial_channel 17 is halved 4 times"),
        (["--resblock-kernels", "4"], "resblock_kernel_sizes [4] must be odd"),
        (["--lr-decay", "1.5"], "--lr-decay is at most 1, got 1.5"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--output-dir", "{clip}"], "--output-dir {clip}: a file, not a folder"),
    ],
)
def test_mistakes_are_told_in_a_line_before_hours_are_lost(words, message, recordings, tmp_path, capsys):
    places = {"tmp": tmp_path, "clip": recordings / "clip0.wav"}
    words = [word.format(**places) for word in words]
    assert train(recordings, tmp_path / "output", *words) == 2
    assert message.format(**places) in told(capsys)


def test_recordings_that_cannot_be_used_are_left_out_and_told(recordings, tmp_path, capsys):
    folder = tmp_path / "recordings"
    shutil.copytree(recordings, folder)
    (folder / "broken.wav").write_bytes(b"not a recording")
    soundfile.write(folder / "short.wav", np.zeros(300), RATE)
    manifest = tmp_path / "list.csv"
    names = ["clip0.wav", "clip1.wav", "broken.wav", "short.wav", "missing.wav"]
    manifest.write_text("file_name,text\n" + "".join(f"recordings/{name},hello\n" for name in names))
    for source, count in (folder, "2 of 7"), (manifest, "3 of 5"):
        assert train(source, tmp_path / f"vocoder{count[0]}", *TINY, "--steps", 1) == 0
        err = capsys.readouterr().err
        assert "broken.wav: cannot be decoded" in err and f"left out {count} recordings" in err
        assert "short.wav: 300 samples are fewer than half a window (512)" in err


def test_a_loss_that_is_not_finite_ends_the_run_in_a_line(recordings, tmp_path, capsys):
    assert train(recordings, tmp_path / "vocoder", *TINY, "--learning-rate", 1e30, "--steps", 6) == 2
    assert "start again with a lower --learning-rate than 1e+30" in told(capsys)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(recordings, tmp_path):
    options = [*QUICK, *TINY, "--steps", "3", "--mel-only-steps", "1", "--train", str(recordings)]
    for processes in 1, 2:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            "-m",
        ]
        command += ["speechgraft.scripts.train_vocoder", *options, "--output-dir", str(tmp_path / str(processes))]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for name, tensor in weights(tmp_path / "1").items():
        torch.testing.assert_close(weights(tmp_path / "2")[name], tensor, rtol=0, atol=1e-5)
    logs = [json.loads((tmp_path / folder / "training_log.json").read_text()) for folder in ("1", "2")]
    for one, two in zip(*logs, strict=True):
        assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_a_small_vocoder_learns_to_speak(tmp_path):
    """Half a minute of voices; the mel loss of unheard ones falls far below that of the first steps."""
    for part, count in ("train", 24), ("validation", 4):
        (tmp_path / part).mkdir()
        for index in range(count):
            pitch = 100 + 5 * index + (2.5 if part == "validation" else 0)
            soundfile.write(tmp_path / part / f"{index}.wav", voice(1.2, pitch), RATE)
    output = tmp_path / "vocoder"
    options = ("--channels", 64, "--upsample-rates", 8, 8, 4, "--resblock-kernels", 3, 7, "--seed", 0)
    options += ("--batch-size", 4, "--learning-rate", 1e-3, "--mel-only-steps", 150, "--steps", 170, "--log-every", 10)
    validation = ("--validation", tmp_path / "validation", "--discriminator-channels", 4)
    assert train(tmp_path / "train", output, *options, *validation) == 0
    log = json.loads((output / "training_log.json").read_text())
    first, last = log[0]["mel_loss"], log[-1]["validation_mel_loss"]
    assert last < 0.4 * first and last < 0.25, log
