"""INT8 graphs behind the server: the file that the command writes, with and without an engine."""

import base64
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT
from servers import Server

from engines import EngineConfig, build

DRAW = "/v1/images/generations"
ASKED: list[tuple[str, int, dict[str, Any], list[str]]] = [
    ("a red car", 7, {}, []),
    ("two green trees", 2**64 - 1, {"size": "32x16", "steps": 3}, ["--size", "16x32", "--steps", "3"]),
    ("", 0, {"guidance": 1}, ["--rep-guidance", "1", "--pix-guidance", "1"]),
]


@pytest.fixture(scope="module")
def built(calibrated_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with an engine for its INT8 graphs."""
    bundle = shutil.copytree(calibrated_bundle, tmp_path_factory.mktemp("int8") / "bundle")
    build(bundle, EngineConfig(precision="int8", num_threads=1))
    return bundle


@pytest.mark.parametrize("engine", ["none", "auto"])
def test_a_picture_in_int8_is_the_file_that_the_command_writes(built: Path, tmp_path: Path, engine: str) -> None:
    command = [sys.executable, ROOT / "cli.py", "generate", built, "--precision", "int8", "--engine", engine]
    in_int8 = []  # files
    with Server(built, tmp_path, "--precision", "int8", "--engine", engine) as server:
        assert server.json("/v1/models")[1]["data"][0]["precision"] == "int8"
        for prompt, seed, body, options in ASKED:
            path = tmp_path / "native.png"
            given = [prompt, "--seed", str(seed), *options, "-o", path]
            subprocess.run([*command, *given], check=True, env={"PYTHONPATH": str(ROOT)}, capture_output=True)
            drawn = server.json(DRAW, {"prompt": prompt, "seed": seed, **body})[1]["data"][0]
            assert base64.b64decode(drawn["b64_json"]) == path.read_bytes()
            in_int8.append(path.read_bytes())
            path.unlink()
    with Server(built, tmp_path, "--engine", engine) as server:
        for (prompt, seed, body, _), png in zip(ASKED, in_int8, strict=True):
            drawn = server.json(DRAW, {"prompt": prompt, "seed": seed, **body})[1]["data"][0]
            assert base64.b64decode(drawn["b64_json"]) != png, "INT8 graphs have drawn another picture"
