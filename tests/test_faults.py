"""Real commands that are killed or run out of disk: nothing half-written is ever accepted, and the next try works."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.bundle import open_bundle
from runtime.errors import RFError

ROOT = Path(__file__).parent.parent
# With a limit on the size of files, which stands for a full disk: a write beyond it fails with EFBIG.
COMMAND = """
import resource, sys
root, limit = sys.argv.pop(1), int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.path.insert(0, root)
import cli
cli.main()
"""


def start(*arguments: str | Path, limit_file_bytes: int = 0) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(ROOT), str(limit_file_bytes), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_when_written(process: subprocess.Popen[str], out: Path, name: str) -> None:
    """SIGKILL as soon as the unfinished folder holds a file of that name."""
    while not list(out.parent.glob(f"{out.name}.partial-*/{name}")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "name",
    [
        "graphs/text_decoder.fp32.classic.onnx",
        "manifest.json",  # complete, but not yet verified
        pytest.param("tokenizer.json", marks=pytest.mark.slow),
        pytest.param("graphs/weights/fp32.bin", marks=pytest.mark.slow),
        pytest.param("graphs/denoiser.fp32.classic.onnx", marks=pytest.mark.slow),
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


def test_a_full_disk_stops_an_export_with_one_sentence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    refused_for_lack_of_space(start("export", tiny_checkpoint, "-o", tmp_path / "bundle", limit_file_bytes=20_000))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_a_picture_with_one_sentence_and_keeps_the_old_one(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    out.write_bytes(b"the old picture")
    refused_for_lack_of_space(start("generate", tiny_bundle, "a red car", "-o", out, limit_file_bytes=200))
    assert out.read_bytes() == b"the old picture"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused_for_lack_of_space(start("export", tiny_checkpoint, "-o", tmp_path / "bundle"))
