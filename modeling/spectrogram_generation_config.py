"""How a text-to-speech model speaks unless a call says otherwise: lengths, the stop, speed, what is returned."""

import copy
import math
from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig

SHARED_SETTINGS = (  # of those that Transformers' own class has
    "max_length",
    "max_new_tokens",
    "min_new_tokens",
    "output_attentions",
    "pad_token_id",
    "return_dict_in_generate",
)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of the text
WITHOUT_EFFECT = {*TOKEN_IDS, "decoder_start_token_id", "transformers_version"}
INSTEAD = {
    "attention_mask": "give it once",
    "cache_implementation": "static_cache=True makes a cache of fixed shape",
    "decoder_input_values": "the model starts from silence; forward() reads frames",
    "labels": "generate() reads text alone; forward() computes losses",
    "maxlenratio": "it is max_frames_per_token here",
    "min_length": "min_new_tokens counts frames",
    "minlenratio": "it is min_frames_per_token here",
    "output_cross_attentions": "it is output_attentions here",
    "return_output_lengths": "lengths are always returned",
    "streamer": "stream() gives the sound as it comes",
    "threshold": "it is stop_threshold here",
}
SLOWEST, FASTEST = 0.25, 4.0


class SpectrogramGenerationConfig(GenerationConfig):
    """Settings of `TextToSpectrogramModel.generate`, as `generation_config.json` in a checkpoint or for one call.

    Lengths count frames of the spectrogram as it is written, before `speed` has its effect. What else Transformers'
    class has is refused where it is set: there is nothing to sample, no beams and no tokens.

    Args:
        stop_threshold: speech ends with the first step that has a frame whose probability of being the last reaches
            this.
        max_new_tokens: most frames of a row; None for `max_frames_per_token`.
        max_length: most frames of any row where `max_new_tokens` is None; by default what the model has positions for.
        min_new_tokens: frames before which the stop is not heeded; None for `min_frames_per_token`.
        max_frames_per_token: most frames of a row for each token of its own text.
        min_frames_per_token: frames for each token before which the stop is not heeded.
        speed: of the speech: 2 is twice as fast, 0.5 half. The finished spectrogram is interpolated in time, so pitch
            stays. Beyond 0.5 to 2 sounds blur.
        attention_window: (tokens back, tokens ahead) of the last token that was attended to, or one number for both:
            the heads that guided attention trains see no others, and never move back (Ping et al. 2018). It keeps
            attention from skipping and repeating in hard texts, and disturbs where it works anyway. None for no
            window.
        prenet_dropout: False switches off the prenet's dropout. Speech is then the same without a generator, but
            models trained with it may lose their alignment: they repeat, skip or do not end.
        static_cache: keep a cache of fixed shape, with which `model.decode_step = torch.compile(model.decode_step)`
            needs no new graph as speech grows, but one for each number of rows, tokens, and doubling of the most
            frames. Uses memory for the longest speech allowed.
        output_attentions: return cross-attentions.
        output_alignments: return a `SpeechAlignment` for each row.
        output_waveform: False leaves the vocoder out.
        return_dict_in_generate: False for a tuple.
        kwargs: for `GenerationConfig`.

    Raises:
        ValueError: a value lies outside its range.
    """

    def __init__(
        self,
        *,
        stop_threshold: float = 0.5,
        max_frames_per_token: float = 20.0,
        min_frames_per_token: float = 0.0,
        speed: float = 1.0,
        attention_window: int | Iterable[int] | None = None,
        prenet_dropout: bool = True,
        static_cache: bool = False,
        output_alignments: bool = False,
        output_waveform: bool = True,
        **kwargs: Any,
    ):
        self.stop_threshold = stop_threshold
        self.max_frames_per_token = max_frames_per_token
        self.min_frames_per_token = min_frames_per_token
        self.speed = speed
        self.attention_window = attention_window
        self.prenet_dropout = prenet_dropout
        self.static_cache = static_cache
        self.output_alignments = output_alignments
        self.output_waveform = output_waveform
        super().__init__(**{"return_dict_in_generate": True, **kwargs})

    @classmethod
    def from_model_config(cls, model_config: Any) -> "SpectrogramGenerationConfig":
        """Those of a new model: speech may be as long as there are positions for.

        With that limit set, Transformers' pipeline does not add one of its own: 256 frames, which are 4 seconds.
        """
        ids: Any = {name: getattr(model_config, name, None) for name in TOKEN_IDS}
        frames = model_config.max_speech_positions * model_config.reduction_factor
        return cls(**ids, max_length=frames, output_attentions=model_config.output_attentions or None)

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """As in Transformers, and the ranges of what is set here."""
        super().validate(strict=strict, user_set_attributes=user_set_attributes)
        if not 0 < self.stop_threshold <= 1:
            raise ValueError(f"stop_threshold is a probability above 0, got {self.stop_threshold}")
        if not SLOWEST <= self.speed <= FASTEST:
            raise ValueError(f"speed lies between {SLOWEST} and {FASTEST}, where 1 is as trained, got {self.speed}")
        if not (0 < self.max_frames_per_token < math.inf and self.min_frames_per_token >= 0):
            raise ValueError(
                f"max_frames_per_token must be above 0 and min_frames_per_token not below, got "
                f"{self.max_frames_per_token} and {self.min_frames_per_token}"
            )
        for name in ("max_new_tokens", "min_new_tokens", "max_length"):
            frames = getattr(self, name)
            if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 0):
                raise ValueError(f"{name} is a number of frames, got {frames!r}")
        _ = self.window

    @property
    def window(self) -> tuple[int, int] | None:
        """Tokens back and tokens ahead that attention sees, or None."""
        given = self.attention_window
        if given is None:
            return None
        try:
            back, ahead = (given, given) if isinstance(given, int) else given
            if back < 0 or ahead < 1 or isinstance(given, bool):
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(
                f"attention_window is a number of tokens, or (back, ahead) with at least 1 ahead, got {given!r}"
            ) from None
        return int(back), int(ahead)

    def for_call(self, other: GenerationConfig | None, changes: dict[str, Any]) -> "SpectrogramGenerationConfig":
        """These settings with those of another configuration and then `changes` in their place.

        Raises:
            ValueError: a setting has no effect on speech, or no such setting exists; the message names it.
        """
        settings = copy.deepcopy(self)
        for name, value in ({} if other is None else other.to_diff_dict()).items():
            setattr(settings, name, value)
        refuse_unsupported((name for name in changes if name not in SUPPORTED), "generate()")
        for name, value in changes.items():
            if value is not None or name in ("attention_window", "max_new_tokens", "min_new_tokens"):
                setattr(settings, name, value)
        set_elsewhere = (name for name, value in vars(settings).items() if value is not None and value is not False)
        unsupported = (name for name in set_elsewhere if name not in SUPPORTED | WITHOUT_EFFECT and name[0] != "_")
        refuse_unsupported(unsupported, "generation_config")
        settings.validate()
        return settings


SUPPORTED = {*SHARED_SETTINGS, *(vars(SpectrogramGenerationConfig()).keys() - vars(GenerationConfig()).keys())}


def refuse_unsupported(names: Iterable[str], place: str) -> None:
    """Raise for settings that would otherwise be ignored without a word."""
    wrong = sorted(names)
    if not wrong:
        return
    shown = ", ".join(f"{name} ({INSTEAD[name]})" if name in INSTEAD else name for name in wrong)
    raise ValueError(f"{place} of a text-to-speech model has no {shown}. It has: {', '.join(sorted(SUPPORTED))}")


__all__ = ["SpectrogramGenerationConfig"]
