"""Decoders of many languages are told in `generate()` what to write: `language=` and `task=`.

Shapes: `B` batch, `P` tokens before the text.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import GenerationConfig, GenerationMixin

from ..configuration.decoder_languages import language_prompt, language_token, language_tokens, task_tokens


class LanguagePromptMixin(GenerationMixin):
    """The languages and tasks of a decoder.

    They are kept in the generation settings under the names that Whisper's have there: `lang_to_id` and `task_to_id`.
    """

    def learn_languages(self, tokenizer: Any) -> None:
        """Learn from a tokenizer which languages and tasks the decoder can be told; warm starts have done so.

        Args:
            tokenizer: of the decoder.
        """
        for name, known in (("lang_to_id", language_tokens(tokenizer)), ("task_to_id", task_tokens(tokenizer))):
            if known:
                setattr(self.generation_config, name, known)

    def set_language(self, language: str | None = None, task: str | None = None) -> None:
        """Change what the decoder writes where nothing else is said, in training as in generation.

        The processor must have the same prompt: make it with `from_parts(config=model.config)` afterwards, or call its
        own `set_language`.

        Args:
            language: a token, a code (de, deu, de_DE) or an English name.
            task: "transcribe" or "translate", for Whisper's decoder.

        Raises:
            ValueError: the language or the task is not known.
        """
        config = cast(Any, self).config
        start, prompt = self.start_and_prompt(language, task)
        config.decoder_prompt_token_ids = prompt
        if start != config.decoder_start_token_id:
            config.decoder_start_token_id = start
            cast(Any, self.generation_config).decoder_start_token_id = start

    def start_and_prompt(self, language: str | None, task: str | None) -> tuple[int, list[int]]:
        """The start token and the tokens behind it; mBART of 25 languages starts with the language itself."""
        config, known = cast(Any, self).config, cast(Any, self.generation_config)
        languages, tasks = getattr(known, "lang_to_id", None) or {}, getattr(known, "task_to_id", None) or {}
        if language is not None and not languages:
            raise ValueError(
                f"language={language!r}: the model knows no languages. If its decoder does, tell it by "
                "model.learn_languages(tokenizer)"
            )
        start = config.decoder_start_token_id
        if language is not None and start in languages.values():
            start, language = languages[language_token(language, languages)], None
        return start, language_prompt(config.decoder_prompt_token_ids, languages, tasks, language, task)

    def _prepare_generation_config(
        self,
        generation_config: GenerationConfig | None,
        language: str | Sequence[str] | None = None,
        task: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers; `language`, of all rows or of each, and `task` become token ids."""
        prepared, model_kwargs = cast(Any, super())._prepare_generation_config(generation_config, **kwargs)
        if language is None:
            language = getattr(prepared, "language", None)
        if task is None:
            task = getattr(prepared, "task", None)
        if language is not None or task is not None:
            each = [language] if language is None or isinstance(language, str) else list(language)
            starts, prompts = zip(*(self.start_and_prompt(one, task) for one in each), strict=True)
            prepared.language_prompts = [list(prompt) for prompt in prompts]
            prepared.decoder_start_token_id = starts[0] if len(each) == 1 else list(starts)
        return prepared, model_kwargs

    def _prompt(self, generation_config: GenerationConfig) -> list[list[int]]:
        """Token ids [B or 1, P] between the start token and the text."""
        own = [cast(Any, self).config.decoder_prompt_token_ids]
        return getattr(generation_config, "language_prompts", own)

    def _previous_length(self, generation_config: GenerationConfig) -> int:
        """Tokens in front of the start token: previous text and its padding."""
        return max(map(len, getattr(generation_config, "previous_text", [[]])))

    def _prompt_length(self, generation_config: GenerationConfig) -> int:
        """Tokens in front of the text: previous text, start token and prompt."""
        return self._previous_length(generation_config) + 1 + len(self._prompt(generation_config)[0])

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict[str, Any]:
        """As in Transformers; then the decoder's first tokens are known."""
        model_kwargs = cast(Any, super())._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, generation_config
        )
        if hasattr(generation_config, "language_prompts"):
            if model_kwargs.get("decoder_input_ids") is not None:
                raise ValueError("language and task say how decoder_input_ids begin: give either")
            model_kwargs["decoder_input_ids"] = self._first_tokens(generation_config, inputs_tensor)
        return model_kwargs

    def _first_tokens(self, generation_config: GenerationConfig, inputs: torch.Tensor) -> torch.Tensor:
        """Start token and prompt of each row, [B, 1 + P]."""
        starts, prompts = generation_config.decoder_start_token_id, self._prompt(generation_config)
        rows = [[start, *prompt] for start, prompt in zip(_as_list(starts), prompts, strict=True)]
        if len(rows) not in (1, len(inputs)):
            raise ValueError(f"{len(rows)} languages for {len(inputs)} recordings: give one, or one for each")
        return torch.tensor(rows, device=inputs.device).expand(len(inputs), -1)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


__all__ = ["LanguagePromptMixin"]
