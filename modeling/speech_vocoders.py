"""Vocoders: log-mel spectrograms to sound, whole or as they come.

`SpeechVocoder` is Transformers' HiFi-GAN (`SpeechT5HifiGan`) with its weights; `GriffinLimVocoder` needs none, so that
every spectrogram can be heard. Both take one utterance at a time, on its own valid frames: zero, with which batches
are padded, is loud in a logarithmic spectrogram. And both stream: the waveforms of the chunks, concatenated, are the
waveform of the whole.

Shapes: `B` batch, `T` mel frames, `M` mel bins, `F` frequency bins, `N` samples of one window, `C` channels.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from transformers import PreTrainedConfig, SpeechT5HifiGan, SpeechT5HifiGanConfig
from transformers.audio_utils import mel_filter_bank
from transformers.utils import logging

logger = logging.get_logger(__name__)

WEIGHT_NORM_KEY = ".parametrizations.weight.original"  # older names are renamed by Transformers while it loads

EDGE_KERNEL = 7  # width of the network's first and last convolution, which no configuration changes

# Of the configuration of a model, and what a vocoder's configuration calls the same. Transformers' own vocoders do not
# say where their mel filters lie; those trained here do.
SHARED_SETTINGS = {
    "sampling_rate": "sampling_rate",
    "num_mel_bins": "model_in_dim",
    "hop_length": "hop_length",
    "win_length": "win_length",
    "n_fft": "n_fft",
    "fmin": "fmin",
    "fmax": "fmax",
    "mel_floor": "mel_floor",
}


class SpectrogramSettings(Protocol):
    """How log-mel spectrograms were computed; a `TextToSpectrogramConfig`, for one, says so.

    Attributes:
        sampling_rate: of the waveform, in Hz.
        n_fft: length of the Fourier transform, in samples.
        win_length: of the Hann window, in samples.
        hop_length: from one frame to the next, in samples.
        num_mel_bins: triangular filters, with equal areas, on Slaney's mel scale.
        fmin, fmax: where the filters begin and end, in Hz.
        mel_floor: amplitudes are raised to this before the logarithm to base 10.
    """

    @property
    def sampling_rate(self) -> int: ...

    @property
    def n_fft(self) -> int: ...

    @property
    def win_length(self) -> int: ...

    @property
    def hop_length(self) -> int: ...

    @property
    def num_mel_bins(self) -> int: ...

    @property
    def fmin(self) -> float: ...

    @property
    def fmax(self) -> float: ...

    @property
    def mel_floor(self) -> float: ...


class VocoderStream:
    """Takes a spectrogram in chunks and gives its waveform in chunks.

    What a vocoder does with a frame depends on later frames, so sound lags behind the spectrogram, and `finish` gives
    the rest.
    """

    def __init__(self, num_mel_bins: int):
        self._num_mel_bins = num_mel_bins
        self._frames = 0
        self._finished = False

    def push(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Hear more frames.

        Args:
            spectrogram: [T, M], log-mel after the postnet; T may be 0.

        Returns:
            float32 [samples], the next part of the waveform; it may have none yet.

        Raises:
            ValueError: NaN or infinite values, another number of mel bins, or the stream is finished.
        """
        if self._finished:
            raise ValueError("this stream is finished: open another one for another utterance")
        _check_frames(spectrogram, self._num_mel_bins, "spectrogram chunk")
        self._frames += len(spectrogram)
        with torch.no_grad():
            return self._next(spectrogram, last=False)

    def finish(self) -> torch.Tensor:
        """The end of the waveform, float32 [samples].

        Raises:
            ValueError: there was no frame at all, or the stream is finished already.
        """
        if self._finished:
            raise ValueError("this stream is finished already")
        if not self._frames:
            raise ValueError("the spectrogram is empty (0 frames): there is nothing to vocode")
        self._finished = True
        with torch.no_grad():
            return self._next(None, last=True)

    def run(self, chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Waveform chunks, none of them empty, for spectrogram chunks as they come; ends with `finish`."""
        for chunk in chunks:
            if len(waveform := self.push(chunk)):
                yield waveform
        if len(waveform := self.finish()):
            yield waveform

    def _next(self, spectrogram: torch.Tensor | None, last: bool) -> torch.Tensor:
        """Whatever waveform is settled by now; the last call comes without a spectrogram."""
        raise NotImplementedError


class Vocoder(nn.Module):
    """What every vocoder does: one utterance, several, or one as it comes."""

    sampling_rate: int  # Hz
    hop_length: int  # samples of waveform for each frame
    num_mel_bins: int

    def forward(self, spectrogram: torch.Tensor, lengths: Any = None) -> Any:
        """Spectrograms to waveforms, each on its own valid frames.

        Args:
            spectrogram: [T, M] or [B, T, M], log-mel (base 10).
            lengths: valid frames of each utterance; None takes all frames.

        Returns:
            float32 [T * hop_length] for one spectrogram; a list of B such waveforms for a batch, even of one.

        Raises:
            ValueError: an utterance is empty, has NaN or infinite values, or another number of mel bins.
        """
        if spectrogram.dim() == 2:
            (valid,) = _valid_rows(spectrogram[None], lengths, self.num_mel_bins, "spectrogram")
            return self.vocode(valid)
        if spectrogram.dim() != 3:
            shape = list(spectrogram.shape)
            raise ValueError(f"a spectrogram has shape [frames, mel bins] or [batch, frames, mel bins], got {shape}")
        return [self.vocode(valid) for valid in _valid_rows(spectrogram, lengths, self.num_mel_bins, "row {}")]

    def vocode(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """One checked utterance: [T, M] to float32 [T * hop_length]."""
        raise NotImplementedError

    def stream(self) -> VocoderStream:
        """A stream for one utterance, which begins now."""
        raise NotImplementedError


def _valid_rows(spectrogram: torch.Tensor, lengths: Any, num_mel_bins: int, called: str) -> Iterator[torch.Tensor]:
    rows = len(spectrogram)
    frames = [spectrogram.shape[1]] * rows if lengths is None else torch.as_tensor(lengths).reshape(-1).tolist()
    if len(frames) != rows:
        raise ValueError(f"{rows} spectrograms need as many lengths, got {len(frames)}")
    for index, (row, length) in enumerate(zip(spectrogram, frames, strict=True)):
        name = called.format(index)
        if not 0 <= length <= len(row):
            raise ValueError(f"{name}: {length} valid frames of {len(row)}")
        if length == 0:
            raise ValueError(f"{name}: the spectrogram is empty (0 frames): there is nothing to vocode")
        _check_frames(row[:length], num_mel_bins, name)
        yield row[:length]


def _check_frames(spectrogram: torch.Tensor, num_mel_bins: int, name: str) -> None:
    if spectrogram.dim() != 2 or spectrogram.shape[1] != num_mel_bins:
        shape = list(spectrogram.shape)
        raise ValueError(f"{name}: the vocoder takes {num_mel_bins} mel bins, [frames, {num_mel_bins}], got {shape}")
    if not torch.isfinite(spectrogram).all():
        wrong = int((~torch.isfinite(spectrogram)).any(dim=1).sum())
        raise ValueError(f"{name}: {wrong} of {len(spectrogram)} frames have NaN or infinite values")


class SpeechVocoder(Vocoder, SpeechT5HifiGan):
    """HiFi-GAN (Kong et al. 2020): the weights, and the waveform, of Transformers' `SpeechT5HifiGan`.

    Args:
        config: of the network. `win_length`, `n_fft`, `fmin`, `fmax` and `mel_floor`, where it has them, say which
            spectrograms it was trained on.

    Raises:
        ValueError: sizes of the configuration contradict each other.
    """

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = (
        True  # no attention that a model's choice could break
    )

    def __init__(self, config: SpeechT5HifiGanConfig):
        _check_sizes(config)
        super().__init__(config)
        self.sampling_rate: int = config.sampling_rate
        self.hop_length: int = math.prod(config.upsample_rates)
        self.num_mel_bins: int = config.model_in_dim

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As in Transformers; checkpoints that were saved with weight norm load too, and have it no more.

        Raises:
            ValueError: the checkpoint lacks weights, which would be random.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["output_loading_info"] = True
        load: Any = super().from_pretrained
        with _without_warnings():
            vocoder, info = load(pretrained_model_name_or_path, *args, **kwargs)
            if any(WEIGHT_NORM_KEY in key for key in info["unexpected_keys"]):
                load = super(SpeechVocoder, _WeightNormedVocoder).from_pretrained
                normed, info = load(pretrained_model_name_or_path, *args, **kwargs)
                vocoder.load_state_dict(plain_state_dict(normed))
        missing = sorted(info["missing_keys"])
        if missing:
            shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise ValueError(
                f"{pretrained_model_name_or_path}: lacks {len(missing)} of the vocoder's weights ({shown}), which "
                "would be random"
            )
        if info["unexpected_keys"]:
            logger.warning(f"{pretrained_model_name_or_path}: not used: {', '.join(sorted(info['unexpected_keys']))}")
        return (vocoder, info) if wants_info else vocoder

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write a folder that `SpeechT5HifiGan` opens; the weights are saved without weight norm."""
        self.to_native().save_pretrained(save_directory, *args, **kwargs)

    def to_native(self) -> SpeechT5HifiGan:
        """A copy of Transformers' class, without weight norm."""
        native: Any = SpeechT5HifiGan(self.config)
        native.to(device=self.device, dtype=self.dtype)
        native.load_state_dict(plain_state_dict(self))
        return native.train(self.training)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Whatever a model that holds a vocoder is asked for: there is no attention here that could refuse it."""
        return "eager"

    @property
    def has_weight_norm(self) -> bool:
        """Whether weights are kept as direction and length, as HiFi-GAN is trained."""
        return bool(_normed_convolutions(self))

    def apply_weight_norm(self) -> None:
        """Keep weights as direction and length (Salimans and Kingma 2016), for training; no effect on the sound."""
        for module in list(self.modules()):
            if _is_convolution(module) and not parametrize.is_parametrized(module):
                weight_norm(module)

    def remove_weight_norm(self) -> None:
        """Keep weights as they are used: the reverse of `apply_weight_norm`."""
        for module in _normed_convolutions(self).values():
            parametrize.remove_parametrizations(module, "weight")

    def waveforms(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Spectrograms of one length, without any padding, at once: [B, T, M] to [B, T * hop_length]."""
        return SpeechT5HifiGan.forward(self, spectrogram.to(self.dtype))

    def vocode(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """One checked utterance: [T, M] to float32 [T * hop_length]."""
        return self.waveforms(spectrogram[None])[0].float()

    def stream(self) -> VocoderStream:
        """A stream for one utterance: exact, and nothing is computed twice.

        Sound lags by `lookahead_frames`.
        """
        return _HifiGanStream(self)

    @property
    def lookahead_frames(self) -> int:
        """How many later frames, at most, a frame's samples depend on: how far a stream's sound lags."""
        config = self.config
        branches = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        reach = max(sum((kernel // 2) * (dilation + 1) for dilation in dilations) for kernel, dilations in branches)
        samples = EDGE_KERNEL // 2  # at each stage's rate, how far ahead of a sample the rest of the network looks
        stages = list(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True))
        for rate, width in reversed(stages):
            samples = math.ceil((samples + reach + (width - rate) // 2) / rate)
        return samples + EDGE_KERNEL // 2


class _WeightNormedVocoder(SpeechVocoder):
    """What a checkpoint with weight norm is loaded into."""

    def __init__(self, config: SpeechT5HifiGanConfig):
        super().__init__(config)
        self.apply_weight_norm()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Nothing about weights that do not fit from Transformers: what matters is raised here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def plain_state_dict(vocoder: SpeechT5HifiGan) -> dict[str, torch.Tensor]:
    """Names and weights as without weight norm, whether it is applied or not."""
    state = {name: tensor for name, tensor in vocoder.state_dict().items() if ".parametrizations." not in name}
    return state | {f"{name}.weight": one.weight.detach() for name, one in _normed_convolutions(vocoder).items()}


def _normed_convolutions(vocoder: nn.Module) -> dict[str, Any]:
    named = vocoder.named_modules()
    return {name: one for name, one in named if _is_convolution(one) and parametrize.is_parametrized(one)}


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.ConvTranspose1d)


def _check_sizes(config: SpeechT5HifiGanConfig) -> None:
    """Refuse sizes with which the waveform would not have `hop_length` samples for each frame."""
    rates, widths = list(config.upsample_rates), list(config.upsample_kernel_sizes)
    if len(rates) != len(widths):
        raise ValueError(f"upsample_rates {rates} and upsample_kernel_sizes {widths} must be equally many")
    if any(width < rate or (width - rate) % 2 for rate, width in zip(rates, widths, strict=True)):
        raise ValueError(
            f"upsample_kernel_sizes {widths} must exceed upsample_rates {rates} by 0, 2, 4, …, or the waveform would "
            "not have a whole number of samples for each frame"
        )
    kernels, dilations = list(config.resblock_kernel_sizes), list(config.resblock_dilation_sizes)
    if len(kernels) != len(dilations) or any(kernel % 2 == 0 for kernel in kernels):
        raise ValueError(
            f"resblock_kernel_sizes {kernels} must be odd, and as many as resblock_dilation_sizes {dilations}"
        )
    if config.upsample_initial_channel % 2 ** len(rates):
        raise ValueError(
            f"upsample_initial_channel {config.upsample_initial_channel} is halved {len(rates)} times: take a "
            f"multiple of {2 ** len(rates)}"
        )


# A network of convolutions, computed as its input comes. Each part takes [1, C, n] samples and gives those that are
# settled: no later input changes them. At the last call, the zeros with which convolutions pad the end are its input.


class _ConvolutionStream:
    def __init__(self, convolution: nn.Module):
        self.convolution = cast(nn.Conv1d, convolution)
        (kernel,), (self.dilation,) = self.convolution.kernel_size, self.convolution.dilation
        self.reach = (kernel - 1) * self.dilation  # input samples beside its first that an output needs
        self.heard: torch.Tensor | None = None

    def __call__(self, samples: torch.Tensor, last: bool) -> torch.Tensor:
        padding = samples.new_zeros(1, samples.shape[1], self.reach // 2)
        parts = [padding if self.heard is None else self.heard, samples, *([padding] if last else [])]
        heard = torch.cat(parts, dim=-1)
        self.heard = heard[..., max(heard.shape[-1] - self.reach, 0) :]
        if heard.shape[-1] <= self.reach:
            return samples.new_zeros(1, self.convolution.out_channels, 0)
        return nn.functional.conv1d(heard, self.convolution.weight, self.convolution.bias, dilation=self.dilation)


class _UpsamplingStream:
    def __init__(self, convolution: nn.Module):
        self.convolution = cast(nn.ConvTranspose1d, convolution)
        (kernel,), (self.stride,) = self.convolution.kernel_size, self.convolution.stride
        self.overlap = kernel - self.stride  # output samples that two neighbours of the input share
        self.to_drop = self.overlap // 2  # at either end, where the network pads
        self.tail: torch.Tensor | None = None

    def __call__(self, samples: torch.Tensor, last: bool) -> torch.Tensor:
        channels, new = self.convolution.out_channels, samples.shape[-1] * self.stride
        spread = samples.new_zeros(1, channels, new + self.overlap)
        if new:
            spread += nn.functional.conv_transpose1d(samples, self.convolution.weight, stride=self.stride)
        if self.tail is not None:
            spread[..., : self.overlap] += self.tail
        settled, self.tail = spread[..., :new], spread[..., new:]
        if last:
            settled = spread[..., : new + self.overlap - self.overlap // 2]
        dropped = min(self.to_drop, settled.shape[-1])
        self.to_drop -= dropped
        bias = cast(torch.Tensor, self.convolution.bias)
        return settled[..., dropped:] + bias[:, None]


class _ResidualStream:
    """One residual block: pairs of convolutions, each added to its input."""

    def __init__(self, block: Any):
        self.slope: float = block.leaky_relu_slope
        self.pairs = [
            (_ConvolutionStream(first), _ConvolutionStream(second))
            for first, second in zip(block.convs1, block.convs2, strict=True)
        ]
        self.inputs: list[torch.Tensor | None] = [None] * len(self.pairs)

    def __call__(self, samples: torch.Tensor, last: bool) -> torch.Tensor:
        for index, (first, second) in enumerate(self.pairs):
            waiting = _joined(self.inputs[index], samples)
            samples = first(nn.functional.leaky_relu(samples, self.slope), last)
            samples = second(nn.functional.leaky_relu(samples, self.slope), last)
            settled = samples.shape[-1]
            samples, self.inputs[index] = samples + waiting[..., :settled], waiting[..., settled:]
        return samples


class _MeanStream:
    """The mean of residual blocks, each of which lags by another number of samples."""

    def __init__(self, blocks: Sequence[Any]):
        self.blocks = [_ResidualStream(block) for block in blocks]
        self.outputs: list[torch.Tensor | None] = [None] * len(self.blocks)

    def __call__(self, samples: torch.Tensor, last: bool) -> torch.Tensor:
        outputs = [_joined(was, block(samples, last)) for was, block in zip(self.outputs, self.blocks, strict=True)]
        settled = min(output.shape[-1] for output in outputs)
        self.outputs = [output[..., settled:] for output in outputs]
        return torch.stack([output[..., :settled] for output in outputs]).sum(dim=0) / len(outputs)


def _joined(before: torch.Tensor | None, samples: torch.Tensor) -> torch.Tensor:
    return samples if before is None else torch.cat([before, samples], dim=-1)


class _HifiGanStream(VocoderStream):
    def __init__(self, vocoder: SpeechVocoder):
        super().__init__(vocoder.num_mel_bins)
        self._vocoder = vocoder
        self._first, self._last = _ConvolutionStream(vocoder.conv_pre), _ConvolutionStream(vocoder.conv_post)
        blocks, kernels = list(vocoder.resblocks), vocoder.num_kernels
        self._stages = [
            (_UpsamplingStream(upsampler), _MeanStream(blocks[stage * kernels : (stage + 1) * kernels]))
            for stage, upsampler in enumerate(vocoder.upsampler)
        ]

    def _next(self, spectrogram: torch.Tensor | None, last: bool) -> torch.Tensor:
        vocoder = self._vocoder
        frames = vocoder.mean.new_zeros(0, self._num_mel_bins) if spectrogram is None else spectrogram
        frames = frames.to(vocoder.dtype)
        if vocoder.config.normalize_before:
            frames = (frames - vocoder.mean) / vocoder.scale
        samples = self._first(frames.T[None], last)  # [1, C, T]
        for upsample, blocks in self._stages:
            samples = blocks(upsample(nn.functional.leaky_relu(samples, vocoder.config.leaky_relu_slope), last), last)
        samples = self._last(nn.functional.leaky_relu(samples), last)
        return torch.tanh(samples)[0, 0].float()


class GriffinLimVocoder(Vocoder):
    """Sound from a log-mel spectrogram alone: a fast Griffin-Lim algorithm (Perraudin et al. 2013), settled group by
    group of frames as in RTISI-LA (Zhu et al. 2007), each with a look at the next.

    There is nothing to learn or to load. Phases start at random, the same for every utterance and chunk size. It
    sounds hollow beside a trained vocoder.

    Args:
        settings: how the spectrograms were computed.
        iterations: for each group of frames.
        momentum: 0 is Griffin and Lim's own algorithm (1984); just below 1 comes closer in the same time.
        seed: of the first phases.

    Raises:
        ValueError: windows overlap by less than half.
    """

    group_frames = 8  # settled together, in sight of as many more: as good as all at once, and soon heard
    amplitude_iterations = 100  # of the least-squares fit to the mel amplitudes

    def __init__(self, settings: SpectrogramSettings, iterations: int = 32, momentum: float = 0.99, seed: int = 0):
        super().__init__()
        if settings.win_length < 2 * settings.hop_length or settings.n_fft < settings.win_length:
            raise ValueError(
                f"Griffin-Lim needs windows that overlap by half and fit the transform: win_length "
                f"{settings.win_length}, hop_length {settings.hop_length}, n_fft {settings.n_fft}"
            )
        self.settings = settings
        self.sampling_rate: int = settings.sampling_rate
        self.hop_length: int = settings.hop_length
        self.num_mel_bins: int = settings.num_mel_bins
        self.iterations, self.momentum, self.seed = iterations, momentum, seed

    def vocode(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """One checked utterance: [T, M] to float32 [T * hop_length]."""
        stream = self.stream()
        return torch.cat([stream.push(spectrogram), stream.finish()])

    def stream(self) -> VocoderStream:
        """A stream for one utterance. Sound lags by less than `lookahead_frames`."""
        return _GriffinLimStream(self)

    @property
    def lookahead_frames(self) -> int:
        """How many later frames, at most, a frame's samples depend on: how far a stream's sound lags."""
        return 2 * self.group_frames + math.ceil(self.settings.win_length / (2 * self.hop_length))

    def amplitudes(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Amplitudes of the Fourier transform that come closest to a log-mel spectrogram: [T, M] to [T, F].

        Non-negative least squares by multiplicative updates (Lee and Seung 2000), from the pseudo-inverse.
        """
        filters, inverse = _filters(self.settings, spectrogram.device)  # [F, M], [M, F]
        mel = 10 ** spectrogram.float()  # [T, M]
        found = (mel @ inverse).clamp_min(1e-8)  # [T, F]
        wanted = mel @ filters.T
        for _ in range(self.amplitude_iterations):
            found = found * wanted / (found @ filters @ filters.T).clamp_min(1e-12)
        return found


class _GriffinLimStream(VocoderStream):
    """Frames wait until there are two groups; then the first is settled, with both, and its sound added up."""

    def __init__(self, vocoder: GriffinLimVocoder):
        super().__init__(vocoder.num_mel_bins)
        self._vocoder = vocoder
        self._generator = torch.Generator().manual_seed(vocoder.seed)
        self._frames_waiting: torch.Tensor | None = None  # [T, M]
        self._groups: list[tuple[torch.Tensor, torch.Tensor]] = []  # amplitudes [T, F], phases [T, F] as e^(i phase)
        self._sound: torch.Tensor | None = None  # [samples], of settled frames, where later ones still add to it
        self._weight: torch.Tensor | None = None  # [samples], the squared windows that were added up
        self._to_drop = vocoder.settings.win_length // 2  # the first window is centred on the first sample

    def _next(self, spectrogram: torch.Tensor | None, last: bool) -> torch.Tensor:
        size, heard = self._vocoder.group_frames, []
        if spectrogram is not None:
            waiting = self._frames_waiting
            self._frames_waiting = spectrogram if waiting is None else torch.cat([waiting, spectrogram])
        frames = cast(torch.Tensor, self._frames_waiting)
        while len(frames) >= size or (last and len(frames)):
            self._groups.append(self._begin(frames[:size]))
            frames = frames[size:]
            if len(self._groups) == 2:
                heard.append(self._settle())
        self._frames_waiting = frames
        if last:
            heard += [self._settle(), self._rest()]
        sound = torch.cat([frames.new_zeros(0, dtype=torch.float32), *heard])
        dropped = min(self._to_drop, len(sound))
        self._to_drop -= dropped
        return sound[dropped:].clamp(-1, 1)

    def _begin(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        amplitudes = self._vocoder.amplitudes(frames)
        angles = 2 * math.pi * torch.rand(amplitudes.shape, generator=self._generator)  # drawn alike for every device
        return amplitudes, torch.polar(torch.ones_like(angles), angles).to(amplitudes.device)

    def _settle(self) -> torch.Tensor:
        """Find the phases of all groups, keep the first group's, and give the samples that nothing adds to."""
        amplitudes = torch.cat([group[0] for group in self._groups])  # [T, F]
        phases = torch.cat([group[1] for group in self._groups])
        sizes = [len(group[0]) for group in self._groups]
        window, hop = _window(self._vocoder.settings, amplitudes.device), self._vocoder.hop_length
        fixed_sound, fixed_weight = self._tails(amplitudes, _span(len(amplitudes), window, hop))
        weight = fixed_weight + _overlap_add((window**2).expand(len(amplitudes), -1), hop)
        previous = torch.zeros_like(phases)
        share = self._vocoder.momentum / (1 + self._vocoder.momentum)
        for _ in range(self._vocoder.iterations):
            sound = fixed_sound + _overlap_add(self._windows(amplitudes * phases, window), hop)
            heard = torch.fft.rfft(_mean_of(sound, weight).unfold(0, len(window), hop) * window, n=self._n_fft)
            phases, previous = heard - share * previous, heard
            phases = phases / phases.abs().clamp_min(1e-16)
        self._groups = [(a, p) for a, p in zip(amplitudes.split(sizes), phases.split(sizes), strict=True)][1:]
        settled = _overlap_add(self._windows((amplitudes * phases)[: sizes[0]], window), hop)
        sound, weight = fixed_sound[: len(settled)] + settled, fixed_weight[: len(settled)].clone()
        weight += _overlap_add((window**2).expand(sizes[0], -1), hop)
        done = sizes[0] * hop  # where the next frame's window begins
        self._sound, self._weight = sound[done:], weight[done:]
        return _mean_of(sound[:done], weight[:done])

    def _rest(self) -> torch.Tensor:
        """The last samples: the sound ends one hop behind the last window's centre."""
        sound, weight = cast(torch.Tensor, self._sound), cast(torch.Tensor, self._weight)
        return _mean_of(sound, weight)[: self._vocoder.settings.win_length // 2]

    @property
    def _n_fft(self) -> int:
        return self._vocoder.settings.n_fft

    def _windows(self, spectrum: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        """Windowed waveforms of frames: [T, F] to [T, N]."""
        return torch.fft.irfft(spectrum, n=self._n_fft)[:, : len(window)] * window

    def _tails(self, like: torch.Tensor, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sound and weight of what is settled, for the samples of the frames to settle now."""
        if self._sound is None or self._weight is None:
            return like.new_zeros(samples), like.new_zeros(samples)
        padding = [0, samples - len(self._sound)]
        return nn.functional.pad(self._sound, padding), nn.functional.pad(self._weight, padding)


def _span(frames: int, window: torch.Tensor, hop: int) -> int:
    return (frames - 1) * hop + len(window)


def _overlap_add(windows: torch.Tensor, hop: int) -> torch.Tensor:
    """[T, N] to [(T - 1) * hop + N]."""
    frames, size = windows.shape
    added = nn.functional.fold(windows.T[None], (1, (frames - 1) * hop + size), (1, size), stride=(1, hop))
    return added.view(-1)


def _mean_of(sound: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sound that windows weighted, restored; where hardly any window reaches, it stays quiet."""
    return sound / weight.clamp_min(1e-3)


def _window(settings: SpectrogramSettings, device: torch.device) -> torch.Tensor:
    return torch.hann_window(settings.win_length, device=device)


def mel_filters(settings: SpectrogramSettings, device: torch.device | str = "cpu") -> torch.Tensor:
    """The mel filters of `SpeechT5FeatureExtractor`: float32 [F, M], for amplitudes."""
    return _filters(settings, device)[0]


def _filters(settings: SpectrogramSettings, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    facts = (settings.n_fft, settings.num_mel_bins, settings.fmin, settings.fmax, settings.sampling_rate)
    return _filters_and_inverse(*facts, str(device))


@lru_cache(maxsize=8)
def _filters_and_inverse(
    n_fft: int, num_mel_bins: int, fmin: float, fmax: float, sampling_rate: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mel filters [F, M] and their pseudo-inverse [M, F]."""
    filters = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=fmin,
        max_frequency=fmax,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    with torch.inference_mode(False):  # made in a user's inference mode, they would be of no use in training later
        both = torch.from_numpy(filters).float(), torch.from_numpy(np.linalg.pinv(filters)).float()
        return both[0].to(device), both[1].to(device)


def check_vocoder_agrees(config: Any, vocoder_config: Any) -> None:
    """See that a vocoder makes sound from the spectrograms that a model makes.

    Args:
        config: of the model, or any `SpectrogramSettings`.
        vocoder_config: a `SpeechT5HifiGanConfig`. Where it does not say which window or mel filters it was trained
            on, these are not compared.

    Raises:
        ValueError: sampling rate, hop length, number of mel bins, window or mel filters differ; all are named.
    """
    wrong = []
    for name, theirs in SHARED_SETTINGS.items():
        ours, its = getattr(config, name, None), getattr(vocoder_config, theirs, None)
        if name == "hop_length":
            its = math.prod(vocoder_config.upsample_rates)
        if ours is not None and its is not None and ours != its:
            wrong.append(f"{name} is {ours} in the model and {its} in the vocoder")
    if wrong:
        raise ValueError(f"model and vocoder do not agree: {'; '.join(wrong)}")


def build_vocoder(config: Any) -> Vocoder:
    """The vocoder that a model's configuration asks for, with random weights where it has any.

    Args:
        config: `config.vocoder` is a `SpeechT5HifiGanConfig`, or None for Griffin-Lim; the rest as in
            `SpectrogramSettings`.

    Raises:
        ValueError: the vocoder takes other spectrograms than the model makes.
    """
    if config.vocoder is None:
        return GriffinLimVocoder(config)
    check_vocoder_agrees(config, config.vocoder)
    return SpeechVocoder(config.vocoder)


def load_vocoder(source: Any, **kwargs: Any) -> SpeechVocoder:
    """A trained HiFi-GAN.

    Args:
        source: folder or hub id of a `SpeechT5HifiGan`, saved with or without weight norm; or a ready one, which is
            copied.
        kwargs: for `from_pretrained`, such as `dtype` or `revision`.

    Returns:
        The vocoder, in evaluation mode and without weight norm.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds another kind of model, or lacks weights.
    """
    if isinstance(source, SpeechT5HifiGan):
        vocoder: Any = SpeechVocoder(source.config)
        vocoder.to(device=source.device, dtype=source.dtype)
        vocoder.load_state_dict(plain_state_dict(source))
        return vocoder.eval()
    if not Path(source).is_dir() and (str(source).startswith(("/", ".", "~")) or str(source).count("/") > 1):
        raise FileNotFoundError(f"{source}: no such vocoder folder")
    model_type = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    if model_type != SpeechT5HifiGanConfig.model_type:
        raise ValueError(f"{source}: holds a {model_type} model, not a {SpeechT5HifiGanConfig.model_type} vocoder")
    return SpeechVocoder.from_pretrained(source, **kwargs).eval()


__all__ = [
    "GriffinLimVocoder",
    "SpeechVocoder",
    "Vocoder",
    "VocoderStream",
    "build_vocoder",
    "check_vocoder_agrees",
    "load_vocoder",
]
