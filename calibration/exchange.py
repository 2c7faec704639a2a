"""Recorded inputs of the graphs as files that other tools read. Knows nothing of ranges.

`<graph>.npz` holds an array per input, its runs one after another on the first axis: what NVIDIA ModelOpt takes as
`--calibration_data`, and what a data loader script of Polygraphy hands on. `<graph>.json` holds the runs one by one as
`polygraphy run --load-inputs` takes them.
"""

import collections
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration.trajectory import record_examples
from runtime.bundle.atomic import write_folder
from runtime.errors import RFError
from runtime.pipeline import Pipeline
from runtime.signature import Precision
from verification.polygraphy import inputs_json


def export_inputs(
    path: str | Path,
    prompts: Sequence[str],
    out: Path,
    precision: Precision = "fp32",
    num_threads: int = 1,
    first_seed: int = 0,
) -> list[Path]:
    """Draw prompts and write a folder of what the graphs were fed, one run per prompt, spread over all steps.

    Prompt i is drawn with `first_seed + i`.

    Only prompts of the most frequent number of tokens are drawn, since all runs have to have the same shapes.

    Raises:
        RFError: No prompts, or the folder exists.
    """
    pipeline = Pipeline.load(path, precision, engine="none", num_threads=num_threads)
    if not prompts:
        raise RFError("There are no prompts. Give a file with one prompt per line.")
    lengths = [len(pipeline.check([prompt])[0].ids) for prompt in prompts]
    usual = collections.Counter(lengths).most_common(1)[0][0]
    numbered = enumerate(zip(prompts, lengths, strict=True), first_seed)
    chosen = [(prompt, seed) for seed, (prompt, n) in numbered if n == usual]
    with write_folder(out, replaceable=lambda folder: False, force=False, what="folder") as folder:
        for graph, runs in record_examples(pipeline, chosen).items():
            if runs:
                arrays = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
                (folder / f"{graph}.json").write_text(inputs_json(runs), encoding="utf-8")
                np.savez(folder / f"{graph}.npz", **arrays)  # type: ignore[arg-type]
    return sorted(out.iterdir())
