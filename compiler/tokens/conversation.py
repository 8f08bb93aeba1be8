"""What a chat template writes behind an answer, and whether the model can read and end what it writes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ...runtime.errors import RecipeError
from ...runtime.text.chat import ChatTemplate
from ...runtime.text.tokenizer import Tokenizer

_ANSWER = "The answer is 42."
QUESTION = ({"role": "user", "content": "Hello!"},)
ANSWERED = (*QUESTION, {"role": "assistant", "content": _ANSWER})


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
    _, found, tail = rendered.rpartition(_ANSWER)
    behind = tokenizer.encode(tail, special=True, bos=False) if found else []
    yield from _rowless(set(behind) - set(asked), tokenizer, rows)
    marks = [token for token in behind if token in tokenizer.added_ids and not tokenizer.text_of(token).isspace()]
    if marks and marks[0] not in eos_ids:
        yield (
            f"answers will not stop: the chat template ends an answer with {tokenizer.text_of(marks[0])!r} "
            f"(id {marks[0]}), which is no end token"
        )


def _rowless(ids: Collection[int], tokenizer: Tokenizer, rows: int) -> Iterator[str]:
    for token in sorted({token for token in ids if token >= rows}):
        yield (
            f"the chat template writes {tokenizer.text_of(token)!r} (id {token}), for which the embedding of {rows} "
            "rows has none: conversations with it are refused"
        )
