"""`llmc run CHECKPOINT`: what a start from the cache imports, kills while building, huge pages, extras."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine, small_checkpoint
from support.paths import PICO

from llmc.cli.common import extras, huge_pages
from llmc.compiler.cache.store import Store
from llmc.runtime.engine_file.file import verify_engine
from llmc.runtime.errors import install_hint

Call = Callable[..., Outcome]
LOADED = """
import sys
from llmc.cli.app import run
code = run(sys.argv[1:])
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def modules_after(*arguments: object) -> set[str]:
    """What a process has loaded after a command that succeeds."""
    command = [sys.executable, "-c", LOADED, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(done.stderr.splitlines()[-1].split())


def test_a_start_from_the_cache_imports_no_compiler_library(call: Call, cache: Path):
    assert call("run", PICO, "x", "--max-tokens", 1).code == 0
    loaded = modules_after("run", PICO, "x", "--max-tokens", 1)
    heavy = {"torch", "onnx", "onnx_ir", "triton", "transformers", "huggingface_hub", "rich"}
    assert {name.split(".")[0] for name in loaded} & heavy == set()
    assert "llmc.compiler.cache.find" in loaded and "llmc.compiler.build" not in loaded


def test_running_an_engine_imports_nothing_of_the_cache(pico_engine: PicoEngine):
    loaded = modules_after("run", pico_engine("int8"), "x", "--max-tokens", 1)
    assert {name for name in loaded if name.startswith(("llmc.compiler", "llmc.recipes.recipe", "yaml"))} == set()


def test_the_cache_is_shown_without_compiler_libraries():
    loaded = modules_after("cache", "list")
    assert {name.split(".")[0] for name in loaded} & {"torch", "onnx", "onnx_ir", "triton"} == set()


def test_a_killed_build_leaves_no_engine_that_is_not_whole(call: Call, cache: Path, tmp_path: Path):
    source = small_checkpoint(tmp_path / "c", hidden_size=256, intermediate_size=768, num_hidden_layers=12)
    command = [sys.executable, "-m", "llmc", "run", str(source), "x", "--max-tokens", "1"]
    killed = 0
    while killed < 3:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while running.poll() is None and not [*cache.glob(".*.llmc.*")]:
            time.sleep(0.001)
        time.sleep(0.02 * killed)
        running.send_signal(signal.SIGKILL)
        running.wait()
        killed += 1
        for engine in cache.glob("*.llmc"):  # the build was faster
            verify_engine(engine).close()
    outcome = call("run", source, "x", "--max-tokens", 1, "--json")
    assert outcome.code == 0 and outcome.json["completion_tokens"] == 1
    (engine,) = cache.iterdir()
    verify_engine(engine).close()


def test_an_engine_of_the_cache_gets_huge_pages(call: Call, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """The process starts anew with the same command line, before stdin is read."""
    asked: list[Path] = []
    monkeypatch.setattr(huge_pages, "ensure", asked.append)
    assert call("run", PICO, "x", "--max-tokens", 1).code == 0
    assert asked == [*cache.glob("*.llmc")]


def test_a_missing_extra_is_said_before_the_weights_are_hashed(
    call: Call, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(extras, "missing", lambda extra: ("torch", "onnx"))
    monkeypatch.setattr("llmc.compiler.cache.find.find", lambda *_, **__: pytest.fail("a checkpoint was opened"))
    outcome = call("run", PICO, "x")
    assert outcome.code == 4
    said = (
        "llmc: cannot use llmc run CHECKPOINT without the extra 'build'\n  found: not installed: torch, onnx\n  try: "
    )
    assert outcome.err == f"{said}{install_hint('build')}\n"


def test_an_engine_of_the_cache_needs_no_extra(call: Call, monkeypatch: pytest.MonkeyPatch):
    assert call("run", PICO, "x", "--max-tokens", 1).code == 0
    monkeypatch.setattr(extras, "missing", lambda extra: ("torch", "onnx"))
    assert call("run", PICO, "x", "--max-tokens", 1).code == 0
    assert call("run", PICO, "x", "--max-tokens", 1, "--quantize", "int4").code == 4


def test_a_conversation_and_many_prompts(call: Call, tmp_path: Path):
    source = small_checkpoint(tmp_path / "c")
    (source / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"tokens": [5, 6], "max_tokens": 2}) + "\n" + json.dumps({"prompt": "x"}) + "\n")
    outcome = call("run", source, "--prompts", prompts, "--max-tokens", 1)
    counts = [json.loads(line)["completion_tokens"] for line in outcome.out.splitlines()]
    assert (outcome.code, counts) == (0, [2, 1])
    assert call("run", source, "hello", "--chat", "--max-tokens", 1, "--json").json["completion_tokens"] == 1
    assert len(Store.default().engine_keys()) == 1
