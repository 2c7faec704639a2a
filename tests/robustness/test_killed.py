"""Real commands that are killed or run out of disk: nothing half-written is ever accepted, and the next try works."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from processes import REPLAYED, mounting, start

import cli
from runtime.bundle.folder import open_bundle
from runtime.errors import RFError


def replay(*arguments: str | Path, within: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What the tries of `replayed_export.py` came to."""
    done = subprocess.run([*within, sys.executable, REPLAYED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [{**line, "stderr": done.stderr} for line in lines]


def test_a_kill_before_any_change_of_the_disk_leaves_no_bundle_and_the_next_export_works(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    tries = replay(tiny_bundle, "kill", "1", "99", out, "export", tiny_checkpoint, "-o", out, "--precision", "fp32")
    *killed, last = tries
    assert len(killed) >= 10  # folders, tokenizer, weights, three graphs, two manifests, the move
    for one in killed:
        assert (one["code"], one["bundle"]) == (-signal.SIGKILL, None)
        assert "not a folder" in one["reason"]
        assert len(one["beside"]) <= 2, "each try removes what the one before left"
    assert (last["code"], last["verified"], last["beside"]) == (0, ["fp32"], [])


def test_a_kill_while_a_bundle_is_replaced_leaves_the_old_or_the_new_one(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Between the two renames there is none for a moment, and the next export brings the old one back first."""
    out = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, out)  # verified in both precisions; the new one is not verified
    options = ("export", tiny_checkpoint, "-o", out, "--precision", "fp32", "--force", "--no-verify")
    *killed, last = replay(tiny_bundle, "kill", "10", "99", out, *options)
    found = [one.get("verified") for one in killed]
    gap = found.index(None)
    assert gap > 0
    assert found == [["fp16", "fp32"]] * gap + [None] + [[]] * (len(found) - gap - 1)
    assert found[-1] == []
    assert (last["code"], last["verified"], last["beside"]) == (0, [], [])


@pytest.mark.parametrize(
    ("options", "words"),
    [("size=200k", "The disk is full: "), ("ro", "Read-only file system")],
    ids=["full", "read-only"],
)
def test_an_export_to_a_disk_that_cannot_take_it_ends_in_one_sentence(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, options: str, words: str
) -> None:
    within = mounting()
    if within is None:
        pytest.skip(
            "this machine lets nobody mount a file system; a limit of file sizes stands in for a full disk below"
        )
    out = tmp_path / "disk" / "bundle"
    out.parent.mkdir()
    first, second = replay(tiny_bundle, "mounted", options, out, "export", tiny_checkpoint, "-o", out, within=within)
    assert (first["code"], first["bundle"], first["beside"]) == (1, None, [])
    assert "Traceback" not in first["stderr"]
    assert first["stderr"].count("Error:") == 1
    assert words in first["stderr"]
    assert (second["code"], second["verified"]) == (0, ["fp16", "fp32"])


@pytest.mark.parametrize("place", ["file/bundle", "file/deeper/bundle", "x" * 300], ids=["file", "deeper", "long"])
def test_a_place_where_no_folder_can_be_is_refused(tiny_checkpoint: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(cli.main, ["export", str(tiny_checkpoint), "-o", str(tmp_path / place)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert ". Choose another output path." in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def kill_when_written(process: subprocess.Popen[str], out: Path, name: str) -> None:
    """SIGKILL as soon as the unfinished folder holds a file of that name."""
    while not list(out.parent.glob(f"{out.name}.partial-*/{name}")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "graphs/weights/fp32.bin",
        "graphs/text_decoder.fp32.classic.onnx",
        "graphs/denoiser.fp32.classic.onnx",
        "manifest.json",  # complete, but not yet verified
    ],
)
def test_a_killed_export_leaves_no_bundle(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "bundle"
    process = start("export", tiny_checkpoint, "-o", out, "--precision", "fp32")
    kill_when_written(process, out, name)
    assert not out.exists()
    with pytest.raises(RFError, match="not a folder"):
        open_bundle(out)


@pytest.mark.slow
def test_an_export_after_a_killed_one_works_and_cleans_up(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    kill_when_written(start("export", tiny_checkpoint, "-o", out), out, "tokenizer.json")
    again = start("export", tiny_checkpoint, "-o", out, "--precision", "fp32")
    again.communicate()
    assert again.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    open_bundle(out, verify="hash")


def refused_for_lack_of_space(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert "Traceback" not in stderr
    assert stderr.count("Error:") == 1


def test_a_limit_of_file_sizes_stops_an_export_with_one_sentence(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    refused_for_lack_of_space(start("export", tiny_checkpoint, "-o", out, limit_file_bytes=20_000, traces=tiny_bundle))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_a_picture_with_one_sentence_and_keeps_the_old_one(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    out.write_bytes(b"the old picture")
    refused_for_lack_of_space(start("generate", tiny_bundle, "a red car", "-o", out, limit_file_bytes=200))
    assert out.read_bytes() == b"the old picture"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the read-only disk above is for all")
def test_a_folder_that_may_not_be_written_is_told(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused_for_lack_of_space(start("export", tiny_checkpoint, "-o", tmp_path / "bundle", traces=tiny_bundle))


def test_inspect_verify_finds_a_flipped_byte_in_files_too_large_to_be_hashed_unasked(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    weights = folder / "graphs" / "weights" / "fp32.bin"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr("runtime.bundle.folder.CHEAP_HASH_BYTES", 0)
    assert CliRunner().invoke(cli.main, ["inspect", str(folder)]).exit_code == 0
    result = CliRunner().invoke(cli.main, ["inspect", str(folder), "--verify"])
    assert result.exit_code == 1
    assert "fp32.bin differs" in result.stderr
