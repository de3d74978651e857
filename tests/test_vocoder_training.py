"""Training a vocoder: the published losses, the extractor's spectrograms, runs that go on, and folders that open."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import SpeechT5FeatureExtractor, SpeechT5HifiGanConfig

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
)
from speechgraft.modeling.speech_vocoders import SpeechVocoder

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
    by_hand = (extracted(one, mel_floor=1e-5) - extracted(other, mel_floor=1e-5)).abs().mean()
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
