"""The one door to ONNX Runtime: its official builds report their use over the network and keep an identifier in the
user's cache folder, unless a variable says no before the library starts."""

from __future__ import annotations

from ..environment import settle

settle("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # noqa: E402

__all__ = ["onnxruntime"]
