"""The tokens of what was said before a transcript, for decoders that were trained to go on from it."""

from typing import Any

START_OF_PREVIOUS_TEXT = "<|startofprev|>"  # Whisper's


def start_of_previous_text(tokenizer: Any) -> int | None:
    """Id of the token that starts previous text, None in a tokenizer without it."""
    found = tokenizer.convert_tokens_to_ids(START_OF_PREVIOUS_TEXT)
    is_known = found is not None and tokenizer.convert_ids_to_tokens(found) == START_OF_PREVIOUS_TEXT
    return found if is_known else None


def previous_text_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of previous text, without the one that starts it, and without special tokens that it may spell."""
    ids = tokenizer(" " + text.strip(), add_special_tokens=False)["input_ids"] if text.strip() else []
    special = {*tokenizer.all_special_ids, start_of_previous_text(tokenizer)}
    return [token for token in ids if token not in special]


__all__ = ["START_OF_PREVIOUS_TEXT", "previous_text_ids", "start_of_previous_text"]
