"""Writes a model repository for NVIDIA's Triton: a bundle behind its Python backend. Knows no running server.

    rf-export serve bundle --write-triton models
    tritonserver --model-repository models

    models/rf_draw/config.pbtxt    inputs and outputs, and where the bundle lies
    models/rf_draw/1/model.py      leads to triton_model.py of this installation

Decoupled: a request gets a response for each preview that it asks for, and one for the picture.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from runtime.errors import RFError

NAME: Final = "rf_draw"
_CONFIG: Final = """\
name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "PROMPT" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "SEED" data_type: TYPE_UINT64 dims: [ 1 ] optional: true }},
  {{ name: "OPTIONS" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "PNG" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "PICTURE" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }},
  {{ name: "REP_IDS" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "STEP" data_type: TYPE_INT32 dims: [ 2 ] }}
]
parameters {{ key: "rf_export" value: {{ string_value: {settings} }} }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""
_MODEL: Final = '''\
"""Draws with rf-export; written by `rf-export serve --write-triton`."""

import sys

sys.path[:0] = {paths!r}  # Triton's interpreter heeds no PYTHONPATH

from runtime.serving.triton_model import TritonPythonModel  # noqa: E402, F401
'''


def write_repository(folder: Path, bundle: Path, settings: dict[str, Any]) -> Path:
    """Write the model into a repository; other models in it stay as they are.

    Args:
        folder: The repository.
        bundle: What draws.
        settings: For `triton_model.Settings`, without the bundle.

    Returns:
        The folder of the model.

    Raises:
        RFError: It is there already.
    """
    model = folder / NAME
    if model.exists():
        raise RFError(f"{model} is there already. Remove it, or choose another folder.")
    (model / "1").mkdir(parents=True)
    told = json.dumps(json.dumps({"bundle": str(bundle.resolve()), **settings}))
    (model / "config.pbtxt").write_text(_CONFIG.format(name=NAME, settings=told), encoding="utf-8")
    root = Path(__file__).parents[2]
    paths = [str(root), *(path for path in sys.path if Path(path).name in ("site-packages", "dist-packages"))]
    (model / "1" / "model.py").write_text(_MODEL.format(paths=paths), encoding="utf-8")
    return model
