"""Every command on the bundled checkpoint, as a user calls it: what the README shows is what runs here."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.paths import PICO

from llmc.cli.app import run
from llmc.runtime.engine_file.file import EngineFile

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ 'assistant' if m.role == 'assistant' else 'user' }}|>"
    "{{ m.content }}<|end_of_turn|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Call = Callable[..., Outcome]


@pytest.fixture
def engine(pico_engine: PicoEngine) -> Path:
    return pico_engine("int8")


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """llmc with signals as at a terminal: a shell's background jobs, the tests maybe one of them, ignore SIGINT."""
    command = [sys.executable, "-m", "llmc", *map(str, arguments)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)


def at_a_terminal(arguments: list[str], answers: list[bytes]) -> tuple[int, str]:
    """Exit code and everything a terminal shows, where each answer is typed at the next `> `."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "llmc", *arguments])
    shown, seen = b"", 0
    with open(terminal, "rb+", buffering=0) as stream:
        while piece := _read(stream):
            shown += piece
            if answers and b"> " in shown[seen:]:
                seen = len(shown)
                stream.write(answers.pop(0))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


def _read(stream: BinaryIO) -> bytes:
    try:
        return stream.read(4096)
    except OSError:  # how Linux says that the other end is closed
        return b""


def long_run(engine: Path) -> subprocess.Popen[bytes]:
    """A run that writes for a second or more."""
    return start("run", engine, "x", "--max-tokens", 500, "--logit-bias", "1=-100", "--stop", "never to be seen")


def test_build_says_what_it_did_and_does_it_again(call: Call, tmp_path: Path, engine: Path):
    outcome = call("build", PICO, "-o", tmp_path / "e.llmc", "--quantize", "int8", "--json")
    assert outcome.code == 0
    assert outcome.json["path"] == str(tmp_path / "e.llmc")
    assert outcome.json["bytes"] == (tmp_path / "e.llmc").stat().st_size
    assert {"seconds", "peak_rss_bytes", "content_digest", "stages", "passes"} <= set(outcome.json)
    assert (tmp_path / "e.llmc").read_bytes() == engine.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.llmc"]


def test_build_prints_a_plan_and_a_summary(call: Call, tmp_path: Path):
    outcome = call("build", PICO, "-o", tmp_path / "e.llmc", "--recipe", "cpu-int4", "--max-context", 64, "-v")
    assert outcome.code == 0
    assert "weights int4, lm_head: int8; targets cpu; context 64; batch 8" in outcome.err
    assert "content digest " in outcome.out
    assert "MergeLinears" in outcome.out
    with EngineFile.open(tmp_path / "e.llmc") as opened:
        assert opened.manifest.model.max_context == 64
        assert set(opened.manifest.formats.values()) == {"int4", "int8"}


def test_build_refuses_too_little_memory_before_work(call: Call, tmp_path: Path):
    outcome = call("build", PICO, "-o", tmp_path / "e.llmc", "--memory-limit", "0.1", "--json")
    assert outcome.code == 4
    assert "--memory-limit" in outcome.json["error"]["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf"])
def test_build_refuses_a_memory_limit_that_is_no_size(call: Call, tmp_path: Path, limit: str):
    outcome = call("build", PICO, "-o", tmp_path / "x.llmc", "--memory-limit", limit)
    assert outcome.code == 2
    assert outcome.err == f"llmc: expected --memory-limit in GiB, a number above 0\n  found: {limit}\n"


def test_build_refuses_what_is_no_checkpoint(call: Call, tmp_path: Path):
    assert call("build", tmp_path, "-o", tmp_path / "e.llmc").code == 3


def test_random_weights_need_only_a_config(call: Call, tmp_path: Path):
    (tmp_path / "c").mkdir()
    shutil.copy(PICO / "config.json", tmp_path / "c")
    assert call("build", tmp_path / "c", "-o", tmp_path / "e.llmc", "--random-weights", 7).code == 0
    with EngineFile.open(tmp_path / "e.llmc") as opened:
        assert opened.manifest.checkpoint.random_seed == 7


def test_run_json_has_the_documented_keys(call: Call, engine: Path):
    outcome = call("run", engine, "def f(", "--max-tokens", 5, "--json")
    assert outcome.code == 0
    assert set(outcome.json) == {
        "text",
        "token_ids",
        "prompt_tokens",
        "completion_tokens",
        "finish_reason",
        "timings",
    }
    assert set(outcome.json["timings"]) == {"load_s", "ttft_s", "decode_tokens_per_s"}
    assert (outcome.json["completion_tokens"], outcome.json["finish_reason"]) == (5, "length")


def test_run_streams_the_same_text_and_its_speed(call: Call, engine: Path):
    whole = call("run", engine, "import ", "--max-tokens", 20, "--json").json["text"]
    outcome = call("run", engine, "import ", "--max-tokens", 20)
    assert outcome.out == whole + "\n"
    assert "tokens/s" in outcome.err
    assert "profile cpu loaded in" in outcome.err


def test_sampling_flags_reach_the_sampler(call: Call, engine: Path):
    def ids(*flags: object) -> list[int]:
        return call("run", engine, "class ", "--max-tokens", 12, "--json", *flags).json["token_ids"]

    hot = ("--temperature", 1.5)
    assert ids(*hot, "--seed", 1) == ids(*hot, "--seed", 1) != ids(*hot, "--seed", 2)
    greedy = ids("--temperature", 0)
    assert ids(*hot, "--top-k", 1) == ids(*hot, "--top-p", 0.0001) == ids(*hot, "--min-p", 1) == greedy
    assert ids("--logit-bias", "77=100") == [77] * 12
    pushed = ("--logit-bias", "77=12")
    assert ids(*pushed).count(77) == 12 > ids(*pushed, "--frequency-penalty", 2).count(77)
    assert ids("--temperature", 0, "--presence-penalty", 2) != greedy
    assert len(set(ids("--temperature", 0, "--repetition-penalty", 50))) == 12


def test_stop_ends_before_its_text(call: Call, engine: Path):
    whole = call("run", engine, "import ", "--max-tokens", 20, "--temperature", 0, "--json").json["text"]
    stop = whole[8:10]
    outcome = call("run", engine, "import ", "--max-tokens", 20, "--temperature", 0, "--stop", stop, "--json").json
    assert outcome["text"] == whole[: whole.index(stop)]
    assert outcome["finish_reason"] == "stop"


def test_logprobs_are_shown_if_asked_for(call: Call, engine: Path):
    found = call("run", engine, "import ", "--max-tokens", 3, "--logprobs", 2, "--json").json["logprobs"]
    assert [len(one["top"]) for one in found] == [2, 2, 2]
    assert all(one["logprob"] <= 0 for one in found)


def test_a_user_cannot_spell_a_special_token_unless_allowed(call: Call, engine: Path):
    arguments = ("run", engine, "<|end_of_turn|>", "--max-tokens", 1, "--show-prompt")
    plain, special = call(*arguments).err, call(*arguments, "--special").err
    assert "       4  '<|end_of_turn|>'" not in plain
    assert "       4  '<|end_of_turn|>'" in special


def test_a_prompt_comes_from_stdin_as_it_is(engine: Path):
    out, _ = start("run", engine, "-", "--max-tokens", 1, "--json").communicate("é\n".encode())
    assert json.loads(out)["prompt_tokens"] >= 3


def test_prompt_files_give_a_line_each_in_order(call: Call, engine: Path, tmp_path: Path):
    lines = [{"prompt": "def a(", "max_tokens": 2}, {"tokens": [0, 5, 9]}, {"prompt": "class B", "max_tokens": 9}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = call("run", engine, "--prompts", tmp_path / "p.jsonl", "--max-tokens", 4, "--temperature", 0)
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.code == 0
    assert [one["completion_tokens"] for one in found] == [2, 4, 9]
    alone = call("run", engine, "def a(", "--max-tokens", 2, "--temperature", 0, "--json").json
    assert found[0]["token_ids"] == alone["token_ids"]


def test_a_failing_line_leaves_the_others(call: Call, engine: Path, tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "temperature": 9}\n{"prompt": "b", "max_tokens": 1}\n')
    outcome = call("run", engine, "--prompts", tmp_path / "p.jsonl")
    first, second = (json.loads(line) for line in outcome.out.splitlines())
    assert outcome.code == first["error"]["exit_code"] == 2
    assert "temperature" in first["error"]["message"]
    assert second["completion_tokens"] == 1


def test_a_prompt_beyond_the_context_is_refused_with_counts(call: Call, engine: Path):
    outcome = call("run", engine, "x " * 600, "--json")
    assert outcome.code == 2
    assert "512" in outcome.json["error"]["message"]


def test_chat_without_a_template_is_refused(call: Call, engine: Path):
    outcome = call("run", engine, "hello", "--chat")
    assert outcome.code == 3
    assert "no chat template in the checkpoint" in outcome.err

    process = start("run", engine, "--chat")
    out, err = process.communicate(b"")
    assert (process.returncode, out) == (3, b""), "refused before the first message"
    assert b"no chat template in the checkpoint" in err


def test_chat_answers_one_message_or_holds_a_conversation(call: Call, tmp_path: Path):
    shutil.copytree(PICO, tmp_path / "c")
    (tmp_path / "c/chat_template.jinja").write_text(CHAT_TEMPLATE)
    path = tmp_path / "chat.llmc"
    assert call("build", tmp_path / "c", "-o", path, "--quantize", "int4").code == 0
    arguments = ("run", path, "--chat", "--max-tokens", 3, "--temperature", 0, "--json")

    outcome = call(*arguments, "hi <|end_of_turn|>", "--system", "be brief", "--show-prompt")
    assert outcome.err.count("<|end_of_turn|>") == 2, "two messages end, the user's spelling is plain text"

    out, err = start(*arguments).communicate(b"hi\r\n\nand you?\n")
    first, second = (json.loads(line) for line in out.decode().splitlines())
    assert second["prompt_tokens"] > first["prompt_tokens"] + first["completion_tokens"], err

    process = start(*arguments)
    _, err = process.communicate(b"\xff\n")
    assert process.returncode == 2
    assert b"expected UTF-8 text in stdin\n  found: byte 0" in err
    code, shown = at_a_terminal([*map(str, arguments[:-1])], [b"hi\r", b"\x04"])
    assert code == 0 and shown.count("> ") == 2 and "3 tokens at" in shown, shown


@pytest.mark.parametrize("arguments", [("-",), ("--prompts", "-"), ("--chat",)])
def test_a_closed_stdin_is_refused(engine: Path, arguments: tuple[str, ...], tmp_path: Path):
    path = engine
    if arguments == ("--chat",):
        shutil.copytree(PICO, tmp_path / "c")
        (tmp_path / "c/chat_template.jinja").write_text(CHAT_TEMPLATE)
        path = tmp_path / "chat.llmc"
        assert run(["build", str(tmp_path / "c"), "-o", str(path), "--quantize", "int4"]) == 0
    command = shlex.join([sys.executable, "-m", "llmc", "run", str(path), *arguments]) + " <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "llmc: cannot read stdin\n  found: it is closed\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_keep_what_was_printed(engine: Path, number: signal.Signals, code: int):
    with long_run(engine) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert first + out
    assert b"Traceback" not in err


def test_a_broken_pipe_ends_silently(engine: Path):
    with long_run(engine) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 141
    assert err == b""


def test_inspect_shows_the_checkpoint(call: Call):
    outcome = call("inspect", PICO, "--json")
    assert outcome.code == 0
    assert outcome.json["architecture"] == "LlamaForCausalLM"
    assert (outcome.json["tensors"], outcome.json["dtypes"]) == (74, {"BF16": 74})
    assert outcome.json["tied"] is True
    assert "use_cache" in outcome.json["ignored_config"]
    assert "74 tensors, 14.01 MiB: 74 BF16" in call("inspect", PICO).out


def test_inspect_shows_the_engine(call: Call, engine: Path):
    outcome = call("inspect", engine, "--json")
    assert outcome.code == 0
    assert {"model", "formats", "profiles", "sections", "bytes"} <= set(outcome.json)
    assert outcome.json["bytes"] == engine.stat().st_size
    assert set(outcome.json["formats"].values()) == {"int8"}
    assert "profile cpu: target cpu, context 512, batch 8" in call("inspect", engine).out


def test_inspect_shows_what_it_can_of_a_newer_engine(call: Call, engine: Path, tmp_path: Path):
    newer = tmp_path / "newer.llmc"
    data = engine.read_bytes()
    assert data.count(b'\\"format\\":\\"2.0\\"') == 1
    newer.write_bytes(data.replace(b'\\"format\\":\\"2.0\\"', b'\\"format\\":\\"9.0\\"'))
    outcome = call("inspect", newer, "--json")
    assert outcome.code == 3
    assert outcome.json["manifest"]["format"] == "9.0"
    assert outcome.json["error"]["class"] == "EngineError"
    assert '"LlamaForCausalLM"' in call("inspect", newer).out


def test_inspect_says_that_nothing_is_quantized(call: Call, tmp_path: Path):
    assert call("build", PICO, "-o", tmp_path / "x.llmc").code == 0
    assert "MiB; modules: none quantized\n" in call("inspect", tmp_path / "x.llmc").out


def test_verify_replays_the_probe(call: Call, engine: Path):
    outcome = call("verify", engine, "--json")
    assert outcome.code == 0
    assert outcome.json["ok"] is True
    assert outcome.json["max_error"] <= outcome.json["tolerance"]
    assert "all digests match" in call("verify", engine).out


def test_verify_names_the_damaged_tensor_and_run_refuses_it(call: Call, engine: Path, tmp_path: Path):
    damaged = tmp_path / "damaged.llmc"
    data = bytearray(engine.read_bytes())
    name = "model.layers.3.mlp.down_proj.weight"
    with EngineFile.open(engine) as opened:
        data[opened.tensors[name].offset + 5] ^= 1
    damaged.write_bytes(data)
    outcome = call("verify", damaged, "--json")
    assert outcome.code == 1
    assert name in outcome.json["error"]["message"]
    outcome = call("run", damaged, "x", "--verify", "full")
    assert outcome.code == 3
    assert name in outcome.err
