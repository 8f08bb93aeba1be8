"""Small JSON files that carry their own digest, for caches: nobody sees half of one, and a damaged one is absent."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .strict_json import canonical

UNFINISHED = ".new-"
"""How the names of files begin that are being written; a killed process leaves its own."""


def read_sealed(path: Path) -> Any:
    """The JSON value of a file, or None if it is absent, unreadable or damaged."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
        return json.loads(body) if hashlib.sha256(body).hexdigest().encode() == digest else None
    except (OSError, ValueError):
        return None


def write_sealed(path: Path, value: Any) -> bool:
    """Put a JSON value in place of a file, and make its folder; False, and nothing changed, if that cannot be done."""
    body = canonical(value)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        return False
    return True
