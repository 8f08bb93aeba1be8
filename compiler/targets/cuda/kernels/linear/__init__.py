"""Few tokens (`small.py`), many (`large.py`), FP8 on both sides (`fp8.py`); weights are dequantized in registers."""
