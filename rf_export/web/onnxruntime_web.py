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

from runtime.bundle.atomic import locked, write_folder
from runtime.errors import RFError
from runtime.events import Progress

VERSION: Final = "1.30.0"
URL: Final = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
FILES: Final = {  # of its folder dist, with their SHA-256
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
ENVIRONMENT: Final = "RF_ONNXRUNTIME_WEB"  # a folder that has them already

_SHA512: Final = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_REMEDY: Final = (
    f"Fetch {URL} where there is a network, unpack it, and name its folder with --onnxruntime-web or {ENVIRONMENT}."
)
_TIMEOUT_S: Final = 30


def fetch(given: Path | None = None, report: Progress = lambda *_: None) -> Path:
    """A folder with `FILES`, downloaded where no earlier call did.

    Args:
        given: The unpacked package, or its folder dist; None takes the one that `ENVIRONMENT` names, or downloads it.
        report: Is told MiB that came, of how many.

    Raises:
        RFError: The registry cannot be reached, or what it sent is something else.
    """
    if named := given or os.environ.get(ENVIRONMENT):
        return _given(Path(named))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rf-export"
    folder = cache / f"onnxruntime-web-{VERSION}"
    if not _is_in(folder):
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / "download"), tempfile.TemporaryFile() as package:
            if not _is_in(folder):  # nobody has fetched it meanwhile
                _download(package, report)
                with write_folder(folder, replaceable=lambda _: True, force=True, what="cache") as new:
                    _unpack(package, new)
    return folder


def _is_in(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _given(folder: Path) -> Path:
    places = (folder, folder / "dist", folder / "package" / "dist")
    found = next(filter(_is_in, places), None)
    if found is None:
        raise RFError(f"{folder} does not have {', '.join(FILES)}. {_REMEDY}", "missing")
    for name, sha256 in FILES.items():
        if hashlib.sha256((found / name).read_bytes()).hexdigest() != sha256:
            raise RFError(f"{found / name} is not the one of onnxruntime-web {VERSION} (sha256). {_REMEDY}", "damaged")
    return found


def _download(package: IO[bytes], report: Progress) -> None:
    digest = hashlib.sha512()
    try:
        with urllib.request.urlopen(URL, timeout=_TIMEOUT_S) as answer:
            size = int(answer.headers.get("Content-Length", 0)) >> 20
            while piece := answer.read(1 << 20):
                digest.update(piece)
                package.write(piece)
                report(f"fetching onnxruntime-web {VERSION}, in MiB", package.tell() >> 20, size)
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
