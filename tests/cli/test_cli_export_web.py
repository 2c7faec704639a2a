"""`rf-export export-web`: what a site is made of, and what is refused, with nothing left behind."""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tomllib
from running import invoke, refused, run
from sites import WEB, require_library, write_site

from rf_export.web import onnxruntime_web
from runtime import Pipeline
from runtime.bundle.folder import open_bundle, write_manifest
from runtime.signature import Variant

ROOT = Path(__file__).parents[2]
WASM = "host/ort/ort-wasm-simd-threaded.wasm"


@pytest.fixture(scope="module")
def site(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tiny_bundle, tmp_path_factory.mktemp("web") / "site")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def table(site: Path) -> dict[str, dict[str, object]]:
    """The files that the service worker keeps."""
    found = re.search(r"^const FILES = (.+);$", (site / "service-worker.js").read_text(), re.MULTILINE)
    assert found
    return dict(json.loads(found[1]))


def test_the_bundle_is_cut_down_and_draws_as_before(tiny_bundle: Path, site: Path) -> None:
    whole, part = open_bundle(tiny_bundle).manifest, open_bundle(site / "bundle", verify="hash").manifest
    assert part.variants == (Variant("fp16"),) and len(part.files) < len(whole.files)
    assert part.verified == {"fp16": whole.verified["fp16"]}
    assert {path.relative_to(site / "bundle").as_posix() for path in (site / "bundle").rglob("*.*")} >= set(part.files)
    drawn = [
        Pipeline.load(each, "fp16", num_threads=1, engine="none").draw("a cup", seed=3)
        for each in (tiny_bundle, site / "bundle")
    ]
    assert np.array_equal(*drawn)


def test_the_table_names_every_file_and_packed_twins_are_the_same(site: Path) -> None:
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    plain = {name for name in files if not name.endswith(".gz")}
    known = table(site)
    assert set(known) == plain - {"service-worker.js"}
    for name, entry in known.items():
        content = (site / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert entry["packed"] == (f"{name}.gz" in files)
        assert not entry["packed"] or gzip.decompress((site / f"{name}.gz").read_bytes()) == content
    assert known[WASM]["packed"]


def test_the_page_draws_by_itself_and_names_no_other_address(site: Path) -> None:
    index = (site / "index.html").read_text()
    assert "engine-wasm.js" in index and "engine-http.js" not in index
    assert "script-src 'self' 'wasm-unsafe-eval'" in index and "unsafe-inline" not in index
    for path in [*site.glob("*.html"), *site.glob("*.js"), *site.glob("*.css"), *site.glob("host/*.js")]:
        assert not re.search(r"""(src|href|from|import|fetch)\W{1,3}https?:""", path.read_text()), path


def test_the_same_bundle_makes_the_same_site(tiny_bundle: Path, site: Path, tmp_path: Path) -> None:
    package = tmp_path / "unpacked"
    shutil.copytree(require_library(), package / "dist")
    ours = ("--onnxruntime-web", package)
    told = json.loads(run("export-web", tiny_bundle, "-o", tmp_path / "again", "--json", *ours))
    assert (tmp_path / "again/service-worker.js").read_text() == (site / "service-worker.js").read_text()
    assert told["precision"] == "fp16" and told["num_files"] == len(table(site))
    assert told["bundle_id"] == open_bundle(site / "bundle").manifest.bundle_id
    packed = sum(path.stat().st_size for path in site.rglob("*.gz"))
    assert packed <= told["packed_size"] < told["size"]
    refused(invoke("export-web", tiny_bundle, "-o", tmp_path / "again"), "--force")
    out = run("export-web", tiny_bundle, "-o", tmp_path / "again", "--force", "--precision", "fp32")
    assert "fp32, bundle" in out and "a first visit loads" in out
    assert open_bundle(tmp_path / "again/bundle").manifest.precisions == ("fp32",)
    (package / "dist/ort.wasm.min.mjs").write_text("another version")
    refused(invoke("export-web", tiny_bundle, "-o", tmp_path / "other", *ours), "ort.wasm.min.mjs", "1.30.0")
    assert {path.name for path in tmp_path.iterdir()} == {"again", "unpacked"}


def test_a_site_can_be_looked_at_until_ctrl_c(tiny_bundle: Path, tmp_path: Path) -> None:
    require_library()
    command = [sys.executable, ROOT / "cli.py", "export-web", tiny_bundle, "-o", tmp_path / "site", "--serve"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*map(str, command), "--port", "0"], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        url = next(line.split()[0] for line in process.stdout if line.startswith("http://127.0.0.1"))
        for name, kind in (("", "text/html"), ("main.js", "text/javascript"), (WASM, "application/wasm")):
            with urllib.request.urlopen(f"{url}{name}") as answer:
                assert answer.headers["Content-Type"].startswith(kind)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_graphs_that_nobody_verified_are_left_or_refused(bundle: Path, tmp_path: Path) -> None:
    require_library()
    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, manifest.replace(verified={"fp32": manifest.verified["fp32"]}))
    assert "fp32, bundle" in run("export-web", bundle, "-o", tmp_path / "site")
    write_manifest(bundle, manifest.replace(verified={}))
    refused(invoke("export-web", bundle, "-o", tmp_path / "other"), "nobody verified them", "rf-export verify")
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_a_site_is_refused(tiny_bundle: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    refused(invoke("export-web", tmp_path, "-o", out), "manifest.json", "rf-export export")
    refused(invoke("export-web", bundle, "-o", out, "--precision", "int8"), "int8 classic", "fp32 classic")
    refused(invoke("export-web", bundle, "-o", out, "--dialect", "modern"), "modern")
    refused(invoke("export-web", bundle, "-o", out, "--precision", "fp64"), "--precision", code=2)
    refused(invoke("export-web", bundle, "-o", bundle, "--force"), "is not a site")
    refused(invoke("export-web", bundle, "-o", out, "--onnxruntime-web", tmp_path), "ort.wasm.min.mjs")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(invoke("export-web", bundle, "-o", out, "--serve", "--port", port), f"Port {port}", "--port")
    with zipfile.ZipFile(ROOT / "tests/runtime/bundle/format2.zip") as old:
        old.extractall(tmp_path / "old")
    old_bundle = next(path.parent for path in (tmp_path / "old").rglob("manifest.json"))
    refused(invoke("export-web", old_bundle, "-o", out), "format 2", "Export the bundle again")
    weights = bundle / "graphs/weights/fp16.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    refused(invoke("export-web", bundle, "-o", out), "fp16.bin differs")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "old"}
    open_bundle(bundle)


def test_the_npm_package_is_the_module_with_the_library_that_sites_have() -> None:
    package = json.loads((WEB / "package.json").read_text())
    assert package["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert package["type"] == "module" and package["dependencies"] == {"onnxruntime-web": onnxruntime_web.VERSION}
    for path in package["exports"].values():
        assert (WEB / path).is_file()
    lines = re.findall(r"```js\n(.*?)```", (WEB / "README.md").read_text(), re.DOTALL)[0].splitlines()
    assert len(lines) <= 5
