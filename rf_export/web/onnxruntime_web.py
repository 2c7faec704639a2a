"""The files of onnxruntime-web, which run graphs in a browser: fetched once from npm's registry, and checked.

Knows nothing of bundles and pages. One version is known by its hash, and nothing else is taken; no node is needed. The
files are kept in the user's cache, so that the network is asked once.
"""

import base64
import hashlib
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Final

from runtime.bundle.atomic import write_folder
from runtime.errors import RFError

VERSION: Final = "1.30.0"
URL: Final = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
FILES: Final = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")  # of its folder dist
ENVIRONMENT: Final = "RF_ONNXRUNTIME_WEB"  # a folder that has them already

_SHA512: Final = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_REMEDY: Final = f"Fetch {URL} where there is a network, unpack it, and set {ENVIRONMENT} to its folder package/dist."
_TIMEOUT_S: Final = 30


def fetch() -> Path:
    """A folder with `FILES`, downloaded where no earlier call did.

    Raises:
        RFError: The registry cannot be reached, or what it sent is something else.
    """
    if given := os.environ.get(ENVIRONMENT):
        folder = Path(given)
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise RFError(
                f"{folder} has no {missing[0]}. {ENVIRONMENT} is to name the folder dist of {URL}.", "missing"
            )
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rf-export"
    folder = cache / f"onnxruntime-web-{VERSION}"
    if not all((folder / name).is_file() for name in FILES):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as package:
            _download(package)
            with write_folder(folder, replaceable=lambda _: True, force=True, what="cache") as new:
                _unpack(package, new)
    return folder


def _download(package: IO[bytes]) -> None:
    digest = hashlib.sha512()
    try:
        with urllib.request.urlopen(URL, timeout=_TIMEOUT_S) as answer:
            while piece := answer.read(1 << 20):
                digest.update(piece)
                package.write(piece)
    except (OSError, urllib.error.URLError) as error:
        raise RFError(
            f"onnxruntime-web {VERSION} cannot be fetched from npm's registry ({error}). {_REMEDY}", "missing"
        ) from error
    if base64.b64encode(digest.digest()).decode() != _SHA512:
        raise RFError(f"{URL} is not the package that is known (sha512). {_REMEDY}", "damaged")
    package.seek(0)


def _unpack(package: IO[bytes], folder: Path) -> None:
    with tarfile.open(fileobj=package, mode="r:gz") as archive:
        for name in FILES:
            file = archive.extractfile(f"package/dist/{name}")
            assert file is not None, name  # the hash says that it is there
            (folder / name).write_bytes(file.read())
