"""`serve deploy` on a cluster that runs: bundles are replaced and replicas added under load, and nothing fails.

RF_EXPORT_TEST_RAY names the environment, as for test_ray.py; the tests come in the order of the life of one cluster.
"""

import base64
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from openai import OpenAI
from PIL import Image
from processes import ROOT

from runtime import Pipeline

ENVIRONMENT = os.environ.get("RF_EXPORT_TEST_RAY")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(ENVIRONMENT is None, reason="RF_EXPORT_TEST_RAY names no environment with ray[serve]"),
]
PATIENCE_S = 300
APPLICATION = "runtime.serving.ray_app:app"
ON_HEAD = "node:__internal_head__"  # a resource that Ray gives its first node


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in held]


class Cluster:
    """A cluster of this machine alone, and `serve` that speaks to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, cluster, dashboard, clients, agent = free_ports(5)
        self._dashboard = f"http://127.0.0.1:{dashboard}"
        self._temp = tempfile.mkdtemp(prefix="rf-ray-")  # short: sockets lie in it
        patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_USAGE_STATS_ENABLED": "0"}
        key = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._environment = {**os.environ, **patience, **key, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
        ports = {"port": cluster, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
        options = {**ports, "ray-client-server-port": clients, "object-store-memory": 256 << 20, "num-cpus": 3}
        options |= {"node-ip-address": "127.0.0.1", "dashboard-host": "127.0.0.1", "temp-dir": self._temp}
        given = [f"--{name}={value}" for name, value in options.items()]
        with (folder / "log").open("wb") as log:
            command = [Path(str(ENVIRONMENT)) / "bin/ray", "start", "--head", "--block", *given]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment, cwd=ROOT)

    def serve(self, *arguments: Any) -> str:
        """What `serve` says."""
        command = [Path(str(ENVIRONMENT)) / "bin/serve", *map(str, arguments), "--address", self._dashboard]
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def deploy(self, **applications: dict[str, Any]) -> None:
        """Deploy a config file."""
        config = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [
                {"name": name, "route_prefix": f"/{name}", "import_path": APPLICATION, "args": args}
                for name, args in applications.items()
            ],
        }
        (self.folder / "serve.yaml").write_text(json.dumps(config))  # which is YAML, too
        self.serve("deploy", self.folder / "serve.yaml")

    def status(self) -> dict[str, Any]:
        """Of the applications, by name."""
        yaml = pytest.importorskip("yaml", reason="reads what `serve status` writes: pip install pyyaml")
        applications: dict[str, Any] = yaml.safe_load(self.serve("status"))["applications"]
        return applications

    def wait_for(self, what: Any) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.2)

    def is_running(self, **replicas: int) -> bool:
        """Whether the applications run in their newest version, with so many replicas."""
        found = self.status()
        return all(
            found[name]["status"] == "RUNNING"
            and found[name]["deployments"]["drawer"]["replica_states"] == {"RUNNING": count}
            for name, count in replicas.items()
        )

    def draw(self, name: str, key: str = "none") -> np.ndarray:
        """A picture by OpenAI's client."""
        url = f"http://127.0.0.1:{self.port}/{name}/v1"
        with OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S) as client:
            drawn = client.images.generate(prompt="a red car", extra_body={"seed": 7})
        return pixels((drawn.data or [])[0].b64_json or "")

    @contextmanager
    def load(self, name: str) -> Iterator[Counter[str]]:
        """Two clients that draw again and again; what they were told is counted by its picture, or by what went wrong.

        The block ends after it has been asked at least once more.
        """
        told: Counter[str] = Counter()
        stopped, body = threading.Event(), json.dumps({"prompt": "a red car", "seed": 7})

        def ask() -> str:
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
                connection.request("POST", f"/{name}/v1/images/generations", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                return (
                    name_of(pixels(json.loads(content)["data"][0]["b64_json"]))
                    if answer.status == 200
                    else str(content)
                )

        def client() -> None:
            while not stopped.is_set():
                try:
                    told[ask()] += 1
                except Exception as error:
                    told[repr(error)] += 1
                time.sleep(0.1)
            told[ask()] += 1

        clients = [threading.Thread(target=client) for _ in range(2)]
        for each in clients:
            each.start()
        try:
            yield told
        finally:
            stopped.set()
            for each in clients:
                each.join()

    def stop(self) -> list[psutil.Process]:
        """End it; returns what did not end."""
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(processes, 60)
        for each in alive:
            each.kill()
        shutil.rmtree(self._temp, ignore_errors=True)
        return alive


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    try:
        yield cluster
    finally:
        if cluster.process.poll() is None:
            cluster.stop()


@pytest.fixture(scope="module")
def birds(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("birds") / "bundle")


def pixels(text: str) -> np.ndarray:
    with Image.open(BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image)


def name_of(picture: np.ndarray) -> str:
    return f"picture {hash(picture.tobytes())}"


@pytest.fixture(scope="module")
def before(tiny_bundle: Path) -> np.ndarray:
    return Pipeline.load(tiny_bundle, num_threads=1, engine="none").draw("a red car", seed=7)


@pytest.fixture(scope="module")
def after(calibrated_bundle: Path) -> np.ndarray:
    return Pipeline.load(calibrated_bundle, "int8", num_threads=1).draw("a red car", seed=7)


def cars(bundle: Path, **more: Any) -> dict[str, Any]:
    """Pictures are drawn one by one, for in a batch those in INT8 are others."""
    return {"bundle": str(bundle), "model_name": "cars", "max_batch": 1, **more}


def birds_of(bundle: Path, **more: Any) -> dict[str, Any]:
    return {"bundle": str(bundle), "bundle_node": ON_HEAD, "api_key": "secret", **more}


def test_two_bundles_are_deployed_and_draw(
    cluster: Cluster, tiny_bundle: Path, birds: Path, before: np.ndarray
) -> None:
    cluster.wait_for(lambda: "Ray runtime started" in (cluster.folder / "log").read_text())
    cluster.deploy(cars=cars(tiny_bundle), birds=birds_of(birds))
    cluster.wait_for(lambda: cluster.is_running(cars=1, birds=1))
    assert (cluster.draw("cars") == before).all()
    assert (cluster.draw("birds", "secret") == before).all()


def test_a_bundle_is_replaced_under_load(
    cluster: Cluster, calibrated_bundle: Path, birds: Path, before: np.ndarray, after: np.ndarray
) -> None:
    """By one of another precision; every client gets a picture of the one or of the other."""
    assert (before != after).any()
    with cluster.load("cars") as told:
        cluster.wait_for(lambda: told)
        cluster.deploy(cars=cars(calibrated_bundle, precision="int8"), birds=birds_of(birds))
        cluster.wait_for(lambda: name_of(after) in told and cluster.is_running(cars=1, birds=1))
    assert set(told) == {name_of(before), name_of(after)}


def test_a_second_replica_is_added_under_load(
    cluster: Cluster, calibrated_bundle: Path, birds: Path, after: np.ndarray
) -> None:
    two = cars(calibrated_bundle, precision="int8", min_replicas=2, max_replicas=2)
    with cluster.load("cars") as told:
        cluster.wait_for(lambda: told)
        cluster.deploy(cars=two, birds=birds_of(birds))
        cluster.wait_for(lambda: cluster.is_running(cars=2, birds=1))
    assert set(told) == {name_of(after)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bundle": "/nowhere"}, "/nowhere is not a folder"),
        ({"precision": "int8"}, "make the graphs with: rf-export calibrate"),
        ({"bundle_node": "shelves"}, "No node of the cluster has the resource 'shelves'"),
        ({"bundel": "/models"}, "Extra inputs are not permitted"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_cannot_be_served_is_refused_and_the_one_before_goes_on(
    cluster: Cluster, calibrated_bundle: Path, birds: Path, before: np.ndarray, change: dict[str, str], why: str
) -> None:
    two = cars(calibrated_bundle, precision="int8", min_replicas=2, max_replicas=2)
    cluster.deploy(cars=two, birds=birds_of(birds) | change)
    cluster.wait_for(lambda: why in cluster.status()["birds"]["message"])
    assert cluster.status()["birds"]["status"] == "DEPLOY_FAILED"
    assert (cluster.draw("birds", "secret") == before).all()


def test_a_replica_needs_no_folder_where_the_store_has_it(cluster: Cluster, birds: Path, before: np.ndarray) -> None:
    """The folder is gone and the replica is killed: the next one draws from what is in the store."""
    cluster.deploy(birds=birds_of(birds))
    cluster.wait_for(lambda: list(cluster.status()) == ["birds"] and cluster.is_running(birds=1))
    kept = birds.with_name("kept")
    birds.rename(kept)
    try:
        (replica,) = [
            each
            for each in psutil.Process(cluster.process.pid).children(recursive=True)
            if "ServeReplica:birds:drawer" in " ".join(each.cmdline())
        ]
        replica.kill()
        replica.wait(PATIENCE_S)
        cluster.wait_for(lambda: cluster.is_running(birds=1))
        assert (cluster.draw("birds", "secret") == before).all()
    finally:
        kept.rename(birds)
    (unpacked,) = cluster.folder.glob("rf-export-*/*/manifest.json")
    assert unpacked.read_bytes() == (birds / "manifest.json").read_bytes()


def test_it_shuts_down(cluster: Cluster) -> None:
    cluster.serve("shutdown", "--yes")
    cluster.wait_for(lambda: not cluster.status())
    assert cluster.stop() == []
