"""Makes kernel files importable without the compiler, and the compiler without torch, where these are not used.

Kernel files also hold their cases, which use torch, and lie in packages whose `__init__` imports the whole compiler. A
worker that compiles a kernel needs neither: it gets empty packages, and torch is imported only on first use. A plan
runs passes and lowering, which compute nothing: they need neither torch nor sympy, which onnx_ir imports, and of a
Triton function only its parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_BARE = ("targets", "targets.cuda")
"""Packages whose `__init__` is not run."""
_LATE: dict[str, frozenset[str]] = {
    "torch": frozenset(),
    "sympy": frozenset(("Max", "Min", "Mod", "floor", "sqrt")),  # onnx_ir/_symbolic_shapes.py puts them into a table
    "triton": frozenset(),
    "triton.language": frozenset(),
}
"""Modules that come late, each with the functions that others take from it on import and call much later."""
_DECORATORS = ("jit", "constexpr_function")
"""Of Triton, of all functions in kernel files."""


@dataclass(frozen=True)
class LateFunction:
    """A function of a kernel file, that Triton has not seen yet."""

    fn: Callable[..., Any]
    decorator: str

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Of those that compute constants, which lowering calls too."""
        return self.fn(*arguments, **keywords)


def made(function: Any) -> Any:
    """The Triton function of a late one; others are returned.

    Functions of kernel files call each other by name, so all late ones of this process are made together.
    """
    if not isinstance(function, LateFunction):
        return function
    if function not in _made:
        _make(function)
        for module in [one for name, one in sys.modules.items() if name.startswith(f"{__package__}.")]:
            for name, value in [*vars(module).items()]:
                if isinstance(value, LateFunction):
                    setattr(module, name, _made.get(value) or _make(value))
                elif isinstance(value, _LazyModule) and value.__name__.startswith("triton"):
                    setattr(module, name, import_module(value.__name__))
    return _made[function]


_made: dict[LateFunction, Any] = {}
"""The Triton functions of late ones."""


def _make(function: LateFunction) -> Any:
    _made[function] = getattr(import_module("triton"), function.decorator)(function.fn)
    return _made[function]


class _LazyModule(ModuleType):
    """Imports the real module on first access to a name. (`LazyLoader` of Python 3.11 loads at any import.)"""

    def __init__(self, name: str, functions: Collection[str] = ()) -> None:
        super().__init__(name)
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        waits = sys.modules.get(self.__name__) is self
        if waits and name.startswith("__") and name != "__path__":  # the import system reads these of any module
            raise AttributeError(name)
        if waits and name in self._functions:
            return partial(self._call, name)
        return getattr(self._real(), name)

    def _real(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            package = self.__name__.partition(".")[0]
            for name in [one for one in _LATE if one.partition(".")[0] == package]:  # which import each other
                if isinstance(sys.modules.get(name), _LazyModule):
                    del sys.modules[name]
        return import_module(self.__name__)

    def _call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        return getattr(self._real(), name)(*arguments, **keywords)


def prepare() -> None:
    """Let this process import kernel files alone; call it before the first import of one."""
    for name in _BARE:
        package = ModuleType(f"{__package__}.{name}")
        package.__path__ = [str(Path(__file__).parent.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    sys.modules["torch"] = _LazyModule("torch")


@contextmanager
def late_imports() -> Iterator[None]:
    """Import what computes weights, symbolic shapes and kernels on its first use, inside this context.

    It is for modules that import these libraries whole, or `triton.language`, and no other submodule of them.
    Afterwards they are imported as always. Modules that were imported inside go on as if they had the real ones.
    """
    waiting = {name: _LazyModule(name, functions) for name, functions in _LATE.items() if name not in sys.modules}
    if "triton" in waiting:
        decorators = {name: partial(LateFunction, decorator=name) for name in _DECORATORS}
        vars(waiting["triton"]).update(decorators, language=waiting["triton.language"])
    sys.modules.update(waiting)
    try:
        yield
    finally:
        for name, module in waiting.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
