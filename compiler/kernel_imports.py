"""Makes kernel files importable without the compiler, whose import takes a worker longer than compiling a kernel.

Kernel files also hold their cases, which use torch, and lie in packages whose `__init__` imports the whole compiler. A
worker needs neither: it gets empty packages, and torch is imported only on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_BARE = ("targets", "targets.cuda")
"""Packages whose `__init__` is not run."""


class _LazyModule(ModuleType):
    """Imports the real module on first access to a name. (`LazyLoader` of Python 3.11 loads at any import.)"""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system reads these
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def prepare() -> None:
    """Let this process import kernel files alone; call it before the first import of one."""
    for name in _BARE:
        package = ModuleType(f"{__package__}.{name}")
        package.__path__ = [str(Path(__file__).parent.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    sys.modules["torch"] = _LazyModule("torch")
