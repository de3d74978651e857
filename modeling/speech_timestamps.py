"""When each word of a transcript was said, and how sure the model is of it.

A CTC head tells when: the decoder's text is aligned with its frames, token by token, or character by character where
the head spells. Without one, the decoder's cross-attention tells. How sure: the decoder's own probability of a word,
given all before it.

Shapes: `B` transcripts, `L` layers, `H` heads, `T` encoder frames, `S` text tokens, `V` vocabulary, `C` characters.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .attention_alignment import align_attention
from .confidence_calibration import ConfidenceCurve
from .ctc_alignment import align_ctc
from .sequence_losses import IGNORED_LABEL

METHODS = ("auto", "ctc", "attention")
# Scripts that put no space between words: each of their characters counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
# A CTC head marks a token in a frame or two of those in which it sounds. So much of the blanks around it is added.
MOST_BLANK_S = 0.1


@dataclass(frozen=True)
class TimedWord:
    """A word of a transcript, or one character of it.

    Attributes:
        text: without the space around it.
        start_s: when it begins, in seconds from the beginning of the recording.
        end_s: when it ends.
        confidence: how likely it is right, from 0 to 1; see `confidence_calibration`.
        characters: its own, where asked for.
        space: what the transcript has between the word before it and this one.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float
    characters: "tuple[TimedWord, ...]" = ()
    space: str = " "


@dataclass(frozen=True)
class ScoredText:
    """What a decoder wrote, read again.

    Attributes:
        token_ids: of the text, without start, prompt, end and other special tokens.
        places: of these in the sequence.
        log_probs: log probability of each of them, given all before it.
        mean_log_prob: of a token; the end token counts, where the sequence has one and the decoder chose it.
        no_speech_prob: probability that the decoder gives to there being no speech, where its vocabulary has a token
            for that (Whisper's has), else 0.
        attentions: cross-attention [L * H, S + 1, T] of the steps that chose these tokens, and of the one behind them,
            where asked for.
    """

    token_ids: list[int]
    places: list[int]
    log_probs: list[float]
    mean_log_prob: float
    no_speech_prob: float = 0.0
    attentions: torch.Tensor | None = None


def seconds_per_frame(model: Any, processor: Any) -> float:
    """Seconds of audio to one frame of the encoder's output."""
    return model.config.inputs_to_logits_ratio * processor.input_step_s


def timing_method(model: Any, processor: Any, method: str = "auto") -> str:
    """What tells the times of a model's words: "ctc" or "attention".

    Raises:
        ValueError: the method asked for is unknown, or the model has no CTC head that can spell the decoder's text.
    """
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    shares_vocabulary = model.config.ctc_vocab_size is None
    spells = model.ctc_head is not None and (shares_vocabulary or _alphabet(model, processor) is not None)
    if method == "ctc" and not spells:
        raise ValueError("method='ctc': the model has no CTC head whose outputs are tokens or known characters")
    return "ctc" if spells and method != "attention" else "attention"


def _alphabet(model: Any, processor: Any) -> str | None:
    return model.config.ctc_characters or getattr(processor, "ctc_characters", None)


@torch.no_grad()
def score_texts(
    model: Any,
    tokenizer: Any,
    encoded: Any,
    sequences: torch.Tensor,
    with_attentions: bool = False,
    prompt_ids: Sequence[Sequence[int]] | None = None,
) -> list[ScoredText]:
    """What the decoder makes of texts that it, or somebody else, wrote.

    A decoder that fills in masked tokens is asked for every other token at once, given those between them.

    Args:
        model: a `SpeechSeq2SeqModel`.
        tokenizer: of its decoder.
        encoded: output of `model.get_encoder()`, a row for each text.
        sequences: [B, S], with start token and prompt as `generate()` returns them, padded behind the end token.
        with_attentions: return the cross-attention of the heads that tell times.
        prompt_ids: what the decoder was told before each of them, see `PreviousTextMixin.generate`.
    """
    if not with_attentions:
        return list(_scored(model, tokenizer, sequences, _read_again(model, encoded, sequences, prompt_ids)))
    scored = []
    for row in range(len(sequences)):  # of a whole batch, attentions take more memory than all else
        alone, text = rows_of(encoded, torch.tensor([row])), sequences[row : row + 1]
        told = None if prompt_ids is None else prompt_ids[row : row + 1]
        scored += _scored(model, tokenizer, text, _read_again(model, alone, text, told, output_attentions=True))
    return scored


def _read_again(
    model: Any, encoded: Any, sequences: torch.Tensor, prompt_ids: Sequence[Sequence[int]] | None, **options: Any
) -> Any:
    """The model's output for sequences [B, S], of which each step knows what came before."""
    if model.config.mask_token_id is not None:
        return _read_masked(model, encoded, sequences, **options)
    if not prompt_ids or not any(prompt_ids):
        return model(decoder_input_ids=sequences, encoder_outputs=encoded, use_cache=False, **options)
    arguments = model.behind_previous_text(sequences, prompt_ids)
    output = model(**arguments, encoder_outputs=encoded, use_cache=False, **options)
    own = -sequences.shape[1]
    output.logits = output.logits[:, own:]
    if output.cross_attentions is not None:
        output.cross_attentions = tuple(layer[:, :, own:] for layer in output.cross_attentions)
    return output


def _read_masked(model: Any, encoded: Any, sequences: torch.Tensor, **options: Any) -> Any:
    """As `_read_again`: the step before each token tells what a decoder that fills in makes of it, once it is masked.

    Half of the tokens are masked at a time, so that each has its neighbours, as while it was learned.
    """
    config = model.config
    ends = torch.tensor(config.eos_token_id, device=sequences.device)
    behind = torch.isin(sequences, ends).long().cumsum(dim=1) - torch.isin(sequences, ends).long() > 0  # [B, S]
    place = torch.arange(sequences.shape[1], device=sequences.device)
    is_text = (place > len(config.decoder_prompt_token_ids)) & ~behind & ~torch.isin(sequences, ends)
    halves = []
    for odd in (False, True):
        hidden = sequences.masked_fill(is_text & (place % 2 == odd), config.mask_token_id)
        halves.append(
            model(
                decoder_input_ids=hidden,
                decoder_attention_mask=(~behind).long(),
                encoder_outputs=encoded,
                use_cache=False,
                **options,
            )
        )
    even, odd = halves
    is_odd = (place % 2 == 1)[:, None]
    even.logits = torch.where(is_odd, odd.logits, even.logits).roll(-1, dims=1)  # [B, S, V]
    if even.cross_attentions is not None:  # [B, H, S, T] of each layer
        pairs = zip(even.cross_attentions, odd.cross_attentions, strict=True)
        even.cross_attentions = tuple(torch.where(is_odd, two, one).roll(-1, dims=2) for one, two in pairs)
    return even


def rows_of(encoded: Any, index: torch.Tensor) -> Any:
    """Some rows of an encoder's output."""
    index = index.to(encoded.last_hidden_state.device)
    mask = encoded.attention_mask
    return type(encoded)(
        last_hidden_state=encoded.last_hidden_state[index], attention_mask=None if mask is None else mask[index]
    )


def _scored(model: Any, tokenizer: Any, sequences: torch.Tensor, output: Any) -> Iterator[ScoredText]:
    logits = output.logits.float()
    chosen = logits[:, :-1].gather(2, sequences[:, 1:, None])[..., 0] - logits[:, :-1].logsumexp(dim=-1)  # [B, S - 1]
    no_speech = [tokenizer.convert_tokens_to_ids(token) for token in ("<|nospeech|>", "<|nocaptions|>")]
    no_speech = [token_id for token_id in no_speech if token_id not in (None, tokenizer.unk_token_id)]
    silence = logits[:, 0].softmax(dim=-1)[:, no_speech].sum(dim=-1).tolist() if no_speech else [0.0] * len(logits)
    for row, sequence in enumerate(sequences.tolist()):
        places, stop = _text_places(model, tokenizer, sequence)
        scores = chosen[row].tolist()
        first = 1 + len(model.config.decoder_prompt_token_ids)
        told = stop - 1 if model.config.mask_token_id is not None else stop  # such a decoder knows where the end is
        counted = scores[first - 1 : told]
        yield ScoredText(
            token_ids=[sequence[place] for place in places],
            places=places,
            log_probs=[scores[place - 1] for place in places],
            mean_log_prob=sum(counted) / max(len(counted), 1),
            no_speech_prob=silence[row],
            attentions=_attentions(model, output.cross_attentions, row, places) if places else None,
        )


def _text_places(model: Any, tokenizer: Any, sequence: Sequence[int]) -> tuple[list[int], int]:
    """Places of the text's own tokens in a sequence, and that of the end token, or of the last one without any."""
    first = 1 + len(model.config.decoder_prompt_token_ids)
    end = model.generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [end])
    stop = next((place for place in range(first, len(sequence)) if sequence[place] in ends), len(sequence) - 1)
    special = set(tokenizer.all_special_ids)
    return [place for place in range(first, stop + 1) if sequence[place] not in special | ends], stop


def _attentions(model: Any, attentions: Any, row: int, places: list[int]) -> torch.Tensor | None:
    """Cross-attention [L * H, S + 1, T] of the trusted heads, at the steps that chose tokens, and at the next one."""
    if not attentions:
        return None
    steps = [place - 1 for place in places] + [places[-1]]
    chosen = getattr(model.generation_config, "alignment_heads", None)  # Whisper's checkpoints name them
    if chosen:
        return torch.stack([attentions[layer][row, head, steps] for layer, head in chosen])
    return torch.cat([layer[row][:, steps] for layer in attentions[len(attentions) // 2 :]])


@torch.no_grad()
def time_words(
    model: Any,
    processor: Any,
    encoded: Any,
    sequences: torch.Tensor,
    durations_s: Sequence[float],
    method: str | None = "auto",
    with_characters: bool = False,
    confidence_curve: ConfidenceCurve | None = None,
    prompt_ids: Sequence[Sequence[int]] | None = None,
) -> list[tuple[str, list[TimedWord], ScoredText]]:
    """Texts, the words of each with their times, and how the decoder scores them.

    Each text is timed by itself: neither its neighbours in the batch nor how it was searched for matters.

    Args:
        model: a `SpeechSeq2SeqModel`.
        processor: of the model.
        encoded: output of `model.get_encoder()`, a row for each text.
        sequences: [B, S], with start token and prompt as `generate()` returns them.
        durations_s: seconds of audio of each row; no word ends behind it.
        method: "ctc", "attention", or "auto" for the first that the model has; None spreads words over the recording,
            which costs nothing.
        with_characters: also give the times of each word's characters.
        confidence_curve: makes confidences of probabilities, as `fit_confidences` does; None takes them as they are.
        prompt_ids: what the decoder was told before each of them, see `PreviousTextMixin.generate`.

    Raises:
        ValueError: the method is unknown, or not one that the model has.
    """
    method = None if method is None else timing_method(model, processor, method)
    tokenizer, frame_s = processor.tokenizer, seconds_per_frame(model, processor)
    scored = score_texts(
        model, tokenizer, encoded, sequences, with_attentions=method == "attention", prompt_ids=prompt_ids
    )
    decoded = [characters_of_tokens(one.token_ids, tokenizer) for one in scored]
    n_frames = [_real_frames(encoded, row, duration_s / frame_s) for row, duration_s in enumerate(durations_s)]
    if method == "ctc":
        alphabet = None if model.config.ctc_vocab_size is None else _alphabet(model, processor)
        units = [_ctc_units(one.token_ids, text, alphabet) for one, (text, _) in zip(scored, decoded, strict=True)]
        spans = _ctc_spans(model, encoded, [ids for ids, _ in units], n_frames, MOST_BLANK_S / frame_s)
    else:
        units = [(one.token_ids, list(range(len(one.token_ids)))) for one in scored]
        spans = [
            _spread_evenly(len(one.token_ids), length) if method is None else _attention_spans(one, length)
            for one, length in zip(scored, n_frames, strict=True)
        ]
    results = []
    for row, (text, owners) in enumerate(decoded):
        on_characters = method == "ctc" and model.config.ctc_vocab_size is not None
        of_characters = (
            _characters_of_units(spans[row], units[row][1], len(text))
            if on_characters
            else _share_among_characters(spans[row], owners, text)
        )
        seconds = np.minimum(of_characters * frame_s, durations_s[row])
        log_probs = np.array(scored[row].log_probs)
        words = words_of(text, seconds, owners, log_probs, confidence_curve, with_characters)
        results.append((text, words, scored[row]))
    return results


def _real_frames(encoded: Any, row: int, of_audio: float) -> int:
    mask = encoded.attention_mask
    heard = encoded.last_hidden_state.shape[1] if mask is None else int(mask[row].sum())
    return max(min(heard, int(np.ceil(of_audio))), 1)


def characters_of_tokens(token_ids: Sequence[int], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """A text, and which tokens each of its characters comes from.

    Found by decoding ever longer beginnings, so that it holds for every kind of tokenizer, for characters that several
    tokens spell together (bytes), and for spaces that decoding takes out again.

    Returns:
        The text without space around it, and for each character the first of its tokens and the one behind the last.
    """
    ids = list(token_ids)
    text = tokenizer.decode(ids)
    owners: list[tuple[int, int]] = []
    waiting = 0  # first token that has not shown a character yet
    for count in range(1, len(ids) + 1):
        begun = text if count == len(ids) else tokenizer.decode(ids[:count])
        settled = _common_length(begun, text)
        if settled > len(owners):
            owners += [(waiting, count)] * (settled - len(owners))
            waiting = count
    offset = len(text) - len(text.lstrip())
    text = text.strip()
    return text, owners[offset : offset + len(text)]


def _common_length(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    return next(place for place, (a, b) in enumerate(zip(one + "\0", other + "\1", strict=False)) if a != b)


def _ctc_units(token_ids: list[int], text: str, alphabet: str | None) -> tuple[list[int], list[int]]:
    """What a CTC head is asked for: its ids of the text, and for each the token or character that it stands for."""
    if alphabet is None:
        return token_ids, list(range(len(token_ids)))
    places = {character: place for place, character in enumerate(alphabet, start=1)}
    found = []
    for at, character in enumerate(text):
        character = " " if character.isspace() else character
        known = next((c for c in (character, character.lower(), character.upper()) if c in places), None)
        if known is not None and not (known == " " and text[at - 1].isspace()):
            found.append((places[known], at))
    return [place for place, _ in found], [at for _, at in found]


def _ctc_spans(
    model: Any, encoded: Any, targets: list[list[int]], n_frames: list[int], most_blank: float
) -> list[np.ndarray]:
    """First frame of each unit and the one behind its last, [S, 2] for each row, by forced alignment."""
    device = encoded.last_hidden_state.device
    fits = [0 < len(ids) + _repeats(ids) <= length for ids, length in zip(targets, n_frames, strict=True)]
    spans = [_spread_evenly(len(ids), length) for ids, length in zip(targets, n_frames, strict=True)]
    rows = [row for row, fit in enumerate(fits) if fit]
    if not rows:
        return spans
    kinds = [sorted({model.ctc_blank, *targets[row]} - {model.ctc_blank}) for row in rows]
    width, longest = 1 + max(map(len, kinds)), max(len(targets[row]) for row in rows)
    frames = max(n_frames[row] for row in rows)
    log_probs = torch.full((len(rows), frames, width), -1e4, device=device)
    labels = torch.full((len(rows), longest), IGNORED_LABEL)
    for at, (row, ids) in enumerate(zip(rows, kinds, strict=True)):  # one by one: all outputs of a batch are large
        hidden_states = encoded.last_hidden_state[row, :frames].to(model.ctc_head.weight.dtype)
        all_outputs = model.ctc_head(hidden_states).float().log_softmax(dim=-1)  # [T, V]
        log_probs[at, : len(all_outputs), : 1 + len(ids)] = all_outputs[:, [model.ctc_blank, *ids]]
        place_of = {token_id: place for place, token_id in enumerate(ids, start=1)}
        labels[at, : len(targets[row])] = torch.tensor([place_of[token_id] for token_id in targets[row]])
    lengths = torch.tensor([n_frames[row] for row in rows], device=device)
    real = torch.arange(frames, device=device) < lengths[:, None]
    found = align_ctc(log_probs, real, labels.to(device), blank=0)
    for at, row in enumerate(rows):
        count = len(targets[row])
        sure = torch.stack([found.starts[at, :count], found.ends[at, :count]], dim=-1).cpu().numpy()
        spans[row] = _widened(sure.astype(np.float64), n_frames[row], most_blank)
    return spans


def _repeats(ids: Sequence[int]) -> int:
    return sum(a == b for a, b in zip(ids, ids[1:], strict=False))


def _spread_evenly(count: int, n_frames: int) -> np.ndarray:
    """Where nothing is known, such as for a text that is too long to have been said: everything takes as long."""
    edges = np.linspace(0, n_frames, count + 1)
    return np.stack([edges[:-1], edges[1:]], axis=-1)


def _widened(spans: np.ndarray, n_frames: int, most: float) -> np.ndarray:
    """Give the blanks between units to them, half to each side, but at most `most` frames."""
    edges = np.concatenate([[0.0], spans[:, 1]]), np.concatenate([spans[:, 0], [float(n_frames)]])
    gaps = edges[1] - edges[0]  # [S + 1], before the first unit, between units, behind the last
    share = np.minimum(gaps / 2, most)
    share[[0, -1]] = np.minimum(gaps[[0, -1]], most)
    return np.stack([spans[:, 0] - share[:-1], spans[:, 1] + share[1:]], axis=-1)


def _attention_spans(scored: ScoredText, n_frames: int) -> np.ndarray:
    """First frame of each token and the first of what follows it, [S, 2]."""
    if scored.attentions is None:
        return np.zeros((0, 2))
    begins = align_attention(scored.attentions[..., :n_frames]).astype(np.float64)
    return np.stack([begins[:-1], begins[1:]], axis=-1)


def _share_among_characters(spans: np.ndarray, owners: list[tuple[int, int]], text: str) -> np.ndarray:
    """Frames of tokens to those of characters [C, 2]: the characters of a token share its time, spaces take none."""
    times = np.zeros((len(text), 2))
    at = 0
    while at < len(text):
        first, behind = owners[at]
        group = at
        while group < len(text) and owners[group] == owners[at]:
            group += 1
        start, end = spans[first, 0], spans[behind - 1, 1]
        has_sound = np.array([not character.isspace() for character in text[at:group]])
        edges = start + (end - start) * np.concatenate([[0], has_sound.cumsum()]) / max(has_sound.sum(), 1)
        times[at:group] = np.stack([edges[:-1], edges[1:]], axis=-1)
        at = group
    return times


def _characters_of_units(spans: np.ndarray, places: list[int], n_characters: int) -> np.ndarray:
    """Frames of the characters that a CTC head spells [C, 2]; those it does not know stand between neighbours."""
    times = np.full((n_characters, 2), np.nan)
    times[places] = spans
    last = spans[0, 0] if len(spans) else 0.0
    for at in range(n_characters):
        if np.isnan(times[at, 0]):
            times[at] = last
        last = times[at, 1]
    return times


def spells(character: str) -> bool:
    """Whether a word is another one without it: letters, their marks (vowels, in many scripts) and digits."""
    return unicodedata.category(character)[0] in "LMN"


def words_of(
    text: str,
    seconds: np.ndarray,
    owners: list[tuple[int, int]],
    log_probs: np.ndarray,
    confidence_curve: ConfidenceCurve | None = None,
    with_characters: bool = False,
) -> list[TimedWord]:
    """The words of a text, with the times of their characters.

    Args:
        text: C characters.
        seconds: [C, 2], when each character begins and ends.
        owners: for each character, the first of its tokens and the one behind the last.
        log_probs: of each token. The probability of a word is the product of its tokens', but for those that hold
            punctuation alone: whether a word is right does not hang on it.
        confidence_curve: of their calibration.
        with_characters: keep the characters.
    """
    curve = confidence_curve or ConfidenceCurve()

    def sureness(tokens: Iterable[int]) -> float:
        return float(curve(np.exp(log_probs[list(tokens)].sum())))

    words, behind = [], 0
    for match in WORD.finditer(text):
        span = range(*match.span())
        spelling = [at for at in span if spells(text[at])] or span  # a comma may be doubtful behind a certain word
        tokens = sorted({token for at in spelling for token in range(*owners[at])})
        characters = [
            TimedWord(text[at], float(start), float(end), sureness(range(*owners[at])), space="")
            for at, (start, end) in zip(span, seconds[span.start : span.stop], strict=True)
        ]
        words.append(
            TimedWord(
                text=match[0],
                start_s=float(seconds[span[0], 0]),
                end_s=float(seconds[span[-1], 1]),
                confidence=sureness(tokens),
                characters=tuple(characters) if with_characters else (),
                space=text[behind : match.start()],
            )
        )
        behind = match.end()
    return words


__all__ = [
    "ScoredText",
    "TimedWord",
    "score_texts",
    "seconds_per_frame",
    "time_words",
    "timing_method",
]
