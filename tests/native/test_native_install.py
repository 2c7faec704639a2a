"""What is installed is found by CMake and by pkg-config, in a folder that nobody named when it was built."""

import os
import shutil

import pytest
from building import build, run

PROGRAM = """#include <{header}>
#include <stdio.h>
int main(void) {{ printf("%s %d\\n", rf_version(), rf_open("/none", 0, 0)); return 0; }}
"""
PROJECT = """cmake_minimum_required(VERSION 3.16)
project(consumer C)
find_package(rf_runtime 0.1 REQUIRED)
add_executable(consumer main.c)
target_link_libraries(consumer PRIVATE rf::rf_runtime)
"""
EXPECTED = "0.1.0 1"  # its version, and RF_INPUT for a place that is NULL


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Where the library is installed: moved there afterwards."""
    folder = tmp_path_factory.mktemp("install")
    run("cmake", "--install", build(), "--prefix", folder / "first")
    return (folder / "first").rename(folder / "moved")


def test_cmake_finds_it(prefix, tmp_path):
    (tmp_path / "main.c").write_text(PROGRAM.format(header="rf.h"))
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("make", "-C", tmp_path / "build")
    assert run(tmp_path / "build/consumer").strip() == EXPECTED


@pytest.mark.parametrize(("compiler", "source", "header"), [("cc", "main.c", "rf.h"), ("c++", "main.cpp", "rf.hpp")])
def test_pkg_config_finds_it(compiler, source, header, prefix, tmp_path):
    if shutil.which("pkg-config") is None:
        pytest.skip("install pkg-config: apt-get install pkg-config")
    (tmp_path / source).write_text(PROGRAM.format(header=header))
    (folder,) = prefix.rglob("pkgconfig")
    found = {**os.environ, "PKG_CONFIG_PATH": str(folder)}
    flags = run("pkg-config", "--cflags", "--libs", "rf_runtime", env=found).split()
    standard = ["-std=c++17"] if compiler == "c++" else ["-std=c99"]
    run(compiler, *standard, tmp_path / source, *flags, "-o", tmp_path / "consumer")
    library = {**os.environ, "LD_LIBRARY_PATH": str(folder.parent)}
    assert run(tmp_path / "consumer", env=library).strip() == EXPECTED
