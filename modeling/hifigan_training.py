"""How HiFi-GAN learns to speak (Kong et al. 2020): discriminators, losses, and one step of training.

The generator is `SpeechVocoder`. It learns on short segments of recordings: from their log-mel spectrograms to
waveforms whose spectrograms are the same and which the discriminators take for recordings.

Shapes: `B` batch, `N` samples, `T` mel frames, `M` mel bins, `F` frequency bins, `C` channels, `P` period.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from .speech_vocoders import SpectrogramSettings, SpeechVocoder, mel_filters

SLOPE = 0.1  # of leaky ReLU
PERIODS = (2, 3, 5, 7, 11)  # samples; primes, so that they have no multiples in common
SCALES = 3  # waveforms that are looked at: as it is, at half the rate, at a quarter
PUBLISHED_CHANNELS = 32  # of the first convolution of a period's discriminator; all others are multiples

# The published weight is for natural logarithms.
MEL_WEIGHT = 45.0 * math.log(10)
FEATURE_MATCHING_WEIGHT = 2.0
# Mel amplitude below which differences are not heard; but the slope of the logarithm would drown all else.
HEARING_FLOOR = 1e-5
MAX_DIFFERENT_FRAMES = 8  # models write several frames at a time, and drop or add what does not fill a step

Judgement = tuple[torch.Tensor, list[torch.Tensor]]  # scores [B, …], and the features of every layer


class PeriodDiscriminator(nn.Module):
    """Judges a waveform by its samples at equal distances: it is folded to `P` columns, which are not mixed.

    Args:
        period: P, in samples.
        channels: of the first convolution.
    """

    def __init__(self, period: int, channels: int = PUBLISHED_CHANNELS):
        super().__init__()
        self.period = period
        sizes = [1, channels, 4 * channels, 16 * channels, 32 * channels, 32 * channels]
        strides = [3, 3, 3, 3, 1]
        self.convolutions = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (5, 1), (stride, 1), padding=(2, 0)))
            for before, after, stride in zip(sizes[:-1], sizes[1:], strides, strict=True)
        )
        self.score = weight_norm(nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: torch.Tensor) -> Judgement:
        """Judge waveforms [B, N]."""
        missing = -waveform.shape[-1] % self.period
        whole = nn.functional.pad(waveform[:, None], (0, missing), mode="reflect")  # [B, 1, N]
        return _judge(whole.unflatten(-1, (-1, self.period)), self.convolutions, self.score)  # [B, 1, N / P, P]


class ScaleDiscriminator(nn.Module):
    """Judges a waveform as it sounds: grouped convolutions with ever larger strides.

    Args:
        channels: a quarter of the first convolution's.
        norm: how weights are kept.
    """

    def __init__(self, channels: int = PUBLISHED_CHANNELS, norm: Any = weight_norm):
        super().__init__()
        layers = [  # channels, width, stride, groups
            (4 * channels, 15, 1, 1),
            (4 * channels, 41, 2, 4),
            (8 * channels, 41, 2, 16),
            (16 * channels, 41, 4, 16),
            (32 * channels, 41, 4, 16),
            (32 * channels, 41, 1, 16),
            (32 * channels, 5, 1, 1),
        ]
        before, convolutions = 1, []
        for after, width, stride, groups in layers:
            groups = math.gcd(groups, before, after)  # fewer where channels are few
            convolution = nn.Conv1d(before, after, width, stride, padding=width // 2, groups=groups)
            convolutions.append(norm(convolution))
            before = after
        self.convolutions = nn.ModuleList(convolutions)
        self.score = norm(nn.Conv1d(before, 1, 3, padding=1))

    def forward(self, waveform: torch.Tensor) -> Judgement:
        """Judge waveforms [B, N]."""
        return _judge(waveform[:, None], self.convolutions, self.score)


def _judge(samples: torch.Tensor, convolutions: nn.ModuleList, score: nn.Module) -> Judgement:
    features = []
    for convolution in convolutions:
        samples = nn.functional.leaky_relu(convolution(samples), SLOPE)
        features.append(samples)
    scores = score(samples)
    return scores.flatten(1), [*features, scores]


class HifiGanDiscriminators(nn.Module):
    """The multi-period and the multi-scale discriminator.

    Args:
        channels: 32 are the published sizes, 70 million weights; others are in proportion.
        periods: of the period discriminators, in samples.
        scales: of the scale discriminators; each halves the sampling rate of the one before.
    """

    def __init__(self, channels: int = PUBLISHED_CHANNELS, periods: Sequence[int] = PERIODS, scales: int = SCALES):
        super().__init__()
        self.by_period = nn.ModuleList(PeriodDiscriminator(period, channels) for period in periods)
        norms = [spectral_norm] + [weight_norm] * (scales - 1)
        self.by_scale = nn.ModuleList(ScaleDiscriminator(channels, norm) for norm in norms[:scales])

    def forward(self, waveform: torch.Tensor) -> list[Judgement]:
        """Every discriminator's judgement of waveforms [B, N]."""
        judgements = [judge(waveform) for judge in self.by_period]
        for index, judge in enumerate(self.by_scale):
            if index:
                waveform = nn.functional.avg_pool1d(waveform[:, None], 4, 2, padding=2)[:, 0]
            judgements.append(judge(waveform))
        return judgements


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> torch.Tensor:
    """Least squares (Mao et al. 2017): recordings should score 1, generated waveforms 0."""
    pairs = zip(real, fake, strict=True)
    return _sum(((1 - ours) ** 2).mean() + (theirs**2).mean() for (ours, _), (theirs, _) in pairs)


def adversarial_loss(fake: Sequence[Judgement]) -> torch.Tensor:
    """What the generator wants: its waveforms should score 1."""
    return _sum(((1 - scores) ** 2).mean() for scores, _ in fake)


def feature_matching_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> torch.Tensor:
    """How differently discriminators see recordings and what was generated for them, layer by layer (L1)."""
    layers = (zip(ours, theirs, strict=True) for (_, ours), (_, theirs) in zip(real, fake, strict=True))
    return _sum((one.detach() - other).abs().mean() for pairs in layers for one, other in pairs)


def _sum(terms: Iterator[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms)).sum()


def mel_spectrogram(waveform: torch.Tensor, settings: SpectrogramSettings) -> torch.Tensor:
    """Mel amplitudes, with gradients: [B, N] to [B, T, M], or [N] to [T, M], where T is 1 + N // hop_length.

    Raises:
        ValueError: the waveform is shorter than half a window, which is mirrored at its ends.
    """
    if waveform.shape[-1] <= settings.n_fft // 2:
        raise ValueError(f"{waveform.shape[-1]} samples are too few for windows of {settings.n_fft}, half mirrored")
    spectrum = torch.stft(
        waveform,
        settings.n_fft,
        settings.hop_length,
        settings.win_length,
        window=torch.hann_window(settings.win_length, dtype=waveform.dtype, device=waveform.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )  # [B, F, T]
    amplitudes = spectrum.abs().transpose(-1, -2)  # [B, T, F]; unlike a root of squares, its slope at 0 is finite
    return amplitudes @ mel_filters(settings, waveform.device).to(waveform.dtype)


def log_mel_spectrogram(waveform: torch.Tensor, settings: SpectrogramSettings) -> torch.Tensor:
    """The log-mel spectrogram of `SpeechT5FeatureExtractor`.

    Args:
        waveform: [B, N] or [N]; in float64 it equals the extractor's in silence too.
        settings: a `TextToSpectrogramConfig`, for one.

    Returns:
        [B, T, M] or [T, M], logarithm to base 10 of amplitudes.

    Raises:
        ValueError: see `mel_spectrogram`.
    """
    return mel_spectrogram(waveform, settings).clamp_min(settings.mel_floor).log10()


def mel_loss(real: torch.Tensor, fake: torch.Tensor, settings: SpectrogramSettings) -> torch.Tensor:
    """Mean difference (L1) of the log-mel spectrograms of waveforms [B, N], as far as it can be heard."""
    # Added: raised to it, a new vocoder, which begins as a whisper, would have no slope to follow.
    ours, theirs = ((mel_spectrogram(one.float(), settings) + HEARING_FLOOR).log10() for one in (real, fake))
    return nn.functional.l1_loss(ours, theirs)


@dataclass(frozen=True)
class Segment:
    """What one example of training is.

    Attributes:
        spectrogram: [T, M].
        waveform: [T * hop_length].
    """

    spectrogram: torch.Tensor
    waveform: torch.Tensor


def cut_segment(
    waveform: torch.Tensor,
    frames: int,
    draw: float,
    settings: SpectrogramSettings,
    spectrogram: torch.Tensor | None = None,
) -> Segment:
    """A random part of a recording, with the spectrogram that it has within the whole.

    Args:
        waveform: [N].
        frames: T of the segment; a recording that is shorter is followed by silence.
        draw: where, a number in [0, 1).
        settings: of the spectrogram.
        spectrogram: [T, M], one that a model wrote for the recording, to be taken instead of the recording's own.

    Raises:
        ValueError: `spectrogram` does not fit the recording.
    """
    hop = settings.hop_length
    available = check_fits(waveform, spectrogram, settings)
    start = int(draw * (max(available - frames, 0) + 1))
    wanted = waveform[start * hop : (start + frames) * hop]
    wanted = nn.functional.pad(wanted, (0, frames * hop - len(wanted)))
    if spectrogram is None:
        return Segment(_frames_within(waveform, start, min(frames, available), frames, settings), wanted)
    found = spectrogram[start : min(start + frames, available)].float()
    return Segment(_followed_by_silence(found, frames, settings), wanted)


def check_fits(waveform: torch.Tensor, spectrogram: torch.Tensor | None, settings: SpectrogramSettings) -> int:
    """How many frames of a recording, and of the spectrogram that a model wrote for it, can be trained on.

    Raises:
        ValueError: the recording is too short for a frame, or the spectrogram has other bins, or more than a few
            frames more or less than the recording.
    """
    if len(waveform) <= settings.n_fft // 2:
        raise ValueError(f"{len(waveform)} samples are fewer than half a window ({settings.n_fft // 2})")
    own = 1 + len(waveform) // settings.hop_length
    if spectrogram is None:
        return own
    if spectrogram.dim() != 2 or spectrogram.shape[1] != settings.num_mel_bins:
        shape = list(spectrogram.shape)
        raise ValueError(f"a spectrogram of shape [frames, {settings.num_mel_bins}] is expected, got {shape}")
    if abs(len(spectrogram) - own) > MAX_DIFFERENT_FRAMES:
        raise ValueError(f"the spectrogram has {len(spectrogram)} frames, and the recording {own}")
    if not bool(spectrogram.isfinite().all()):
        raise ValueError("the spectrogram has NaN or infinite values")
    return min(own, len(spectrogram))


def _frames_within(
    waveform: torch.Tensor, start: int, available: int, frames: int, settings: SpectrogramSettings
) -> torch.Tensor:
    """Frames of the whole recording's spectrogram, computed from as much of it as they hear: [T, M]."""
    half, hop = settings.n_fft // 2, settings.hop_length
    margin = math.ceil(half / hop)  # frames whose windows lie over the cut, and are dropped
    first = max(start - margin, 0)
    heard = waveform[first * hop : (start + available + margin) * hop]
    if len(heard) <= half:  # the end of a recording, mirrored, reaches further back
        first, heard = 0, waveform
    spectrogram = log_mel_spectrogram(heard.double(), settings)[start - first :][:available].float()
    return _followed_by_silence(spectrogram, frames, settings)


def _followed_by_silence(spectrogram: torch.Tensor, frames: int, settings: SpectrogramSettings) -> torch.Tensor:
    missing = frames - len(spectrogram)
    return nn.functional.pad(spectrogram, (0, 0, 0, missing), value=math.log10(settings.mel_floor))


class SegmentDraws:
    """Which segment is learnt from when: a function of the seed and the step, so that a run can go on anywhere.

    Args:
        clips: how many recordings there are. Each is heard once in every pass, in a new order.
        batch_size: segments in a step, over all processes.
        seed: of order and places.
        first_step: where to begin.
        steps: where to end.
        process, processes: which share of each batch is this process's.

    Yields:
        For each step, a list of (index of the recording, where in it as a number in [0, 1)).
    """

    def __init__(
        self, clips: int, batch_size: int, seed: int, first_step: int, steps: int, process: int = 0, processes: int = 1
    ):
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.first_step, self.steps = first_step, steps
        self.share = slice(process, None, processes)

    def __len__(self) -> int:
        return max(self.steps - self.first_step, 0)

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        for step in range(self.first_step, self.steps):
            places = range(step * self.batch_size, (step + 1) * self.batch_size)
            yield [self._draw(place) for place in places][self.share]

    def _draw(self, place: int) -> tuple[int, float]:
        turn, position = divmod(place, self.clips)
        order, places = self._order(turn)
        return order[position], places[position]

    def _order(self, turn: int) -> tuple[list[int], list[float]]:
        if getattr(self, "_turn", None) != turn:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            order = torch.randperm(self.clips, generator=generator).tolist()
            self._turn, self._drawn = turn, (order, torch.rand(self.clips, generator=generator).tolist())
        return self._drawn


class HifiGanLearner:
    """A vocoder, its discriminators and their optimisers, which learn step by step.

    Args:
        vocoder: gets weight norm.
        discriminators: the judges.
        settings: of the spectrograms.
        accelerator: an `accelerate.Accelerator`, which knows device, number format and processes.
        learning_rate: of AdamW, at the first step.
        decay: factor to the learning rate in every pass over the recordings.
        steps_in_pass: steps that a pass takes.
    """

    def __init__(
        self,
        vocoder: SpeechVocoder,
        discriminators: HifiGanDiscriminators,
        settings: SpectrogramSettings,
        accelerator: Any,
        learning_rate: float = 2e-4,
        decay: float = 0.999,
        steps_in_pass: float = 1.0,
    ):
        vocoder.apply_weight_norm()
        vocoder.train().requires_grad_(True)
        self.settings, self.accelerator = settings, accelerator
        self.step = 0
        parts = (_Generator(vocoder), discriminators)
        adam = [torch.optim.AdamW(part.parameters(), learning_rate, betas=(0.8, 0.99)) for part in parts]
        prepared = accelerator.prepare(*parts, *adam)
        self.generator, self.discriminators, self.generator_adam, self.discriminator_adam = prepared
        self._rate = lambda step: learning_rate * decay ** (step / steps_in_pass)

    @property
    def vocoder(self) -> SpeechVocoder:
        """The vocoder as it is now."""
        return self.accelerator.unwrap_model(self.generator).vocoder

    def learn(self, spectrogram: torch.Tensor, waveform: torch.Tensor, adversarial: bool = True) -> dict[str, Any]:
        """One step of both.

        Args:
            spectrogram: [B, T, M].
            waveform: [B, T * hop_length], the recordings.
            adversarial: False leaves the discriminators out: quicker, and blurred.

        Returns:
            The losses by name, scalars without gradient.
        """
        for adam in (self.generator_adam, self.discriminator_adam):
            for group in adam.param_groups:
                group["lr"] = self._rate(self.step)
        with self.accelerator.autocast():
            generated = self.generator(spectrogram).float()  # [B, N]
        losses = {"mel_loss": mel_loss(waveform, generated, self.settings)}
        if adversarial:
            judging = self._teach_discriminators(waveform, generated.detach())
            losses |= self._judged(waveform, generated) | {"discriminator_loss": judging}
        loss = MEL_WEIGHT * losses["mel_loss"]
        if adversarial:
            loss = loss + losses["adversarial_loss"] + FEATURE_MATCHING_WEIGHT * losses["feature_matching_loss"]
        self._update(loss, self.generator_adam)
        self.step += 1
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def _teach_discriminators(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        with self.accelerator.autocast():  # in one call: distributed modules keep no account of several
            judgements = _split(self.discriminators(torch.cat([real, fake])), len(real))
            loss = discriminator_loss(*judgements)
        self._update(loss, self.discriminator_adam)
        return loss

    def _judged(self, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
        judges = self.accelerator.unwrap_model(self.discriminators)  # nothing to share: they do not learn here
        judges.requires_grad_(False)
        with self.accelerator.autocast():
            ours, theirs = _split(judges(torch.cat([real, fake])), len(real))
            losses = {
                "adversarial_loss": adversarial_loss(theirs),
                "feature_matching_loss": feature_matching_loss(ours, theirs),
            }
        judges.requires_grad_(True)
        return losses

    def _update(self, loss: torch.Tensor, adam: Any) -> None:
        adam.zero_grad()
        self.accelerator.backward(loss)
        adam.step()

    def state_dict(self) -> dict[str, Any]:
        """What `accelerate` does not save by itself."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's step."""
        self.step = state["step"]


class _Generator(nn.Module):
    """The vocoder as training calls it: segments of one length, at once."""

    def __init__(self, vocoder: SpeechVocoder):
        super().__init__()
        self.vocoder = vocoder

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        return self.vocoder.waveforms(spectrogram)


def _split(judgements: list[Judgement], rows: int) -> tuple[list[Judgement], list[Judgement]]:
    """Judgements of recordings and of what was generated, which were judged as one batch."""
    real = [(scores[:rows], [layer[:rows] for layer in features]) for scores, features in judgements]
    fake = [(scores[rows:], [layer[rows:] for layer in features]) for scores, features in judgements]
    return real, fake


def new_vocoder(config: Any) -> SpeechVocoder:
    """A HiFi-GAN to train from nothing.

    Its weights are drawn as PyTorch draws those of convolutions: with Transformers', a hundredth each, it is silent at
    first, and learns more slowly.

    Args:
        config: a `SpeechT5HifiGanConfig`.
    """
    vocoder = SpeechVocoder(config)
    for module in vocoder.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.reset_parameters()
    return vocoder


@torch.no_grad()
def set_input_statistics(vocoder: SpeechVocoder, spectrograms: Sequence[torch.Tensor]) -> None:
    """Let a new vocoder subtract the mean of each mel bin and divide by its standard deviation.

    Args:
        vocoder: one whose configuration says `normalize_before`.
        spectrograms: [T, M] each, of what it will be trained on.
    """
    frames = torch.cat([one.float() for one in spectrograms])
    cast(torch.Tensor, vocoder.mean).copy_(frames.mean(dim=0))
    cast(torch.Tensor, vocoder.scale).copy_(frames.std(dim=0).clamp_min(1e-2))


__all__ = [
    "HifiGanDiscriminators",
    "HifiGanLearner",
    "PeriodDiscriminator",
    "ScaleDiscriminator",
    "SegmentDraws",
    "adversarial_loss",
    "cut_segment",
    "discriminator_loss",
    "feature_matching_loss",
    "log_mel_spectrogram",
    "mel_loss",
    "mel_spectrogram",
    "new_vocoder",
    "set_input_statistics",
]
