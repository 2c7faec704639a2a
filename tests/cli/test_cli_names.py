"""Names of files of any bytes and any length that the system takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import invoke, refused, run

from runtime.bundle.atomic import restore, write_file, write_folder
from runtime.errors import RFError
from runtime.pictures.png import read_parameters

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\xff\xfe.png", "dés.png".encode("latin-1")])
def test_a_picture_may_have_a_name_that_is_not_utf8(tiny_bundle: Path, tmp_path: Path, name: bytes) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "generate", str(tiny_bundle), "a red car", "--steps", "1", "-o"]
    done = subprocess.run([*command, name], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == name + b"\n"
    assert read_parameters(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))["prompt"] == "a red car"


@pytest.mark.parametrize("command", [["generate", "a red car"], ["build-engine"], ["tokens", "a red car"]])
def test_a_bundle_whose_name_is_not_utf8_is_told_by_the_name(
    tiny_bundle: Path, tmp_path: Path, command: list[str]
) -> None:
    link = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xe9"))
    link.symlink_to(tiny_bundle)
    output = ["--output", tmp_path / "out"] if command[0] == "build-engine" else []
    result = invoke(command[0], link, *command[1:], *output)
    refused(result, "not UTF-8", "Rename", r"b\udce9")
    assert "newer" not in result.stderr


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "ü" * 120 + ".png", "x" * 201])
def test_a_name_may_be_as_long_as_the_system_takes(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    run("generate", tiny_bundle, "a red car", "--steps", "1", "-o", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x" * 255, "y" * 240, "ü" * 127, "short"])
def test_a_folder_of_a_long_name_is_replaced_and_restored(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    for content in ("old", "new"):
        with write_folder(out, replaceable=lambda _: True, force=True, what="thing") as folder:
            (folder / "file").write_text(content)
    assert (out / "file").read_text() == "new"
    with pytest.raises(RFError), write_folder(out, replaceable=lambda _: True, force=True, what="thing") as folder:
        out.rename(folder.with_name(folder.name.replace(".partial-", ".replaced-")))  # as if it were killed here
        raise RFError("killed")
    restore(out)
    assert (out / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_long_names_that_begin_alike_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    first, second = (tmp_path / ("x" * 250 + end) for end in "ab")
    with write_file(first) as one, write_file(second) as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert (first.read_text(), second.read_text()) == ("1", "2")
