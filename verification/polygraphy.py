"""What graphs were fed in a drawing and what came out, in the JSON that NVIDIA Polygraphy reads, without Polygraphy.

`<graph>.inputs.json` is for `polygraphy run --load-inputs`: an object per run (polygraphy/json/serde.py).
`<graph>.outputs.json` is for `--load-outputs`: a RunResults of these runs (polygraphy/comparator/struct.py). Knows
nothing of what agrees.
"""

import base64
import copy
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.interface import Arrays, Session
from runtime.bundle.atomic import write_folder
from runtime.pipeline import Pipeline
from runtime.plans import plan_drawing
from runtime.signature import GraphName
from verification.cases import AnswerCase, DrawCase
from verification.graphs.taps import TappedSession
from verification.subject import Subject

Runs = Sequence[Mapping[str, npt.NDArray[Any]]]  # a tensor by its name
Sessions = Mapping[GraphName, Session]


def write_runs(
    folder: Path, name: str, graphs: Pipeline, sessions: Mapping[GraphName, Session], case: DrawCase
) -> None:
    """Write a new folder of some runs of every graph: first, in the middle of a drawing, and at its end.

    Args:
        folder: It must not exist.
        name: Of what computed the outputs.
        graphs: What draws, on the host; its runs are fed to the sessions.
        sessions: What computes the outputs.
        case: What is drawn; its first picture is read too.
    """
    runs = _runs(graphs, case)
    with write_folder(folder, replaceable=lambda folder: False, force=False, what="folder") as out:
        for graph, inputs in runs.items():
            outputs = [sessions[graph].run(copy.deepcopy(run)) for run in inputs]
            (out / f"{graph}.inputs.json").write_text(inputs_json(inputs), encoding="utf-8")
            (out / f"{graph}.outputs.json").write_text(outputs_json(name, outputs), encoding="utf-8")


def _runs(graphs: Pipeline, case: DrawCase) -> dict[GraphName, list[Arrays]]:
    manifest = graphs.bundle.manifest
    plan = plan_drawing(case.options, manifest)
    counts = {"rep_decoder": plan.num_rep_tokens, "denoiser": plan.num_steps}
    runs: dict[GraphName, list[Arrays]] = {graph: [] for graph in graphs.sessions}
    sessions: dict[GraphName, Session] = {}
    for graph, session in graphs.sessions.items():
        count = counts.get(graph, 1)

        def keep(
            step: int,
            _: object,
            inputs: Arrays,
            kept: list[Arrays] = runs[graph],
            wanted: tuple[int, ...] = (0, count // 2, count - 1),
        ) -> None:
            if step in wanted:
                kept.append(copy.deepcopy(dict(inputs)))

        sessions[graph] = TappedSession(session, session.signature, keep)
    subject = Subject(graphs.with_sessions(sessions))
    subject.draw(case)
    size = (manifest.model.default_height, manifest.model.default_width)
    subject.answer(AnswerCase(name="picture", sizes=(size,), question=(0,), max_tokens=1))
    return runs


def inputs_json(runs: Runs) -> str:
    """Runs as `--load-inputs` takes them."""
    return json.dumps([{name: _encoded(array) for name, array in run.items()} for run in runs])


def outputs_json(name: str, runs: Runs) -> str:
    """Runs as `--load-outputs` takes them, under the name of what computed them."""
    results = [
        {
            "outputs": {
                tensor: {"values": _encoded(array), "polygraphy_class": "LazyArray"} for tensor, array in run.items()
            },
            "runtime": None,
            "runner_name": name,
            "polygraphy_class": "IterationResult",
        }
        for run in runs
    ]
    return json.dumps({"lst": [[name, results]], "polygraphy_class": "RunResults"})


def _encoded(array: npt.NDArray[Any]) -> dict[str, str]:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {"array": base64.b64encode(file.getvalue()).decode(), "polygraphy_class": "ndarray"}
