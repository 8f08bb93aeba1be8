"""Lines of code per folder, held in one table: what a feature costs is said in the commit that adds it.

`make sizes` prints the table. A folder that grows beyond its number fails the test: raise it in the same commit, with
the reason beside it; a folder that shrinks by more than SLACK fails too: lower it.
"""

from __future__ import annotations

import ast
import io
import tokenize
from functools import cache

from support.paths import PACKAGE, ROOT

SLACK = 20
"""Lines below its number that a folder may have."""
HELD: dict[str, int] = {
    ".": 181,  # plan; calls that do not fit their parameters are refused
    "cli": 157,  # --debug for every command; --format json; a refusal of the system names its path
    "cli/cache": 190,  # llmc run CHECKPOINT, llmc cache
    "cli/commands": 1600,  # kernels --evidence; doctor --measure; run --image
    "cli/common": 731,  # examples of llmc families; a flag given twice and an empty value are refused
    "cli/facts": 406,  # llmc families; small_builds.py: what doctor --measure learns of builds
    "cli/judge": 527,  # forecasts; gates, sweeps, tables of several engines, token ids and JSON lines
    "cli/plan": 318,  # llmc plan, --chart
    "cli/prompts": 665,  # messages, ids, OpenAI's batch lines
    "compiler": 543,  # kernel_imports.py: plans without torch; page.py: a dump as one page; resume
    "compiler/cache": 484,  # engines that llmc run builds
    "compiler/checkpoint": 1002,  # card.py: name and licence of a model
    "compiler/checkpoint/weights": 547,  # layout.py: prefixes, and tensors within larger ones
    "compiler/config": 508,  # foreign.py: what is missing of models that are refused by name
    "compiler/coverage": 253,  # the table of families: features, formats, targets, splits
    "compiler/decoder": 689,  # weights.py and rotary.py: norms, ropes and parts of many kinds
    "compiler/deploy": 770,  # around the planner: what was asked, models, records, the frontier, builds by a plan
    "compiler/engine": 777,  # report.py and memory planning came from build.py
    "compiler/families": 1006,  # one place for what 50 families read: layers, experts, latents
    "compiler/families/biased": 277,  # five families whose experts a bias chooses
    "compiler/families/latents": 240,  # seven families with latent attention
    "compiler/families/llamas": 295,  # twelve families
    "compiler/families/mixtures": 407,  # eight families with experts
    "compiler/families/norms": 371,  # nine families
    "compiler/families/others": 191,  # six families
    "compiler/oracle": 454,
    "compiler/planner": 1233,
    "compiler/targets": 107,  # tactics came from cuda/tuning, CompiledProfile
    "compiler/targets/cpu": 1075,  # attention with caps, sinks and shared caches; activations without a gate
    "compiler/targets/cuda": 1188,  # fuse_attention.py, gaps.py; operators by themselves went to lower
    "compiler/targets/cuda/cubins": 1021,  # native.py, nvrtc.py: kernels in CUDA C++
    "compiler/targets/cuda/evidence": 206,  # native kernels beside Triton's, from machine code
    "compiler/targets/cuda/kernels": 1274,  # one check of kernel files for reports and all others
    "compiler/targets/cuda/kernels/attention": 937,  # rope_reference.py
    "compiler/targets/cuda/kernels/latent": 1004,
    "compiler/targets/cuda/kernels/linear": 1495,  # routes of tiles
    "compiler/targets/cuda/kernels/linear/native": 206,  # calls, cases and tiles of two kernels in CUDA C++
    "compiler/targets/cuda/kernels/linear/parts": 527,
    "compiler/targets/cuda/kernels/moe": 1043,
    "compiler/targets/cuda/kernels/sampling": 958,
    "compiler/targets/cuda/lower": 522,  # attention, norms and single elements of all families
    "compiler/targets/cuda/tuning": 506,
    "compiler/targets/null": 11,
    "compiler/targets/simulate": 367,  # quick.py: simulated steps take half the time
    "compiler/tokens": 287,
    "compiler/vision": 201,  # text models of checkpoints of images
    "passes": 879,  # crossings.py; norms of all heads on ranks; caps, factors and activations
    "passes/graph": 1369,  # saved.py: graphs as files and back; activations.py: what 4-bit activations mean
    "passes/rewrite": 410,  # captures are named, typed and checked when a rule is made; named depths
    "quantize": 255,  # activations.py: 4-bit activations
    "quantize/formats": 254,
    "recipes": 718,  # goal.py and units.py: goals of plans; which activations go with which weights
    "recipes/machines": 233,
    "runtime": 1264,  # several engines are scored at once; a device is made of contents; the probe is replayed in steps
    "runtime/costs": 758,  # steps of cpu profiles are priced from measured facts
    "runtime/cpu": 894,  # notes
    "runtime/cuda": 1308,  # tensor_maps.py
    "runtime/cuda/exchange": 236,
    "runtime/engine_file": 1229,  # info.py: what an engine says of itself
    "runtime/files": 692,  # an older output in an input folder
    "runtime/guard": 212,
    "runtime/parallel": 893,
    "runtime/parallel/data": 548,
    "runtime/plan": 1107,  # where PTX lies
    "runtime/ranks": 556,
    "runtime/sampling": 245,
    "runtime/scheduling": 688,  # notes
    "runtime/text": 746,  # images.py: refused; templates that want parts
    "runtime/text/template": 1083,
}
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Lines that hold code: not blank, no comment, and no string that stands alone (docstrings)."""
    documentation = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documentation)


@cache
def sizes() -> dict[str, int]:
    """Lines of code of every folder of the package that has Python files of its own, by path; "." is the root."""
    folders = [".", *sorted({str(p.parent.relative_to(ROOT)) for top in PACKAGE for p in (ROOT / top).rglob("*.py")})]
    return {
        folder: sum(code_lines(path.read_text(encoding="utf-8")) for path in (ROOT / folder).glob("*.py"))
        for folder in folders
    }


def main() -> None:
    """Print each folder's lines, the number held, and the difference."""
    found = sizes()
    for folder, lines in found.items():
        held = HELD.get(folder, 0)
        print(f"{folder:40} {lines:6} {held:6} {lines - held:+5}")
    print(f"{'all':40} {sum(found.values()):6} {sum(HELD.values()):6} {sum(found.values()) - sum(HELD.values()):+5}")


if __name__ == "__main__":
    main()
