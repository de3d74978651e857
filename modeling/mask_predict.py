"""Transcripts from nothing but their length: all tokens told at once, the least sure ones hidden and told anew.

Mask-Predict (Ghazvininejad et al. 2019, "Mask-Predict: Parallel Decoding of Conditional Masked Language Models"): a
head tells from the encoder's output how many tokens there are; the likeliest lengths are filled in side by side, and
the text whose tokens are likeliest is taken.

Shapes: `B` batch, `K` lengths tried of each clip, `T` frames, `S` text tokens, `D` width, `L` lengths, `V` vocabulary.
"""

from typing import Any

import torch
from torch import nn

from .sequence_losses import IGNORED_LABEL

DEFAULT_LENGTH_CANDIDATES = 5  # of the paper


class LengthHead(nn.Module):
    """Logits of how many tokens a transcript has, from the encoder's output.

    It reads the mean of the real frames and their sum. The mean alone, which tells how fast somebody speaks, would not
    tell for how long.

    Args:
        width: of the encoder's output.
        max_length: most tokens that can be told.
    """

    def __init__(self, width: int, max_length: int):
        super().__init__()
        self.max_length = max_length
        self.out = nn.Linear(2 * width, max_length + 1)

    def forward(self, hidden_states: torch.Tensor, frame_mask: torch.Tensor | None) -> torch.Tensor:
        """Frames [B, T, D] and which of them are real, boolean [B, T], to logits of 0, 1, … tokens [B, L]."""
        frames = hidden_states.float()
        if frame_mask is not None:
            frames = frames.masked_fill(~frame_mask[..., None], 0)
        count = torch.full_like(frames[:, 0, :1], frames.shape[1]) if frame_mask is None else frame_mask.sum(1, True)
        total = frames.sum(dim=1)  # [B, D]
        read = torch.cat([total / count.clamp(min=1), total / self.max_length], dim=-1)  # alike in size
        return self.out(read.to(self.out.weight.dtype))


def length_loss(logits: torch.Tensor, lengths: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of transcripts' lengths, summed over clips and divided by `divisor`.

    Args:
        logits: [B, L].
        lengths: [B], tokens of each transcript; -100 for clips that do not count.
        divisor: scalar.

    Returns:
        Scalar.

    Raises:
        ValueError: a transcript is longer than the head can tell. Accelerators, which would have to stop for this
            check, tell by themselves.
    """
    longest = logits.shape[-1] - 1
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and bool((lengths > longest).any()):
        raise ValueError(
            f"a transcript has {int(lengths.max())} tokens, but max_predicted_length is {longest}: build the model "
            "with a larger one, or leave such transcripts out"
        )
    return nn.functional.cross_entropy(logits.float(), lengths, ignore_index=IGNORED_LABEL, reduction="sum") / divisor


def untold_tokens(model: Any) -> list[int]:
    """Ids of the tokens that a decoder never fills in."""
    config = model.config
    ids = {config.mask_token_id, config.pad_token_id, config.decoder_start_token_id, *config.decoder_prompt_token_ids}
    ids |= set(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])
    if config.ctc_vocab_size is None:
        ids.add(model.ctc_blank)
    return sorted(ids)


def predict_masked(model: Any, encoded: Any, candidates: int, passes: int, most: int | None) -> torch.Tensor:
    """Token ids [B, S] of transcripts, with start token, prompt, end token and padding.

    Args:
        model: a `SpeechSeq2SeqModel` with a length head.
        encoded: output of its encoder, for B clips.
        candidates: lengths to try of each clip, the likeliest ones. Where no token at all is likeliest, the
            transcript is empty.
        passes: runs of the decoder, at least 1.
        most: tokens of a transcript; None for as many as the head tells.
    """
    config = model.config
    logits = model.length_head(encoded.last_hidden_state, encoded.attention_mask)[
        :, : None if most is None else most + 1
    ]
    is_empty = logits.argmax(dim=-1) == 0  # [B]
    tried = min(candidates, logits.shape[-1] - 1)
    lengths = 1 + logits[:, 1:].topk(tried, dim=-1).indices  # [B, K]
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(tried)
    copies = type(encoded)(
        last_hidden_state=encoded.last_hidden_state[rows],
        attention_mask=None if encoded.attention_mask is None else encoded.attention_mask[rows],
    )
    token_ids, real, is_text = _all_masked(config, lengths.flatten())
    token_ids, log_probs = _refine(model, copies, token_ids, real, is_text, passes)
    means = log_probs.masked_fill(~is_text, 0).sum(dim=1) / lengths.flatten()  # [B * K]
    best = means.view(-1, tried).argmax(dim=1) + tried * torch.arange(len(lengths), device=lengths.device)
    chosen, length = token_ids[best], lengths.flatten()[best]
    if bool(is_empty.any()):
        empty = _all_masked(config, torch.zeros_like(length))[0]
        empty = nn.functional.pad(empty, [0, chosen.shape[1] - empty.shape[1]], value=config.pad_token_id)
        chosen, length = torch.where(is_empty[:, None], empty, chosen), length.masked_fill(is_empty, 0)
    return chosen[:, : int(length.max()) + len(config.decoder_prompt_token_ids) + 2]


def _all_masked(config: Any, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Transcripts of these lengths [B], all masked, [B, S]; which places are real, and which are the text's."""
    before = [config.decoder_start_token_id, *config.decoder_prompt_token_ids]
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    place = torch.arange(len(before) + int(lengths.max()) + 1, device=lengths.device)
    stop = len(before) + lengths[:, None]  # [B, 1], place of the end token
    ids = torch.full((len(lengths), len(place)), config.mask_token_id, device=lengths.device)
    ids[:, : len(before)] = torch.tensor(before, device=lengths.device)
    ids = ids.masked_fill(place == stop, end).masked_fill(place > stop, config.pad_token_id)
    return ids, (place <= stop).long(), (place >= len(before)) & (place < stop)


def _refine(
    model: Any, encoded: Any, token_ids: torch.Tensor, real: torch.Tensor, is_text: torch.Tensor, passes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, S] filled in, and the log probability of each when it was told last."""
    config, untold, n_tokens = model.config, untold_tokens(model), is_text.sum(dim=1)  # [B]
    masked, log_probs = is_text, torch.zeros(token_ids.shape, device=token_ids.device)
    for left in reversed(range(passes)):
        output = model(
            encoder_outputs=encoded, decoder_input_ids=token_ids, decoder_attention_mask=real, use_cache=False
        )
        scores = output.logits.float().log_softmax(dim=-1)  # [B, S, V]
        scores[..., untold] = -torch.inf
        surest, best = scores.max(dim=-1)
        token_ids, log_probs = torch.where(masked, best, token_ids), torch.where(masked, surest, log_probs)
        hidden = n_tokens * left // passes  # fewer in each pass, none behind the last
        if not bool((hidden > 0).any()):
            break
        order = log_probs.masked_fill(~is_text, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        masked = is_text & (order < hidden[:, None])
        token_ids = token_ids.masked_fill(masked, config.mask_token_id)
    return token_ids, log_probs


__all__ = ["LengthHead", "length_loss", "predict_masked"]
