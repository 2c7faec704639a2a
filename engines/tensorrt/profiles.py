"""Which sizes the tensors of every graph may have, from six dimensions that users know. Knows nothing of TensorRT.

`batch`, `prompt`, `images`, `window`, `height` and `width` become ranges of the free dimensions of the graphs
(runtime/signature.py), one dict per optimisation profile. text_decoder has three profiles: prefill reads whole prompts
into an empty cache, decode one token at a time after a long past, and a further question is read after a past; kernels
that are good at one are bad at the others. For the same reason rep_decoder has one for single tokens and one for
windows of more. A picture has a row, or two where it is guided. The cache of a drawing holds the prompt and the
representation tokens, so its range follows from the others; modern graphs have it fixed. Images are read as part of a
prompt, so it has to be long enough for them.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

from engines.probe import PROBE_SIZES
from engines.tensorrt.config import DimRange
from runtime.backends.cuda.layout import cache_slots, padded_prompt
from runtime.errors import RFError
from runtime.signature import MAX_ANSWER, GraphName, ModelSpec, Precision

Profile: TypeAlias = dict[str, DimRange]  # free dimension of a graph -> its sizes

_DEFAULT_BATCH: Final = DimRange(1, 1, 4)
_DEFAULT_IMAGES: Final = DimRange(1, 1, 4)
_DEFAULT_PROMPT: Final = (1, 32, 256)
_DEFAULT_WINDOW: Final = 8


def resolve_dims(
    model: ModelSpec, given: Mapping[str, DimRange], cache_slots: int | None = None
) -> dict[str, DimRange]:
    """Fill in what was not given, and check against the model.

    Not given: 1 to 4 pictures drawn or read at once, best for one; prompts up to 256 tokens, best for 32; windows up to
    8 representation tokens, best for that; the default size of pictures.

    Args:
        model: The model.
        given: What was given.
        cache_slots: Length of the cache, where the graphs have a fixed one.

    Raises:
        RFError: The model cannot do this.
    """
    size = {"height": model.default_height, "width": model.default_width}
    dims = {name: given.get(name, DimRange(pixels, pixels, pixels)) for name, pixels in size.items()}
    try:
        tokens = [_num_tokens(model, dims["height"], dims["width"], end) for end in ("min", "opt", "max")]
    except ValueError as error:
        raise RFError(f"This model cannot draw such pictures: {error}. Change --dim height or --dim width.") from error
    longest = model.max_positions - tokens[2] - 2  # the start token, and one position for all pixel patches
    if cache_slots is not None:
        if cache_slots < tokens[2] + 2:
            raise RFError(
                f"These graphs have {cache_slots} cache slots, and pictures of {tokens[2]} tokens take "
                f"{tokens[2] + 1} and a prompt. Export with more --cache-slots, or choose smaller pictures."
            )
        longest = min(longest, cache_slots - tokens[2] - 1)
    if longest < 1:
        raise RFError(
            f"Pictures of {tokens[2]} tokens leave no room for a prompt: the model has {model.max_positions} "
            "positions. Choose smaller pictures with --dim height and --dim width."
        )
    prompt = given.get("prompt", DimRange(*(min(each, longest) for each in _DEFAULT_PROMPT)))
    if prompt.max > longest:
        raise RFError(
            f"Prompts of up to {prompt.max} tokens do not fit: with {tokens[2]} representation tokens the "
            f"{'model' if cache_slots is None else 'cache of these graphs'} takes {longest}. "
            "Choose a smaller --dim prompt, or smaller pictures."
        )
    window = given.get("window", DimRange(1, *[min(_DEFAULT_WINDOW, tokens[2] + 1)] * 2))
    if window.min > 1 or window.max > tokens[2] + 1:
        raise RFError(
            f"A window of {window} tokens does not fit: pictures of {tokens[2]} tokens are drawn in windows of 1 to "
            f"{tokens[2] + 1}, and single tokens always have to be possible. Choose a --dim window from 1 on."
        )
    return {
        "batch": given.get("batch", _DEFAULT_BATCH),
        "prompt": prompt,
        "images": given.get("images", _DEFAULT_IMAGES),
        "window": window,
        **dims,
    }


def profiles(
    graph: GraphName,
    model: ModelSpec,
    precision: Precision,
    dims: Mapping[str, DimRange],
    cache_slots: int | None = None,
) -> list[Profile]:
    """The optimisation profiles of a graph; the runtime takes the one that was made for the length of its input.

    Args:
        graph: The graph.
        model: The model.
        precision: Of the graph; a half-precision cache is rounded to other sizes.
        dims: From `resolve_dims`.
        cache_slots: Length of the cache where it is fixed, so that it is no free dimension.
    """
    batch, prompt = dims["batch"], dims["prompt"]
    one = DimRange(1, 1, 1)
    cache = _cache_range(model, precision, dims)
    if graph == "vision_encoder":
        return [{"images": dims["images"], "height": dims["height"], "width": dims["width"]}]
    empty, filled, read = {"cache": one}, {"cache": DimRange(1, cache.opt, cache.max)}, {"cache": cache}
    if cache_slots is not None:
        empty, filled, read = {}, {}, {}
    if graph == "text_decoder":
        rows = DimRange(1, batch.opt, batch.max)  # empty prompts are not read
        opt, most = (
            _num_tokens(model, dims["height"], dims["width"], end) * getattr(dims["images"], end)
            for end in ("opt", "max")
        )
        common = {"batch": rows, "features": DimRange(1, opt, most), "answer": DimRange(1, 1, MAX_ANSWER)}
        further = {**common, "sequence": DimRange(1, prompt.opt, prompt.max), **filled}
        found = [{**common, "sequence": prompt, **empty}, {**common, "sequence": one, **filled}]
        # In a cache of fixed length a prompt after a past is read as one before it.
        return found if further in found else [*found, further]
    shared = {"request": batch, "row": DimRange(batch.min, 2 * batch.opt, 2 * batch.max), **read}
    if graph == "rep_decoder":
        window = dims["window"]
        windows = [one] if window.max == 1 else [one, DimRange(2, max(window.opt, 2), window.max)]
        return [{**shared, "window": each} for each in windows]
    return [{**shared, "height": dims["height"], "width": dims["width"]}]


def probe_sizes(profile: Profile) -> list[dict[str, int]]:
    """Small sizes inside a profile, on which an engine is compared with its graph."""
    sizes = {name: range_.clamp(PROBE_SIZES.get(name, range_.opt)) for name, range_ in profile.items()}
    if "row" not in sizes:
        return [sizes]
    # Some requests are guided, and nobody: then no row is unconditional, and tensors of these have no elements.
    requests = sizes["request"]
    return [{**sizes, "row": rows} for rows in (requests + (requests + 1) // 2, requests)]


def _num_tokens(model: ModelSpec, height: DimRange, width: DimRange, end: str) -> int:
    rows, columns = model.rep_grid(getattr(height, end), getattr(width, end))
    return rows * columns


def _cache_range(model: ModelSpec, precision: Precision, dims: Mapping[str, DimRange]) -> DimRange:
    prompt = dims["prompt"]
    slots = []
    for end in ("min", "opt", "max"):
        tokens = _num_tokens(model, dims["height"], dims["width"], end)
        length = padded_prompt(getattr(prompt, end), prompt.min, prompt.max)
        slots.append(cache_slots(model, precision, prompt.min if end == "min" else length, tokens))
    return DimRange(*slots)
