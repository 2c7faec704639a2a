"""What goes into every graph and what comes out: the contract of export, calibration, engines and runtime.

Knows nothing of files and of libraries that run graphs: the shape of a model in, lists of tensors out. Free
dimensions have names, the ONNX `dim_param`s, and profiles of engines are set on these.

Legend: R requests, B rows, S new tokens, W tokens of a window, P cache slots, L layers, H key/value heads, D head size,
V text vocabulary, K representation vocabulary, I images of one size, N tokens of an image, F image tokens, d width of
the decoder, A tokens of an answer.

text_decoder
    in   input_ids int64 [B, S]: ids of texts, and V + f for the image token in row f of image_features
         row_starts int64 [B] · past_lengths int64 [B] · image_features kv [F, d], one row where nobody asks for any
         answer_ids int64 [B, A], drawn so far: V stands for none · gumbel float32 [B, V] · temperature float32 [B]
         top_k int64 [B] · top_p float32 [B] · repetition_penalty float32 [B]
         past_key_values.{i}.key and .value kv [B, H, P, D]
    out  next_ids int64 [B] · logits float32 [B, V] of the last position, before penalty and temperature
         present.{i}.key and .value kv: classic [B, H, S, D], modern [B, H, P, D]
rep_decoder
    in   rep_ids int64 [R, W] · grid_positions int64 [R, W, 2] · row_requests int64 [B] · uncond_rows int64 [R]
         row_starts int64 [B] · past_lengths int64 [B] · gumbel float32 [R, W, K]
         guidance_scale float32 [R] · temperature float32 [R] · top_k int64 [R]
         past_key_values.* kv [B, H, P, D]
    out  next_rep_ids int64 [R, W] · logits float32 [R, W, K], guided, before temperature
         present.* kv: classic [B, H, W, D], modern [B, H, P, D]
denoiser
    in   x_t float32 [R, 3, height, width] · t float32 [R] · t_next float32 [R] · guidance_scale float32 [R]
         row_requests int64 [B] · uncond_rows int64 [R] · row_starts int64 [R] · past_lengths int64 [R]
         past_key_values.* kv [R, H, P, D]
    out  x_next float32 [R, 3, height, width] · x_pred the same: the guided estimate of the picture
vision_encoder
    in   pixels float32 [I, 3, height, width] in [-1, 1]
    out  image_features kv [I, N, d], which text_decoder takes in place of the embeddings of texts

Rows and requests: rows 0 to R - 1 are the conditional rows of the requests, in their order; those after them, at most
R, are unconditional rows. row_requests[b] says whose row b is, and uncond_rows[r] which row is the unconditional one of
request r: its own conditional row, r, where it is not guided. So an unguided request costs one row, whatever the others
do. An unconditional row of rep_decoder has a cache of its own, without the text. In the denoiser it sees the patches
alone, so only conditional rows have a cache there.

kv is float16 in precision fp16 and int8-fp16, and float32 in fp32 and int8: INT8 is inside of matrix products
only. Slot s of row b is seen where row_starts[b] <= s < past_lengths[b]; the new tokens take the slots from
past_lengths[b] on, each sees those before it, and a token's rotary position is its slot minus row_starts[b]. In the
classic dialect only the keys and values of new tokens come out: the caller owns the cache and writes those that it
keeps. In the modern dialect the graph writes them: present is past with the new rows in it, and both may
be bound to the same memory; what is beyond past_lengths is overwritten later. There P may be one fixed number in all
graphs that have it, since TensorRT writes in place only into a cache of fixed length.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias, get_args

from msgspec import Meta, Struct

from runtime.errors import RFError

GraphName: TypeAlias = Literal["text_decoder", "rep_decoder", "denoiser", "vision_encoder"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8", "int8-fp16"]
Dialect: TypeAlias = Literal["classic", "modern"]
Positive: TypeAlias = Annotated[int, Meta(ge=1, description="a whole number >= 1")]
Dim: TypeAlias = Annotated[int, Meta(ge=1, description="a size >= 1")] | str

GRAPHS: Final[tuple[GraphName, ...]] = get_args(GraphName)
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
DIALECTS: Final[tuple[Dialect, ...]] = get_args(Dialect)
ANY_DIM: Final = "?"  # a free dimension whose name is not known: engines keep no names
MAX_LAYERS: Final = 1024
MAX_ANSWER: Final = 256  # so many tokens of an answer, the last ones, a repetition penalty looks at
MAX_TOP_K: Final = 1024  # the in-graph TopK is this wide, or as wide as a vocabulary that is smaller


@dataclass(frozen=True)
class Variant:
    """Which graphs of a bundle: how they compute, and how they are spelt.

    Attributes:
        precision: Decides the dtype of keys and values, and where INT8 is.
        dialect: Decides who writes the cache: the runtime (classic) or the graphs (modern).
    """

    precision: Precision = "fp32"
    dialect: Dialect = "classic"

    def __str__(self) -> str:
        return f"{self.precision} {self.dialect}"

    @property
    def is_half(self) -> bool:
        """Whether everything that is not INT8 is float16, the cache too."""
        return is_half(self.precision)

    @property
    def key(self) -> str:
        """Where a manifest has the verdict on these graphs: `fp32` for the classic ones, else `fp32.modern`."""
        return self.precision if self.dialect == "classic" else f"{self.precision}.{self.dialect}"

    @property
    def options(self) -> str:
        """How a command is told them: " --precision fp16 --dialect modern", without what is the default."""
        named = {"precision": (self.precision, "fp32"), "dialect": (self.dialect, "classic")}
        return "".join(f" --{name} {value}" for name, (value, default) in named.items() if value != default)


class PictureSizes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pictures that a model knows, in pixels."""

    patch_size: Positive
    max_grid: Positive  # largest number of representation tokens per side
    default_height: Positive
    default_width: Positive

    @property
    def cell(self) -> int:
        """Side in pixels of the square that one representation token stands for."""
        return 2 * self.patch_size

    def rep_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of representation tokens of a picture; raises ValueError for other sizes."""
        for name, value in (("height", height), ("width", width)):
            if value < self.cell or value % self.cell or value // self.cell > self.max_grid:
                limit = self.cell * self.max_grid
                raise ValueError(f"{name} must be a multiple of {self.cell} from {self.cell} to {limit}, got {value}")
        return height // self.cell, width // self.cell


class ModelSpec(PictureSizes, frozen=True, kw_only=True, omit_defaults=True):
    """What a host has to know of a model, the `model` section of the manifest."""

    hidden_size: Positive  # width d of the decoder
    num_layers: Positive
    num_kv_heads: Positive
    head_dim: Positive
    vocab_size: Positive
    rep_vocab_size: Positive
    rep_start_id: Positive
    max_positions: Positive
    num_parameters: Positive
    num_heads: Positive | None = None  # of queries; None, as the next, in bundles made before these were told
    ffn_size: Positive | None = None  # width of the widest expert

    def __post_init__(self) -> None:
        if self.num_layers > MAX_LAYERS:  # signatures list every layer: a damaged manifest must not fill the memory
            raise ValueError(f"num_layers must be at most {MAX_LAYERS}, got {self.num_layers}")
        self.rep_grid(self.default_height, self.default_width)

    @property
    def max_top_k(self) -> int:
        """Largest top_k that rep_decoder takes."""
        return min(MAX_TOP_K, self.rep_vocab_size)

    @property
    def max_text_top_k(self) -> int:
        """Largest top_k that text_decoder takes."""
        return min(MAX_TOP_K, self.vocab_size)

    def size_or_default(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, the model's where they are None; a size of 0 is none of its sizes."""
        return self.default_height if height is None else height, self.default_width if width is None else width


class TensorSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Name, NumPy dtype name and shape of an input or output; a free dimension is its name."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


class GraphSignature(Struct, frozen=True):
    """The ordered inputs and outputs of a graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input of that name; raises KeyError."""
        return {spec.name: spec for spec in self.inputs}[name]

    def output(self, name: str) -> TensorSpec:
        """The output of that name; raises KeyError."""
        return {spec.name: spec for spec in self.outputs}[name]

    @property
    def cache_slots(self) -> int | None:
        """Slots of the cache where their number is fixed."""
        for spec in self.inputs:
            if spec.name == "past_key_values.0.key" and len(spec.shape) > 2 and isinstance(spec.shape[2], int):
                return spec.shape[2]
        return None

    @classmethod
    def of(
        cls, graph: GraphName, model: ModelSpec, variant: Variant, cache_slots: int | None = None
    ) -> "GraphSignature":
        """The signature that a graph of this model must have.

        Args:
            graph: Which one.
            model: Its model.
            variant: Decides the dtype of the cache, and who writes it.
            cache_slots: Fixed length of the cache, in the modern dialect; None leaves it free.
        """
        kv = "float16" if variant.is_half else "float32"
        in_place = variant.dialect == "modern"
        if cache_slots is not None and not (in_place and cache_slots > 0):
            raise ValueError(f"cache_slots must be > 0 and are fixed in the modern dialect only, got {cache_slots}")
        if graph == "text_decoder":
            free = cls(_text_inputs(model, kv), _text_outputs(model, kv, "cache" if in_place else "sequence"))
        elif graph == "rep_decoder":
            free = cls(_rep_inputs(model, kv), _rep_outputs(model, kv, "cache" if in_place else "window"))
        elif graph == "denoiser":
            free = cls(_denoiser_inputs(model, kv), _denoiser_outputs())
        else:
            free = cls(*_vision_tensors(model, kv))
        if cache_slots is None:
            return free
        return cls(_fix_cache(free.inputs, cache_slots), _fix_cache(free.outputs, cache_slots))


def is_half(precision: str) -> bool:
    """Whether everything that is not INT8 is float16, the cache too."""
    return precision in ("fp16", "int8-fp16")


def kv_names(prefix: Literal["past_key_values", "present"], num_layers: int) -> list[str]:
    """Names of the cache tensors in their order: key and value of layer 0, key and value of layer 1, ..."""
    return [f"{prefix}.{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]


def check_signature(expected: GraphSignature, actual: GraphSignature, what: str) -> None:
    """Compare a loaded graph with what it has to be.

    Args:
        expected: From `GraphSignature.of`.
        actual: Read from the graph.
        what: Name of the graph for the message.

    Raises:
        RFError: Names the first tensor that differs.
    """
    for kind, wanted, found in (
        ("input", expected.inputs, actual.inputs),
        ("output", expected.outputs, actual.outputs),
    ):
        by_name = {spec.name: spec for spec in found}
        for spec in wanted:
            if not _agree(spec, by_name.pop(spec.name, None)):
                got = next((str(other) for other in found if other.name == spec.name), "nothing of that name")
                raise RFError(f"{what}: expected {kind} {spec}, found {got}. Export the bundle again.", "mismatch")
        if by_name:
            extra = ", ".join(map(str, by_name.values()))
            raise RFError(
                f"{what}: unexpected {kind} {extra}. It was made by another version: export the bundle again.",
                "mismatch",
            )


def _agree(wanted: TensorSpec, found: TensorSpec | None) -> bool:
    if found is None or found.dtype != wanted.dtype or len(found.shape) != len(wanted.shape):
        return False
    pairs = zip(wanted.shape, found.shape, strict=True)
    return all(a == b or (b == ANY_DIM and isinstance(a, str)) for a, b in pairs)


def _kv(prefix: Literal["past_key_values", "present"], model: ModelSpec, kv: str, *dims: Dim) -> tuple[TensorSpec, ...]:
    rows, slots = dims
    shape = (rows, model.num_kv_heads, slots, model.head_dim)
    return tuple(TensorSpec(name, kv, shape) for name in kv_names(prefix, model.num_layers))


def _fix_cache(specs: tuple[TensorSpec, ...], slots: int) -> tuple[TensorSpec, ...]:
    shapes = (tuple(slots if dim == "cache" else dim for dim in spec.shape) for spec in specs)
    return tuple(TensorSpec(spec.name, spec.dtype, shape) for spec, shape in zip(specs, shapes, strict=True))


def _text_inputs(model: ModelSpec, kv: str) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("row_starts", "int64", ("batch",)),
        TensorSpec("past_lengths", "int64", ("batch",)),
        TensorSpec("image_features", kv, ("features", model.hidden_size)),
        TensorSpec("answer_ids", "int64", ("batch", "answer")),
        TensorSpec("gumbel", "float32", ("batch", model.vocab_size)),
        TensorSpec("temperature", "float32", ("batch",)),
        TensorSpec("top_k", "int64", ("batch",)),
        TensorSpec("top_p", "float32", ("batch",)),
        TensorSpec("repetition_penalty", "float32", ("batch",)),
        *_kv("past_key_values", model, kv, "batch", "cache"),
    )


def _text_outputs(model: ModelSpec, kv: str, slots: Dim) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("next_ids", "int64", ("batch",)),
        TensorSpec("logits", "float32", ("batch", model.vocab_size)),
        *_kv("present", model, kv, "batch", slots),
    )


def _rep_inputs(model: ModelSpec, kv: str) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("rep_ids", "int64", ("request", "window")),
        TensorSpec("grid_positions", "int64", ("request", "window", 2)),
        TensorSpec("row_requests", "int64", ("row",)),
        TensorSpec("uncond_rows", "int64", ("request",)),
        TensorSpec("row_starts", "int64", ("row",)),
        TensorSpec("past_lengths", "int64", ("row",)),
        TensorSpec("gumbel", "float32", ("request", "window", model.rep_vocab_size)),
        TensorSpec("guidance_scale", "float32", ("request",)),
        TensorSpec("temperature", "float32", ("request",)),
        TensorSpec("top_k", "int64", ("request",)),
        *_kv("past_key_values", model, kv, "row", "cache"),
    )


def _rep_outputs(model: ModelSpec, kv: str, slots: Dim) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("next_rep_ids", "int64", ("request", "window")),
        TensorSpec("logits", "float32", ("request", "window", model.rep_vocab_size)),
        *_kv("present", model, kv, "row", slots),
    )


_PICTURE: Final[tuple[Dim, ...]] = ("request", 3, "height", "width")


def _denoiser_inputs(model: ModelSpec, kv: str) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("x_t", "float32", _PICTURE),
        TensorSpec("t", "float32", ("request",)),
        TensorSpec("t_next", "float32", ("request",)),
        TensorSpec("guidance_scale", "float32", ("request",)),
        TensorSpec("row_requests", "int64", ("row",)),
        TensorSpec("uncond_rows", "int64", ("request",)),
        TensorSpec("row_starts", "int64", ("request",)),
        TensorSpec("past_lengths", "int64", ("request",)),
        *_kv("past_key_values", model, kv, "request", "cache"),
    )


def _denoiser_outputs() -> tuple[TensorSpec, ...]:
    return (TensorSpec("x_next", "float32", _PICTURE), TensorSpec("x_pred", "float32", _PICTURE))


def _vision_tensors(model: ModelSpec, kv: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    pixels = TensorSpec("pixels", "float32", ("images", 3, "height", "width"))
    return (pixels,), (TensorSpec("image_features", kv, ("images", "tokens", model.hidden_size)),)
