"""What the documents say can be done: every link leads somewhere, every command is one, and every block runs.

Blocks are run as they stand, in a folder as a reader has it, with smaller numbers (SMALLER). What needs a GPU, a board
or another machine is not run but refused in one sentence, or left out with a reason (ELSEWHERE).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from documents import DOCUMENTS, ROOT, Command, anchors, commands, links, python_blocks
from PIL import Image

import cli
from examples.demo import COMMANDS

DEMO = [Command(ROOT / "examples/demo.py", text.format(bundle="bundle"), True) for text in COMMANDS]
ALL = [command for document in DOCUMENTS for command in commands(document)] + DEMO
OURS = [command for command in ALL if command.words[0] == "rf-export"]
SMALLER = (
    (r"train (\S+) --steps \d+", r"train \1 --steps 2 --describe-steps 0 --no-compile --batch-size 2"),
    (r"snapshot-\d+", "checkpoint"),
    (r"--num-prompts \d+", "--num-prompts 2"),
    (r"--scene-score \d+", "--scene-score 0"),
    (r"(rf-export calibrate \S+)", r"\1 --force"),
    (r"(rf-export bench \S+ --checkpoint \S+)", r"\1 --no-compile --rounds 1"),
    (r"--repeat \d+", "--repeat 1"),
)
ELSEWHERE = (
    (r"^(sudo|rsync|tegrastats|pip|git|\. |python3 -m venv)", "changes the machine, or needs another one"),
    (r"^(rf-export|make) serve|^make web|--serve", "runs until it is stopped, and has tests of its own"),
    (r"^make (setup|demo|test|test-slow|bench)", "makes an environment, runs this suite, or what has tests of its own"),
    (r"^(ray|serve|export) ", "needs a cluster of Ray, and has tests of its own"),
    (r"refit-engine ENGINE BUNDLE", "needs an engine of TensorRT"),
    (r"^rf-export export-web", "asks npm's registry, and has tests of its own"),
    (r"^rf-export tune", "draws thousands of pictures, and has tests of its own"),
    (r"bench --compare", "gives no verdict on one process"),
)
NO_DEVICE = re.compile(r"--backend (tensorrt|ort-cuda)\b(?!-rtx)|generate .*--backend tensorrt")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document):
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} of {document.name}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link} of {document.name}"


@pytest.mark.parametrize("command", OURS, ids=str)
def test_every_command_and_option_exists(command):
    name, *arguments = command.words[1:]
    if name.startswith("-"):
        return
    assert name in cli.main.commands
    if not arguments and not command.in_block:
        return  # only named
    try:
        cli.main.commands[name].make_context(name, list(arguments))
    except click.MissingParameter:
        assert not command.in_block
    except click.BadParameter as error:
        assert "does not exist" in error.message  # a file of the reader's


@pytest.mark.parametrize("command", [each for each in ALL if each.words[0] in ("python", "make")], ids=str)
def test_every_script_and_target_exists(command):
    program, what, *_ = [word for word in command.words if word not in ("-m", "pytest")] + [""]
    if program == "make":
        assert re.search(rf"^{re.escape(what)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif what.endswith(".py"):
        assert (ROOT / what).is_file()


def test_the_readme_names_every_command():
    named = {command.words[1] for command in OURS if command.document.name == "README.md"}
    assert set(cli.main.commands) <= named


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A folder with what the documents take for given; documents run in copies of it."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "examples").symlink_to(ROOT / "examples")
    (desk / "CHECKPOINT").symlink_to(ROOT / "examples/reference/checkpoint")
    shutil.copy(ROOT / "examples/reference/prompts.txt", desk)
    (desk / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    for path in ("photo.jpg", "photos/1.png", "a.png", "b.png"):
        Image.fromarray(noise).save(desk / path)
    return desk


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a document."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    program = f"{sys.executable} {ROOT / 'cli.py'}"
    line = re.sub(r"^rf-export", program, command)
    line = re.sub(r"^python (\S+)", lambda match: f"{sys.executable} {ROOT / match[1]}", line)
    return subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def smaller(command: str) -> str:
    """The same with less to do."""
    for pattern, replacement in SMALLER:
        command = re.sub(pattern, replacement, command)
    return command


def run_or_refuse(command: Command, folder: Path) -> None:
    """Run a command of a document; one for a device that is not here has to say so in a sentence."""
    if any(re.search(pattern, command.text) for pattern, _ in ELSEWHERE):
        return
    done = run(smaller(command.text), folder)
    if NO_DEVICE.search(command.text) and done.returncode:
        assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("Error: "), done.stderr
        return
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_runs(document, desk, readme_bundle, tmp_path):
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    blocks = [command for command in commands(document) if command.in_block]
    if not any(re.search(r"^rf-export export .*-o bundle\b", command.text) for command in blocks):
        shutil.copytree(readme_bundle, folder / "bundle")
    for command in blocks:
        run_or_refuse(command, folder)


@pytest.mark.slow
def test_what_the_demo_report_recommends_runs(desk, readme_bundle, tmp_path):
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    shutil.copytree(readme_bundle, folder / "bundle")
    for command in DEMO:
        run_or_refuse(command, folder)
    assert (folder / "car.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("document", [path for path in DOCUMENTS if python_blocks(path)], ids=lambda path: path.name)
def test_every_python_block_runs(document, desk, readme_bundle, tmp_path):
    folder = tmp_path / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    shutil.copytree(readme_bundle, folder / "bundle")
    for number, block in enumerate(python_blocks(document)):
        script = folder / f"block{number}.py"
        script.write_text("from runtime import Pipeline\n" + block if "import" not in block else block)
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
