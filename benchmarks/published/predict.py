"""What the planner predicts of a published figure's deployment and load."""

from __future__ import annotations

from functools import cache

from llmc.compiler.planner.candidates import Pricer
from llmc.compiler.planner.rates import FITTED, Rates
from llmc.compiler.planner.serve import Served, Workload
from llmc.recipes.machines.link import Link
from llmc.recipes.machines.table import Machine, machine_named

from .figures import Deployment, Figure, Latency
from .models import PROMPT_TOKENS, RECIPES, pieces


def throughput(figure: Figure, rates: Rates, other: Machine | None = None) -> Served:
    """With as many requests at once as there is memory for; `other`: on this machine instead, with the same memory.

    Raises:
        ValueError: there is memory for none.
    """
    found = figure.deployment
    return served(found, figure.input, figure.output, room(found, figure.input, figure.output), rates, other)


def latency(row: Latency, rates: Rates) -> Served:
    """With the requests at once of the row, by the schedule of its engine."""
    load = Workload(row.input, row.output, PROMPT_TOKENS)
    server = _pricer(row.deployment, load, rates).server(machine(row.deployment), row.deployment.pp)
    return server.waves(load, row.requests) if row.waves else server.served(load, row.requests)


def served(
    deployment: Deployment, input: int, output: int, requests: int, rates: Rates, other: Machine | None = None
) -> Served:
    """With so many requests at once."""
    load = Workload(input, output, PROMPT_TOKENS)
    return _pricer(deployment, load, rates).server(other or machine(deployment), deployment.pp).served(load, requests)


@cache
def room(deployment: Deployment, input: int, output: int) -> int:
    """The most requests at once.

    Raises:
        ValueError: there is memory for none.
    """
    _, _, most = _pricer(deployment, Workload(input, output), FITTED).memory(machine(deployment), deployment.pp)
    if not most:
        raise ValueError(f"{deployment}: no memory for a request of {input} and {output} tokens")
    return most


def machine(deployment: Deployment) -> Machine:
    return machine_named(f"{deployment.gpus}x{deployment.chip}")


def _pricer(deployment: Deployment, load: Workload, rates: Rates) -> Pricer:
    """TensorRT-LLM, vLLM and SGLang have all_reduces that read the memory of their peers beside NCCL's."""
    made = pieces(deployment.model, deployment.recipe, deployment.tp, deployment.ep)
    return Pricer(made, RECIPES[deployment.recipe], load, rates, Link.seconds_with_peers)
