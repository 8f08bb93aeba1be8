"""The one door to ONNX Runtime: its official builds report their use over the network and keep an identifier in the
user's cache folder, unless a variable says no before the library starts."""

from __future__ import annotations

import os

# A user who has set the variable has decided.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
