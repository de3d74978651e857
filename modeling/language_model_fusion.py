"""Language models that have a say in what is transcribed.

Shallow fusion (Gulcehre et al. 2015) adds to the score of each token that of a language model, which was trained on
text alone: `log p(token | audio) + weight * log p(token | text)`. The decoder has a language model of its own inside,
from its transcripts; it can be estimated by running the decoder on silence, encoder output of zeros, and taken off
before another one is added (Meng et al. 2021, "Internal Language Model Estimation").

Shapes: `N` hypotheses, `S` text tokens, `V` vocabulary, `D` decoder width.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessor, PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)

DEFAULT_LANGUAGE_MODEL_WEIGHT = 0.3
KEPT_DISTRIBUTIONS = 256  # of `prefix_scores`: with 50,000 tokens 50 MB
KEPT_TOTALS = 100_000

# Token ids [N, S] that hypotheses have said to log probabilities [N, V] of the next one, in nats.
NextTokenScorer = Callable[[torch.Tensor], torch.Tensor]


class _CachedScorer:
    """Log probabilities of the next token; of a hypothesis that extends one of the last call, one token is read.

    Searches drop, copy and reorder hypotheses without a word. So the cache is found again by what was said.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, ...], int] = {}  # hypotheses of the last call, and their rows in the cache
        self._n_rows = 0
        self._cache: Any = None

    def _read(self, token_ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Token ids [N, S], and the cache of those before, to logits [N, V] of the next token and the cache."""
        raise NotImplementedError

    def _before(self, said: torch.Tensor) -> torch.Tensor:
        """What the model reads of hypotheses [N, S]: by default these alone."""
        return said

    @torch.no_grad()
    def __call__(self, said: torch.Tensor) -> torch.Tensor:
        """Token ids [N, S] to log probabilities [N, V] of the next one."""
        rows = [tuple(row) for row in said.tolist()]
        parents = [self._rows.get(row[:-1]) for row in rows] if rows and rows[0] else [None]
        if self._cache is None or None in parents:
            logits, self._cache = self._read(self._before(said), None)
        else:
            if parents != list(range(self._n_rows)):
                self._cache.reorder_cache(torch.tensor(parents, device=said.device))
            logits, self._cache = self._read(said[:, -1:], self._cache)
        self._rows, self._n_rows = {row: place for place, row in enumerate(rows)}, len(rows)
        return self._log_probs(logits)

    def _log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float().log_softmax(dim=-1)


class CausalLanguageModel(_CachedScorer):
    """A causal language model of Transformers as a scorer of hypotheses.

    `generate(language_model=…)` makes one of a model; make it yourself where the tokens that start or end a text are
    not those of the model's configuration.

    Args:
        model: of any class with a language-model head, such as `GPT2LMHeadModel`, with the decoder's vocabulary.
        start_token_id: what it reads in front of a text; None takes the configuration's `bos_token_id`, else its
            `eos_token_id`.
        end_token_id: what it says behind a text; None takes the configuration's `eos_token_id`.
        transcript_end: id or ids that end the decoder's transcripts, which get the score of `end_token_id`; None: the
            same.

    Raises:
        ValueError: the model has no such tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        start_token_id: int | None = None,
        end_token_id: int | None = None,
        transcript_end: int | list[int] | None = None,
    ):
        super().__init__()
        config = model.config.get_text_config()
        end = _first(end_token_id, getattr(config, "eos_token_id", None))
        start = _first(start_token_id, getattr(config, "bos_token_id", None), end)
        if start is None or end is None:
            raise ValueError(
                "the language model's configuration names no token that starts or ends a text: make it a "
                "CausalLanguageModel(model, start_token_id=…, end_token_id=…)"
            )
        if model.training:
            logger.warning_once("the language model is in training mode, so its scores are noisy: call its eval()")
        self.model, self.start_token_id, self.end_token_id = model, start, end
        self.transcript_ends = transcript_end if isinstance(transcript_end, list) else [_first(transcript_end, end)]
        self._most_tokens = getattr(config, "max_position_embeddings", None)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._totals: dict[tuple[int, ...], float] = {(): 0.0}
        self._distributions: dict[tuple[int, ...], torch.Tensor] = {}  # [V], of the prefixes asked for last

    def _before(self, said: torch.Tensor) -> torch.Tensor:
        start = torch.full_like(said[:, :1] if said.shape[1] else said.new_empty(len(said), 1), self.start_token_id)
        return torch.cat([start, said], dim=1)

    def _read(self, token_ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        self._check_length(token_ids.shape[1] + (0 if cache is None else cache.get_seq_length()))
        options = {"logits_to_keep": 1} if self._keeps_logits else {}
        output = self.model(
            input_ids=token_ids.to(self.model.device), past_key_values=cache, use_cache=True, **options
        )
        cache = getattr(output, "past_key_values", None)  # state space models have none that can be told apart
        logits = output.logits[:, -1].to(token_ids.device)
        return logits, cache if hasattr(cache, "reorder_cache") else None

    def _log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """The tokens that end a transcript get the score of the one that ends a text."""
        log_probs = super()._log_probs(logits)
        log_probs[:, self.transcript_ends] = log_probs[:, [self.end_token_id]]
        return log_probs

    def _check_length(self, tokens: int) -> None:
        if self._most_tokens is not None and tokens > self._most_tokens:
            raise ValueError(
                f"the language model has positions for {self._most_tokens} tokens, but the transcript is longer: "
                f"give generate() max_length={self._most_tokens}"
            )

    @torch.no_grad()
    def prefix_scores(self, prefixes: Sequence[tuple[int, ...]], ended: bool) -> list[float]:
        """Log probabilities of whole prefixes: a `language_model` for `ctc_decoding.prefix_beam_search`.

        Args:
            prefixes: token ids.
            ended: whether they are whole transcripts, so that the end counts too.
        """
        contexts = prefixes if ended else [prefix[:-1] for prefix in prefixes if prefix]
        self._look_up([context for context in dict.fromkeys(contexts) if context not in self._distributions])
        if ended:
            end = self.transcript_ends[0]
            return [self._total(prefix) + float(self._distributions[prefix][end]) for prefix in prefixes]
        scores = [self._total(prefix) for prefix in prefixes]
        for context in list(self._distributions)[:-KEPT_DISTRIBUTIONS]:
            del self._distributions[context]
        if len(self._totals) > KEPT_TOTALS:  # of other recordings, most of them
            self._totals = {(): 0.0}
        return scores

    def _total(self, prefix: tuple[int, ...]) -> float:
        if prefix not in self._totals:
            context = prefix[:-1]
            if context not in self._distributions:
                self._look_up([context])
            self._totals[prefix] = self._total(context) + float(self._distributions[context][prefix[-1]])
        return self._totals[prefix]

    def _look_up(self, contexts: list[tuple[int, ...]]) -> None:
        by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for context in contexts:
            by_length[len(context)].append(context)
        for length, some in by_length.items():
            said = torch.tensor(some, dtype=torch.long).reshape(len(some), length)
            logits, _ = self._read(self._before(said), None)
            self._distributions.update(zip(some, self._log_probs(logits), strict=True))


class InternalLanguageModel(_CachedScorer):
    """What a decoder expects without hearing: it attends to a frame of zeros, however long the audio is.

    It reads hypotheses together with the start token and the prompt.

    Args:
        decoder: with cross-attention, of a `SpeechSeq2SeqModel`.
    """

    def __init__(self, decoder: PreTrainedModel):
        super().__init__()
        self.decoder = decoder
        self.width = getattr(decoder.config, "cross_attention_hidden_size", None) or decoder.config.hidden_size

    def _read(self, token_ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        if cache is None:
            cache = EncoderDecoderCache(*(DynamicCache(config=self.decoder.config) for _ in range(2)))
        # Attention weighs frames that are all alike: one of them is as many.
        silence = torch.zeros(
            len(token_ids), 1, self.width, dtype=self.decoder.dtype, device=self.decoder.device
        )  # [N, 1, D]
        output = self.decoder(
            input_ids=token_ids, encoder_hidden_states=silence, past_key_values=cache, use_cache=True
        )
        return output.logits[:, -1], output.past_key_values


class LanguageModelLogitsProcessor(LogitsProcessor):
    """Adds `weight` times the log probability by a language model to each token's score.

    `SpeechSeq2SeqModel.generate(language_model=…)` makes one for each call.

    Args:
        scorer: from what hypotheses have said, [N, S], to log probabilities [N, V].
        weight: of the language model; negative to take one off.
        prompt_length: tokens in front of the transcript, which the scorer does not see, start token included; None
            takes all that is there at first.

    Raises:
        ValueError: the vocabularies differ in size.
    """

    def __init__(self, scorer: NextTokenScorer, weight: float, prompt_length: int | None = None):
        self.scorer, self.weight, self.prompt_length = scorer, weight, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids [N, S] and scores [N, V] to scores [N, V]."""
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        log_probs = self.scorer(input_ids[:, self.prompt_length :])
        if log_probs.shape != scores.shape:
            raise ValueError(
                f"the language model tells {log_probs.shape[-1]} tokens apart, the decoder {scores.shape[-1]}: they "
                "must share one tokenizer"
            )
        return scores + self.weight * log_probs.to(scores)


def _first(*token_ids: int | list[int] | None) -> int | None:
    """The first id that there is, of the first that is no None."""
    found = next((one for one in token_ids if one is not None), None)
    return found[0] if isinstance(found, list) else found


__all__ = [
    "DEFAULT_LANGUAGE_MODEL_WEIGHT",
    "CausalLanguageModel",
    "InternalLanguageModel",
    "LanguageModelLogitsProcessor",
    "NextTokenScorer",
]
