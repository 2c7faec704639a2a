"""A plan as a file: how much work goes into a picture of one checkpoint, and what proves it.

    {"format": "rf-export-plan", "format_version": 1, "checkpoint": "<sha256>", "num_steps": 6, "shift": 2.0,
     "guided": [0.0, 0.7], "evidence": {...}}

What is left out is as the bundle says. `checkpoint` names the model that the plan was measured on: every bundle of that
checkpoint takes it, whatever its precision, and no other. Knows nothing of how plans are found, or drawn by.
"""

import json
from pathlib import Path
from typing import Final

from msgspec import structs

from runtime.bundle.atomic import locked, write_text
from runtime.bundle.folder import Bundle, open_bundle
from runtime.bundle.manifest import MANIFEST_NAME, Sha256, TunedPlan, format_manifest
from runtime.bundle.strict_json import read_as, read_document, read_json, seal
from runtime.errors import RFError
from runtime.options import Plan

PLAN_NAME: Final = "plan.json"  # in the folder of a checkpoint
_FORMAT: Final = "rf-export-plan"
_FORMAT_VERSION: Final = 1


class _Document(TunedPlan, frozen=True, kw_only=True, omit_defaults=True):
    checkpoint: Sha256


def read_plan(path: Path, checkpoint: str) -> TunedPlan:
    """Read the plan of a checkpoint.

    Args:
        path: The file.
        checkpoint: SHA-256 of the checkpoint that it has to be for.

    Raises:
        RFError: It is no plan, is damaged, or was measured on another checkpoint.
    """
    content = read_document(read_json(path), str(path), _FORMAT, _FORMAT_VERSION, "Tune the bundle")
    document = read_as(_Document, content, str(path))
    if document.checkpoint != checkpoint:
        raise RFError(
            f"{path} is a plan for another checkpoint ({document.checkpoint[:16]}, and this is {checkpoint[:16]}): "
            "it says nothing of this one. Tune this one with: rf-export tune",
            "mismatch",
        )
    values = structs.asdict(document)
    del values["checkpoint"]
    return TunedPlan(**values)


def write_plan(path: Path, plan: TunedPlan, checkpoint: str) -> None:
    """Write a plan for a checkpoint of that SHA-256; `read_plan` reads it back. Raises RFError."""
    document = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "checkpoint": checkpoint, **plan.to_dict()}
    write_text(path, json.dumps(seal(document), indent=1, allow_nan=False) + "\n")


def record_plan(bundle: Bundle, plan: TunedPlan) -> None:
    """Make a plan the tuned one of a bundle; the manifest changes as a whole or not at all.

    Raises:
        RFError: The bundle has become one of another checkpoint meanwhile.
    """
    with locked(bundle.path.resolve()):  # a calibration may be adding graphs
        now = open_bundle(bundle.path).manifest
        if now.checkpoint["sha256"] != bundle.manifest.checkpoint["sha256"]:
            raise RFError(f"{bundle.path} was exported anew while it was tuned. Tune it again.", "mismatch")
        write_text(bundle.path / MANIFEST_NAME, format_manifest(now.replace(tuned=plan)))


def describe_plan(plan: Plan) -> str:
    """A plan in words, such as "6 steps, shift 2, guided from 0 to 0.7"."""
    parts = [] if plan.num_steps is None else [f"{plan.num_steps} step{'s' * (plan.num_steps != 1)}"]
    if plan.times is not None:
        parts.append(f"{len(plan.times) - 1} steps at times of their own")
    if plan.shift is not None:
        parts.append(f"shift {plan.shift:g}")
    if plan.guided is not None:
        parts.append(
            "never guided" if plan.guided[0] == plan.guided[1] else "guided from {:g} to {:g}".format(*plan.guided)
        )
    for name, value in (("tokens", plan.rep_guidance_scale), ("pixels", plan.pix_guidance_scale)):
        if value is not None:
            parts.append(f"guidance of {name} {value:g}")
    if plan.window is not None:
        parts.append(f"window {plan.window}")
    return ", ".join(parts) or "as the bundle says"
