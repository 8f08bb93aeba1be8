"""Makes `python -m llmc` the same as the `llmc` script."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
