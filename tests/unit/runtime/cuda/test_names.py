"""Names of GPUs, as users type them and drivers report them; `native`; no other generation is ever suggested."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.plans import with_plans

from llmc.recipes.recipe import Recipe, load_recipe, with_flags
from llmc.runtime import profiles
from llmc.runtime.chips import CHIPS, GPUS, TARGETS, target_for
from llmc.runtime.cuda import gpus
from llmc.runtime.cuda.names import capability_of, chip_named, known_capability, targets_of, wrong_target
from llmc.runtime.errors import RecipeError, ResourceError

Call = Callable[..., Outcome]
AS_DRIVERS_SAY: dict[str, tuple[str, str | None]] = {
    "NVIDIA A100-SXM4-80GB": ("sm_80", "a100"),
    "NVIDIA A100-PCIE-40GB": ("sm_80", None),
    "NVIDIA A100-SXM4-40GB": ("sm_80", None),
    "NVIDIA A30": ("sm_80", None),
    "NVIDIA A10": ("sm_86", "a10"),
    "NVIDIA A10G": ("sm_86", None),
    "NVIDIA RTX A6000": ("sm_86", None),
    "NVIDIA GeForce RTX 3090": ("sm_86", "rtx3090"),
    "NVIDIA GeForce RTX 3080 Ti": ("sm_86", None),
    "Orin (nvgpu)": ("sm_87", "orin"),
    "NVIDIA L4": ("sm_89", "l4"),
    "NVIDIA L40S": ("sm_89", "l40s"),
    "NVIDIA L40": ("sm_89", None),
    "NVIDIA RTX 6000 Ada Generation": ("sm_89", None),
    "NVIDIA GeForce RTX 4090": ("sm_89", "rtx4090"),
    "NVIDIA GeForce RTX 4090 D": ("sm_89", None),
    "NVIDIA GeForce RTX 4090 Laptop GPU": ("sm_89", None),
    "NVIDIA H100 80GB HBM3": ("sm_90", "h100"),
    "NVIDIA H100 PCIe": ("sm_90", None),
    "NVIDIA H100 NVL": ("sm_90", None),
    "NVIDIA H200": ("sm_90", "h200"),
    "NVIDIA GH200 480GB": ("sm_90", None),
    "NVIDIA H20": ("sm_90", None),
    "NVIDIA B200": ("sm_100", "b200"),
    "NVIDIA GB200": ("sm_100", "gb200"),
    "NVIDIA B300 SXM6 AC": ("sm_100", "b300"),
    "NVIDIA GeForce RTX 5090": ("sm_120", "rtx5090"),
    "NVIDIA GeForce RTX 5070 Ti": ("sm_120", None),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": ("sm_120", "rtxpro6000"),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": ("sm_120", None),
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": ("sm_120", None),
    "NVIDIA GB10": ("sm_120", "gb10"),
}
"""Names of nvidia-smi: the target, and the chip whose figures are known."""
AS_USERS_TYPE = {
    **dict.fromkeys(("h100", "H100", "h-100", "h100-sxm", "H100 SXM5", "h100sxm", "NVIDIA h100"), "sm_90"),
    **dict.fromkeys(("rtx4090", "RTX 4090", "rtx-4090", "rtx_4090", "GeForce RTX 4090"), "sm_89"),
    **dict.fromkeys(("sm_90", "SM_90", "sm90", "sm-90", "90", "9.0", "sm_90a", "h800"), "sm_90"),
    **dict.fromkeys(("b300", "10.3", "sm_103", "sm_100f", "100", "gb300"), "sm_100"),
    **dict.fromkeys(("gb10", "dgx spark", "12.1", "120"), "sm_120"),
    **{"cpu": "cpu", "CPU": "cpu", "a6000": "sm_86", "l4": "sm_89", "8.6": "sm_86"},
}
OLD = {"v100": "7.0", "T4": "7.5", "rtx 2080 ti": "7.5", "Quadro RTX 6000": "7.5", "p40": "6.1", "gtx1080": "6.1"}
STRANGE = ("h10", "h201", "h1000", "x100", "a1000", "rtx6090", "gpu", "tpu", "sm_91", "75.5", "mi300x", "", "-")


def has(monkeypatch: pytest.MonkeyPatch, *found: gpus.Gpu) -> None:
    """The GPUs of this machine, for this test."""
    detected = gpus.DetectedGpus("13.0", found, "" if found else "the driver sees no GPU")
    monkeypatch.setattr(gpus, "detect", lambda: detected)
    monkeypatch.setattr(profiles, "gpus", lambda: found)


def gpu(name: str, sm: int, memory: int = 80 << 30) -> gpus.Gpu:
    return gpus.Gpu(0, name, sm, memory)


@pytest.mark.parametrize(("name", "target"), AS_USERS_TYPE.items())
def test_names_as_users_type_them(name: str, target: str):
    assert targets_of(name) == (target,) == Recipe(targets=(name,)).targets


@pytest.mark.parametrize(("name", "found"), AS_DRIVERS_SAY.items())
def test_names_as_drivers_report_them(name: str, found: tuple[str, str | None]):
    target, figures = found
    assert targets_of(name) == (target,)
    if figures is not None:
        assert chip_named(name) is CHIPS[figures]
        return
    sm = capability_of(name)
    with pytest.raises(RecipeError, match=rf"^cannot find the figures of '{re.escape(name)}'\n") as refused:
        chip_named(name)
    suggested = refused.value.fix.partition(", of")[0].split(" or ")
    assert suggested == ["one of these"] or {CHIPS[one].sm for one in suggested} == {sm}


def test_every_chip_with_figures_has_its_name_and_its_target():
    for name in GPUS:
        assert chip_named(name.upper()) is CHIPS[name]
        assert targets_of(name) == (target_for(CHIPS[name].sm),)
    for target in TARGETS:
        assert targets_of(target) == (target,)


@pytest.mark.parametrize(("name", "capability"), OLD.items())
def test_gpus_that_are_too_old_are_called_so(name: str, capability: str):
    assert targets_of(name) == ()
    said = f"expected a target, found {name!r} of compute capability {capability}, known"
    assert str(wrong_target(name)).startswith(said)


@pytest.mark.parametrize("name", [*OLD, *STRANGE])
def test_no_name_is_suggested_that_may_be_of_another_generation(name: str):
    """The nearest name of h10 is h100, of v100 also h100, of rtx2080 rtx3090: a list by targets says more."""
    said = str(wrong_target(name))
    assert "did you mean" not in said
    assert said.endswith(
        "known: cpu, native (this machine), sm_80 (a100), sm_86 (a10, rtx3090), sm_87 (orin), "
        "sm_89 (l4, l40s, rtx4090), sm_90 (h100, h200), sm_100 (b200, gb200, b300), sm_120 (rtx5090, rtxpro6000, gb10)"
    )
    with pytest.raises(RecipeError) as refused:
        chip_named(name)
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize("name", STRANGE)
def test_unknown_names_have_no_capability(name: str):
    with pytest.raises(RecipeError, match="cannot find chip"):
        capability_of(name)


def test_native_is_what_this_machine_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    has(monkeypatch, gpu("NVIDIA H200", 90), gpu("NVIDIA L4", 89), gpu("NVIDIA H200", 90))
    assert targets_of("native") == targets_of("Native") == ("sm_90", "sm_89")
    assert with_flags(None, targets="cpu,native").targets == ("cpu", "sm_90", "sm_89")
    (tmp_path / "r.yaml").write_text("version: 1\ntargets: [native]\n")
    assert load_recipe(str(tmp_path / "r.yaml")).targets == ("sm_90", "sm_89")
    assert (chip_named("native"), capability_of("native")) == (CHIPS["h200"], 90)


@pytest.mark.parametrize("found", [(), (gpu("Tesla T4", 75),)])
def test_native_without_a_gpu_that_llmc_builds_for_is_the_cpu(monkeypatch: pytest.MonkeyPatch, found: tuple):
    has(monkeypatch, *found)
    assert targets_of("native") == ("cpu",)


def test_native_where_only_a_gpu_will_do(monkeypatch: pytest.MonkeyPatch):
    has(monkeypatch)
    for ask in (chip_named, capability_of):
        with pytest.raises(
            ResourceError,
            match=r"^cannot find a GPU of this machine\n  found: the driver sees no GPU\n  try: a GPU's name, such as",
        ):
            ask("native")
    assert known_capability("native") is None


@pytest.fixture(scope="module")
def engine(pico_engine: PicoEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles cpu and sm_90."""
    return with_plans(pico_engine("int8"), tmp_path_factory.mktemp("names") / "e.llmc", 90)


@pytest.mark.parametrize("name", ["h200", "H200", "NVIDIA H200", "native"])
def test_every_command_takes_these_names(call: Call, engine: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    has(monkeypatch, gpu("NVIDIA H200", 90))
    assert call("doctor", engine, "--for", name, "--json").json["engine"]["profile"] == "sm_90"
    assert call("inspect", engine, "--launches", "--for", name, "--json").json["chip"]["name"] == "h200"
    assert call("inspect", engine, "--launches", "--profile", name, "--json").json["profile"] == "sm_90"
    assert call("kernels", "--sm", name, "--file", "none").err.startswith("llmc: cannot find kernel file 'none'")


def test_native_of_a_machine_without_a_gpu(call: Call, engine: Path, monkeypatch: pytest.MonkeyPatch):
    has(monkeypatch)
    found = call("doctor", engine, "--for", "native", "--json").json["engine"]
    assert (found["for"], found["profile"], found["do_not_fit"]) == ("native", "cpu", {"sm_90": "no NVIDIA GPU here"})
    assert call("verify", engine, "--profile", "Native", "--json").json["profile"] == "cpu"
    for command in (["inspect", engine, "--launches", "--for", "native"], ["kernels", "--sm", "native"]):
        refused = call(*command)
        assert (refused.code, refused.out) == (4, "")
        assert refused.err.startswith("llmc: cannot find a GPU of this machine\n  found: the driver sees no GPU")
