"""The steps of examples/containers/Dockerfile, without a registry of images: what they name is there, and the steps of
the CPU image, run in a fresh environment, give a server that draws.

Not run: bases of images, apt-get, and what needs a GPU.
"""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
from processes import ROOT

from runtime import Pipeline

FOLDER = ROOT / "examples/containers"
PLACES = re.compile(r"(?<![\w.:/])/(src|dist|bundle)\b")  # of an image


class Step(NamedTuple):
    """An instruction of a stage."""

    kind: str
    text: str


def stages() -> dict[str, list[Step]]:
    """The steps of each stage; the first one is FROM, without the name."""
    found: dict[str, list[Step]] = {}
    steps: list[Step] = []
    for line in (FOLDER / "Dockerfile").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        kind, _, text = line.partition(" ")
        if kind == "FROM":
            text, _, name = text.partition(" AS ")
            steps = found[name] = []
        steps.append(Step(kind, text))
    return found


STAGES = stages()


def of(stage: str, kind: str) -> list[str]:
    return [step.text for step in STAGES[stage] if step.kind == kind]


def test_what_is_copied_is_there() -> None:
    packaged = re.search(r"wheel]\nonly-include = (\[.*])", (ROOT / "pyproject.toml").read_text())
    assert packaged is not None
    copied = [path for text in of("wheel", "COPY") for path in text.split()[:-1]]
    assert set(json.loads(packaged[1])) <= set(copied)
    assert all((ROOT / path).exists() for path in copied)
    for stage in STAGES:
        for source in re.findall(r"--from=(\S+)", " ".join(of(stage, "COPY"))):
            assert list(STAGES).index(source) < list(STAGES).index(stage)


def test_extras_and_options_are_known() -> None:
    extras = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    text = (FOLDER / "Dockerfile").read_text()
    assert {each for group in re.findall(r'\.whl\)\[([\w,-]+)]"', text) for each in group.split(",")} <= extras
    from runtime.serving.command import serve

    options = {name for parameter in serve.params for name in parameter.opts}
    for stage in ("cpu", "cuda", "l4t"):
        (entry,) = (json.loads(each) for each in of(stage, "ENTRYPOINT"))
        assert entry[:3] == ["rf-export", "serve", "/bundle"]
        words = [*entry[3:], *(word for each in of(stage, "CMD") for word in json.loads(each))]
        assert {word for word in words if word.startswith("--")} <= options
        assert of(stage, "USER") and of(stage, "HEALTHCHECK") == of("cpu", "HEALTHCHECK")


def test_compose_names_what_is_there() -> None:
    yaml = pytest.importorskip("yaml", reason="reads compose.yaml: pip install pyyaml")
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    build = services["rf-export"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file() and build["target"] in STAGES
    (mounted,) = (each.split(":")[0] for each in services["prometheus"]["volumes"])
    (job,) = yaml.safe_load((FOLDER / mounted).read_text())["scrape_configs"]
    ((target,),) = (each["targets"] for each in job["static_configs"])
    name, _, port = target.partition(":")
    assert name in services and f"{port}:{port}" in services[name]["ports"]


class Image:
    """A folder in the place of a root, and an environment in the place of the base image."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root
        subprocess.run([sys.executable, "-m", "venv", root / "python"], check=True)
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "LANG", "TMP"))}
        self.environment = {**kept, "PATH": f"{root / 'python/bin'}:/usr/bin:/bin", "HOME": str(root)}

    def inside(self, text: str) -> str:
        """The same with paths of this root."""
        return PLACES.sub(lambda found: str(self.root / found[1]), text)

    def do(self, step: Step, images: dict[str, "Image"]) -> None:
        """Run a step."""
        if step.kind == "WORKDIR":
            self.folder = Path(self.inside(step.text))
            self.folder.mkdir()
        elif step.kind == "COPY":
            *sources, target = (word for word in shlex.split(step.text) if not word.startswith("--"))
            source = re.search(r"--from=(\S+)", step.text)
            for path in sources:
                origin = Path(images[source[1]].inside(path)) if source else ROOT / path
                place = Path(self.inside(target)) if target.startswith("/") else self.folder / target
                if origin.is_dir():
                    shutil.copytree(origin, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(origin, place)
        elif step.kind == "RUN":
            subprocess.run(self.inside(step.text), shell=True, check=True, cwd=self.folder, env=self.environment)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The stages wheel and cpu."""
    images: dict[str, Image] = {}
    for stage in ("wheel", "cpu"):
        images[stage] = Image(tmp_path_factory.mktemp(stage))
        for step in STAGES[stage]:
            images[stage].do(step, images)
    yield images["cpu"]


@pytest.mark.slow
def test_the_image_draws_is_healthy_and_stops(image: Image, tiny_bundle: Path, tmp_path: Path) -> None:
    (image.root / "bundle").symlink_to(tiny_bundle)
    (entry,) = (json.loads(each) for each in of("cpu", "ENTRYPOINT"))
    command = [*map(image.inside, entry), "--port", "0"]
    command[0] = str(image.root / "python/bin" / command[0])
    with (tmp_path / "out").open("wb") as out:
        server = subprocess.Popen(command, env=image.environment, stdout=out, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://\S+:(\d+)", (tmp_path / "out").read_text())):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        (health,) = (json.loads(each.removeprefix("CMD ")) for each in of("cpu", "HEALTHCHECK"))
        check = [*health[:2], health[2].replace("8000", found[1])]
        check[0] = str(image.root / "python/bin" / check[0])
        subprocess.run(check, check=True, env=image.environment)
        assert drawn(f"http://127.0.0.1:{found[1]}") == drawn_natively(tiny_bundle)
    finally:
        server.terminate()
        assert server.wait(60) == 0


def drawn(url: str) -> Any:
    body = json.dumps({"prompt": "a red car", "seed": 7}).encode()
    asked = urllib.request.Request(f"{url}/v1/images/generations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        png = base64.b64decode(json.load(answer)["data"][0]["b64_json"])
    return np.asarray(PIL.Image.open(BytesIO(png))).tolist()


def drawn_natively(bundle: Path) -> Any:
    return Pipeline.load(bundle, num_threads=1).draw("a red car", seed=7).tolist()
