"""The same numbers in less time: what Triton's interpreter makes again for every operation and could make once.

Interpreting small blocks is the work of Python, not of numpy: most of it goes into types. Every operation makes the
types of its results from lists of wrapped integers, and compares them that way. Here a block type exists once, with all
that follows from it, and what is decided by types alone is decided once. No arithmetic is touched.
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
"""Of the wrapper that asks a builtin's caller for `_semantic`; read before the interpreter replaces `tl.add`."""
_ONE = core.constexpr(1)
_NO_SHAPE = core.tuple([])
_PLAIN = (int, str, bool, float, core.dtype, core.pointer_type, core.tensor, type(None))

_block_types: dict[tuple[Any, ...], Any] = {}
_joined: dict[tuple[int, int], tuple[Any, ...]] = {}
"""The types to which two blocks must be broadcast, by their own; None where that is the one it has."""


def install() -> None:
    """Replace them in this process, before the interpreter patches the language."""
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
    """The one block type of these elements and sizes; `__init__` follows, and finds it made."""
    if shape is None or isinstance(shape, core.constexpr):
        return object.__new__(cls)
    sizes = [*map(_unwrap, shape)]
    key = (*_identity(element_ty), *sizes, *map(type, sizes))  # 4.0 equals 4, and is refused
    found = _block_types.get(key)
    if found is None:
        found = object.__new__(cls)
        _their_block_init(found, element_ty, shape)  # raises for a shape that no block has: nothing is kept then
        found.interpreted = core.tuple([core.constexpr(size) for size in found.shape]), core.constexpr(found.numel)
        _block_types[key] = found
    return found


def _identity(element: Any) -> tuple[Any, ...]:
    """A pointer's name does not tell its address space; otherwise types with equal names are equal."""
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
        _their_broadcast(self, left, right)  # raises where the shapes do not fit
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
    """Operands of one type, as most are, need no conversion, except floats that are divided."""
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
    """As the interpreter's: a builtin that is called without the semantic it must be given."""
    inner: Callable[..., Any] = member.__wrapped__ if getattr(member, "__code__", None) is _BUILTIN_CODE else member
    semantic = interpreter.interpreter_semantic

    def call(*arguments: Any, **named: Any) -> Any:
        named["_semantic"] = semantic
        return inner(*arguments, **named)

    scope.set_attr(owner, name, call)
