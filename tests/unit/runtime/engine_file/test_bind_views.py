"""Weight bindings that need no copy: what lies side by side in the engine is read in place."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.runtime.engine_file.bind import Concat, E2M1ToNbits8, Reshape, Stored, Times, ToF32, evaluate_weight, is_view
from llmc.runtime.files.safetensors import TensorInfo
from llmc.runtime.numbers import RAW_DTYPE


def leaf(name: str, dtype: str = "F32") -> Stored:
    return Stored(name, dtype, (4, 6))


def info(name: str, offset: int, nbytes: int) -> TensorInfo:
    """Where a tensor lies in a file; planning looks at nothing else."""
    return TensorInfo(name, "F32", (nbytes // 4,), offset, nbytes)


FILE = np.arange(256, dtype=np.uint8)
FILE.flags.writeable = False


def _mapped(start: int, rows: int, dtype: str = "F32") -> np.ndarray:
    """[rows, 4] of a file, as an engine gives it out."""
    size = rows * 4 * RAW_DTYPE[dtype].itemsize
    return FILE[start : start + size].view(RAW_DTYPE[dtype]).reshape(rows, 4)


def _join(**tensors: np.ndarray) -> tuple[np.ndarray, Concat]:
    expr = Concat(tuple(Stored(name, "F32", array.shape) for name, array in tensors.items()), 0)
    return evaluate_weight(expr, tensors.__getitem__, initializer="x"), expr


def test_adjacent_tensors_join_without_a_copy() -> None:
    q, k, v = _mapped(16, 2), _mapped(48, 1), _mapped(64, 3)
    found, expr = _join(q=q, k=k, v=v)
    np.testing.assert_array_equal(found, np.concatenate([q, k, v]))
    assert np.shares_memory(found, q) and np.shares_memory(found, v)
    assert is_view(expr, {"q": info("q", 64, 32), "k": info("k", 96, 16), "v": info("v", 112, 48)})
    assert found.ctypes.data == q.ctypes.data and found.flags.c_contiguous and not found.flags.writeable


@pytest.mark.parametrize("dtype", ["U8", "BF16", "F8_E4M3"])
def test_adjacent_tensors_of_any_dtype(dtype: str) -> None:
    first, second = _mapped(32, 2, dtype), _mapped(32 + 8 * RAW_DTYPE[dtype].itemsize, 2, dtype)
    expr = Concat((Stored("a", dtype, (2, 4)), Stored("b", dtype, (2, 4))), 0)
    found = evaluate_weight(expr, {"a": first, "b": second}.__getitem__, initializer="x")
    np.testing.assert_array_equal(found, np.concatenate([first, second]))
    assert np.shares_memory(found, second)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": _mapped(16, 2), "b": _mapped(64, 1)},
        {"a": _mapped(48, 1), "b": _mapped(16, 2)},
        {"a": _mapped(16, 2), "b": _mapped(32, 2)},
        {"a": _mapped(16, 2).copy(), "b": _mapped(48, 1)},
        {"a": _mapped(16, 2), "b": _mapped(48, 2)[:, ::-1]},
    ],
    ids=["gap", "other order", "overlap", "elsewhere", "strided"],
)
def test_others_are_copied(tensors: dict[str, np.ndarray]) -> None:
    found, _ = _join(**tensors)
    np.testing.assert_array_equal(found, np.concatenate(list(tensors.values())))
    assert not any(np.shares_memory(found, array) for array in tensors.values())


def test_neighbours_in_memory_by_chance_are_not_one_array() -> None:
    """A view may not reach beyond the array it is a view of, even if the bytes behind it are the right ones."""
    block = np.arange(12, dtype=np.float32)
    first = np.frombuffer(block.data[:8], np.float32).reshape(2, 4)
    second = np.frombuffer(block.data[8:], np.float32).reshape(1, 4)
    found, _ = _join(a=first, b=second)
    np.testing.assert_array_equal(found, block.reshape(3, 4))
    assert not np.shares_memory(found, block)


def test_planning_knows_what_stays_mapped() -> None:
    file = {"w": info("w", 256, 96), "v": info("v", 352, 96)}
    assert is_view(leaf("w"), file) and is_view(Reshape(leaf("w"), (24,)), file)
    assert is_view(Concat((leaf("w"), leaf("v")), 0), file)
    assert not is_view(Concat((leaf("v"), leaf("w")), 0), file), "in another order than in the file"
    assert not is_view(Concat((leaf("w"), leaf("v")), 0), {**file, "v": info("v", 512, 96)}), "with others between"
    assert not is_view(Concat((leaf("w"), leaf("v")), 0), {"w": file["w"]}), "no such tensor"
    assert not is_view(Concat((leaf("w"), leaf("w")), 0), file), "a tensor is not its own neighbour"
    assert not is_view(Concat((leaf("w"), leaf("w")), 1), file)
    for private in (ToF32(leaf("bf16", "BF16")), Times(leaf("w"), leaf("w")), E2M1ToNbits8(leaf("codes", "U8"))):
        assert not is_view(private, file) and not is_view(Concat((private, private), 0), file)
