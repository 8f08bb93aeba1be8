"""`llmc run --chat`: what is kept between the turns, Ctrl-C, commands, and templates that a user brings."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome, Terminal
from support.engines import PicoEngine, small_checkpoint
from support.paths import PICO

import llmc
from llmc.cli.common import console
from llmc.cli.prompts.talk import Talk
from llmc.runtime.errors import RecipeError, Unsupported
from llmc.runtime.scheduling import request
from llmc.runtime.scheduling.request import Result, Timings

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Call = Callable[..., Outcome]
Chat = Callable[..., Outcome]
GREEDY = ("--temperature", 0, "--max-tokens", 8)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "chat.llmc"
    return llmc.build(PICO, path, quantize="none", chat_template=TEMPLATE)


@pytest.fixture
def chat(call: Call, engine: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Runs a conversation whose lines come from a pipe."""

    def run(*lines: str, flags: tuple[object, ...] = (*GREEDY, "--json")) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(f"{one}\n" for one in lines).encode())))
        return call("run", engine, "--chat", *flags)

    return run


def answers(outcome: Outcome) -> list[dict]:
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def test_a_turn_reads_the_cache_and_answers_as_without_it(chat: Chat, engine: Path):
    lines = ["import os", "and then?", "what is it?", "def f(x):"]
    found = answers(chat(*lines, flags=(*GREEDY, "--json", "--system", "be brief")))
    messages = [{"role": "system", "content": "be brief"}]
    before = 0
    for line, answer in zip(lines, found, strict=True):
        messages.append({"role": "user", "content": line})
        with llmc.load(engine) as alone:
            expected = alone.chat(messages, max_tokens=8, temperature=0.0)
        assert answer["token_ids"] == expected.token_ids and answer["prompt_tokens"] == expected.prompt_tokens
        assert expected.cached_tokens == 0
        assert before <= answer["cached_tokens"] < answer["prompt_tokens"]
        before = answer["prompt_tokens"]
        messages.append({"role": "assistant", "content": answer["text"]})


def test_the_same_holds_in_the_library(engine: Path):
    with llmc.load(engine) as loaded:
        first = loaded.chat([{"role": "user", "content": "hello"}], max_tokens=4)
        talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": first.text}]
        second = loaded.chat([*talk, {"role": "user", "content": "and?"}], max_tokens=4)
    assert first.cached_tokens == 0 and second.cached_tokens >= first.prompt_tokens


def test_commands_work_from_a_pipe(chat: Chat, tmp_path: Path):
    saved = tmp_path / "talk.json"
    outcome = chat(
        *("hi", "/system  be brief ", "//etc", "/stats", f"/save {saved}", "/help", "/reset", "/stats"),
        *("/system", f"/save {saved}", "/exit", "never answered"),
    )
    first, second = answers(outcome)
    assert "system message: be brief\n" in outcome.err and outcome.err.count("be brief") == 2
    assert "4 messages forgotten" in outcome.err and f"5 messages written to {saved}" in outcome.err
    assert json.loads(saved.read_text())["messages"] == [{"role": "system", "content": "be brief"}]
    tokens = first["prompt_tokens"] + second["prompt_tokens"]
    assert "answers: 2, of 16 tokens at " in outcome.err
    assert f"prompts: {tokens} tokens, {first['cached_tokens'] + second['cached_tokens']} of them cached" in outcome.err
    used = second["prompt_tokens"] + second["completion_tokens"]
    assert f"context: {used} of 512 tokens, in 5 messages" in outcome.err
    assert "context: 0 of 512 tokens, in 1 messages" in outcome.err
    assert "/save FILE      write the messages to a JSON file" in outcome.err


def test_a_saved_conversation_holds_what_was_said_and_replaces_only_its_kind(chat: Chat, tmp_path: Path):
    saved, other = tmp_path / "talk.json", tmp_path / "notes.txt"
    (answer,) = answers(chat("//é", f"/save {saved}", f"/save {saved}"))
    assert json.loads(saved.read_text()) == {
        "id": "llmc chat",
        "messages": [{"role": "user", "content": "/é"}, {"role": "assistant", "content": answer["text"]}],
    }
    assert saved.read_text().count("\n") == 1, "a line of --prompts"
    other.write_text("mine")
    outcome = chat(f"/save {other}")
    assert outcome.code == 2 and other.read_text() == "mine"
    assert (
        f"cannot write a conversation to {other}\n  found: a file of 4 bytes that is not a conversation" in outcome.err
    )
    assert "--force" not in outcome.err
    outcome = chat(f"/save {tmp_path}/none/talk.json")
    assert outcome.code == 4 and "no folder" in outcome.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "/hepl",
            "expected a command of this conversation\n  found: '/hepl' (did you mean '/help'?)\n  try: /help, or //",
        ),
        ("/etc/passwd says", "found: '/etc/passwd'\n"),
        ("/", "found: '/'\n"),
        ("/reset now", "expected /reset alone\n  found: 'now'"),
        ("/save", "expected a file to write\n  found: /save\n  try: /save talk.json"),
    ],
)
def test_a_wrong_command_ends_a_pipe(chat: Chat, line: str, said: str):
    outcome = chat("hi", line, "never answered")
    assert outcome.code == 2 and said in outcome.err
    first, error = outcome.out.splitlines()
    assert json.loads(first)["completion_tokens"] == 8 and json.loads(error)["error"]["class"] == "RecipeError"


def test_a_full_context_drops_the_oldest_turns_and_says_so(chat: Chat):
    long = " ".join(["word"] * 60)
    outcome = chat(*[f"{index} {long}" for index in range(12)], flags=(*GREEDY, "--json", "--system", "stay here"))
    found = answers(outcome)
    assert len(found) == 12 and all(one["completion_tokens"] == 8 for one in found)
    assert "llmc: the context of 512 tokens is full: the oldest " in outcome.err
    sizes = [one["prompt_tokens"] for one in found]
    assert max(sizes) <= 512 - 8
    dropped = [index for index in range(1, 12) if sizes[index] < sizes[index - 1]]
    assert 0 < len(dropped) == outcome.err.count("forgotten") < 6, "half of the context is freed at once"
    for index in range(1, 12):
        if index in dropped:
            assert 0 < found[index]["cached_tokens"] < 40, "the system message"
        else:
            assert found[index]["cached_tokens"] >= sizes[index - 1]


def test_a_message_that_never_fits_is_refused_and_the_others_stay(chat: Chat):
    outcome = chat("hi", " ".join(["word"] * 600))
    assert outcome.code == 2
    assert "cannot run a prompt of" in outcome.err and "room for 512 tokens" in outcome.err
    assert "forgotten" not in outcome.err


def test_options_are_checked_before_the_first_line(chat: Chat):
    outcome = chat("hi", flags=("--temperature", 9))
    assert outcome.code == 2 and outcome.out == "" and "expected temperature" in outcome.err


def interrupt_after(count: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the first answer has written `count` pieces."""
    out, pieces = console.out_model, []

    def out_and_interrupt(text: str) -> None:
        out(text)
        pieces.append(text)
        if len(pieces) == count:
            raise KeyboardInterrupt

    patch.setattr(console, "out_model", out_and_interrupt)


def test_ctrl_c_ends_an_answer_and_keeps_what_was_written(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupt_after(3, monkeypatch)
    saved = tmp_path / "talk.json"
    long = ("--temperature", 0, "--max-tokens", 300, "--logit-bias", "1=-100")
    outcome = chat("import", "more", "/stats", f"/save {saved}", flags=long)
    assert outcome.code == 0
    assert "(cancelled)" in outcome.err and "300 tokens at" in outcome.err, "the second answer ran to its end"
    messages = json.loads(saved.read_text())["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2
    first = messages[1]["content"]
    assert outcome.out.startswith(first[:2]) and 0 < len(first) < len(messages[3]["content"])


def test_ctrl_c_ends_an_answer_that_is_to_be_one_object(chat: Chat, monkeypatch: pytest.MonkeyPatch):
    waited = request.wait

    def interrupted(over: Callable[[float], object]) -> None:
        monkeypatch.setattr(request, "wait", waited)
        raise KeyboardInterrupt

    monkeypatch.setattr(request, "wait", interrupted)
    flags = ("--temperature", 0, "--max-tokens", 400, "--logit-bias", "1=-100", "--json")
    first, second = answers(chat("hi", "and you?", flags=flags))
    assert first["finish_reason"] == "cancelled" and first["completion_tokens"] < 400
    assert second["finish_reason"] == "length" and second["completion_tokens"] == 400


def test_a_message_whose_answer_never_began_is_taken_back():
    talk = Talk(512, [{"role": "system", "content": "be brief"}])
    timings = Timings(0.1, 0.2, 0.0)
    talk.answered(talk.asked("hi"), Result("", [], 9, 0, 0, "cancelled", (), timings))
    assert talk.messages == [{"role": "system", "content": "be brief"}] and talk.system == "be brief"
    talk.answered(talk.asked("hi"), Result("", [1], 9, 0, 1, "stop", (), timings))
    assert [one["role"] for one in talk.messages] == ["system", "user", "assistant"], "an empty answer is one"


def test_ctrl_c_while_a_pipe_is_read_ends_the_conversation(call: Call, engine: Path, monkeypatch: pytest.MonkeyPatch):
    class Lines(io.BytesIO):
        def __next__(self) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Lines(b"hi\n")))
    assert call("run", engine, "--chat", *GREEDY).code == 130


@pytest.fixture(scope="module")
def long_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights and a context of 65536: an answer that ends by itself would take half a minute."""
    folder = tmp_path_factory.mktemp("long")
    small_checkpoint(folder / "c", max_position_embeddings=1 << 16)
    return llmc.build(folder / "c", folder / "e.llmc", quantize="none", max_context=1 << 16, chat_template=TEMPLATE)


def test_ctrl_c_at_a_terminal_ends_the_answer_and_twice_at_the_prompt_the_conversation(long_engine: Path):
    terminal = Terminal(long_engine, "--max-tokens", 60000, "--logit-bias", "1=-100", "--temperature", 2)
    assert b"/help shows the commands" in terminal.until(b"> ")
    for _ in range(2):
        terminal.type(b"hello\r")
        terminal.until(b"hello\r\n")
        assert terminal.read(), "the answer begins"
        terminal.type(b"\x03")
        assert b"(cancelled)" in terminal.until(b"loaded in")
        terminal.until(b"> ")
    terminal.type(b"/hepl\r")
    assert b"did you mean '/help'?" in terminal.until(b"try: ")
    terminal.until(b"> ")
    terminal.type(b"/stats\r")
    assert b"answers: 2" in terminal.until(b"in 4 messages")
    terminal.until(b"> ")
    terminal.type(b"not sent")
    terminal.until(b"not sent")
    terminal.press_ctrl_c()
    terminal.until(b"Ctrl-C once more")
    terminal.until(b"> ")
    terminal.press_ctrl_c()
    assert terminal.end() == 130
    assert b"Traceback" not in terminal.shown


def test_what_is_no_utf_8_is_called_so_and_the_conversation_goes_on(engine: Path):
    terminal = Terminal(engine)
    terminal.until(b"> ")
    terminal.type(b"\xff\xfe\r")
    assert b"expected UTF-8 text in the message" in terminal.until(b"invalid start byte")
    terminal.until(b"> ")
    terminal.type(b"/exit\r")
    assert terminal.end() == 0


def test_ctrl_d_and_exit_end_a_conversation_with_0(engine: Path):
    for typed in (b"\x04", b"/exit\r"):
        terminal = Terminal(engine)
        terminal.until(b"> ")
        terminal.press_ctrl_c()
        terminal.until(b"Ctrl-C once more")
        terminal.until(b"> ")
        terminal.type(typed)
        assert terminal.end() == 0


def test_a_template_of_ones_own_is_used_instead_of_the_engines(
    call: Call, engine: Path, pico_engine: PicoEngine, tmp_path: Path
):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    for path in (engine, pico_engine("none")):
        flags = ("--chat", "--chat-template", file, "--max-tokens", 1, "--show-prompt", "--json")
        outcome = call("run", path, "hello", *flags)
        assert outcome.code == 0
        with llmc.load(path, chat_template=file) as loaded:
            ids = loaded.encode_chat([{"role": "user", "content": "hello"}])
            assert ids == loaded.tokenizer.encode("[hello]")[-len(ids) :]
        assert outcome.json["prompt_tokens"] == len(ids)
    with llmc.load(pico_engine("none"), chat_template=file.read_text()) as loaded:
        assert loaded.encode_chat([{"role": "user", "content": "hello"}]) == ids


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no template", "expected a chat template that writes the messages, not {file}\n  found: 'no template'"),
        ("{% if %}", "cannot use the chat template {file}\n  found: cannot compile the chat template: syntax error"),
        (
            "{{ 'x' | shout }}",
            "cannot use the chat template {file}\n  found: cannot compile the chat template: syntax error: No filter",
        ),
        (b"\xff", "expected UTF-8 text in {file}"),
        (None, "cannot read the chat template {file}"),
    ],
)
def test_a_template_is_checked_before_the_work(
    call: Call,
    engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | bytes | None,
    said: str,
):
    file = tmp_path / "t.jinja"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setattr("llmc.runtime.load.open_executor", lambda *_, **__: pytest.fail("it went on"))
    monkeypatch.setattr("llmc.compiler.build.build", lambda *_, **__: pytest.fail("it went on"))
    for command in (("run", engine, "hi", "--chat"), ("build", PICO, "-o", tmp_path / "e.llmc")):
        outcome = call(*command, "--chat-template", file)
        assert outcome.code == 2 and said.replace("{file}", str(file)) in outcome.err


def test_a_template_that_refuses_one_message_may_be_right(engine: Path):
    source = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}{{ messages[1].content }}"
    )
    with llmc.load(engine, chat_template=source) as loaded:
        assert loaded.encode_chat([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
        with pytest.raises(RecipeError, match="system first"):
            loaded.encode_chat([{"role": "user", "content": "y"}])


def test_a_template_needs_a_tokenizer_and_chat(call: Call, engine: Path, tmp_path: Path):
    checkpoint = small_checkpoint(tmp_path / "c", tokenizer=False)
    with pytest.raises(Unsupported, match=r"no tokenizer\.json in it"):
        llmc.build(checkpoint, tmp_path / "e.llmc", chat_template=TEMPLATE)
    path = llmc.build(checkpoint, tmp_path / "e.llmc", quantize="none")
    with pytest.raises(Unsupported, match="no tokenizer in the checkpoint"):
        llmc.load(path, chat_template=TEMPLATE)
    with pytest.raises(RecipeError, match=r"chat_template as jinja's text or a Path\n  found: 3 \(int\)"):
        llmc.load(engine, chat_template=3)  # type: ignore[arg-type]
    outcome = call("run", engine, "hi", "--chat-template", tmp_path / "t.jinja")
    assert outcome.code == 2 and "expected --chat with --chat-template" in outcome.err


def test_build_stores_the_template_and_warns_no_more(call: Call, engine: Path, tmp_path: Path):
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATE)
    outcome = call("build", PICO, "-o", tmp_path / "e.llmc", "--quantize", "none", "--chat-template", file)
    assert outcome.code == 0 and "warning" not in outcome.err
    assert (tmp_path / "e.llmc").read_bytes() == engine.read_bytes()
    outcome = call("build", PICO, "-o", file, "--force", "--chat-template", file)
    assert outcome.code == 2 and "is an input of this command" in outcome.err
