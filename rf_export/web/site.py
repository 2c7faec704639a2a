"""A folder that any static server serves: the page of `rf-export serve` on a bundle that the browser itself draws with.

    site/
      index.html, main.js, ...      the page, with the engine that needs no server, and a policy that asks nobody else
      service-worker.js             keeps what was loaded, by content; holds the table of files
      host/*.js, host/ort/          the module that draws, and onnxruntime-web
      bundle/                       the bundle, cut down to one precision
      *.gz                          what is worth packing, for servers that send it so, and for the service worker

Knows nothing of how browsers draw, and changes nothing of a bundle: its files, and the verdicts on them, stay as they
are.
"""

import json
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rf_export.web import onnxruntime_web
from runtime.backends.host.machine import usable_cpus
from runtime.bundle.atomic import write_folder
from runtime.bundle.folder import Bundle, describe_file, open_bundle, write_manifest
from runtime.bundle.manifest import FORMAT_VERSION, MANIFEST_NAME
from runtime.bundle.verdict import graphs_verdict, require_verified
from runtime.errors import RFError
from runtime.events import Progress
from runtime.signature import Dialect, Precision, Variant

WEB: Final = Path(__file__).parents[2] / "runtime" / "web"
WORKER: Final = "service-worker.js"
BUNDLE: Final = "bundle"
_PAGE: Final = ("main.js", "engine.js", "engine-wasm.js", "grid.js", "unstarted.js", "style.css", "icon.svg")
_PRELOADED: Final = ("engine.js", "engine-wasm.js", "grid.js", "host/client.js", "host/errors.js", "host/source.js")
_WASM: Final = "host/ort/ort-wasm-simd-threaded.wasm"
_MARK: Final = "// rf-export site"  # how a service worker of ours begins
_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_SERVER_ENGINE: Final = '<meta name="engine" content="./engine-http.js">'
_GZIP: Final = 31  # as zlib numbers it: with the largest window
_GAIN: Final = 0.97  # a packed file is larger than that share of the plain one: not worth it


@dataclass(frozen=True, kw_only=True)
class SiteOptions:
    """What goes into a site.

    Attributes:
        precision: Of the graphs; None takes fp16 where it is verified, and fp32 elsewhere.
        dialect: Of the graphs.
        onnxruntime_web: A folder with its files; None fetches them.
        force: Replace a site that is there.
        allow_unverified: Take graphs that failed a verification, or that nobody verified.
    """

    precision: Precision | None = None
    dialect: Dialect = "classic"
    onnxruntime_web: Path | None = None
    force: bool = False
    allow_unverified: bool = False


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site that was written."""

    path: Path
    bundle_id: str
    precision: Precision
    num_files: int
    size: int  # bytes of all files as the browser sees them
    packed_size: int  # bytes that a first visit loads


def export_site(bundle_path: Path, out: Path, options: SiteOptions, report: Progress) -> Site:
    """Write a site.

    Args:
        bundle_path: What it draws with.
        out: Where the site is to be; there is all of it or nothing.
        options: What goes into it.
        report: Is told how far it is.

    Raises:
        RFError: The bundle is damaged, not verified, or has no such graphs; `out` may not be replaced; or
            onnxruntime-web is not to be had.
    """
    bundle = open_bundle(bundle_path)
    variant = Variant(options.precision or _best_precision(bundle, options.dialect), options.dialect)
    _require_drawable(bundle, variant, options)
    with write_folder(out, replaceable=_is_site, force=options.force, what="site") as folder:
        report("copying", 0, 1)
        bundle_id = _cut(bundle, variant, folder / BUNDLE)
        library = onnxruntime_web.fetch(options.onnxruntime_web, report)
        shutil.copytree(WEB / "host", folder / "host", ignore=shutil.ignore_patterns("ort", "*.json", "*.md"))
        _copy_library(library, folder / "host" / "ort")
        for name in _PAGE:
            shutil.copyfile(WEB / name, folder / name)
        (folder / "index.html").write_text(_index(folder, variant, options), encoding="utf-8")
        table = _table(folder)
        packed = _pack(folder, list(table), report)
        _write_worker(folder, table, packed)
    sizes = [size for _, size in table.values()]
    return Site(
        path=out,
        bundle_id=bundle_id,
        precision=variant.precision,
        num_files=len(table),
        size=sum(sizes),
        packed_size=sum(packed.get(name, size) for name, (_, size) in table.items()),
    )


def _best_precision(bundle: Bundle, dialect: Dialect) -> Precision:
    half = Variant("fp16", dialect)
    is_sound = half in bundle.manifest.variants and graphs_verdict(bundle, half)[0] == "passed"
    return "fp16" if is_sound else "fp32"


def _require_drawable(bundle: Bundle, variant: Variant, options: SiteOptions) -> None:
    if bundle.manifest.format_version != FORMAT_VERSION:
        raise RFError(
            f"{bundle.path} is of format {bundle.manifest.format_version}, and browsers draw with format "
            f"{FORMAT_VERSION}. Export the bundle again.",
            "mismatch",
        )
    if variant not in bundle.manifest.variants:
        found = ", ".join(map(str, bundle.manifest.variants)) or "none"
        raise RFError(
            f"{bundle.path} does not have every graph in {variant}; it has all of {found}. Choose one of these with "
            "--precision and --dialect, or export the bundle again with the precision that you need."
        )
    require_verified(bundle, variant, allow_unverified=options.allow_unverified)


def _copy_library(library: Path, folder: Path) -> None:
    folder.mkdir()
    for name in onnxruntime_web.FILES:
        shutil.copyfile(library / name, folder / name)


def _cut(bundle: Bundle, variant: Variant, folder: Path) -> str:
    """Write the part of a bundle that draws in one variant, with the verdict on it; returns its id."""
    manifest = bundle.manifest
    graphs = tuple(manifest.graphs_of(variant))
    others = {name for graph in manifest.graphs if graph not in graphs for name in graph.files}
    names = [name for name in manifest.files if name not in others.difference(*(graph.files for graph in graphs))]
    bundle.verify(names)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(name), folder / name)
    part = manifest.replace(
        graphs=graphs,
        files={name: manifest.files[name] for name in names},
        verified={key: record for key, record in manifest.verified.items() if key == variant.key},
    )
    write_manifest(folder, part)
    open_bundle(folder, verify="hash")  # the bundle may have changed meanwhile
    return part.bundle_id


def _index(folder: Path, variant: Variant, options: SiteOptions) -> str:
    """The page of the server with another engine, which knows how much there is to load."""
    bundle = sum(path.stat().st_size for path in (folder / BUNDLE).rglob("*") if path.is_file())
    library = describe_file(folder / _WASM)
    unverified = " data-unverified" * options.allow_unverified
    heads = (
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="engine" content="./engine-wasm.js">',
        f'<meta name="bundle" content="{BUNDLE}/" data-precision="{variant.precision}" '
        f'data-dialect="{variant.dialect}" data-bytes="{bundle}" data-library="{_WASM}?{library.sha256}" '
        f'data-library-bytes="{library.size}"{unverified}>',
        '<script src="unstarted.js"></script>',
        *(f'<link rel="modulepreload" href="{name}">' for name in _PRELOADED),
    )
    before, found, after = (WEB / "index.html").read_text(encoding="utf-8").partition(_SERVER_ENGINE)
    assert found
    return before + "\n".join(heads) + after


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _table(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and size of every file that the page may ask for."""
    entries = {name: describe_file(folder / name) for name in _files(folder)}
    return {name: (entry.sha256, entry.size) for name, entry in entries.items()}


def _pack(folder: Path, names: list[str], report: Progress) -> dict[str, int]:
    """Write the packed twins that are worth it; returns their sizes."""
    packed = {}
    with ThreadPoolExecutor(usable_cpus()) as pool:
        twins = pool.map(lambda name: _twin(folder / name), names)
        for done, (name, size) in enumerate(zip(names, twins, strict=True)):
            report("packing", done, len(names))
            if size is not None:
                packed[name] = size
    return packed


def _twin(path: Path) -> int | None:
    content = path.read_bytes()
    strategy = zlib.Z_FILTERED if path.suffix == ".bin" else zlib.Z_DEFAULT_STRATEGY  # numbers hardly repeat
    packing = zlib.compressobj(9, wbits=_GZIP, memLevel=9, strategy=strategy)
    twin = packing.compress(content) + packing.flush()
    if len(twin) > _GAIN * len(content):
        return None
    path.with_name(f"{path.name}.gz").write_bytes(twin)
    return len(twin)


def _write_worker(folder: Path, table: dict[str, tuple[str, int]], packed: dict[str, int]) -> None:
    files = {name: {"sha256": sha256, "packed": name in packed} for name, (sha256, _) in table.items()}
    text = (WEB / WORKER).read_text(encoding="utf-8")
    for blank, value in (("const FILES = {};", f"const FILES = {json.dumps(files)};"), ('"POLICY"', f'"{_POLICY}"')):
        assert text.count(blank) == 1
        text = text.replace(blank, value)
    (folder / WORKER).write_text(text, encoding="utf-8")


def _is_site(folder: Path) -> bool:
    try:
        is_ours = (folder / WORKER).read_text(encoding="utf-8").startswith(_MARK)
    except (OSError, ValueError):
        return False
    return is_ours and (folder / BUNDLE / MANIFEST_NAME).is_file()
