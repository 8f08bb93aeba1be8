"""A child made by fork has none of the threads of an engine: it says so at once, and ends as any process."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

import llmc
from llmc.runtime.engine import Engine

SAID = "RecipeError: cannot use an engine loaded before the fork"


def in_child(work: Callable[[], str]) -> str:
    """What `work` returns in a forked child, which finalizes as a whole process does; a hang ends it after 30 s."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            said = work()
        except llmc.LlmcError as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.splitlines()[0].encode())
        gc.collect()
        os.close(writer)
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 4096).decode()
    os.close(reader)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said
    return said


@pytest.fixture
def engine(pico_engine: Any) -> Any:
    with llmc.load(pico_engine("int8"), threads=2) as opened:
        opened.generate("def", max_tokens=2)  # with threads under way
        yield opened


USES: dict[str, Callable[[Engine], object]] = {
    "generate": lambda engine: engine.generate("def", max_tokens=2),
    "a list": lambda engine: engine.generate(["def", "class"], max_tokens=2),
    "stream": lambda engine: next(engine.stream("def", max_tokens=2)),
    "logits": lambda engine: engine.logits([1, 2]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_child_is_told_to_load_after_the_fork(use: Callable[[Engine], object], engine: Engine):
    assert in_child(lambda: str(use(engine))) == SAID
    assert len(engine.generate("def", max_tokens=2).token_ids) == 2  # the parent goes on


def test_an_engine_that_was_never_used_is_refused_too(pico_engine: Any):
    with llmc.load(pico_engine("int8")) as engine:
        assert in_child(lambda: engine.generate("def", max_tokens=1).text) == SAID


def test_a_stream_that_was_under_way_ends_in_the_child(engine: Engine):
    with engine.stream("def", max_tokens=400) as stream:
        next(stream)
        assert in_child(lambda: stream.result().text) == SAID
        assert in_child(lambda: next(iter(stream)).text) == SAID


def test_closing_and_dropping_in_a_child_do_not_wait(pico_engine: Any):
    """ONNX Runtime's destructor joins threads that a child does not have."""
    engine = llmc.load(pico_engine("int8"), threads=2)
    engine.generate("def", max_tokens=2)
    holder = [engine]
    del engine

    def work() -> str:
        holder[0].cancel()
        holder[0].close()
        holder.clear()
        gc.collect()
        return "closed"

    assert in_child(work) == "closed"
    assert holder[0].generate("def", max_tokens=1).token_ids
    holder[0].close()


def test_a_child_ends_as_a_process_does(pico_engine: Any):
    """With finalizers, unlike the children above."""
    code = (
        "import llmc, os, signal, sys\n"
        f"engine = llmc.load({str(pico_engine('int8'))!r}, threads=2)\n"
        "engine.generate('def', max_tokens=2)\n"
        "child = os.fork()\n"
        "signal.alarm(30)\n"
        "if not child: sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_an_engine_loaded_after_the_fork_computes(pico_engine: Any, engine: Engine):
    def work() -> str:
        with llmc.load(pico_engine("int8"), threads=1) as own:
            return own.generate("def", max_tokens=4, temperature=0).text

    assert in_child(work) == engine.generate("def", max_tokens=4, temperature=0).text.splitlines()[0]
