"""Transcripts without a token-by-token search: the CTC head writes them at once, the decoder mends what is doubtful.

Mask-CTC (Higuchi et al. 2020, "Mask CTC: Non-Autoregressive End-to-End ASR with CTC and Mask Predict"): the best path
of the CTC head gives tokens; those that it is not sure of are masked; the decoder, which sees the tokens on both
sides, fills them in, the surest first, in a few passes. The number of tokens stays that of the CTC head.

Shapes: `B` batch, `T` frames, `S` text tokens, `V` vocabulary.
"""

import itertools
import math
from typing import Any, cast

import torch

from .mask_predict import DEFAULT_LENGTH_CANDIDATES, predict_masked, untold_tokens
from .quick_inference import quick_inference

DEFAULT_THRESHOLD = 0.999  # of the paper
DEFAULT_PASSES = 10  # of both
FILLING_ARGUMENTS = ("passes", "threshold", "length_candidates")  # of generate_masked(): how it decodes


def see_both_sides(inputs: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The attention mask by which a decoder sees tokens before and behind each one.

    Args:
        inputs: [B, S] or [B, S, D], what the decoder reads.
        mask: [B, S], 1 where a token is real; None where all are.
        dtype: of the decoder.

    Returns:
        [B, 1, S, S], 0 where a token may be seen, else the least number of `dtype`.
    """
    size = inputs.shape[1]
    real = torch.ones(inputs.shape[:2], device=inputs.device) if mask is None else mask
    hidden = (real == 0)[:, None, None].expand(-1, 1, size, -1)
    return torch.zeros(hidden.shape, dtype=dtype, device=inputs.device).masked_fill(hidden, torch.finfo(dtype).min)


def greedy_with_confidence(
    log_probs: torch.Tensor, frame_mask: torch.Tensor | None, blank: int
) -> list[tuple[list[int], list[float]]]:
    """For each clip, the tokens of the best path and the probability of each: the largest of its frames.

    Args:
        log_probs: [B, T, V].
        frame_mask: [B, T], True where a frame is real; None where all are.
        blank: the blank's id.
    """
    best, path = log_probs.float().max(dim=-1)  # [B, T]
    if frame_mask is not None:
        path = path.masked_fill(~frame_mask, blank)
    found = []
    for tokens, scores in zip(path.tolist(), best.exp().tolist(), strict=True):
        runs = itertools.groupby(zip(tokens, scores, strict=True), key=lambda frame: frame[0])
        said = [(token, max(score for _, score in frames)) for token, frames in runs if token != blank]
        found.append(([token for token, _ in said], [score for _, score in said]))
    return found


class MaskCtcMixin:
    """Decoding of a model whose decoder fills in masked tokens: one with `config.mask_token_id`."""

    @torch.no_grad()
    def generate_masked(
        self,
        inputs: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        threshold: float | None = None,
        passes: int = DEFAULT_PASSES,
        length_candidates: int | None = None,
        max_new_tokens: int | None = None,
        **named_inputs: torch.Tensor,
    ) -> torch.Tensor:
        """Transcribe a batch in at most `passes` runs of the decoder, however long the texts are.

        How many tokens there are is told by the CTC head, whose transcripts are mended (Mask-CTC), or by the length
        head (Mask-Predict): of a model without a CTC head on the decoder's vocabulary, or where `length_candidates`
        asks for it.

        Args:
            inputs: [B, N], audio samples or features; or by the encoder's own name, `input_values` or
                `input_features`.
            attention_mask: [B, N], 1 where the input is real.
            encoder_outputs: output of `get_encoder()`, to spare encoding again.
            threshold: tokens to which the CTC head gives less probability are masked: 0 for none, above 1 for all.
                None takes `DEFAULT_THRESHOLD`.
            passes: runs of the decoder. With the CTC head, each fills in an equal share of the masked tokens, and 0
                leaves its transcripts as they are. With the length head, each fills in all masked tokens, and hides
                those that it is least sure of again: from all of them, as many fewer in each.
            length_candidates: lengths told by the length head that are filled in, side by side, the likeliest first;
                the text with the highest mean log probability of a token is taken. None takes
                `DEFAULT_LENGTH_CANDIDATES` where only the length head can tell lengths.
            max_new_tokens: of a transcript; what is longer is cut, as is what exceeds the decoder's positions.
            named_inputs: see `inputs`.

        Returns:
            Token ids [B, S] as those of `generate()`: start, prompt, transcript, end, padding.

        Raises:
            ValueError: the decoder fills in nothing, nothing tells how many tokens there are, or an argument is for
                the other head.
        """
        model = cast(Any, self)
        check_filling_arguments(model, passes, threshold, length_candidates)
        if inputs is not None:
            named_inputs[model.main_input_name] = inputs
        audio = [named_inputs.pop(name, None) for name in ("input_values", "input_features")]
        if named_inputs:
            raise TypeError(f"generate_masked does not know {', '.join(sorted(named_inputs))}")
        with quick_inference(model):
            encoded = model._encode(*audio, attention_mask, encoder_outputs, {})
            most = _most_tokens(model, max_new_tokens)
            if length_candidates is not None or not _hears_tokens(model):
                return predict_masked(model, encoded, length_candidates or DEFAULT_LENGTH_CANDIDATES, passes, most)
            logits = model.ctc_head(encoded.last_hidden_state.to(model.ctc_head.weight.dtype))  # [B, T, V]
            heard = greedy_with_confidence(logits.float().log_softmax(-1), encoded.attention_mask, model.ctc_blank)
            heard = [(tokens[:most], scores[:most]) for tokens, scores in heard]
            threshold = DEFAULT_THRESHOLD if threshold is None else threshold
            laid_out = _lay_out(model.config, heard, threshold if passes > 0 else 0.0)
            token_ids, real, doubtful = (one.to(logits.device) for one in laid_out)
            return _fill_in(model, encoded, token_ids, real, doubtful, passes)


def _hears_tokens(model: Any) -> bool:
    """Whether there is a CTC head that writes the decoder's tokens."""
    return model.ctc_head is not None and model.config.ctc_vocab_size is None


def check_filling_arguments(
    model: Any, passes: int = DEFAULT_PASSES, threshold: float | None = None, length_candidates: int | None = None
) -> None:
    """See whether a model can fill in masked tokens, as it is asked to.

    Args:
        model: a `SpeechSeq2SeqModel`.
        passes, threshold, length_candidates: see `MaskCtcMixin.generate_masked`.

    Raises:
        ValueError: it cannot.
    """
    if model.config.mask_token_id is None:
        raise ValueError(
            "the decoder writes from left to right: for one that fills in masked tokens build the model with "
            "mask_token_id=tokenizer.mask_token_id, and train it on batches of MaskCtcCollator"
        )
    if not _hears_tokens(model) and model.length_head is None:
        raise ValueError(
            "nothing tells how many tokens there are: that needs a CTC head on the decoder's vocabulary (Mask-CTC: "
            "ctc_weight) or a length head (Mask-Predict: max_predicted_length)"
        )
    if length_candidates is not None and model.length_head is None:
        raise ValueError(f"length_candidates={length_candidates}: the model has no length head, leave this out")
    if length_candidates is None and _hears_tokens(model):
        return
    if length_candidates is not None and length_candidates < 1:
        raise ValueError(f"length_candidates is at least 1, not {length_candidates}")
    if threshold is not None:
        raise ValueError(f"threshold={threshold:g} is of what the CTC head hears, but the length head is asked")
    if passes < 1:
        raise ValueError(f"passes={passes}: without a run of the decoder there is no text, give 1 or more")


def _most_tokens(model: Any, asked: int | None) -> int | None:
    """Of a transcript, between start token, prompt and end token; None for any number."""
    positions = model.family.max_length(model.config.decoder)
    if positions is None:
        return asked
    fitting = positions - 2 - len(model.config.decoder_prompt_token_ids)
    return fitting if asked is None else min(asked, fitting)


def _lay_out(
    config: Any, heard: list[tuple[list[int], list[float]]], threshold: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Transcripts as the decoder reads them, [B, S]; which places are real, and which tokens are doubtful."""
    before, end = [config.decoder_start_token_id, *config.decoder_prompt_token_ids], _as_list(config.eos_token_id)[:1]
    rows = [torch.tensor([*before, *tokens, *end]) for tokens, _ in heard]
    sure = [torch.tensor([*[math.inf] * len(before), *scores, math.inf]) for _, scores in heard]
    real = [torch.ones(len(row), dtype=torch.long) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    padded = pad(rows, batch_first=True, padding_value=config.pad_token_id)
    doubtful = pad(sure, batch_first=True, padding_value=math.inf) < threshold
    return padded, pad(real, batch_first=True), doubtful


def _fill_in(
    model: Any, encoded: Any, token_ids: torch.Tensor, real: torch.Tensor, masked: torch.Tensor, passes: int
) -> torch.Tensor:
    """Token ids [B, S] with the masked ones told by the decoder, in each pass those that it is surest of."""
    token_ids = token_ids.masked_fill(masked, model.config.mask_token_id)
    share = (masked.sum(dim=1) // max(passes, 1)).clamp(min=1)  # [B]
    for left in reversed(range(passes)):
        if not bool(masked.any()):
            break
        output = model(
            encoder_outputs=encoded, decoder_input_ids=token_ids, decoder_attention_mask=real, use_cache=False
        )
        probs = output.logits.float().softmax(dim=-1)  # [B, S, V]
        probs[..., untold_tokens(model)] = 0
        surest, best = probs.max(dim=-1)
        place = surest.masked_fill(~masked, -1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        filled = masked & (place < share[:, None]) if left else masked
        token_ids, masked = torch.where(filled, best, token_ids), masked & ~filled
    return token_ids


def _as_list(token_ids: Any) -> list[int]:
    return token_ids if isinstance(token_ids, list) else [token_ids]


__all__ = ["MaskCtcMixin", "check_filling_arguments", "greedy_with_confidence", "see_both_sides"]
