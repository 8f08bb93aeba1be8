"""Compiles the kernels of a finished engine again and compares bytes: is its machine code from these sources?"""

from __future__ import annotations

from dataclasses import asdict

from .....runtime.cuda.contents import EngineContents
from .....runtime.engine_file.file import EngineFile
from .....runtime.errors import EngineError, VerifyError
from .....runtime.plan.plan import Plan
from .....runtime.progress import NO_PROGRESS, Progress
from ..kernels import suites
from .cache import KernelCache, Tools, source_digest
from .compile import Specialization, compile_all, need_compiler, specialized

PIN = {"triton": "triton==", "ptxas": "nvidia-cuda-nvcc==", "nvrtc": "nvidia-cuda-nvrtc=="}
"""pip's requirement for a version of each tool."""
_LAUNCHED_WITH = ("entry", "shared", "pdl", "global_scratch", "profile_scratch")
"""Facts of the code that a launch relies on: with less scratch than it needs, it would write elsewhere."""
_NO_CACHE = KernelCache(None)


def judge(engine: EngineFile, profile: str, progress: Progress = NO_PROGRESS) -> None:
    """As `rebuild`, but what this machine's llmc has compiled of the same sources before is not compiled again.

    Raises the errors of `rebuild`.
    """
    rebuild(engine, profile, progress, KernelCache.default())


def rebuild(engine: EngineFile, profile: str, progress: Progress, cache: KernelCache = _NO_CACHE) -> int:
    """Compile every kernel of a GPU profile and compare; returns the number of kernels. Without `cache` all are made.

    Raises:
        EngineError: it was built by other tools or from other kernels, so its bytes need not agree.
        ResourceError: Triton is not installed.
        VerifyError: machine code differs; names the kernels.
    """
    need_compiler()
    facts = engine.profile(profile)
    what = f"{engine.path}: {facts.graph}"
    plan = Plan.from_json(engine.section(facts.graph), what=what)
    _same_tools(engine, plan)
    specializations = specializations_of(plan, what)
    cubins = compile_all(specializations, plan.sm, progress=progress, cache=cache)
    contents = EngineContents(engine, profile)
    wrong = []
    for module, specialization in zip(plan.modules, specializations, strict=True):
        code, made = module.code, cubins[specialization]
        if code is None or (contents.cubin(code, str(specialization)), contents.ptx(code)) != (made.data, made.ptx):
            wrong.append(str(specialization))
        elif any(getattr(code, name) != getattr(made.code, name) for name in _LAUNCHED_WITH):
            wrong.append(f"what {specialization} is launched with")
    if wrong:
        raise VerifyError(
            f"expected the machine code of these sources in profile {profile!r} of {engine.path}",
            found=f"{len(wrong)} of {len(specializations)} kernels differ, first {wrong[0]}",
            fix="do not run it: build the engine again",
        )
    return len(specializations)


def specializations_of(plan: Plan, what: str) -> list[Specialization]:
    """The specialization of each module of a plan; `what` names the plan in errors.

    Raises:
        EngineError: this llmc has no such kernel.
    """
    kernels = {kernel.name: kernel for suite in suites().values() for kernel in suite.kernels}
    if unknown := [module.kernel[:80] for module in plan.modules if module.kernel not in kernels]:
        raise EngineError(f"expected kernels of this llmc in {what}", found=unknown[0], fix="build the engine again")
    return [specialized(kernels[m.kernel], m.constants, m.types, m.warps, m.stages) for m in plan.modules]


def _same_tools(engine: EngineFile, plan: Plan) -> None:
    for tool, here in asdict(Tools.installed()).items():
        built = engine.manifest.tools.get(tool, "none")
        if built != here:
            raise EngineError(
                f"cannot compile the kernels of {engine.path} again",
                found=f"built with {tool} {built}, here is {here}",
                fix=f"pip install '{PIN[tool]}{built.removeprefix('V')}', or build the engine again",
            )
    if plan.kernels != source_digest():
        raise EngineError(
            f"cannot compile the kernels of {engine.path} again",
            found="built from other sources than this llmc has",
            fix=f"llmc {engine.manifest.tools.get('llmc', 'of the build')}, or build the engine again",
        )
