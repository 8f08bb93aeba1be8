"""One table of small models of the dense families: configs that turn on each of a family's features, in two sizes."""

from __future__ import annotations

from support.samples.dense import gemma, llamas, olmo, pairs, parallel, phi, ungated
from support.samples.families import Sample

SAMPLES: dict[str, Sample] = {
    sample.kind: sample for part in (gemma, llamas, olmo, pairs, parallel, phi, ungated) for sample in part.SAMPLES
}
"""By `model_type`."""
