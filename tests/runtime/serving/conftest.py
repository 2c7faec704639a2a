"""A server of the tiny bundle, and clients of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`rf-export serve` in a process of its own, with limits that a test reaches."""
    arguments = ("--max-steps", 1000, "--max-body-mib", 2, "--max-queue", 16, "--max-batch", 4)
    with Server(tiny_bundle, tmp_path_factory.mktemp("server"), *arguments) as server:
        yield server
