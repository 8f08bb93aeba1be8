"""What of a decoder no launch plan computes, in words: for the table of families, and for the refusal of a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...families.spec import RMS, Attention, DecoderSpec, Latent
from .fuse_attention import CHUNKS, LATE_NORMS, WINDOW
from .fuse_latent import WIDE, WIDEST

SOME_BIASES = "q, k and v of which only some have a bias"

_OF_ATTENTION: Mapping[str, Callable[[Attention], bool]] = {
    CHUNKS: lambda mixer: mixer.chunk is not None,
    LATE_NORMS: lambda mixer: mixer.norm_after_rope and not _plain(mixer),
    SOME_BIASES: lambda mixer: len({part.bias for part in (mixer.q, mixer.k, mixer.v) if part is not None}) > 1,
}


def gaps(spec: DecoderSpec) -> tuple[str, ...]:
    """The features of a decoder that no launch plan computes; none if a build for sm_* takes it."""
    wide = any(isinstance(layer.mixer, Latent) and layer.mixer.rank > WIDEST for layer in spec.layers)
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]
    found = [words for words, has in _OF_ATTENTION.items() if any(map(has, mixers))]
    shared = [(mixer, mixers[mixer.source]) for mixer in mixers if mixer.source is not None]
    return (
        *([WIDE] if wide else []),
        *found,
        *([WINDOW] if any(mixer.window != source.window for mixer, source in shared) else []),
    )


def _plain(mixer: Attention) -> bool:
    """Whether heads of q and k have RMS norms, with one weight for all heads and one epsilon for both."""
    norms = [mixer.q_norm] if mixer.source is not None else [mixer.q_norm, mixer.k_norm]
    alike = {(norm.kind, norm.size, norm.each, norm.epsilon) for norm in norms if norm is not None}
    return (
        None not in norms
        and len(alike) == 1
        and {(one[0], one[1], one[2]) for one in alike} == {(RMS, mixer.head_dim, 0)}
    )
