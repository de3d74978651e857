"""The processor of a text-to-speech model: texts to what the text encoder reads, recordings to spectrograms to learn.

It holds a tokenizer of Transformers and the log-mel half of SpeechT5's feature extractor. What it adds is what they
leave open:

- a text is read as it is spoken, by the normaliser of its language, before it is spelled;
- characters that the tokenizer has no token for are replaced by what sounds the same or left out, and named in a
  warning: the model never speaks an unknown token without a word;
- a text with nothing to say raises, and spectrograms are padded with -100, which the losses leave out.
"""

import json
import re
from collections.abc import Sequence
from numbers import Number
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import logging

from ..configuration.configuration_text_to_spectrogram import TextToSpectrogramConfig
from ..configuration.published_code import PublishesItsCode
from .audio_files import as_list_of_recordings, is_bare_waveform, source_name
from .mel_spectrograms import LogMelFeatureExtractor, MelSettings, extract_log_mel
from .text_front_end import (
    character_names,
    fit_to_vocabulary,
    get_text_normalizer,
    split_sentences,
    unknown_words,
)

logger = logging.get_logger(__name__)

IGNORED_FRAME = -100.0  # every mel bin of a frame that the losses leave out
SHOWN_CHARACTERS = 60  # of a text in an error


class TextToSpectrogramProcessor(PublishesItsCode, ProcessorMixin):
    """Feature extractor and tokenizer of a `TextToSpectrogramModel`, saved and loaded as one.

    A folder of `SpeechT5Processor` opens as one of these.

    Args:
        feature_extractor: a `SpeechT5FeatureExtractor` with the model's mel settings; `MelSettings` makes one.
        tokenizer: of the text encoder: SpeechT5's, one of `train_character_tokenizer`, or a pretrained encoder's.
        language: of the texts, which chooses the normaliser.
        normalize: whether texts are normalised; where they are phonemes, or normalised already, say False.
    """

    published_as = ("AutoProcessor",)
    published_in = "processor_config.json"

    def __init__(self, feature_extractor, tokenizer, language="en", normalize=True):
        super().__init__(feature_extractor, tokenizer)
        self.language = language
        self.normalize = normalize

    @classmethod
    def from_parts(
        cls, tokenizer: Any, feature_extractor: Any = None, config: Any = None, **kwargs: Any
    ) -> "TextToSpectrogramProcessor":
        """Build from a tokenizer and mel settings, or from the folders (or hub ids) that have them.

        Args:
            tokenizer: a tokenizer, or where to load one from.
            feature_extractor: a feature extractor, `MelSettings`, or where to load one from; by default made from the
                settings of `config`, or else SpeechT5's.
            config: a `TextToSpectrogramConfig`.
            **kwargs: for the constructor.
        """
        if isinstance(tokenizer, str | PathLike):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        if feature_extractor is None:
            feature_extractor = MelSettings() if config is None else MelSettings.from_config(config)
        if isinstance(feature_extractor, MelSettings):
            feature_extractor = feature_extractor.feature_extractor()
        elif isinstance(feature_extractor, str | PathLike):
            feature_extractor = AutoFeatureExtractor.from_pretrained(feature_extractor)
        return cls(feature_extractor, tokenizer, **kwargs)

    # ProcessorMixin would list what the tokenizer and the feature extractor of other models give.
    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "labels"]

    @property
    def mel_settings(self) -> MelSettings:
        """What a frame of the spectrograms is."""
        return MelSettings.from_feature_extractor(self.feature_extractor)

    @property
    def sampling_rate(self) -> int:
        """Of recordings and of speech, in Hz."""
        return self.feature_extractor.sampling_rate

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        normalize: bool | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Texts to token ids, recordings to spectrograms, or both.

        Args:
            text: one text or a list of them, of any length: limits are the model's.
            audio: one recording or a list of them, each anything `load_audio` takes: a waveform `[samples]`, a path,
                the bytes of a file, a dict or a decoder of `datasets`.
            sampling_rate: in Hz, of waveforms given as bare arrays.
            normalize: overrides the processor's own setting.
            padding: with `return_tensors`, of the texts: True or "longest", or "max_length".
            max_length: most tokens of a text.
            truncation: cut longer texts; otherwise they raise.
            pad_to_multiple_of: round the number of tokens up to a multiple.
            return_tensors: "pt" or "np"; without, everything is a list with one entry for each text and recording, or
                that entry alone for a single one.

        Returns:
            `input_ids` and `attention_mask` `[B, S]`; `labels` `[B, T, M]` float32, log-mel spectrograms padded with
            -100.

        Raises:
            ValueError: nothing can be spoken in a text, it is too long or spells a special token, the language has no
                normaliser, or the sampling rate is another.
            AudioError: a recording is empty, broken, or has NaN samples.
        """
        if (text is None or len(text) == 0 and not isinstance(text, str)) and audio is None:
            raise ValueError("Nothing to process: give text, audio or both")
        data: dict[str, Any] = {}
        texts = [] if text is None else [text] if isinstance(text, str) else list(text)
        recordings = [] if audio is None else as_list_of_recordings(audio)
        if text is not None and audio is not None and len(texts) != len(recordings):
            raise ValueError(f"{len(texts)} texts, but {len(recordings)} recordings")
        if text is not None:
            rows = [self.token_ids(one, normalize, max_length, truncation) for one in texts]
            data.update(self._batch_ids(rows, return_tensors, padding, max_length, pad_to_multiple_of))
        if audio is not None:
            labels = self._spectrograms(recordings, sampling_rate)
            data["labels"] = labels if return_tensors is None else pad_spectrograms(labels)
        if return_tensors is None and (isinstance(text, str) or _is_one_recording(audio)):
            data = {name: values[0] for name, values in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def spoken_text(self, text: str, normalize: bool | None = None) -> str:
        """A text as the tokenizer gets it: normalised, in characters that it knows.

        Args:
            text: as it is written.
            normalize: overrides the processor's own setting.

        Raises:
            TypeError: it is no string.
            ValueError: there is nothing to say in it, or its language has no normaliser.
        """
        spoken = self._fitted(self._normalized(text, normalize))
        if not any(map(str.isalnum, spoken)):
            shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
            raise ValueError(f"nothing to say in the text {shown!r}")
        return spoken

    def token_ids(
        self, text: str, normalize: bool | None = None, max_length: int | None = None, truncation: bool = False
    ) -> list[int]:
        """One text as token ids, with the special tokens that the tokenizer adds.

        Raises:
            ValueError: see `spoken_text`; or the text spells a special token, or has more than `max_length` tokens
                and `truncation` is off.
        """
        spoken = self.spoken_text(text, normalize)
        limit = {"truncation": True, "max_length": max_length} if truncation else {}
        ids = self.tokenizer(spoken, verbose=False, **limit)["input_ids"]
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        if sum(i in special for i in ids) > self.tokenizer.num_special_tokens_to_add():
            found = next(token for token in self.tokenizer.all_special_tokens if token in spoken)
            raise ValueError(f"the special token {found!r} is inside the text {text!r:.{SHOWN_CHARACTERS}}")
        if max_length is not None and len(ids) > max_length:
            raise ValueError(
                f"{len(ids)} tokens exceed max_length={max_length}: split the text with split_sentences(), or pass "
                "truncation=True to cut it"
            )
        return list(ids)

    def split_sentences(self, text: str, max_tokens: int | None = None) -> list[str]:
        """A long text as sentences that are spoken one by one.

        Args:
            text: as it is written; normalised here, so call the processor with `normalize=False` on the sentences.
            max_tokens: most tokens of a sentence, such as the model's `max_text_positions`; longer ones are cut at
                clause marks, then at spaces.

        Raises:
            ValueError: there is nothing to say in the text.
        """
        limit = None if max_tokens is None else max(1, max_tokens - self._n_added_tokens())
        pieces: list[str] = []
        for paragraph in re.split(r"\n\s*\n", text):
            # Sentences are told by their capitals, which the tokenizer may not have: split first, then fit.
            for sentence in split_sentences(self._normalized(paragraph), limit):
                pieces += split_sentences(self._fitted(sentence.strip()), limit)
        spoken = [piece.strip() for piece in pieces if any(map(str.isalnum, piece))]
        return spoken or [self.spoken_text(text)]  # which raises

    def publish_code(self, folder: str | Path) -> None:
        super().publish_code(folder)
        if type(self.feature_extractor).__name__ != LogMelFeatureExtractor.__name__:
            return
        file = Path(folder) / self.published_in
        content = json.loads(file.read_text(encoding="utf-8"))
        where = f"{LogMelFeatureExtractor.__module__.split('.')[-1]}.{LogMelFeatureExtractor.__name__}"
        content["feature_extractor"]["auto_map"] = {"AutoFeatureExtractor": where}
        file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

    def _normalized(self, text: str, normalize: bool | None = None) -> str:
        if not isinstance(text, str):
            raise TypeError(f"a text is a string, not {type(text).__name__}: {str(text)[:SHOWN_CHARACTERS]}")
        normalize = self.normalize if normalize is None else normalize
        return get_text_normalizer(self.language)(text) if normalize else " ".join(text.split())

    def _fitted(self, text: str) -> str:
        """In characters that the tokenizer knows; what it does not is named in a warning."""
        fitted, left_out = fit_to_vocabulary(text, self.tokenizer)
        if left_out:
            logger.warning_once(
                f"Left out of the text, as the tokenizer has no tokens for them: {character_names(left_out)}"
            )
        if words := unknown_words(fitted, self.tokenizer):
            logger.warning_once(f"The tokenizer does not know, and the model cannot say: {', '.join(words[:10])}")
        return fitted

    def _n_added_tokens(self) -> int:
        """Tokens that a text gets beside one for each of its characters."""
        spelled = self.tokenizer("a", verbose=False)["input_ids"]
        return max(len(spelled) - 1, self.tokenizer.num_special_tokens_to_add())

    def _batch_ids(
        self,
        rows: list[list[int]],
        return_tensors: str | None,
        padding: bool | str,
        max_length: int | None,
        pad_to_multiple_of: int | None,
    ) -> dict[str, Any]:
        if return_tensors is None:
            return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        length = max(map(len, rows))
        if padding in (False, "do_not_pad") and length != min(map(len, rows)):
            raise ValueError("texts of different lengths make no tensor without padding")
        if padding == "max_length" and max_length is not None:
            length = max_length
        return pad_token_ids(rows, self.tokenizer.pad_token_id, length, pad_to_multiple_of)

    def _spectrograms(self, recordings: list[Any], sampling_rate: int | None) -> list[np.ndarray]:
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"audio of {sampling_rate} Hz, but the model speaks at {self.sampling_rate} Hz: resample it, or pass "
                "files or dicts with their sampling rate, which are resampled here"
            )
        if sampling_rate is None and any(map(is_bare_waveform, recordings)):
            logger.warning_once(f"Audio without sampling_rate is taken to have {self.sampling_rate} Hz")
        names = map(source_name, recordings)
        if len(recordings) > 1:
            names = (f"audio {index} {name}" for index, name in enumerate(names))
        return [
            extract_log_mel(recording, self.feature_extractor, name=name)
            for recording, name in zip(recordings, names, strict=True)
        ]


def _is_one_recording(audio: Any) -> bool:
    if isinstance(audio, list | tuple):
        return isinstance(audio[0], Number)
    return audio is not None and getattr(audio, "ndim", 1) == 1


def pad_token_ids(
    rows: Sequence[Sequence[int]], pad_token_id: int | None, length: int = 0, multiple: int | None = None
) -> dict[str, np.ndarray]:
    """Ragged token ids to `input_ids` and `attention_mask` `[B, S]` int64, padded on the right.

    Raises:
        ValueError: there is padding to do, but no padding token.
    """
    length = max([length, *map(len, rows)])
    length = -(-length // (multiple or 1)) * (multiple or 1)
    lengths = np.array([len(row) for row in rows])
    if pad_token_id is None and (lengths < length).any():
        raise ValueError("the tokenizer has no pad_token, so texts of different lengths make no batch")
    ids = np.full((len(rows), length), pad_token_id or 0, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return {"input_ids": ids, "attention_mask": (np.arange(length) < lengths[:, None]).astype(np.int64)}


def pad_spectrograms(spectrograms: Sequence[np.ndarray], multiple: int = 1) -> np.ndarray:
    """Spectrograms `[T, M]` to `[B, T, M]` float32, padded at the end with -100 to a multiple of so many frames."""
    length = -(-max(map(len, spectrograms)) // multiple) * multiple
    batch = np.full((len(spectrograms), length, spectrograms[0].shape[1]), IGNORED_FRAME, dtype=np.float32)
    for index, spectrogram in enumerate(spectrograms):
        batch[index, : len(spectrogram)] = spectrogram
    return batch


AutoProcessor.register(TextToSpectrogramConfig, TextToSpectrogramProcessor, exist_ok=True)
