"""Which turns of a conversation are dropped, with a token for each character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtime.errors import RecipeError
from llmc.runtime.text.turns import Fitted, Message, fit

SYSTEM = {"role": "system", "content": "s" * 10}


def encode(messages: Sequence[Message]) -> list[int]:
    return [ord(letter) for message in messages for letter in message["content"]]


def turn(letter: str, asked: int, answered: int = 0) -> list[Message]:
    user = {"role": "user", "content": letter * asked}
    return [user, {"role": "assistant", "content": letter * answered}] if answered else [user]


def texts(fitted: Fitted) -> list[str]:
    return [message["content"] for message in fitted.messages]


def test_nothing_is_dropped_while_a_quarter_of_the_context_or_the_whole_answer_is_free():
    messages = [SYSTEM, *turn("a", 30, 30), *turn("b", 5)]
    for context, max_tokens in ((100, 512), (100, 25), (80, 5)):
        fitted = fit(messages, encode, context, max_tokens)
        assert fitted.dropped == 0 and fitted.messages == tuple(messages) and list(fitted.ids) == encode(messages)


def test_the_oldest_turns_go_until_half_of_the_context_is_free():
    messages = [SYSTEM, *turn("a", 10, 10), *turn("b", 10, 10), *turn("c", 10, 10), *turn("d", 10)]
    fitted = fit(messages, encode, 100, 512)
    assert texts(fitted) == ["s" * 10, "c" * 10, "c" * 10, "d" * 10] and fitted.dropped == 2
    assert list(fitted.ids) == encode(fitted.messages)


def test_a_small_answer_needs_little_room():
    messages = [*turn("a", 40, 40), *turn("b", 10)]
    assert fit(messages, encode, 100, 10).dropped == 0
    assert fit(messages, encode, 100, 11).dropped == 1


def test_the_last_turn_stays_even_if_it_is_too_long():
    fitted = fit([SYSTEM, *turn("a", 10, 10), *turn("b", 200)], encode, 100, 5)
    assert texts(fitted) == ["s" * 10, "b" * 200] and fitted.dropped == 1


def test_errors_of_the_template_are_those_of_encode():
    def refuses(_: Sequence[Message]) -> list[int]:
        raise RecipeError("cannot render the chat template")

    with pytest.raises(RecipeError, match="cannot render"):
        fit(turn("a", 1), refuses, 10, 5)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=12),
    st.booleans(),
    st.integers(20, 200),
    st.integers(1, 300),
)
def test_what_is_kept_is_the_end_of_the_conversation_behind_its_system_message(
    turns: list[tuple[int, int]], system: bool, context: int, max_tokens: int
):
    head = [SYSTEM] if system else []
    messages = head + [message for size, answer in turns for message in turn("x", size, answer)]
    fitted = fit(messages, encode, context, max_tokens)
    kept = fitted.messages[len(head) :]
    assert list(fitted.messages[: len(head)]) == head and kept == tuple(messages[len(messages) - len(kept) :])
    assert kept[0]["role"] == "user" and fitted.dropped < len(turns)
    if fitted.dropped:
        assert len(fitted.ids) <= context // 2 or fitted.dropped == len(turns) - 1
