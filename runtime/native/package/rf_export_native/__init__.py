"""The native host's library and headers, for `runtime.native.library` and for compilers. Has no code of its own."""

from pathlib import Path

LIBRARY = Path(__file__).parent / "librf_runtime.so"
INCLUDE = Path(__file__).parent / "include"
