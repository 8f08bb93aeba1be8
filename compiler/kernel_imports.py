"""Makes kernel files importable without the compiler, and the compiler without torch, where these are not used.

Kernel files also hold their cases, which use torch, and lie in packages whose `__init__` imports the whole compiler. A
worker that compiles a kernel needs neither: it gets empty packages, and torch is imported only on first use. A plan
runs passes and lowering, which compute nothing: they need neither torch nor sympy, which onnx_ir imports.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
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
}
"""Modules that come late, each with the functions that others take from it on import and call much later."""


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
            del sys.modules[self.__name__]
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
    """Import what computes weights and symbolic shapes on its first use, inside this context: torch and sympy.

    Afterwards they are imported as always. Modules that were imported inside go on as if they had the real ones.
    """
    waiting = {name: _LazyModule(name, functions) for name, functions in _LATE.items() if name not in sys.modules}
    sys.modules.update(waiting)
    try:
        yield
    finally:
        for name, module in waiting.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
