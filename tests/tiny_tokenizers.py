"""Tokenizers of a few words with the special tokens, and the habits about them, of the decoders people use."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "b", "c", "d", "hello", "world", "the", "cat", "sat", "one", "two", "three"]

# family: (special tokens in the order of their ids, template around the text, roles of the special tokens)
FAMILIES: dict[str, tuple[list[str], str, dict[str, str]]] = {
    "bert": (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        "[CLS] $A [SEP]",
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    ),
    "gpt2": (["<|eot|>"], "$A", {"bos_token": "<|eot|>", "eos_token": "<|eot|>", "pad_token": "<|eot|>"}),
    "bart": (
        ["<s>", "<pad>", "</s>", "<unk>"],
        "<s> $A </s>",
        {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "marian": (
        ["</s>", "<unk>", "<pad>"],
        "$A </s>",
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    ),
    "mbart": (
        ["<s>", "<pad>", "</s>", "<unk>", "en_XX", "de_DE"],
        "$A </s> en_XX",
        {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "mbart50": (
        ["<s>", "<pad>", "</s>", "<unk>", "en_XX", "de_DE"],
        "en_XX $A </s>",
        {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "whisper": (
        ["<|eot|>", "<|sot|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"],
        "<|sot|> <|en|> <|transcribe|> <|notimestamps|> $A <|eot|>",
        {"bos_token": "<|eot|>", "eos_token": "<|eot|>", "pad_token": "<|eot|>"},
    ),
}


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that adds special tokens as the named family does."""
    special, template, roles = FAMILIES[family]
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=roles.get("unk_token", WORDS[0])))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in special]
    )
    extra = [token for token in special if token not in roles.values()]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=extra, **roles)
