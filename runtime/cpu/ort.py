"""Imports ONNX Runtime with telemetry off, and is the only importer: official builds report their use over the network
and store an identifier in the user's cache folder, unless a variable forbids it before the library is loaded."""

from __future__ import annotations

from ..environment import settle

settle("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime
except ImportError as error:
    if isinstance(error.__cause__, KeyboardInterrupt):  # "initialization failed" is what its binding says of Ctrl-C
        raise error.__cause__ from None
    raise

__all__ = ["onnxruntime"]
