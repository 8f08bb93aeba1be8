"""`llmc bench`: how fast an engine reads and writes here, and how near that is to the memory's limit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ..common import console, huge_pages, options, progress
from ..common.options import flag
from ..judge import forecast, rows, speed, subjects, trust
from ..judge.rows import Column

_TEXT = """\
{engine}: profile {profile}, {threads} thread{threads!s}, batch {batch}, loaded in {load_s:.2f} s
  prefill {prefill:.1f} tokens/s ({prompt_tokens} tokens a prompt, first token after {ttft:.3f} s)
  decode  {decode:.1f} tokens/s (median of {repeat} runs of {new_tokens} tokens)
  weights {weight_bytes_per_step!b} a step, {weight_bytes_per_s!g:.2f} GB/s: {percent:.0f} % of the \
{memory_bytes_per_s!g:.1f} GB/s that {threads} thread{threads!s} can read here"""
_FORECAST = """
  predicted / actual: prefill {expected_prefill:.1f} / {prefill:.1f} tokens/s ({prefill_ratio:.2f}), \
decode {expected_decode:.1f} / {decode:.1f} tokens/s ({decode_ratio:.2f})"""
_COLUMNS = (
    Column("prompt_tokens", "prompt"),
    Column("new_tokens", "new"),
    Column("batch", "batch"),
    Column("prefill", "prefill, tokens/s", "{:.1f}".format),
    Column("ttft", "first token, s", "{:.3f}".format),
    Column("decode", "decode, tokens/s", "{:.1f}".format),
    Column("weight_bytes_per_s", "weights, GB/s", lambda value: f"{value / 1e9:.2f}"),
    Column("memory_share", "of memory", lambda share: f"{100 * share:.0f} %"),
)
_EXPECTED = Column("predicted", "decode predicted", lambda one: f"{one['decode']:.1f}")


def bench(
    engine: options.EngineFile,
    prompt_tokens: Annotated[
        str, flag("--prompt-tokens", "Tokens of each prompt, such as 128 or 128,512.", short=("-p",), metavar="LIST")
    ] = "128",
    new_tokens: Annotated[
        str, flag("--new-tokens", "Tokens to generate for each prompt.", short=("-n",), metavar="LIST")
    ] = "64",
    batch: Annotated[
        str, flag("--batch", "Prompts at the same time, such as 1,8.", short=("-b",), metavar="LIST")
    ] = "1",
    repeat: Annotated[
        int, flag("--repeat", "Runs, after one to warm up; the median counts.", min=1, max=10_000, metavar="N")
    ] = 3,
    gate: Annotated[list[str] | None, rows.gate_option("decode>=30")] = None,
    profile: options.Profile = None,
    threads: options.Threads = None,
    trusted: trust.Trust = None,
    form: rows.FormOption = None,
    json: options.Json = False,
) -> None:
    """Measure prefill and decode speed.

    After `llmc doctor --measure` it also says what was predicted.
    """
    from ...recipes.metrics import gates_for
    from ...runtime.load import load
    from ...runtime.machine import cpu_count, read_bandwidth

    how = rows.form_of(form, json)
    gates = gates_for("bench", gate or ())
    judge = trust.judge(trusted, quiet=how == "json")
    huge_pages.ensure(Path(engine))
    judged = subjects.subject(engine, profile)
    loads = speed.sweep(prompt_tokens, new_tokens, batch, judged)
    used = threads or cpu_count()
    same: dict[str, Any] = {"engine": engine, "profile": judged.profile, "threads": used, "repeat": repeat}
    same["memory_bytes_per_s"] = round(read_bandwidth(used))
    found: list[dict[str, Any]] = []
    expected = forecast.of_loads(judged, used, loads)
    with progress.loading(Path(engine), quiet=how == "json"):
        opened = load(engine, judged.profile, threads=threads, max_batch=max(one.batch for one in loads), judge=judge)
    with opened as loaded:
        speed.refuse_smaller(loaded, loads)
        for said in loaded.notes:
            console.note(f"llmc: {said}")
        same["load_s"] = round(loaded.load_s, 4)
        for index, (one, predicted) in enumerate(zip(loads, expected, strict=True), start=1):
            if how != "json":  # a line, and no bar: a thread that draws takes time from what is measured
                console.note(f"measuring {_name(vars(one))} ({index} of {len(loads)})")
            found.append(_row(same, judged, one, speed.measure(loaded, one, repeat), predicted))
    columns = _COLUMNS if None in expected else (*_COLUMNS, _EXPECTED)
    rows.show(found, gates, how, rows.Shown(columns, _text, _name))


def _row(
    same: dict[str, Any],
    judged: subjects.Subject,
    load: speed.Load,
    measured: speed.Speed,
    predicted: forecast.Forecast | None,
) -> dict[str, Any]:
    groups = min(judged.stages, load.batch)  # each reads all weights of a stage
    weights = judged.step_bytes * groups
    per_s = weights * measured.decode / load.batch
    return {
        **same,
        **console.facts(load, "prompt_tokens", "new_tokens", "batch"),
        "ttft": round(measured.ttft, 4),
        "prefill": round(load.batch * load.prompt_tokens / measured.ttft, 2),
        "decode": round(measured.decode, 2),
        "weight_bytes_per_step": weights,
        "weight_bytes_per_s": round(per_s),
        "memory_share": round(per_s / same["memory_bytes_per_s"], 4),
        "predicted": None if predicted is None else {name: round(one, 4) for name, one in vars(predicted).items()},
    }


def _text(row: rows.Row) -> str:
    text = console.fill(_TEXT, row, percent=100 * row["memory_share"])
    expected = row["predicted"]
    if expected is None:
        return text
    ratios = {f"{name}_ratio": expected[name] / row[name] for name in ("prefill", "decode")}
    return text + console.fill(
        _FORECAST, row, expected_prefill=expected["prefill"], expected_decode=expected["decode"], **ratios
    )


def _name(row: rows.Row) -> str:
    return f"{row['prompt_tokens']} + {row['new_tokens']} tokens, batch {row['batch']}"
