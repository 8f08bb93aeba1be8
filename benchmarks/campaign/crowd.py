"""Requests of every kind from many threads on one engine: each gets what it gets alone, and no slot is lost."""

from __future__ import annotations

import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import llmc
from llmc.runtime.engine import Engine
from llmc.runtime.errors import LlmcError

from .seeds import CROWD

REQUESTS = 2000
THREADS = 8
LIMIT_S = 300.0
"""Seconds of the crowd; alone, requests take less than that together."""
_TEXTS = (
    "how do I build an engine?",
    "what is int4?",
    "def main(",
    "naïve 日本語 🙂",
    "a b c d e f g",
    "<|im_end|> text",
    "\n\n",
)
_BAD: tuple[tuple[Any, dict[str, Any]], ...] = (
    ([], {}),
    ([10**9], {}),
    ([-1], {}),
    ([1] * 5000, {}),
    ("a", {"temperature": -1.0}),
    ("a", {"top_p": 1.5}),
    ("a", {"max_tokens": 0}),
    ("a", {"stop": ""}),
    ("a", {"seed": -1}),
    ("a", {"no_such_option": 1}),
    ("a", {"logit_bias": {-4: 1.0}}),
    (3.5, {}),
)


@dataclass(frozen=True)
class Asked:
    """A request: how it is made, its prompt or messages, its options, and after how many pieces it is cancelled."""

    kind: str
    given: Any
    options: Mapping[str, Any]
    cancel_after: int = 0


@dataclass(frozen=True)
class Answer:
    """What can be compared of an answer; an error is its class and text."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: str = ""
    logprobs: tuple[Any, ...] = ()
    error: str = ""


def requests(count: int, seed: int) -> list[Asked]:
    """Mixed requests; none begins with another one's answer, whose numbers would be those of decode steps."""
    chosen, made = random.Random(seed), []
    for index in range(count):
        kind = chosen.choices(("generate", "stream", "chat", "cancel", "bad"), (4, 3, 3, 2, 1))[0]
        options: dict[str, Any] = {"max_tokens": chosen.choice((1, 2, 8, 20, 40)), "seed": chosen.randrange(2**32)}
        options["temperature"] = chosen.choice((0.0, 0.7, 1.3))
        for name, values in {
            "top_k": (1, 5, 40),
            "top_p": (0.5, 0.95),
            "min_p": (0.05,),
            "repetition_penalty": (1.2,),
            "presence_penalty": (0.5,),
            "frequency_penalty": (-0.5,),
            "logit_bias": ({7: 5.0, 9: -100.0},),
            "logprobs": (1, 5),
            "stop": ("e", [" the", "\n"], ["zzz"]),
            "ignore_eos": (True,),
        }.items():
            if chosen.random() < 0.2:
                options[name] = chosen.choice(values)
        given: Any = f"{chosen.choice(_TEXTS)} {index}" if chosen.random() < 0.5 else _ids(chosen)
        if kind == "bad":
            given, options = chosen.choice(_BAD)
        elif kind == "chat":
            turns = [{"role": "user", "content": f"{chosen.choice(_TEXTS)} {chosen.randrange(50)}"}]
            given = [{"role": "system", "content": "be brief"}, *turns] if chosen.random() < 0.3 else turns
        made.append(Asked(kind, given, options, chosen.randrange(1, 6) if kind == "cancel" else 0))
    return made


def _ids(chosen: random.Random) -> list[int]:
    return [chosen.randrange(3, 2000) for _ in range(chosen.choice((1, 2, 3, 17, 64, 129, 200)))]


def answer(engine: Engine, asked: Asked) -> Answer:
    """Make one request and wait for its end."""
    try:
        if asked.kind == "chat":
            result = engine.chat(asked.given, **asked.options)
        elif asked.kind in ("stream", "cancel"):
            result = _streamed(engine, asked)
        else:
            result = engine.generate(asked.given, **asked.options)
    except LlmcError as error:
        return Answer(error=f"{type(error).__name__}: {error}")
    return Answer(result.text, tuple(result.token_ids), result.finish_reason, result.logprobs)


def _streamed(engine: Engine, asked: Asked) -> Any:
    pieces = []
    with engine.stream(asked.given, **asked.options) as stream:
        for piece in stream:
            pieces.append(piece.text)
            if len(pieces) == asked.cancel_after:
                stream.cancel()
        result = stream.result()
    if "".join(pieces) != result.text:
        raise ValueError(f"pieces {pieces} are not the text {result.text!r}")
    return result


def run(share: float, seed: int, folder: Path) -> dict[str, Any]:
    """All requests one after the other on one engine, then all at once on another."""
    asked = requests(max(THREADS, round(REQUESTS * share)), seed)
    with llmc.load(folder / CROWD) as engine:
        alone = [answer(engine, Asked(one.kind, one.given, one.options)) for one in asked]
    with llmc.load(folder / CROWD) as engine:
        together, wrong, seconds = _crowd(engine, asked)
        wrong += [
            {"request": index, "kind": one.kind, "alone": repr(first)[:300], "found": repr(second)[:300]}
            for index, (one, first, second) in enumerate(zip(asked, alone, together, strict=True))
            if second is not None and not _same(one, first, second)
        ]
        late = [one for one in threading.enumerate() if one.name.startswith("crowd")]
        free = engine._loop._scheduler.free_blocks
        if free != (engine.max_batch,) or late:
            wrong.append({"free": free, "of": engine.max_batch, "threads": len(late)})
    return {
        "requests": len(asked),
        "kinds": dict(Counter(one.kind for one in asked)),
        "threads": THREADS,
        "seconds": round(seconds, 1),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "wrong": wrong[:40],
    }


def _crowd(engine: Engine, asked: list[Asked]) -> tuple[list[Answer | None], list[dict[str, Any]], float]:
    todo: SimpleQueue[int] = SimpleQueue()
    for index in range(len(asked)):
        todo.put(index)
    found: list[Answer | None] = [None] * len(asked)
    wrong: list[dict[str, Any]] = []

    def work() -> None:
        while True:
            try:
                index = todo.get_nowait()
            except Empty:
                return
            try:
                found[index] = answer(engine, asked[index])
            except BaseException as error:
                wrong.append({"request": index, "kind": asked[index].kind, "foreign": repr(error)[:300]})

    began = time.monotonic()
    _together(work, LIMIT_S)
    wrong += [{"request": index, "unanswered": LIMIT_S} for index, one in enumerate(found) if one is None][:5]
    return found, wrong, time.monotonic() - began


def _together(work: Callable[[], None], seconds: float) -> None:
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=work, name=f"crowd-{index}", daemon=True) for index in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(max(0.0, until - time.monotonic()))


def _same(asked: Asked, alone: Answer, found: Answer) -> bool:
    """Equal, or the beginning of it if it was cancelled."""
    if found.finish != "cancelled":
        return found == alone
    begins = (
        alone.tokens[: len(found.tokens)] == found.tokens and alone.logprobs[: len(found.logprobs)] == found.logprobs
    )
    return bool(asked.cancel_after) and begins and alone.text.startswith(found.text)
