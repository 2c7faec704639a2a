"""How a picture was made, as its PNG file keeps it: enough to draw it again. Knows nothing of files."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.events import PictureEvent
    from runtime.options import GenerationOptions
    from runtime.pipeline import Pipeline


def common_parameters(pipeline: "Pipeline", chosen: "GenerationOptions", edits: Sequence[str]) -> dict[str, Any]:
    """What all pictures of a request have in common."""
    return {
        "bundle_id": pipeline.bundle.manifest.bundle_id,
        "precision": pipeline.precision,
        "dialect": pipeline.dialect,
        **{name: value for name, value in vars(chosen).items() if value is not None},
        **({"edits": list(edits)} if edits else {}),
    }


def parameters_of(picture: "PictureEvent", common: Mapping[str, Any], pipeline: "Pipeline") -> dict[str, Any]:
    """The parameters of one picture, its tokens among them."""
    from runtime.pictures.token_file import PNG_KEY, RepGrid

    tokens = RepGrid.of(picture, pipeline.bundle.manifest).to_dict()
    return {"prompt": picture.prompt, "seed": picture.seed, **common, PNG_KEY: tokens}
