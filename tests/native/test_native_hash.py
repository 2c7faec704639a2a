"""The native host's SHA-256 is that of Python's library, by any processor's way and by this one's instructions."""

import hashlib
import subprocess

from building import NATIVE, require_compiler, run


def test_hashes_are_those_of_the_library(tmp_path):
    require_compiler()
    program, source = tmp_path / "sha256", NATIVE / "src"
    files = ["tests/native/sha256.cpp", source / "sha256.cpp"]
    run("c++", "-std=c++17", "-O1", "-I", source, *files, "-o", program, cwd=NATIVE.parents[1])
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 10_000):
        data = bytes(number * number % 251 for number in range(size))
        found = subprocess.run([program], input=data, capture_output=True, check=True).stdout.decode().split()
        assert found == 2 * [hashlib.sha256(data).hexdigest()], size
