"""A bundle that travels in pieces: the same folder at the other end, made once, verified, and removed when unused.

A dictionary is the store here; test_ray.py has Ray's.
"""

import filecmp
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from runtime import Pipeline
from runtime.errors import RFError
from runtime.serving import ray_bundles
from runtime.serving.ray_bundles import Packed, own_folder, pack, unpack


class Store:
    """What was put, and how often it was asked for."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.num_gets = 0

    def put(self, piece: bytes) -> int:
        self.pieces.append(piece)
        return len(self.pieces) - 1

    def get(self, reference: int) -> bytes:
        self.num_gets += 1
        return self.pieces[reference]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def packed(store: Store, calibrated_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Packed:
    monkeypatch.setattr(ray_bundles, "_PIECE", 10_000)
    return pack(calibrated_bundle, store.put)


def test_what_comes_out_is_what_went_in(packed: Packed, store: Store, calibrated_bundle: Path, tmp_path: Path) -> None:
    folder, mark = unpack(packed, store.get, tmp_path)
    with mark:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert found == set(packed.files) >= {"manifest.json", "tokenizer.json"}
        assert any(name.startswith("engines/") for name in found) and max(map(len, packed.files.values())) > 1
        _, differing, missing = filecmp.cmpfiles(calibrated_bundle, folder, sorted(found), shallow=False)
        assert not differing and not missing
        drawn = [Pipeline.load(each, "int8", num_threads=1).draw("a cup") for each in (calibrated_bundle, folder)]
        assert (drawn[0] == drawn[1]).all()


def test_replicas_of_a_node_share_one_folder(packed: Packed, store: Store, tmp_path: Path) -> None:
    found: list[Any] = []
    replicas = [threading.Thread(target=lambda: found.append(unpack(packed, store.get, tmp_path))) for _ in range(4)]
    for each in replicas:
        each.start()
    for each in replicas:
        each.join()
    assert len({folder for folder, _ in found}) == 1 and len(found) == 4
    assert store.num_gets == len(store.pieces)
    for _, mark in found:
        mark.close()


def test_the_next_bundle_removes_what_nobody_uses(
    packed: Packed, store: Store, tiny_bundle: Path, tmp_path: Path
) -> None:
    first, mark = unpack(packed, store.get, tmp_path)
    other = pack(tiny_bundle, store.put)
    second, other_mark = unpack(other, store.get, tmp_path)
    assert first.is_dir() and second.is_dir() and first != second
    other_mark.close()
    _, again = unpack(packed, store.get, tmp_path)
    assert first.is_dir() and not second.exists()
    mark.close()
    again.close()


def test_a_damaged_piece_is_refused_and_leaves_nothing(packed: Packed, store: Store, tmp_path: Path) -> None:
    weights = next(pieces for name, pieces in packed.files.items() if name.endswith("fp32.bin"))
    whole = store.pieces[weights[0]]
    store.pieces[weights[0]] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(RFError, match="differs from what was written"):
        unpack(packed, store.get, tmp_path)
    assert not (tmp_path / packed.name).exists()
    store.pieces[weights[0]] = whole
    folder, mark = unpack(packed, store.get, tmp_path)
    mark.close()
    assert folder.is_dir()


def test_a_damaged_bundle_is_not_put(store: Store, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    with (bundle / "graphs/weights/fp32.bin").open("r+b") as file:
        file.write(b"damaged")
    with pytest.raises(RFError, match="differs from what was written"):
        pack(bundle, store.put)
    assert store.pieces == []


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = own_folder()
    assert root == own_folder() and root.stat().st_mode & 0o777 == 0o700
    root.chmod(0o777)
    with pytest.raises(RFError, match="Others may write to"):
        own_folder()
