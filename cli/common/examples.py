"""Examples at the end of each --help: what one does, and its line. A test runs those that a CPU can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "": (
        ("make an engine of a checkpoint", "llmc build ./model -o model.llmc --quantize int8"),
        ("run it", "llmc run model.llmc 'def main('"),
        ("the recipes that come with llmc", "llmc recipes"),
    ),
    "build": (
        ("for any CPU, half the bytes of bf16", "llmc build ./model -o model.llmc --quantize int8"),
        ("for a CPU and an H100 that need not be here", "llmc build ./model -o model.llmc --target cpu,h100"),
        (
            "with the split that a plan chooses",
            "llmc build ./model -o model.llmc --quantize fp8 --parallel auto --for 8xh200",
        ),
        ("by a bundled recipe", "llmc build ./model -o model.llmc --recipe cpu-int4"),
    ),
    "run": (
        ("continue a text", "llmc run model.llmc 'def main(' --max-tokens 64"),
        ("hold a conversation", "llmc run model.llmc --chat"),
        ("build a checkpoint once, and run it from the cache", "llmc run ./model 'def main('"),
        ("many prompts at once, one JSON object a line", "llmc run model.llmc --prompts prompts.jsonl > answers.jsonl"),
    ),
    "plan": (
        ("the best split and format for a machine", "llmc plan ./model --for 8xh200 --goal 'throughput,tpot<=40ms'"),
        ("the frontier as a picture", "llmc plan ./model --for 4xh100 --quantize fp8,int4 --chart frontier.svg"),
        ("the cheapest machine for a goal, by a config.json alone", "llmc plan config.json --goal 'ttft<=500ms'"),
    ),
    "families": (
        ("all of them", "llmc families"),
        ("what one has beyond Llama", "llmc families qwen3"),
    ),
    "recipes": (
        ("all of them", "llmc recipes"),
        ("begin one of your own", "llmc recipes cpu-int4 > mine.yaml"),
    ),
    "passes": (("how often each pass fired, and its nearest miss", "llmc passes ./model --quantize int4"),),
    "verify": (("every byte, and the numbers of this machine", "llmc verify model.llmc"),),
    "eval": (
        ("perplexity of a text", "llmc eval model.llmc --text held-out.txt"),
        ("what quantizing has cost", "llmc eval model.llmc --text held-out.txt --baseline ./model"),
        (
            "fail if it is too much",
            "llmc eval model.llmc --text held-out.txt --baseline ./model --gate 'kl_mean<=0.01'",
        ),
        ("two engines in one table", "llmc eval model.llmc other.llmc --text held-out.txt --format md"),
    ),
    "bench": (
        ("speed of prompts of 128 tokens", "llmc bench model.llmc --prompt-tokens 128 --new-tokens 64"),
        ("a sweep that fails below a speed", "llmc bench model.llmc -p 128,256 -n 64 -b 1,8 --gate 'decode>=30'"),
    ),
    "inspect": (
        ("the facts of an engine or a checkpoint", "llmc inspect model.llmc"),
        ("what each launch costs on a GPU", "llmc inspect model.llmc --launches --for h100"),
    ),
    "doctor": (
        ("what this machine has", "llmc doctor"),
        ("whether an engine runs on a GPU that is not here", "llmc doctor model.llmc --for h100"),
    ),
    "kernels": (("registers and spills of the kernels for a chip", "llmc kernels --sm h100"),),
    "cache": (
        ("the engines that llmc run has built", "llmc cache list"),
        ("bytes by kind", "llmc cache du"),
        ("remove what was not used for a month", "llmc cache rm --older-than 30d"),
    ),
    "tune": (("measure tiles, for the next build", "llmc tune model.llmc -o h100.yaml"),),
}
"""By command; "" is `llmc` alone."""
