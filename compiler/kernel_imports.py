"""Makes kernel files importable without the compiler around them: that took a worker longer than compiling a kernel.

Kernel files also hold their cases, which are made of torch tensors, and lie in packages whose first lines bring in the
whole compiler. A worker asks for neither: it gets those packages bare, and torch only if something really uses it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_BARE = ("targets", "targets.cuda")


class _Late(ModuleType):
    """Stands for a module until one of its names is asked for. (`LazyLoader` of Python 3.11 loads at any import.)"""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what importing looks at
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def prepare() -> None:
    """Let kernel files be imported alone, in this process that has imported none."""
    for name in _BARE:
        package = ModuleType(f"{__package__}.{name}")
        package.__path__ = [str(Path(__file__).parent.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    sys.modules["torch"] = _Late("torch")
