"""How a picture was made, as its PNG file keeps it: enough to draw it again. Knows nothing of files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.events import PictureEvent
    from runtime.options import DrawingPlan, GenerationOptions
    from runtime.pipeline import Pipeline


def common_parameters(
    pipeline: "Pipeline", chosen: "GenerationOptions", edits: Sequence[str], plan_name: str | None = None
) -> dict[str, Any]:
    """What all pictures of a request have in common: what was chosen, and every value that came of it.

    Args:
        pipeline: What draws.
        chosen: How.
        edits: Of the representation tokens.
        plan_name: Of the plan, where that is not the one that the options name.
    """
    from runtime.plans import plan_drawing

    plan = plan_drawing(chosen, pipeline.bundle.manifest, pipeline.model.window)
    name = plan_name or (chosen.plan if isinstance(chosen.plan, str) else "paper" if chosen.plan is None else "given")
    return {
        "bundle_id": pipeline.bundle.manifest.bundle_id,
        "precision": pipeline.precision,
        "dialect": pipeline.dialect,
        **{name: value for name, value in vars(chosen).items() if value is not None},
        "plan": {"name": name, **_facts(plan)},
        **({"edits": list(edits)} if edits else {}),
    }


def _facts(plan: "DrawingPlan") -> dict[str, Any]:
    """Every value that decides a picture besides its prompt and seed; the times in as many digits as float32 has."""
    return {
        **dataclasses.asdict(plan),
        "temperature": 0.0 if plan.greedy else plan.temperature,
        "times": [float(f"{t:.9g}") for t in plan.times],
    }


def parameters_of(picture: "PictureEvent", common: Mapping[str, Any], pipeline: "Pipeline") -> dict[str, Any]:
    """The parameters of one picture, its tokens among them."""
    from runtime.pictures.token_file import PNG_KEY, RepGrid

    tokens = RepGrid.of(picture, pipeline.bundle.manifest).to_dict()
    return {"prompt": picture.prompt, "seed": picture.seed, **common, PNG_KEY: tokens}
