"""Published throughput and latency of models, as values: what was run, on what, and where it was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmc.runtime.engine_file.split import Split


@dataclass(frozen=True)
class Deployment:
    """A model on a machine."""

    model: str
    """Of `models.py`."""
    chip: str
    tp: int = 1
    pp: int = 1
    recipe: str = "fp8"
    """Of `models.py`."""
    ep: int = 1

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.ep

    @property
    def split(self) -> str:
        return Split(self.tp, self.pp, self.ep).name

    def __str__(self) -> str:
        return f"{self.model}, {self.gpus}x{self.chip}, {self.split}, {self.recipe}"


@dataclass(frozen=True)
class Figure:
    """A published throughput under the largest load."""

    deployment: Deployment
    input: int
    output: int
    tokens_per_s: float
    """Generated, of all GPUs together."""


@dataclass(frozen=True)
class Latency:
    """Published times of a load with a fixed number of requests at once."""

    deployment: Deployment
    engine: str
    input: int
    output: int
    requests: int
    ttft_ms: float
    tpot_ms: float
    waves: bool = False
    """The engine reads prompts alone (`Server.waves`)."""


@dataclass(frozen=True)
class Table:
    """Figures of one source."""

    title: str
    role: str
    """FITTED, HELD_OUT, ORDER or REPORTED."""
    source: str
    figures: tuple[Figure, ...]


FITTED, HELD_OUT, ORDER, REPORTED = "fitted", "held out", "order held out", "reported"
_LOADS = (
    *((128, 128), (128, 2048), (128, 4096), (500, 2000), (1000, 1000)),
    *((1000, 2000), (2048, 128), (2048, 2048), (5000, 500), (20000, 2000)),
)
_LONGER = ((1000, 1000), (1024, 8192), (8192, 1024), (32768, 1024))


def _figures(
    deployment: Deployment, found: Sequence[float | None], loads: Sequence[tuple[int, int]] = _LOADS, gpus: int = 1
) -> Iterator[Figure]:
    """A column; `gpus`: what each of its figures counts, of how many GPUs there are."""
    for (prompt, answer), one in zip(loads, found, strict=True):
        if one is not None:
            yield Figure(deployment, prompt, answer, one * gpus)


_OVERVIEW = "TensorRT-LLM 1.0, docs/source/performance/perf-overview.md"
ON_H100 = Table(
    "H100",
    FITTED,
    _OVERVIEW,
    (
        *_figures(Deployment("Llama 8B", "h100"), (28312, 22714, 14325, 17660, 15220, 13899, 3450, 9305, 3459, 1351)),
        *_figures(Deployment("Llama 70B", "h100", 2), (6378, 6651, 4199, 5222, 4205, 4146, 762, 3082, 898, 437)),
        *_figures(Deployment("Llama 405B", "h100", 8), (3627, 4340, 3116, 3994, 2919, 2895, 453, 2296, 610, 345)),
    ),
)
ON_H200 = Table(
    "H200",
    HELD_OUT,
    _OVERVIEW,
    (
        *_figures(Deployment("Llama 8B", "h200"), (27911, 26221, 18027, 20770, 17744, 16828, 3538, 12194, 3902, 1804)),
        *_figures(Deployment("Llama 70B", "h200"), (3803, 4336, 2872, 3666, 2909, 2994, 442, 2003, 566, 283)),
        *_figures(Deployment("Llama 405B", "h200", 8), (3814, 5348, 4741, 4724, 3330, 3722, 456, 2948, 650, 505)),
    ),
)
ON_B200 = Table(
    "B200 in FP4",
    REPORTED,
    _OVERVIEW,
    (
        *_figures(
            Deployment("Llama 70B", "b200", recipe="nvfp4"),
            (11147, 9922, 6831, 7762, 7007, 6271, 1339, 4783, 1459, 665),
        ),
        *_figures(
            Deployment("Llama 405B", "b200", 4, recipe="nvfp4"),
            (6281, 8020, 6345, 6244, 5209, 4933, 749, 4212, 1048, 672),
        ),
    ),
)
_SWEEP_LOADS = ((128, 128), (1000, 1000), (2048, 2048), (20000, 2000))
SWEEP = Table(
    "RTX PRO 6000 over PCIe in FP4",
    ORDER,
    _OVERVIEW,
    tuple(
        figure
        for stages, found in {
            1: (3264, 1787, 1074, 142),
            2: (6172, 3707, 2336, 319),
            4: (9641, 5961, 3870, 630),
            8: (11881, 8166, 6078, 1148),
        }.items()
        for figure in _figures(Deployment("Llama 70B", "rtxpro6000", 1, stages, "nvfp4"), found, _SWEEP_LOADS)
    ),
)
LARGE_SWEEP = Table(
    "Llama 405B over PCIe in FP4",
    REPORTED,
    _OVERVIEW,
    tuple(
        _figures(
            Deployment("Llama 405B", "rtxpro6000", 1, 8, "nvfp4"),
            (4452, 2369, 579),
            ((128, 128), (1000, 1000), (2048, 128)),
        )
    ),
)
_LATER = "TensorRT-LLM 1.1 and 1.2, docs/source/developer-guide/perf-overview.md, published per GPU"
LATER_FP8 = Table(
    "TensorRT-LLM 1.1 and 1.2, FP8",
    REPORTED,
    _LATER,
    (
        *_figures(Deployment("Llama 70B", "h200", 2), (2587, 2009, 537, 120), _LONGER, 2),
        *_figures(Deployment("Llama 70B", "h100", 2), (2209, None, 398, None), _LONGER, 2),
    ),
)
LATER_FP4 = Table(
    "TensorRT-LLM 1.1 and 1.2, FP4",
    REPORTED,
    _LATER,
    (
        *_figures(Deployment("Llama 70B", "b200", recipe="nvfp4"), (6920, 3242, 1362, 274), _LONGER),
        *_figures(Deployment("Llama 70B", "gb200", recipe="nvfp4"), (7769, 3805, 1491, 302), _LONGER),
    ),
)
MODELOPT = Table(
    "ModelOpt's FP8 recipe",
    REPORTED,
    "NVIDIA's blog on Llama 3.1 405B with ModelOpt, 2024",
    tuple(
        _figures(
            Deployment("Llama 405B", "h200", 8),
            (463.1, 320.1, 71.5),
            ((2048, 128), (32768, 2048), (120000, 2048)),
        )
    ),
)
LARGE_EXPERTS = Table(
    "Experts on H200, FP8",
    REPORTED,
    _OVERVIEW,
    tuple(
        _figures(
            Deployment("Qwen3 235B-A22B", "h200", 8),
            (30429, 42821, 26852, 28026, 23789, 22061, 3331, 16672, 3623, 1876),
        )
    ),
)
EXPERTS = Table(
    "Experts in FP4",
    REPORTED,
    _OVERVIEW,
    (
        *_figures(
            Deployment("Qwen3 30B-A3B", "b200", recipe="nvfp4"),
            (39827, 37844, 24953, 27817, 25828, 22051, 6251, 17554, 6142, 2944),
        ),
        *(
            figure
            for tp, found in {1: 9910, 2: 16431, 4: 24046, 8: 31785}.items()
            for figure in _figures(
                Deployment("Qwen3 30B-A3B", "rtxpro6000", tp, recipe="nvfp4"), (found,), ((1000, 1000),)
            )
        ),
    ),
)
GPT_OSS = Table(
    "GPT-OSS, experts in MXFP4",
    REPORTED,
    _LATER,
    (
        *_figures(Deployment("GPT-OSS 120B", "h200", recipe="mxfp4 experts"), (6868, 3543, 1828, 519), _LONGER),
        *_figures(Deployment("GPT-OSS 20B", "h200", recipe="mxfp4 experts"), (13858, 12743, 4015, 915), _LONGER),
        *_figures(Deployment("GPT-OSS 20B", "h100", recipe="mxfp4 experts"), (11557, 8617, 3366, 785), _LONGER),
        *_figures(Deployment("GPT-OSS 20B", "b200", recipe="mxfp4 experts"), (53812, 34702, 11904, 2645), _LONGER),
    ),
)
NARROW_EXPERTS = (LARGE_EXPERTS, EXPERTS)
"""Whose engines multiply the experts' own format, of 8 or 4 bits."""
TABLES = (ON_H100, ON_H200, SWEEP, ON_B200, LATER_FP8, LATER_FP4, MODELOPT, LARGE_SWEEP, *NARROW_EXPERTS, GPT_OSS)

TENSOR, PIPELINE = Deployment("Llama 405B", "h200", 8), Deployment("Llama 405B", "h200", 1, 8)
RATIOS = {"latency": 5.6, "throughput": 1.5}
"""TENSOR's speed over PIPELINE's for one request, and PIPELINE's throughput over TENSOR's with as many as fit."""
ABSOLUTE = {"latency": (56.0, 10.0), "throughput": (506.0, 764.0)}
"""Tokens/s of TENSOR and PIPELINE behind these ratios, recalled and not seen at their source."""
RATIOS_SOURCE = "NVIDIA's blog on TensorRT-LLM on 8 H200, October 2024"
RATIOS_LOADS = {"latency": (128, 128), "throughput": (2048, 128)}

LATENCIES_SOURCE = "AIConfigurator 095f58a5, tools/accuracy_tracking/silicon_refs.csv"
LATENCIES = (
    Latency(Deployment("Qwen3 32B", "h100", recipe="fp8, cache bf16"), "TensorRT-LLM 1.0", 1024, 128, 32, 357, 36.15),
    Latency(Deployment("Qwen3 32B", "h100", 2, recipe="bf16"), "vLLM 0.12", 1024, 1024, 32, 237, 20.06),
    Latency(Deployment("Qwen3 32B", "h100", 2, recipe="bf16"), "SGLang 0.5.1", 1024, 128, 64, 2530, 30.12, True),
)
MORE_LATENCIES = (
    Latency(Deployment("Qwen3 32B", "gb200", 2, recipe="nvfp4"), "TensorRT-LLM 1.2", 4000, 1000, 256, 53877, 53.5),
    Latency(
        Deployment("Qwen3 235B-A22B", "h100", ep=4, recipe="fp8, cache bf16"),
        "TensorRT-LLM 1.0",
        1024,
        128,
        32,
        253,
        31.2,
    ),
    Latency(Deployment("Qwen3 235B-A22B", "h200", 2, recipe="fp8, cache bf16"), "vLLM 0.12", 1000, 100, 16, 244, 52.2),
)
"""Reported only."""

NOT_PRICED = "DeepSeek-R1, Llama 4 Maverick, MiniMax-M2.5, Qwen3.5-397B"
"""Models of the same sources whose families llmc has not, or had not when this was written."""
