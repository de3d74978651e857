"""Which languages, and which tasks, a decoder can be told to write, and how it is told: by tokens before the text.

Whisper has a token for the language and one for the task (``<|de|>``, ``<|translate|>``: into English). mBART
(`de_DE`), M2M100 (`__de__`) and NLLB (`deu_Latn`) have one for the language alone: another one than the spoken
language is a translation.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

TASKS = ("transcribe", "translate")
_M2M100, _WHISPER = re.compile(r"__([a-z]{2,3})__"), re.compile(r"<\|([a-z]{2,3})\|>")
_FAIRSEQ = re.compile(r"([a-z]{2,3})_([A-Z]{2}|[A-Z][a-z]{3})")  # mBART's with a country, NLLB's with a script

# ISO 639-3 codes of NLLB, by the codes of ISO 639-1 that all others use.
_CODES = (
    "af:afr am:amh ar:arb as:asm az:azj ba:bak be:bel bg:bul bn:ben bo:bod bs:bos ca:cat cs:ces cy:cym da:dan de:deu "
    "el:ell en:eng es:spa et:est eu:eus fa:pes fi:fin fo:fao fr:fra gl:glg gu:guj ha:hau he:heb hi:hin hr:hrv ht:hat "
    "hu:hun hy:hye id:ind is:isl it:ita ja:jpn jw:jav ka:kat kk:kaz km:khm kn:kan ko:kor lb:ltz ln:lin lo:lao lt:lit "
    "lv:lvs mg:plt mi:mri mk:mkd ml:mal mn:khk mr:mar ms:zsm mt:mlt my:mya ne:npi nl:nld nn:nno no:nob oc:oci pa:pan "
    "pl:pol ps:pbt pt:por ro:ron ru:rus sa:san sd:snd si:sin sk:slk sl:slv sn:sna so:som sq:als sr:srp su:sun sv:swe "
    "sw:swh ta:tam te:tel tg:tgk th:tha tk:tuk tl:tgl tr:tur tt:tat uk:ukr ur:urd uz:uzn vi:vie yi:ydd yo:yor zh:zho"
)
THREE_LETTERS: dict[str, str] = {two: three for two, _, three in (pair.partition(":") for pair in _CODES.split())}
_TWO_LETTERS = {three: two for two, three in THREE_LETTERS.items()}


def language_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens by which a decoder is told its language, and their ids; none for a tokenizer of one language."""
    known = dict(getattr(tokenizer, "lang_token_to_id", None) or getattr(tokenizer, "lang_code_to_id", None) or {})
    for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()):
        if _code(token) is not None:
            known[token] = tokenizer.convert_tokens_to_ids(token)
    return dict(sorted(known.items(), key=lambda item: item[1]))


def task_tokens(tokenizer: Any) -> dict[str, int]:
    """The tasks that a decoder can be told apart, and the ids of their tokens; none but for Whisper's."""
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return {task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in TASKS if f"<|{task}|>" in special}


def language_token(language: str, known: Iterable[str]) -> str:
    """The token of a language, by its token, its code (de, deu, de_DE) or its English name.

    Raises:
        ValueError: the language is none of those known, or there are several of that name (Chinese in two scripts).
    """
    known = list(known)
    wanted = language.strip().lower()
    wanted = TO_LANGUAGE_CODE.get(wanted, wanted)
    for names in (lambda token: {token, _code(token)}, _short_names):
        if found := [token for token in known if wanted in {str(name).lower() for name in names(token)}]:
            break
    else:
        raise ValueError(f"unknown language {language!r}; known: {', '.join(sorted(map(_shown, known))) or 'none'}")
    if len(found) > 1:
        raise ValueError(f"language {language!r} is one of {', '.join(sorted(found))}: say which")
    return found[0]


def language_prompt(
    prompt: Sequence[int],
    languages: Mapping[str, int],
    tasks: Mapping[str, int],
    language: str | None = None,
    task: str | None = None,
) -> list[int]:
    """A decoder's prompt with the tokens of another language or task in the place of its own.

    Args:
        prompt: token ids behind the start token.
        languages: tokens to ids.
        tasks: names to ids of their tokens.
        language: what to write; None leaves it as it is.
        task: "transcribe" or "translate"; None leaves it as it is.

    Raises:
        ValueError: the language or the task is not known.
    """
    prompt = list(prompt)
    if language is not None:
        token_id = languages[language_token(language, languages)]
        prompt = _put(prompt, token_id, set(languages.values()), 0)
    if task is not None:
        if not tasks:
            raise ValueError(f"task={task!r}: the decoder is told no tasks; the language alone says what it writes")
        if task not in tasks:
            raise ValueError(f"unknown task {task!r}; known: {', '.join(sorted(tasks))}")
        first = next((place + 1 for place, token_id in enumerate(prompt) if token_id in set(languages.values())), 0)
        prompt = _put(prompt, tasks[task], set(tasks.values()), first)
    return prompt


def _put(prompt: list[int], token_id: int, kind: set[int], place: int) -> list[int]:
    """The prompt with its token of a kind replaced, or with one inserted at a place where it has none."""
    if any(own in kind for own in prompt):
        return [token_id if own in kind else own for own in prompt]
    return [*prompt[:place], token_id, *prompt[place:]]


def _code(token: str) -> str | None:
    """The language's code in a token, as the decoder's family writes it; None in another token."""
    if found := _M2M100.fullmatch(token):
        return found[1]
    if (found := _WHISPER.fullmatch(token)) and found[1] in LANGUAGES:
        return found[1]
    if found := _FAIRSEQ.fullmatch(token):
        return token
    return None


def _shown(token: str) -> str:
    return _code(token) or token


def _short_names(token: str) -> set[str]:
    code = _shown(token).split("_")[0]
    return {code, _TWO_LETTERS.get(code, code)}


__all__ = ["TASKS", "language_prompt", "language_token", "language_tokens", "task_tokens"]
