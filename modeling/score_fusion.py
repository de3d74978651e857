"""What else has a say in `generate()`: phrases that are expected, and language models."""

from typing import Any, cast

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList

from .phrase_biasing import DEFAULT_PHRASE_WEIGHT, PhraseBiasLogitsProcessor, Phrases


class ScoreFusionMixin(GenerationMixin):
    """Arguments of `generate()` that Transformers does not have."""

    def generate(  # type: ignore[override]
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | list[LogitsProcessor] | None = None,
        *args: Any,
        hot_words: Phrases | None = None,
        hot_word_weight: float = DEFAULT_PHRASE_WEIGHT,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers, with every way to search; here also with expected phrases.

        Args:
            inputs: [B, N], audio samples or features, first argument of the encoder.
            generation_config: see Transformers.
            logits_processor: see Transformers; these come before what is described here.
            args: see Transformers.
            hot_words: token ids of phrases that are expected, from `processor.hot_word_ids(["Kubernetes", …])`, or a
                mapping from these, as tuples, to a weight for each.
            hot_word_weight: by how many nats each token of a phrase becomes likelier. What a phrase earned is given
                back when it is left before its end.
            kwargs: see Transformers.

        Returns:
            See Transformers.

        Raises:
            ValueError: there is no phrase, one is empty or not in the vocabulary, or a weight is not positive.
        """
        processors = LogitsProcessorList(logits_processor or [])
        if hot_words is not None:
            processors.append(PhraseBiasLogitsProcessor(hot_words, hot_word_weight))
        generate = cast(Any, super()).generate
        return generate(inputs, generation_config, processors or None, *args, **kwargs)


__all__ = ["ScoreFusionMixin"]
