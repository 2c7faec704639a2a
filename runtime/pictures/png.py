"""Pictures to PNG files that remember how they were made. Knows nothing of models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.bundle.atomic import write_file
from runtime.errors import RFError
from runtime.pictures.load import require_safe_size

KEYWORD: Final = "rf-export"  # of the tEXt chunk


def save_png(path: str | Path, picture: npt.NDArray[np.uint8], parameters: Mapping[str, Any]) -> None:
    """Write a PNG file, as a whole or not at all.

    Args:
        path: The file; one that is there is replaced.
        picture: [H, W, 3].
        parameters: How it was made, kept as JSON in a tEXt chunk named "rf-export".

    Raises:
        RFError: The file cannot be written.
    """
    from PIL import Image, PngImagePlugin

    out = Path(path)
    info = PngImagePlugin.PngInfo()
    text = json.dumps(parameters, default=_plain_number)  # ASCII, which every reader of tEXt understands
    info.add_text(KEYWORD, text)
    with write_file(out) as partial:
        Image.fromarray(picture).save(partial, format="PNG", pnginfo=info)


def read_parameters(path: str | Path) -> dict[str, Any]:
    """How a picture was made; empty for a picture of somebody else. Raises RFError for no or a damaged PNG file."""
    from PIL import PngImagePlugin

    try:
        # Not Image.open, whose warnings of many pixels are the whole process's.
        with PngImagePlugin.PngImageFile(path) as image:
            require_safe_size(image)
            text = image.info.get(KEYWORD, "{}")
    except Exception as error:  # Pillow raises whatever a damaged file makes of it
        raise RFError(f"{path} is not a readable PNG file: {error}.") from error
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict):
        raise RFError(f"{path} has damaged parameters: its text {KEYWORD!r} is no JSON object. Draw the picture again.")
    return parameters


def _plain_number(value: Any) -> Any:
    """A number of numpy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"parameters must be plain values, got {type(value).__name__}")
