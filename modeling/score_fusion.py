"""What else has a say in `generate()`: phrases that are expected, and language models."""

from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from .language_model_fusion import (
    DEFAULT_LANGUAGE_MODEL_WEIGHT,
    CausalLanguageModel,
    InternalLanguageModel,
    LanguageModelLogitsProcessor,
    NextTokenScorer,
)
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
        language_model: PreTrainedModel | NextTokenScorer | None = None,
        language_model_weight: float = DEFAULT_LANGUAGE_MODEL_WEIGHT,
        internal_language_model_weight: float = 0.0,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers, with every way to search; here also with expected phrases and a language model.

        Args:
            inputs: [B, N], audio samples or features, first argument of the encoder.
            generation_config: see Transformers.
            logits_processor: see Transformers; these come before what is described here.
            args: see Transformers.
            hot_words: token ids of phrases that are expected, from `processor.hot_word_ids(["Kubernetes", …])`, or a
                mapping from these, as tuples, to a weight for each.
            hot_word_weight: by how many nats each token of a phrase becomes likelier. What a phrase earned is given
                back when it is left before its end.
            language_model: a causal language model with the decoder's tokenizer, or a scorer made with
                `CausalLanguageModel` or `NgramLanguageModel`.
            language_model_weight: what its log probabilities are multiplied by before they are added to the score of
                decoder and CTC head.
            internal_language_model_weight: the same for what the decoder expects without hearing, which is taken off;
                0 spares working it out.
            kwargs: see Transformers.

        Returns:
            See Transformers.

        Raises:
            ValueError: there is no phrase, one is empty or not in the vocabulary, or its weight is not positive; or
                the language model has another vocabulary, or too few positions.
        """
        if getattr(cast(Any, self).config, "mask_token_id", None) is not None:
            raise ValueError("the decoder fills in masked tokens, it does not write on: call generate_masked()")
        processors = LogitsProcessorList(logits_processor or [])
        if hot_words is not None:
            processors.append(PhraseBiasLogitsProcessor(hot_words, hot_word_weight))
        if language_model is not None:
            scorer = self._scorer(language_model, generation_config)
            processors.append(LanguageModelLogitsProcessor(scorer, language_model_weight))
        if internal_language_model_weight:
            internal = InternalLanguageModel(cast(Any, self).get_decoder())
            processors.append(LanguageModelLogitsProcessor(internal, -internal_language_model_weight, prompt_length=0))
        generate = cast(Any, super()).generate
        return generate(inputs, generation_config, processors or None, *args, **kwargs)

    def _get_logits_processor(
        self, generation_config: GenerationConfig, *args: Any, logits_processor: Any = None, **kwargs: Any
    ) -> Any:
        """As in Transformers; here it is known where the prompt ends and a transcript, which may be given, begins."""
        ours = PhraseBiasLogitsProcessor | LanguageModelLogitsProcessor
        for processor in logits_processor or ():
            if isinstance(processor, ours) and processor.prompt_length is None:
                processor.prompt_length = cast(Any, self)._prompt_length(generation_config)
            if isinstance(processor, LanguageModelLogitsProcessor) and isinstance(
                processor.scorer, InternalLanguageModel
            ):  # it reads start token and prompt too, but not what was said before, which is padded
                processor.prompt_length = cast(Any, self)._previous_length(generation_config)
        return cast(Any, super())._get_logits_processor(
            generation_config, *args, logits_processor=logits_processor, **kwargs
        )

    def _scorer(self, language_model: Any, generation_config: GenerationConfig | None) -> NextTokenScorer:
        if hasattr(language_model, "with_vocabulary"):
            return language_model.with_vocabulary(cast(Any, self).config.vocab_size)
        if not isinstance(language_model, nn.Module):
            return language_model
        own, ends = cast(Any, self).config, getattr(generation_config, "eos_token_id", None)
        ends = own.eos_token_id if ends is None else ends
        theirs = cast(Any, language_model).config.get_text_config()
        starts = (getattr(theirs, name, None) for name in ("bos_token_id", "eos_token_id"))
        start = next((token_id for token_id in starts if token_id is not None), own.decoder_start_token_id)
        end = getattr(theirs, "eos_token_id", None)
        return CausalLanguageModel(cast(Any, language_model), start, own.eos_token_id if end is None else end, ends)


__all__ = ["ScoreFusionMixin"]
