"""Draw prompts with the eager model and lay pictures out as a captioned sheet."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer

from rf_export.eager import EagerRequest, EagerResult, generate
from rf_export.model import RFModel
from runtime.noise import gumbel, normal
from runtime.schedule import timesteps

SHEET_PROMPTS = (
    "a red car", "a blue fish", "a green tree", "a purple umbrella", "two yellow stars", "three red hearts",
    "four blue balloons", "two green guitars", "a pink cat left of a blue house", "a yellow key above a green apple",
    "a red mushroom and a purple cup", "a blue bell right of a pink heart",
)  # fmt: skip


def eager_request(model: RFModel, prompt_ids: Sequence[int], seed: int, *, with_rep: bool = True) -> EagerRequest:
    """A request with the checkpoint's sampling defaults and the runtime's noise for this seed."""
    config = model.config
    height, width = config.default_height, config.default_width
    rows, columns = config.rep_grid(height, width)
    sampling = config.sampling
    noise = [gumbel(seed, n, config.rep_vocab_size) for n in range(rows * columns)]
    times = timesteps(
        sampling.num_steps, 4 * rows * columns, shift=sampling.shift, shift_base_patches=sampling.shift_base_patches
    )
    return EagerRequest(
        prompt_ids=torch.tensor(list(prompt_ids), dtype=torch.int64),
        gumbel=torch.from_numpy(np.stack(noise)) if with_rep else None,
        noise=torch.from_numpy(normal(seed, (3, height, width))),
        timesteps=torch.from_numpy(times),
        rep_guidance_scale=sampling.rep_guidance_scale,
        pix_guidance_scale=sampling.pix_guidance_scale,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
    )


def draw_eager(
    model: RFModel, tokenizer: Tokenizer, prompt: str, seed: int, *, with_rep: bool = True
) -> tuple[np.ndarray, EagerResult]:
    """A picture `uint8 [H, W, 3]` of a prompt, and the steps that led there."""
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    result = generate(model, eager_request(model, ids, seed, with_rep=with_rep))
    return to_picture(result.pixels.numpy()), result


def to_picture(pixels: np.ndarray) -> np.ndarray:
    """`[3, H, W]` in [-1, 1] -> `uint8 [H, W, 3]`."""
    scaled = (pixels.transpose(1, 2, 0) + 1) * 127.5
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def sheet(pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int = 6, zoom: int = 3) -> Image.Image:
    """A contact sheet, every picture enlarged without smoothing and its caption below."""
    height, width = pictures[0].shape[0] * zoom, pictures[0].shape[1] * zoom
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (width + 8) + 8, rows * (height + 36) + 8), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = 8 + i % columns * (width + 8), 8 + i // columns * (height + 36)
        canvas.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (x, y))
        pen.rectangle((x - 1, y - 1, x + width, y + height), outline="#ddd")
        words, line = caption.split(), ""
        lines: list[str] = []
        for word in words:
            if line and len(line) + len(word) + 1 > width // 6:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        for j, text in enumerate([*lines, line][:2]):
            pen.text((x, y + height + 3 + 12 * j), text, fill="black")
    return canvas
