"""The processor of a speech-to-text model: recordings to what the encoder reads, transcripts to labels.

It holds a feature extractor and a tokenizer of Transformers and calls them. What it adds is what they leave open:

- a batch gives each row what that row alone would give. Every recording is extracted by itself and padded
  afterwards, so neither normalisation nor the reflection at the end of a spectrogram sees its neighbours' padding;
- padding carries an attention mask, except where the checkpoint was trained without one (`feature_extractor.
  return_attention_mask` is False, as for group-norm wav2vec2) or always sees its full window (Whisper);
- labels begin with the decoder's prompt and end with exactly one end token, whatever the tokenizer's own habit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, cast

import numpy as np
from tokenizers.models import WordPiece
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, ProcessorMixin
from transformers.utils import logging
from typing_extensions import Unpack

from ..configuration.configuration_speech_seq2seq import SpeechSeq2SeqConfig
from ..configuration.decoder_languages import language_prompt, language_tokens, task_tokens
from ..configuration.previous_text_tokens import START_OF_PREVIOUS_TEXT, previous_text_ids, start_of_previous_text
from ..configuration.published_code import PublishesItsCode
from .audio_files import as_list_of_recordings, is_bare_waveform, iter_audio_blocks, load_audio, source_name
from .hot_words import hot_word_ids

logger = logging.get_logger(__name__)

IGNORED_LABEL = -100  # what PyTorch's cross-entropy, and so every loss here, leaves out
MIN_AUDIO_S = 0.04  # shorter audio is zero-padded to this: two spectrogram windows, or one frame of wav2vec2
FBANK_HOP_S = 0.01  # of the Kaldi filter banks (speech_to_text, w2v-bert), whose extractors do not store it

_AMBIGUOUS_KWARGS = ("max_length", "truncation", "pad_to_multiple_of")  # samples or frames of audio, or tokens of text
_TEXT_KWARGS = {"padding", "truncation", "max_length", "return_tensors"}


class SpeechSeq2SeqProcessorKwargs(ProcessingKwargs, AudioKwargs, total=False):
    """What a call takes, for type checkers: settings of audio, or `audio_kwargs` and `text_kwargs` of their own."""


class SpeechSeq2SeqProcessor(PublishesItsCode, ProcessorMixin):
    """Feature extractor and tokenizer of a `SpeechSeq2SeqModel`, saved and loaded as one.

    Args:
        feature_extractor: of the encoder's checkpoint.
        tokenizer: of the decoder's checkpoint.
        decoder_prompt_token_ids: tokens that follow the start token in every transcript, such as Whisper's
            `<|notimestamps|>` or mBART's language code; none by default.
        fixed_input_window: for extractors with a window (Whisper: 30 s): True pads every recording to the window, as
            Whisper was trained; False pads to the longest of the batch, with a mask. None: True where there is a
            window.
        ctc_characters: alphabet of a CTC head that spells; None where the head shares the decoder's vocabulary, or
            where there is none.

    Raises:
        ValueError: `fixed_input_window` is True for an extractor that has no window.
    """

    published_as = ("AutoProcessor",)
    published_in = "processor_config.json"

    def __init__(
        self, feature_extractor, tokenizer, decoder_prompt_token_ids=None, fixed_input_window=None, ctc_characters=None
    ):
        super().__init__(feature_extractor, tokenizer)
        if _splits_at_punctuation(tokenizer):
            tokenizer.clean_up_tokenization_spaces = True  # or every "it's" comes back as "it ' s": three words
            tokenizer.init_kwargs["clean_up_tokenization_spaces"] = True  # these are what is saved with it
        self.decoder_prompt_token_ids = [int(i) for i in decoder_prompt_token_ids or []]
        self.fixed_input_window = fixed_input_window
        if fixed_input_window and self.window_samples is None:
            raise ValueError(f"fixed_input_window=True: {type(feature_extractor).__name__} has no fixed window")
        self.ctc_characters = ctc_characters

    @classmethod
    def from_parts(
        cls,
        feature_extractor: Any,
        tokenizer: Any,
        config: Any | None = None,
        **kwargs: Any,
    ) -> "SpeechSeq2SeqProcessor":
        """Build from a feature extractor and a tokenizer, or from the folders (or hub ids) that have them.

        Args:
            feature_extractor: a feature extractor, or where to load one from.
            tokenizer: a tokenizer, or where to load one from.
            config: a `SpeechSeq2SeqConfig` that gives `decoder_prompt_token_ids`, `fixed_input_window` and
                `ctc_characters`.
            **kwargs: for the constructor; these win over `config`.
        """
        if isinstance(feature_extractor, str | PathLike):
            feature_extractor = AutoFeatureExtractor.from_pretrained(feature_extractor)
        if isinstance(tokenizer, str | PathLike):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        for name in ("decoder_prompt_token_ids", "fixed_input_window", "ctc_characters"):
            kwargs.setdefault(name, getattr(config, name, None))
        return cls(feature_extractor, tokenizer, **kwargs)

    # ProcessorMixin would list the tokenizer's `input_ids`, which the model does not take.
    @property
    def model_input_names(self) -> list[str]:
        return [self.main_input_name, "attention_mask", "labels"]

    @property
    def main_input_name(self) -> str:
        """`input_values` (waveforms) or `input_features` (spectrograms): the first argument of the encoder."""
        return self.feature_extractor.model_input_names[0]

    @property
    def sampling_rate(self) -> int:
        """Of the audio that the encoder was trained on, in Hz."""
        return self.feature_extractor.sampling_rate

    @property
    def end_token_id(self) -> int:
        """The token that ends a transcript: the tokenizer's end-of-sentence token, else (BERT) its separator."""
        for token_id in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            if token_id is not None:
                return token_id
        raise ValueError(
            f"{type(self.tokenizer).__name__} has neither eos_token nor sep_token: transcripts cannot end"
        )

    @property
    def window_samples(self) -> int | None:
        """Length in samples of the extractor's window (Whisper: 30 s), None where audio may have any length."""
        return getattr(self.feature_extractor, "n_samples", None)

    @property
    def pads_to_window(self) -> bool:
        """Whether every recording is padded to the extractor's window."""
        return self.window_samples is not None and self.fixed_input_window is not False

    @property
    def input_step_s(self) -> float:
        """Seconds of audio per step of the encoder's input: one sample, or one (possibly stacked) frame."""
        if self.main_input_name == "input_values":
            return 1 / self.sampling_rate
        hop_length = getattr(self.feature_extractor, "hop_length", None)
        hop_s = FBANK_HOP_S if hop_length is None else hop_length / self.sampling_rate
        return hop_s * getattr(self.feature_extractor, "stride", 1)

    def __call__(
        self,
        audio: Any = None,
        text: str | Sequence[str] | None = None,
        **kwargs: Unpack[SpeechSeq2SeqProcessorKwargs],
    ) -> BatchFeature:
        """Recordings to encoder inputs, transcripts to labels, or both.

        Args:
            audio: one recording or a list of them, each anything `load_audio` takes: a waveform `[samples]`, a path,
                the bytes of a file, a dict or a decoder of `datasets`. A two-dimensional array is a batch `[B,
                samples]`.
            text: one transcript or a list of them.
            **kwargs: `sampling_rate` in Hz of waveforms given as bare arrays; `padding` (True, False to get a list of
                unpadded rows, "max_length"), `max_length`, `truncation`, `pad_to_multiple_of`,
                `return_attention_mask`, `return_tensors`. Lengths count steps of the encoder's input for audio and
                tokens for text: with both, give them in `audio_kwargs={...}` and `text_kwargs={...}`.

        Returns:
            `input_values` `[B, samples]` or `input_features` (`[B, frames, D]`, Whisper `[B, D, frames]`);
            `attention_mask` `[B, samples or frames]` where the encoder takes one; `labels`: the ids of the prompt, the
            transcript and the end token, as a list for one transcript, lists for several, and with `return_tensors`
            padded to `[B, S]` with -100.

        Raises:
            AudioError: a recording is empty, broken, or has NaN samples.
            ValueError: sampling rates differ, audio exceeds the extractor's window, or a transcript is empty.
            TypeError: an unknown keyword argument.
        """
        if audio is None and text is None:
            raise ValueError("Nothing to process: give audio, text or both")
        self._check_kwargs(kwargs, both=audio is not None and text is not None)
        # No tokenizer_init_kwargs: the tokenizer's max_length would become that of the audio as well.
        merged = self._merge_kwargs(cast(Any, ProcessingKwargs), tokenizer_init_kwargs={}, **kwargs)
        data: dict[str, Any] = {}
        return_tensors = merged["audio_kwargs"].pop("return_tensors", None)
        if audio is not None:
            data.update(self._process_waveforms(audio, **merged["audio_kwargs"]))
        if text is not None:
            return_tensors = merged["text_kwargs"].get("return_tensors", return_tensors)
            data["labels"] = self._process_text(text, merged["text_kwargs"], as_array=return_tensors is not None)
        return BatchFeature(data, tensor_type=return_tensors)

    def pad(
        self,
        features: Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Put rows that were extracted one by one into a batch.

        Args:
            features: rows with the encoder's input without batch axis, and `attention_mask` where there is one.
            padding: True or "longest", or "max_length".
            max_length: of the batch, in steps of the encoder's input.
            pad_to_multiple_of: round the batch's length up to a multiple of this many steps.
            return_attention_mask: None leaves it to the extractor.
            return_tensors: "pt", "np" or None for arrays.
        """
        names = (self.main_input_name, "attention_mask")
        rows = [{name: np.asarray(row[name]) for name in names if row.get(name) is not None} for row in features]
        lengths = {"padding": padding, "max_length": max_length, "pad_to_multiple_of": pad_to_multiple_of}
        if self.window_samples is not None:
            batch = self._pad_frames_last(rows, **lengths, return_attention_mask=return_attention_mask)
            return BatchFeature(batch, tensor_type=return_tensors)
        return self.feature_extractor.pad(
            rows, **lengths, return_attention_mask=return_attention_mask, return_tensors=return_tensors
        )

    def label_ids(self, text: str, max_length: int | None = None, truncation: bool = False) -> list[int]:
        """One transcript as labels: prompt, tokens without the tokenizer's own special tokens, end.

        Raises:
            ValueError: the transcript is empty, spells the end token, or is longer than `max_length` tokens while
                `truncation` is off.
        """
        body = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text.strip() else []
        if not body:
            raise ValueError(f"empty transcript: {text!r}")
        if self.end_token_id in body:
            raise ValueError(f"the end token {self.tokenizer.decode(self.end_token_id)!r} is inside: {text!r}")
        n_special = len(self.decoder_prompt_token_ids) + 1
        if max_length is not None and len(body) + n_special > max_length:
            if not truncation:
                raise ValueError(f"{len(body) + n_special} label tokens exceed max_length={max_length}: {text!r}")
            body = body[: max_length - n_special]
        return [*self.decoder_prompt_token_ids, *body, self.end_token_id]

    def set_language(self, language: str | None = None, task: str | None = None) -> None:
        """Change what labels begin with, and so what the model learns to write; it is saved with the processor.

        The model must begin alike: `model.set_language` takes the same.

        Args:
            language: a token, a code (de, deu, de_DE) or an English name, for tokenizers of many languages.
            task: "transcribe" or "translate", for Whisper's.

        Raises:
            ValueError: the language or the task is not known.
        """
        languages, tasks = language_tokens(self.tokenizer), task_tokens(self.tokenizer)
        self.decoder_prompt_token_ids = language_prompt(
            self.decoder_prompt_token_ids, languages, tasks, language, task
        )

    def get_prompt_ids(self, text: str) -> list[int]:
        """Token ids of what was said before, or of names and spelling, for `generate(prompt_ids=…)`.

        Raises:
            ValueError: the tokenizer has no token that starts previous text.
        """
        start = start_of_previous_text(self.tokenizer)
        if start is None:
            raise ValueError(
                f"the tokenizer has no {START_OF_PREVIOUS_TEXT}, so its decoder knows no previous text; expected "
                "words can be given to any decoder as hot_words"
            )
        return [start, *previous_text_ids(self.tokenizer, text)]

    def hot_word_ids(self, phrases: Any) -> Any:
        """Token ids of expected phrases, for `generate(hot_words=…)`; see `hot_words.hot_word_ids`.

        Args:
            phrases: words or phrases, or a mapping from these to the weight of each.

        Returns:
            Lists of token ids in every case, with and without a space in front; for a mapping, tuples to weights.
        """
        return hot_word_ids(self.tokenizer, phrases)

    def ctc_target_ids(self, text: str) -> list[int]:
        """One transcript as the targets of a CTC head that spells: places in `ctc_characters`, counted from 1.

        Characters that the alphabet lacks are left out (`drop_unusable(alphabet=...)` names them before a training),
        and runs of white space are one space.

        Returns:
            The places; none where the alphabet has no character of the transcript.

        Raises:
            ValueError: there is no alphabet.
        """
        if self.ctc_characters is None:
            raise ValueError("the processor has no ctc_characters, so a CTC head cannot spell the transcripts")
        places = {character: place for place, character in enumerate(self.ctc_characters, start=1)}
        return [places[character] for character in " ".join(text.split()) if character in places]

    def ctc_text(self, ids: Sequence[int]) -> str:
        """The text that characters' ids spell: `ctc_target_ids` backwards. Blanks (0) are left out."""
        return "".join((self.ctc_characters or "")[place - 1] for place in ids if place > 0)

    def audio_blocks(self, audio: Any, block_s: float = 30.0) -> Iterator[np.ndarray]:
        """One recording at the encoder's sampling rate; a file is read piece by piece, however long it is.

        Args:
            audio: anything that `load_audio` takes; waveforms have the encoder's sampling rate.
            block_s: seconds of a file to decode at a time.

        Yields:
            float32 [samples], which together are the recording.

        Raises:
            AudioError: as `load_audio`; what is broken further behind is found when it is reached.
        """
        if isinstance(audio, str | PathLike):
            yield from iter_audio_blocks(audio, block_s, self.sampling_rate)
        else:
            yield load_audio(audio, self.sampling_rate)

    def _check_kwargs(self, kwargs: Mapping[str, Any], both: bool) -> None:
        known = {"common_kwargs"} | set(ProcessingKwargs.__annotations__)
        for modality in ("audio_kwargs", "text_kwargs"):
            known |= set(ProcessingKwargs.__annotations__[modality].__annotations__)
        if unknown := sorted(set(kwargs) - known):
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(map(repr, unknown))}")
        if both and (ambiguous := [name for name in _AMBIGUOUS_KWARGS if name in kwargs]):
            raise ValueError(
                f"{', '.join(ambiguous)}: of audio or of text? Give audio_kwargs={{...}} or text_kwargs={{...}}"
            )

    def _process_waveforms(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        **extractor_kwargs: Any,
    ) -> Mapping[str, Any]:
        recordings = as_list_of_recordings(audio)
        self._check_sampling_rate(recordings, sampling_rate)
        if self.window_samples is not None and max_length is not None:
            raise ValueError(f"max_length: {type(self.feature_extractor).__name__} has a window of its own")
        if truncation and self.window_samples is None:
            extractor_kwargs.update(truncation=True, max_length=max_length)
        rows = []
        for index, recording in enumerate(recordings):
            name = f"audio {index} {source_name(recording)}" if len(recordings) > 1 else source_name(recording)
            waveform = self._fit_window(load_audio(recording, self.sampling_rate, name=name), name, truncation)
            rows.append(self._extract(waveform, return_attention_mask, extractor_kwargs))
        if padding in (False, "do_not_pad") and not self.pads_to_window:
            return {name: [row[name] for row in rows] for name in rows[0]}
        if padding != "max_length":
            max_length = None
        return self.pad(rows, padding or True, max_length, pad_to_multiple_of, return_attention_mask)

    def _check_sampling_rate(self, recordings: list[Any], sampling_rate: int | None) -> None:
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"audio of {sampling_rate} Hz, but the encoder was trained on {self.sampling_rate} Hz: resample it,"
                " or pass files or dicts with their sampling rate, which are resampled here"
            )
        if sampling_rate is None and any(is_bare_waveform(recording) for recording in recordings):
            logger.warning_once(f"Audio without sampling_rate is taken to have {self.sampling_rate} Hz")

    def _fit_window(self, waveform: np.ndarray, name: str, truncation: bool) -> np.ndarray:
        """Zero-pad below the minimum; above the window, cut where asked to and raise otherwise."""
        min_samples = round(MIN_AUDIO_S * self.sampling_rate)
        if len(waveform) < min_samples:
            return np.pad(waveform, (0, min_samples - len(waveform)))
        if self.window_samples is None or len(waveform) <= self.window_samples:
            return waveform
        if truncation:
            return waveform[: self.window_samples]
        raise ValueError(
            f"{name}: {len(waveform) / self.sampling_rate:.2f} s of audio exceed the encoder's window of"
            f" {self.window_samples / self.sampling_rate:g} s: split it, or pass truncation=True to cut it"
        )

    def _extract(
        self, waveform: np.ndarray, return_attention_mask: bool | None, kwargs: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """The features of one recording, without padding (but to the window, where it is fixed)."""
        if self.window_samples is not None and not self.pads_to_window:
            return self._extract_without_window(waveform, kwargs)
        padding = "max_length" if self.pads_to_window else "longest"
        with np.errstate(divide="ignore", invalid="ignore"):  # see below
            features = self.feature_extractor(
                [waveform],
                sampling_rate=self.sampling_rate,
                **{"padding": padding, **kwargs},
                return_attention_mask=return_attention_mask,
            )
        names = (self.main_input_name, "attention_mask")
        row = {name: np.asarray(features[name][0]) for name in names if name in features}
        # Digital silence has no variance: speech_to_text divides zero by zero, and its mean-free value is zero.
        np.nan_to_num(row[self.main_input_name], copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        return row

    def _extract_without_window(self, waveform: np.ndarray, kwargs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Whisper's features of the audio alone: the frames that the 30 s window would have at its beginning.

        The extractor mirrors the signal at its end; the window has silence there. So it gets enough silence for the
        last frame to see, and the frames that are only silence are cut off.
        """
        extractor = self.feature_extractor
        n_frames = math.ceil(len(waveform) / extractor.hop_length)
        n_samples = extractor.hop_length * math.ceil(len(waveform) / extractor.hop_length) + extractor.n_fft
        padded = np.pad(waveform, (0, n_samples - len(waveform)))
        features = extractor(
            [padded], sampling_rate=self.sampling_rate, padding="do_not_pad", truncation=False, **kwargs
        )
        frames = np.asarray(features[self.main_input_name][0])[:, :n_frames]
        return {self.main_input_name: frames, "attention_mask": np.ones(n_frames, dtype=np.int32)}

    def _pad_frames_last(
        self,
        rows: list[dict[str, np.ndarray]],
        padding: bool | str,
        max_length: int | None,
        pad_to_multiple_of: int | None,
        return_attention_mask: bool | None,
    ) -> dict[str, np.ndarray]:
        """Pad `[D, frames]` rows with silence: the extractor's own `pad` takes frames first."""
        length = max(row[self.main_input_name].shape[-1] for row in rows)
        if padding == "max_length":
            length = max_length or self.feature_extractor.nb_max_frames
        if pad_to_multiple_of and not self.pads_to_window:
            length = min(
                math.ceil(length / pad_to_multiple_of) * pad_to_multiple_of, self.feature_extractor.nb_max_frames
            )
        batch = {
            self.main_input_name: np.stack([_pad_with_silence(row[self.main_input_name], length) for row in rows])
        }
        has_mask = any("attention_mask" in row for row in rows) or not self.pads_to_window
        if return_attention_mask or (has_mask and return_attention_mask is None):
            masks = [row.get("attention_mask", np.ones(row[self.main_input_name].shape[-1], np.int32)) for row in rows]
            batch["attention_mask"] = np.stack([np.pad(mask, (0, length - len(mask))) for mask in masks])
        return batch

    def _process_text(self, text: str | Sequence[str], kwargs: Mapping[str, Any], as_array: bool) -> Any:
        if unsupported := sorted(set(kwargs) - _TEXT_KWARGS):
            raise TypeError(f"labels have no {', '.join(unsupported)}: only {', '.join(sorted(_TEXT_KWARGS))}")
        options = {"max_length": kwargs.get("max_length"), "truncation": bool(kwargs.get("truncation"))}
        texts = [text] if isinstance(text, str) else list(text)
        labels = [self.label_ids(one, **options) for one in texts]
        if as_array:
            return pad_labels(labels)
        return labels[0] if isinstance(text, str) else labels


def _splits_at_punctuation(tokenizer: Any) -> bool:
    """Whether a tokenizer takes words apart at apostrophes and forgets that they were together: BERT's family does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.model, WordPiece)


def pad_labels(labels: Sequence[Sequence[int]], length: int | None = None, value: int = IGNORED_LABEL) -> np.ndarray:
    """Ragged token ids to `[B, S]` int64, padded on the right with `value` (-100: the loss leaves it out)."""
    length = max([length or 0, *map(len, labels)])
    return np.array([[*row, *[value] * (length - len(row))] for row in labels], dtype=np.int64)


def _pad_with_silence(features: np.ndarray, length: int) -> np.ndarray:
    """Whisper's log-mel frames followed by its value of silence: 8 decades (2 after scaling) below the peak, at least
    the floor of 1e-10.
    """
    silence = max(features.max() - 2.0, -1.5)
    return np.pad(features, ((0, 0), (0, length - features.shape[-1])), constant_values=silence)


AutoProcessor.register(SpeechSeq2SeqConfig, SpeechSeq2SeqProcessor, exist_ok=True)
