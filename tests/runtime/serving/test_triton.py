"""The model repository for NVIDIA's Triton, and, where its server is installed, what that answers.

The server comes with `pip install nvidia-pytriton "tritonclient[grpc]"` beside rf-export in an environment of its own,
since it wants NumPy 1; RF_EXPORT_TEST_TRITON=/path/of/that/environment runs `pytest -m slow` with it.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving_triton
from processes import start

from runtime import Pipeline
from runtime.errors import RFError
from runtime.serving.triton_repository import write_repository

ENVIRONMENT = os.environ.get("RF_EXPORT_TEST_TRITON")
CLIENT = """
import json, queue, sys
import numpy as np, tritonclient.grpc as triton
client, answers = triton.InferenceServerClient(sys.argv[1]), queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
for prompt, seed, options in json.loads(sys.argv[2]):
    inputs = []
    for name, kind, value in (("PROMPT", "BYTES", prompt), ("SEED", "UINT64", seed), ("OPTIONS", "BYTES", options)):
        inputs.append(triton.InferInput(name, [1], kind))
        array = np.array([value.encode()], object) if kind == "BYTES" else np.array([value], np.uint64)
        inputs[-1].set_data_from_numpy(array)
    client.async_stream_infer("rf_draw", inputs, enable_empty_final_response=True)
    told = []
    while True:
        result, error = answers.get(timeout=120)
        if error is not None:
            told.append({"error": str(error)})
            continue
        if result.as_numpy("STEP") is not None:
            picture = result.as_numpy("PICTURE")
            told.append({"step": result.as_numpy("STEP").tolist(), "rep_ids": result.as_numpy("REP_IDS").tolist(),
                         "picture": picture.tolist(), "png": len(result.as_numpy("PNG")[0])})
        final = result.get_response().parameters.get("triton_final_response")
        if final is not None and final.bool_param:
            break
    print(json.dumps(told), flush=True)
client.stop_stream()
"""


def test_the_command_writes_a_repository_beside_other_models(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "models/other").mkdir(parents=True)
    process = start("serve", tiny_bundle, "--write-triton", tmp_path / "models", "--max-batch", "3")
    out, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    model = tmp_path / "models/rf_draw"
    assert out.strip() == str(model)
    config = (model / "config.pbtxt").read_text()
    line = next(line for line in config.splitlines() if "rf_export" in line)
    settings = json.loads(json.loads(line.split("string_value: ")[1].removesuffix(" } }")))
    assert settings["bundle"] == str(tiny_bundle.resolve()) and settings["max_batch"] == 3
    compile((model / "1/model.py").read_text(), "model.py", "exec")
    with pytest.raises(RFError, match="is there already"):
        write_repository(tmp_path / "models", tiny_bundle, {})


@pytest.fixture
def triton(tiny_bundle: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a server in an environment of its own."""
    command = serving_triton.prepare(Path(str(ENVIRONMENT)), tiny_bundle, tmp_path)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command.words, env=command.environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while "Started GRPCInferenceService" not in (tmp_path / "log").read_text():
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield command.address
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(ENVIRONMENT is None, reason="RF_EXPORT_TEST_TRITON names no environment with nvidia-pytriton")
def test_triton_draws_what_the_pipeline_draws(triton: str, tiny_bundle: Path) -> None:
    asked = [
        ("a red car", 7, '{"previews": 3, "num_steps": 9}'),
        ("a cup", 3, "{}"),
        ("an elephant", 0, "{}"),
        ("a cup", 0, '{"steps": 3}'),
        ("a cup", 0, "no JSON"),
    ]
    python = Path(str(ENVIRONMENT)) / "bin/python"
    command = [python, "-c", CLIENT, triton, json.dumps(asked)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    drawn, plain, *refused = map(json.loads, done.stdout.splitlines())
    assert [each["step"] for each in drawn] == [[2, 9], [4, 9], [6, 9], [0, 0]]
    from runtime import GenerationOptions

    pipeline = Pipeline.load(tiny_bundle, num_threads=1)
    native = pipeline.draw("a red car", seed=7, options=GenerationOptions(num_steps=9))
    assert drawn[-1]["picture"] == native.tolist() and drawn[-1]["png"] > 100
    assert plain[-1]["picture"] == pipeline.draw("a cup", seed=3).tolist() and len(plain) == 1
    assert "elephant" in refused[0][0]["error"]
    assert "OPTIONS may have" in refused[1][0]["error"]
    assert "JSON object" in refused[2][0]["error"]
