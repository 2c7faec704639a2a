"""NVIDIA's Triton with a bundle, in an environment of its own, and its own client that sends the load.

The server is the one that `nvidia-pytriton` carries; the environment has it, `tritonclient[grpc]` and `rf-export[ort]`.
The client, too, runs there, in a process of its own: this file, run as a program, reads requests and tells answers.
"""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300


@dataclass(frozen=True)
class Command:
    """How to start a server, and where it will be."""

    words: list[str]
    environment: dict[str, str]
    address: str


def prepare(environment: Path, bundle: Path, folder: Path, *options: str) -> Command:
    """Write a repository of a bundle, and the backend that draws from it, into an empty folder.

    Args:
        environment: With nvidia-pytriton and rf-export.
        bundle: What draws.
        folder: To write into.
        options: Of `rf-export serve --write-triton`.
    """
    python = environment / "bin/python"
    (found,) = environment.glob("lib/python3.*/site-packages/pytriton/tritonserver")
    site = found.parents[1]
    write = [python, ROOT / "cli.py", "serve", bundle, "--write-triton", folder / "models", *options]
    told = subprocess.run(
        write, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise SystemExit(told.stderr)
    shutil.copytree(found / "backends/python", folder / "backends/python")
    stub = found / "python_backend_stubs" / site.parent.name.removeprefix("python") / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends/python")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = [python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"]
    libraries = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    words = [found / "bin/tritonserver", "--model-repository", folder / "models"]
    words += ["--backend-directory", folder / "backends", "--allow-http", "false", "--allow-metrics", "false"]
    words += ["--grpc-address", "127.0.0.1", "--grpc-port", port]
    return Command(
        [str(word) for word in words],
        {**os.environ, "LD_LIBRARY_PATH": f"{site / 'nvidia_pytriton.libs'}:{libraries}"},
        f"127.0.0.1:{port}",
    )


def main() -> None:
    """Be the client: requests on the standard input, answers on the standard output."""
    given = json.load(sys.stdin)
    print(json.dumps(asyncio.run(_send(sys.argv[1], given["requests"], given["clients"]))))


async def _send(address: str, requests: list[dict[str, Any]], clients: int | None) -> dict[str, Any]:
    """The answers in the order of the requests, and the seconds that all of it took."""
    import tritonclient.grpc.aio as triton

    answers: list[dict[str, Any]] = [{} for _ in requests]
    async with triton.InferenceServerClient(address) as client:
        await asyncio.wait_for(_ready(client), TIMEOUT_S)
        left = iter(range(len(requests)))

        async def again() -> None:
            for index in left:
                answers[index] = await _ask(client, requests[index])

        async def once(index: int) -> None:
            await asyncio.sleep(requests[index]["at_s"])
            answers[index] = await _ask(client, requests[index])

        started = time.perf_counter()
        await asyncio.gather(*([once(i) for i in left] if clients is None else [again() for _ in range(clients)]))
        return {"answers": answers, "wall_s": time.perf_counter() - started}


async def _ready(client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    while True:
        with contextlib.suppress(InferenceServerException):  # nobody listens yet
            if await client.is_model_ready("rf_draw"):
                return
        await asyncio.sleep(0.1)


async def _ask(client: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """What a request came to; its status is that of HTTP, 0 where the client left."""
    started = time.perf_counter()
    told: dict[str, Any] = {"status": 500}
    stream = client.stream_infer(_one(asked))
    try:
        await asyncio.wait_for(_read(stream, told, started), asked["leaves_after_s"] or TIMEOUT_S)
    except asyncio.TimeoutError:
        stream.cancel()
        told["status"] = 0
    return {**told, "latency_s": time.perf_counter() - started}


async def _read(stream: Any, told: dict[str, Any], started: float) -> None:
    async for result, error in stream:
        if error is not None:
            told["status"] = 429 if "queue is full" in str(error) else 500
            continue
        step = result.as_numpy("STEP")
        if step is not None and step[0]:
            told.setdefault("first_preview_s", time.perf_counter() - started)
            told.setdefault("first_preview_step", int(step[0]))
        elif step is not None:
            told |= {"status": 200, "png": base64.b64encode(result.as_numpy("PNG")[0]).decode()}


async def _one(asked: dict[str, Any]) -> Any:
    """The stream of a request; the streams of a client share one connection."""
    import numpy as np
    import tritonclient.grpc.aio as triton

    options = {"previews": asked["previews"]} if asked["previews"] else {}
    if asked["size"] != "auto":
        options["width"], options["height"] = map(int, asked["size"].split("x"))
    inputs = []
    for name, kind, value in (
        ("PROMPT", "BYTES", asked["prompt"].encode()),
        ("SEED", "UINT64", asked["seed"]),
        ("OPTIONS", "BYTES", json.dumps(options).encode()),
    ):
        inputs.append(triton.InferInput(name, [1], kind))
        inputs[-1].set_data_from_numpy(np.array([value], object if kind == "BYTES" else np.uint64))
    outputs = [triton.InferRequestedOutput(name) for name in ("PNG", "STEP")]
    yield {"model_name": "rf_draw", "inputs": inputs, "outputs": outputs}


if __name__ == "__main__":
    main()
