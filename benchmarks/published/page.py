"""docs/planner.md: predicted against published, as a page of tables made of the results alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import Any

from .ablation import FP4_PRODUCTS, FP8_ATTENTION
from .figures import EXPERTS, GPT_OSS, LARGE_EXPERTS, MODELOPT, ON_B200, SWEEP

Row = Mapping[str, Any]
_HEAD = """\
# The planner: predicted against published

Written by `python benchmarks/planner.py` on {date}, from `benchmarks/results/planner.json`, in half a minute and
without a GPU. With `--fit` it fits the constants again, in two more minutes.

The planner prices every launch of the plan that llmc would build: its bytes and operations as the plan says them,
collectives by the links between the GPUs, gaps between launches, stages that wait. Eight constants say what share of a
data sheet a well-tuned engine reaches. Seven are **fitted to the three H100 columns below and to nothing else**, one is
AIConfigurator's; none belongs to a row, a model or a chip. All else is predicted. (How the terms add up was chosen with
all figures in view.) Tests hold the H200 columns (median error at most 15 %, worst 35 %), the ratios of tensor and
pipeline parallelism (within 25 %), the order and scaling of stages over PCIe, and the time per token of three rows of
Qwen3 32B (within 25 %).

The published engines are TensorRT-LLM, vLLM and SGLang. **llmc's own kernels have not been measured on a GPU**: a
figure of the planner is that of a well-tuned stack which runs llmc's plan. As many requests run at once as the
runtime's own budget has memory for, up to 2,048, and a step reads at most 8,192 tokens of prompts: TensorRT-LLM's
defaults. With FP8 and FP4 weights, activations and cache are FP8 and the head is bf16, unless a row says otherwise;
beside MXFP4 experts all else is bf16. All_reduces may be one-shot kernels, which these engines have beside NCCL's;
`llmc plan` prices NCCL's, which llmc calls. A figure in brackets is the same row with one term put in that llmc's plans
lack; see the end.

![Predicted against published throughput](planner.svg)
"""
_CONSTANTS = {
    "memory": "share of a chip's bandwidth, by launches; not fitted: what AIConfigurator takes for all GPUs",
    "cache": "share of a chip's bandwidth, by attention's reads of the cache; 0.95 is the most that the fit allows",
    "product": "share of a chip's FLOP/s for the numbers that are multiplied, by matrix products",
    "attention": "share of a chip's 16-bit FLOP/s, by attention and all other launches that are no products",
    "link": "share of the speed of collectives measured alone (`recipes/machines/links/`), by those of a step",
    "launch": "seconds from the end of a launch to the start of the next",
    "step": "seconds of the host for a step in which the GPU waits: next to none, as the host works ahead",
    "sequence": "seconds of the host for each sequence of a step",
}
_FORMULAS = """
A launch takes sqrt((bytes / (bandwidth x `memory`))^2 + (operations / (FLOP/s x share))^2) + `launch`: reading and
computing overlap but for a part. `product` is the share of products, of the FP8 or FP4 rate if they multiply that, and
`attention` that of all other launches, of the 16-bit rate. Attention's reads of earlier positions are added for a
stage as a whole: for a step that decodes with `cache` in place of `memory`, for tokens of prompts by their operations
alone. A collective takes its link's time / `link`. The first stage also waits `step` + `sequence` x sequences.
A pipeline's groups of requests take as long as all stages together, or as its longest stage times the groups.
"""
_RATIOS = """
## Tensor against pipeline parallelism: held out

Llama 405B in FP8 on 8 H200. {source}. The ratios are published; the tokens/s beside them are recalled and were not
seen at their source.

| | input/output | ratio | predicted | tokens/s of tp8, pp8 | predicted |
|---|---|---|---|---|---|
"""
_RATIO_NAMES = {"latency": "one request: tp8 over pp8", "throughput": "as many as fit: pp8 over tp8"}
_LATENCIES = """
## Time per token with few requests

{source}.

| | input/output | requests | used as | tpot, ms | predicted | | ttft, ms | predicted |
|---|---|---|---|---|---|---|---|---|
"""
_SCHEDULES = """
SGLang mixes no prompts into decode steps unless it is started with `--enable-mixed-chunk` (its server arguments), so
prompts of requests that are alike are read in waves (`Server.waves`); by the schedule of the others its time per token
would be {mixed:.2f}x. The predicted ttft of those begins with the first step of a prompt; the published one also holds
the wait for prompts that came at the same time.
"""
_MISSES = """
## What is missed, and the term that is missing

* **{fp4_products}.** These rows are priced with FP8 activations: llmc's plans multiply FP8 from copies of 4-bit
  weights, or expand them in each step where memory is short; TensorRT-LLM multiplies FP4. With llmc's plans of 4-bit
  activations the median error over PCIe goes from {sweep} to {sweep_with}. On B200 the median ratio goes
  from {b200:.2f}x to {b200_with:.2f}x: something there reaches less than the shares fitted on H100, and
  these figures do not say what.
* **{fp8_attention}.** ModelOpt's checkpoints have scales for it, and llmc's attention multiplies 16-bit numbers. At
  twice the rate the median error of its rows goes from {modelopt} to {modelopt_with}.
* **Waits in a long pipeline.** With products of FP4 one stage is {one_stage} and eight are {eight_stages} of what
  is published. The model's groups of requests take equal steps; an engine's do not, and its stages wait for each other.
  That is a guess: no ablation shows it.
* **Queues.** A ttft under load holds the wait for a free place and for other prompts; the planner's does not.
* **Experts.** A step is priced as reading the experts that its tokens are expected to choose, all alike: of E experts,
  of which a token chooses k, E x (1 - (1 - k / E)^tokens). Real routers are less even, and then fewer are read. llmc's
  experts multiply 16-bit numbers whatever their format; at the rate of FP8 the median error of the large model goes
  from {large} to {large_with}, at that of FP4 of the small one from {experts} to {experts_with}. GPT-OSS is
  {hopper} on Hopper and {blackwell} on B200. Tensor parallelism of a small mixture over PCIe is bound by
  AllReduce here, {tp8} with 8 GPUs; what the published engine does there instead, the figures do not say. No constant
  was fitted to these rows.
* **Not priced:** {not_priced}.
"""


def written(found: Mapping[str, Any]) -> str:
    """`found` is what `evaluate.evaluated` gives, with its date."""
    parts = [_HEAD.format(date=found["date"]), *_summary(found), *_constants(found), _FORMULAS]
    for table in found["tables"]:
        parts += [f"\n## {table['title']}: {table['role']}\n\n{table['source']}.\n\n", *_table(table)]
    return "".join([*parts, *_ratios(found["ratios"]), *_latencies(found["latencies"]), _misses(found)])


def _summary(found: Mapping[str, Any]) -> Iterator[str]:
    yield "\n| figures | number | used as | median error | worst | with the missing term: median | worst |\n"
    yield "|---|---|---|---|---|---|---|\n"
    for table in found["tables"]:
        errors = [_percent(one[key]) if one else "" for one in _summaries(table) for key in ("median", "worst")]
        yield f"| {table['title']} | {len(table['rows'])} | {table['role']} | {' | '.join(errors)} |\n"


def _summaries(table: Row) -> tuple[Row, Row | None]:
    return table, table.get("with_missing")


def _constants(found: Mapping[str, Any]) -> Iterator[str]:
    yield "\n## Constants\n\n| name | value | what it is |\n|---|---|---|\n"
    for name, value in found["constants"].items():
        yield f"| `{name}` | {value:.3g} | {_CONSTANTS[name]} |\n"


def _table(table: Row) -> Iterator[str]:
    """A row for each load, and a column for each deployment: published, predicted and the ratio of both."""
    columns = {key: list(rows) for key, rows in groupby(table["rows"], key=_deployment)}
    loads = dict.fromkeys(_load(row) for row in table["rows"])
    yield f"| input/output | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|\n"
    for load in loads:
        cells = [next((_cell(row) for row in rows if _load(row) == load), "") for rows in columns.values()]
        yield f"| {load} | {' | '.join(cells)} |\n"


def _deployment(row: Row) -> str:
    return f"{row['model']}, {row['machine']}, {row['split']}, {row['format']}"


def _load(row: Row) -> str:
    return f"{row['input']}/{row['output']}"


def _cell(row: Row) -> str:
    published = row["published"]
    cell = f"{_number(published)}: {_number(row['predicted'])}, {row['predicted'] / published:.2f}x"
    return f"{cell} ({row['with_missing'] / published:.2f}x)" if "with_missing" in row else cell


def _ratios(found: Row) -> Iterator[str]:
    yield _RATIOS.format(source=found["source"])
    for row in found["rows"]:
        published, predicted = (_pair(row[f"{key}_tokens_per_s"]) for key in ("published", "predicted"))
        ratios = f"{row['published']} | {row['predicted']:.2f}"
        yield f"| {_RATIO_NAMES[row['name']]} | {_load(row)} | {ratios} | {published} | {predicted} |\n"


def _latencies(found: Row) -> Iterator[str]:
    yield _LATENCIES.format(source=found["source"])
    for row in found["rows"]:
        published, predicted = row["published_tpot_ms"], row["predicted_tpot_ms"]
        cells = [f"{_deployment(row)}; {row['engine']}", _load(row), row["requests"], row["role"]]
        cells += [f"{published:.1f}", f"{predicted:.1f}", f"{predicted / published:.2f}x"]
        cells += [f"{row[f'{key}_ttft_ms']:,.0f}" for key in ("published", "predicted")]
        yield f"| {' | '.join(map(str, cells))} |\n"
    waves = next(row for row in found["rows"] if row["schedule"] == "waves")
    yield _SCHEDULES.format(mixed=waves["mixed_tpot_ms"] / waves["published_tpot_ms"])


def _misses(found: Mapping[str, Any]) -> str:
    tables = {table["title"]: table for table in found["tables"]}
    b200, sweep, modelopt, large, experts, gpt_oss = (
        tables[one.title] for one in (ON_B200, SWEEP, MODELOPT, LARGE_EXPERTS, EXPERTS, GPT_OSS)
    )
    return _MISSES.format(
        fp4_products=FP4_PRODUCTS,
        fp8_attention=FP8_ATTENTION,
        sweep=_percent(sweep["median"]),
        sweep_with=_percent(sweep["with_missing"]["median"]),
        b200=median(_ratios_of(b200, "predicted")),
        b200_with=median(_ratios_of(b200, "with_missing")),
        modelopt=_percent(modelopt["median"]),
        modelopt_with=_percent(modelopt["with_missing"]["median"]),
        one_stage=_range(sweep, "tp1"),
        eight_stages=_range(sweep, "pp8"),
        not_priced=found["not_priced"],
        hopper=_on(gpt_oss, ("1xh100", "1xh200")),
        blackwell=_on(gpt_oss, ("1xb200",)),
        tp8=_range(experts, "tp8", "predicted"),
        large=_percent(large["median"]),
        large_with=_percent(large["with_missing"]["median"]),
        experts=_percent(experts["median"]),
        experts_with=_percent(experts["with_missing"]["median"]),
    )


def _ratios_of(table: Row, key: str) -> list[float]:
    return [row[key] / row["published"] for row in table["rows"]]


def _range(table: Row, split: str, key: str = "with_missing") -> str:
    found = [row[key] / row["published"] for row in table["rows"] if row["split"] == split]
    return f"{min(found):.2f}x to {max(found):.2f}x" if len(found) > 1 else f"{found[0]:.2f}x"


def _on(table: Row, machines: Sequence[str]) -> str:
    found = [row["predicted"] / row["published"] for row in table["rows"] if row["machine"] in machines]
    return f"{min(found):.2f}x to {max(found):.2f}x"


def _pair(values: Sequence[float]) -> str:
    return ", ".join(map(_number, values))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
