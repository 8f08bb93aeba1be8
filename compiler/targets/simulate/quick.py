"""Caches the types of Triton's interpreter: the same numbers in less time.

For small blocks most of the time is spent in Python, on types, and not in numpy: every operation builds its result
types from lists of wrapped integers and compares those. Here each block type exists once, with everything derived from
it, and decisions that depend on types alone are cached. Arithmetic is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

core: Any = tl.core
semantics: Any = TritonSemantic
_their_unwrap = core._unwrap_if_constexpr
_their_block_init = core.block_type.__init__
_their_broadcast = TritonSemantic.broadcast_impl_value
_their_cast = TritonSemantic.cast
_their_checked = TritonSemantic.binary_op_type_checking_impl
_their_broadcast_to = interpreter.InterpreterBuilder.create_broadcast
_BUILTIN_CODE = core.add.__code__
"""Code of the wrapper that requires `_semantic` of a builtin's caller, read before `tl.add` is replaced."""
_ONE = core.constexpr(1)
_NO_SHAPE = core.tuple([])
_PLAIN = (int, str, bool, float, core.dtype, core.pointer_type, core.tensor, type(None))

_block_types: dict[tuple[Any, ...], Any] = {}
_joined: dict[tuple[int, int], tuple[Any, ...]] = {}
"""The types to which two blocks are broadcast, by the ids of their types; None if a block already has that type."""


def install() -> None:
    """Replace Triton's functions in this process, before the interpreter patches the language."""
    core._unwrap_if_constexpr = tl._unwrap_if_constexpr = _unwrap  # pyright: ignore[reportAttributeAccessIssue]
    core.block_type.__new__ = staticmethod(_block_type)
    core.block_type.__init__ = _block_init
    core.tensor.__init__ = _tensor_init
    semantics.broadcast_impl_value = _broadcast
    semantics.cast = _cast
    semantics.binary_op_type_checking_impl = _checked
    interpreter.TensorHandle.__init__ = _handle_init
    interpreter._patch_attr = _patch_attr  # pyright: ignore[reportAttributeAccessIssue]


def _unwrap(value: Any) -> Any:
    kind = type(value)
    if kind is core.constexpr:
        return value.value
    return value if kind in _PLAIN else _their_unwrap(value)


def _block_type(cls: Any, element_ty: Any = None, shape: Any = None) -> Any:
    """The unique block type of these elements and sizes; the `__init__` that follows leaves it unchanged."""
    if shape is None or isinstance(shape, core.constexpr):
        return object.__new__(cls)
    sizes = [*map(_unwrap, shape)]
    key = (*_identity(element_ty), *sizes, *map(type, sizes))  # 4.0 equals 4, but is refused
    found = _block_types.get(key)
    if found is None:
        found = object.__new__(cls)
        _their_block_init(found, element_ty, shape)  # raises for an invalid shape, which is then not cached
        found.interpreted = core.tuple([core.constexpr(size) for size in found.shape]), core.constexpr(found.numel)
        _block_types[key] = found
    return found


def _identity(element: Any) -> tuple[Any, ...]:
    """Key of an element type: equal names are equal types, except that a pointer's name lacks its address space."""
    return element.name, getattr(element, "address_space", None)


def _block_init(self: Any, element_ty: Any, shape: Any) -> None:
    if "interpreted" not in self.__dict__:
        _their_block_init(self, element_ty, shape)


def _tensor_init(self: Any, handle: Any, type: Any) -> None:
    self.handle = handle
    self.type = type
    self.dtype = type.scalar
    if type.is_block():
        self.shape, self.numel = type.interpreted
    else:
        self.shape, self.numel = _NO_SHAPE, _ONE


def _broadcast(self: Any, left: Any, right: Any) -> tuple[Any, Any]:
    a, b = left.type, right.type
    if a is b:
        return left, right
    key = id(a), id(b)  # block types are never freed
    if key not in _joined:
        if not (a.is_block() and b.is_block() and len(a.shape) == len(b.shape)):
            return _broadcast_scalar(self, left, right)
        _their_broadcast(self, left, right)  # raises if the shapes do not fit
        shape = [max(sizes) for sizes in zip(a.shape.values, b.shape.values, strict=True)]
        _joined[key] = tuple(
            None if one.shape.values == shape else core.block_type(one.scalar, shape) for one in (a, b)
        )
    block_a, block_b = _joined[key]
    return _broadcast_to(self, left, block_a), _broadcast_to(self, right, block_b)


def _broadcast_scalar(self: Any, left: Any, right: Any) -> tuple[Any, Any]:
    a, b = left.type, right.type
    if a.is_block() and not b.is_block():
        block = a.with_element_ty(b)
        return left, core.tensor(self.builder.create_splat(block, right.handle), block)
    if b.is_block() and not a.is_block():
        block = b.with_element_ty(a)
        return core.tensor(self.builder.create_splat(block, left.handle), block), right
    return _their_broadcast(self, left, right)


def _broadcast_to(self: Any, one: Any, block: Any) -> Any:
    if block is None:
        return one
    return core.tensor(_their_broadcast_to(self.builder, one.handle, block.shape.values), block)


def _cast(self: Any, value: Any, wanted: Any, rounding: str | None = None) -> Any:
    return value if value.dtype is wanted.scalar else _their_cast(self, value, wanted, rounding)


def _checked(
    self: Any, left: Any, right: Any, left_ptr: bool = False, right_ptr: bool = False, check: bool = True,
    div_or_mod: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """Skip the conversion for operands of equal dtype, the common case; division still converts."""
    if type(left) is core.tensor and type(right) is core.tensor:
        kind = left.dtype
        if kind is right.dtype and not div_or_mod and not kind.is_ptr():
            return _broadcast(self, left, right)
    return _their_checked(self, left, right, left_ptr, right_ptr, check, div_or_mod)


def _handle_init(self: Any, data: Any, dtype: Any, attr: dict[str, Any] | None = None) -> None:
    self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr
    if type(dtype) is not core.dtype or data.itemsize * 8 > max(8, dtype.primitive_bitwidth):
        self.__post_init__()


def _patch_attr(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    """Like the interpreter's: wrap a builtin so that it gets its `_semantic`."""
    inner: Callable[..., Any] = member.__wrapped__ if getattr(member, "__code__", None) is _BUILTIN_CODE else member
    semantic = interpreter.interpreter_semantic

    def call(*arguments: Any, **named: Any) -> Any:
        named["_semantic"] = semantic
        return inner(*arguments, **named)

    scope.set_attr(owner, name, call)
