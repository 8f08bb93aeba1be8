"""What a call of the Python API may be, and which errors may leave it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar

from ..errors import LlmcError, RecipeError, ResourceError, nearest
from .shortage import shortage

_Function = TypeVar("_Function", bound=Callable[..., Any])


def public(*options: type) -> Callable[[_Function], _Function]:
    """A function of the Python API: a call that does not fit its parameters is a RecipeError with the nearest name.

    What the system refuses is a ResourceError.

    `options` are the TypedDicts of its **keywords.
    """

    def checked(function: _Function) -> _Function:
        shape = signature(function)
        known = [name for name in shape.parameters if name != "self"]
        if shape.parameters[known[-1]].kind is Parameter.VAR_KEYWORD if known else False:
            known[-1:] = [name for one in options for name in one.__annotations__]

        @wraps(function)
        def call(*given: Any, **keywords: Any) -> Any:
            for name in keywords:
                if name not in known:
                    found = f"{name!r}{nearest(name, known) or ', known: ' + ', '.join(known)}"
                    raise RecipeError(f"expected only known options of {function.__name__}()", found=found)
            try:
                shape.bind(*given, **keywords)
            except TypeError as error:
                raise RecipeError(f"cannot call {function.__name__}()", found=str(error)) from None
            try:
                return function(*given, **keywords)
            except LlmcError:
                raise
            except Exception as error:
                asked = f"cannot finish {function.__name__}()"
                if lacking := shortage(error, asked):
                    raise lacking from error
                if isinstance(error, OSError):  # such as a name that is too long
                    raise ResourceError(asked, found=str(error)) from error
                raise

        return call  # type: ignore[return-value]

    return checked
