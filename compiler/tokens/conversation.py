"""What a chat template writes behind an answer, and whether the model can read and end what it writes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ...runtime.errors import RecipeError
from ...runtime.text.chat import ChatTemplate
from ...runtime.text.tokenizer import Tokenizer

_ANSWER, _NEXT = "The answer is 42.", "Why 42?"
QUESTION = ({"role": "user", "content": "Hello!"},)
ANSWERED = (*QUESTION, {"role": "assistant", "content": _ANSWER})
FOLLOWED = (*ANSWERED, {"role": "user", "content": _NEXT})


def template_notes(template: ChatTemplate, tokenizer: Tokenizer, eos_ids: Collection[int], rows: int) -> Iterator[str]:
    """What to say of a template: answers that will not stop, and tokens that the model has no row for.

    A template that refuses a conversation with an answer says nothing about it.

    Raises:
        LlmcError: the template cannot render a question; see `ChatTemplate.render`.
    """
    asked = template.encode(tokenizer, QUESTION)
    yield from _rowless(asked, tokenizer, rows)
    try:
        rendered = template.render(ANSWERED, add_generation_prompt=False)
    except RecipeError:
        return
    behind = _marks(rendered.rpartition(_ANSWER), tokenizer)
    yield from _rowless({*behind} - {*asked}, tokenizer, rows)
    if not behind or behind[0] in eos_ids:
        return
    try:  # the model writes on with what stands before the next question: its end token may come second (Cohere)
        before, _, _ = template.render(FOLLOWED, add_generation_prompt=False).rpartition(_NEXT)
        between = _marks(before.rpartition(_ANSWER), tokenizer)
    except RecipeError:
        between = behind
    if {*between}.isdisjoint(eos_ids):
        yield (
            f"answers will not stop: the chat template ends an answer with {tokenizer.text_of(behind[0])!r} "
            f"(id {behind[0]}), which is no end token"
        )


def _marks(parts: tuple[str, str, str], tokenizer: Tokenizer) -> list[int]:
    """The added tokens behind an answer: of the text before it, the answer, and the text behind it."""
    _, found, tail = parts
    ids = tokenizer.encode(tail, special=True, bos=False) if found else []
    return [token for token in ids if token in tokenizer.added_ids and not tokenizer.text_of(token).isspace()]


def _rowless(ids: Collection[int], tokenizer: Tokenizer, rows: int) -> Iterator[str]:
    for token in sorted({token for token in ids if token >= rows}):
        yield (
            f"the chat template writes {tokenizer.text_of(token)!r} (id {token}), for which the embedding of {rows} "
            "rows has none: conversations with it are refused"
        )
