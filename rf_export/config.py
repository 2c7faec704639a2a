"""The shape of an RF model, from the tiny reference to Qwen3 sizes. Knows nothing of weights."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from runtime.signature import MAX_LAYERS

MAX_SIZE = 1 << 24  # of any dimension: beyond every model, and a product of two is far from overflowing
MODEL_TYPE = "representation-forcing"
Expert = Literal["understanding", "representation", "pixel"]
EXPERTS: tuple[Expert, ...] = ("understanding", "representation", "pixel")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Defaults of generation that belong to a checkpoint (arXiv 2605.31604, inference)."""

    num_steps: int = 25
    rep_guidance_scale: float = 2.0
    pix_guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 50
    shift: float = 1.0  # at `shift_base_patches` patches; grows with the square root of their number
    shift_base_patches: int = 256

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be >= 1, got {self.num_steps}")
        if not 1 <= self.top_k <= 1024:
            raise ValueError(f"top_k must be 1..1024, got {self.top_k}")
        if self.temperature < 0 or self.shift <= 0 or self.shift_base_patches < 1:
            raise ValueError("temperature must be >= 0, shift > 0 and shift_base_patches >= 1")


@dataclass(frozen=True, kw_only=True)
class UnderstandingConfig:
    """How the model was trained to read pictures: `[image features][start_id][question][answer][one of stop_ids]`."""

    start_id: int
    stop_ids: list[int]
    max_tokens: int = 64  # of an answer, where the caller does not say

    def __post_init__(self) -> None:
        if not self.stop_ids or min(self.start_id, *self.stop_ids) < 0 or self.max_tokens < 1:
            raise ValueError(
                f"understanding must have ids >= 0, at least one of stop_ids, and max_tokens >= 1, got {self}"
            )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of the ViT image encoder. Its patch size is the decoder's."""

    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value <= MAX_SIZE:
                raise ValueError(f"encoder {name} must be 1 to {MAX_SIZE}, got {value}")
        _check_layers("encoder num_layers", self.num_layers)
        if self.hidden_size % self.num_heads:
            raise ValueError(f"encoder hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of an RF model.

    A Qwen3-style decoder with one shared attention per layer and three feed-forward experts, chosen by token type.
    Sizes of pictures are multiples of `2 * patch_size`: one representation token stands for 2x2 pixel patches.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_sizes: dict[str, int]  # per expert
    vocab_size: int
    rep_vocab_size: int
    patch_size: int
    max_grid: int  # largest number of representation tokens per side
    default_height: int
    default_width: int
    encoder: EncoderConfig
    max_positions: int = 40960
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    understanding: UnderstandingConfig | None = None  # None: trained to draw only

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "vocab_size",
            "rep_vocab_size",
            "patch_size",
            "max_grid",
            "max_positions",
        ):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise ValueError(f"{name} must be 1 to {MAX_SIZE}, got {getattr(self, name)}")
        _check_layers("num_layers", self.num_layers)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if set(self.ffn_sizes) != set(EXPERTS):
            raise ValueError(f"ffn_sizes must name exactly {EXPERTS}, got {tuple(self.ffn_sizes)}")
        if self.rope_theta <= 0 or self.norm_eps <= 0:
            raise ValueError(f"rope_theta and norm_eps must be > 0, got {self.rope_theta} and {self.norm_eps}")
        if not 1 <= min(self.ffn_sizes.values()) <= max(self.ffn_sizes.values()) <= MAX_SIZE:
            raise ValueError(f"ffn_sizes must be 1 to {MAX_SIZE}, got {self.ffn_sizes}")
        self.rep_grid(self.default_height, self.default_width)
        if self.understanding:
            largest = max(self.understanding.start_id, *self.understanding.stop_ids)
            if largest >= self.vocab_size:
                raise ValueError(f"understanding has id {largest}, and vocab_size is {self.vocab_size}")

    @property
    def cell(self) -> int:
        """Side of the pixel square that one representation token stands for."""
        return 2 * self.patch_size

    @property
    def patch_dim(self) -> int:
        """Numbers in one RGB pixel patch."""
        return 3 * self.patch_size**2

    @property
    def rep_start_id(self) -> int:
        """Input id of the start token of the representation sequence; it is never predicted."""
        return self.rep_vocab_size

    def rep_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of representation tokens of a picture; raises ValueError for sizes that do not fit."""
        for name, value in (("height", height), ("width", width)):
            if value < self.cell or value % self.cell or value // self.cell > self.max_grid:
                limit = self.cell * self.max_grid
                raise ValueError(f"{name} must be a multiple of {self.cell} from {self.cell} to {limit}, got {value}")
        return height // self.cell, width // self.cell

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        content = {"model_type": MODEL_TYPE, **dataclasses.asdict(self)}
        if self.understanding is None:
            del content["understanding"]
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Parse `config.json`; raises ValueError naming unknown or missing keys and values out of range."""
        values = dict(content)
        model_type = values.pop("model_type", None)
        if model_type != MODEL_TYPE:
            raise ValueError(f'model_type must be "{MODEL_TYPE}", got {model_type!r}')
        parts = (("encoder", EncoderConfig), ("sampling", SamplingConfig), ("understanding", UnderstandingConfig))
        if "understanding" in values and values["understanding"] is None:
            raise ValueError("understanding must be an object, got null; leave it out for a model that only draws")
        for name, part in parts:
            if isinstance(values.get(name), dict):
                values[name] = _checked(part, values[name], f"{name}.")
        config: Self = _checked(cls, values, "")
        return config


def _check_layers(name: str, value: int) -> None:
    if value > MAX_LAYERS:
        raise ValueError(f"{name} must be at most {MAX_LAYERS}, got {value}")


def _checked(cls: type[Any], values: dict[str, Any], prefix: str) -> Any:
    fields = dataclasses.fields(cls)
    required = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    unknown = sorted(set(values) - {f.name for f in fields})
    missing = sorted(required - set(values))
    if unknown or missing:
        parts = [f"unknown {prefix}{name}" for name in unknown] + [f"missing {prefix}{name}" for name in missing]
        raise ValueError("; ".join(parts))
    for f in fields:
        if f.name in values and not _fits(values[f.name], f.type):
            wanted = {
                int: "a whole number",
                float: "a finite number",
                dict[str, int]: "an object of whole numbers",
                list[int]: "a list of whole numbers",
            }
            expected = wanted.get(f.type, "an object")  # type: ignore[call-overload]
            raise ValueError(f"{prefix}{f.name} must be {expected}, got {values[f.name]!r}")
    return cls(**values)


def _fits(value: object, wanted: object) -> bool:
    """Whether a value from JSON has the type of its field; an integer is a float too, but true is no integer."""
    if wanted is int:
        return type(value) is int
    if wanted is float:
        return type(value) in (int, float) and -1e30 < value < 1e30  # type: ignore[operator] # no NaN, fits fp32
    if wanted == list[int]:
        return isinstance(value, list) and all(type(each) is int for each in value)
    if wanted == dict[str, int]:
        return isinstance(value, dict) and all(type(size) is int for size in value.values())
    return isinstance(value, wanted)  # type: ignore[arg-type]


def _qwen3(hidden_size: int, num_layers: int, num_heads: int, ffn_size: int) -> ModelConfig:
    """A dense Qwen3 shape (arXiv 2505.09388, table 1) with equal experts, K = 16,384 and patches of 16 px."""
    return ModelConfig(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        ffn_sizes=dict.fromkeys(EXPERTS, ffn_size),
        vocab_size=151_936,
        rep_vocab_size=16_384,
        patch_size=16,
        max_grid=32,
        default_height=256,
        default_width=256,
        encoder=EncoderConfig(hidden_size=768, num_layers=12, num_heads=12, ffn_size=2048),
    )


def preset(name: str) -> ModelConfig:
    """A named shape: `tiny` (tests), `reference` (the committed checkpoint), `base-90m`, `qwen3-0.6b` to `-4b`."""
    if name == "tiny":
        return ModelConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            ffn_sizes={"understanding": 48, "representation": 64, "pixel": 80},
            vocab_size=67,
            rep_vocab_size=40,
            patch_size=4,
            max_grid=4,
            default_height=16,
            default_width=24,
            max_positions=128,
            rope_theta=1e4,
            encoder=EncoderConfig(hidden_size=24, num_layers=1, num_heads=2, ffn_size=48),
            sampling=SamplingConfig(top_k=10, shift_base_patches=24),
            understanding=UnderstandingConfig(start_id=2, stop_ids=[3], max_tokens=16),
        )
    if name == "reference":
        return ModelConfig(
            hidden_size=192,
            num_layers=6,
            num_heads=6,
            num_kv_heads=2,
            head_dim=32,
            ffn_sizes={"understanding": 256, "representation": 512, "pixel": 640},
            vocab_size=64,
            rep_vocab_size=512,
            patch_size=6,
            max_grid=8,
            default_height=48,
            default_width=48,
            max_positions=512,
            rope_theta=1e4,
            encoder=EncoderConfig(hidden_size=128, num_layers=4, num_heads=4, ffn_size=256),
            sampling=SamplingConfig(shift_base_patches=64),
            understanding=UnderstandingConfig(start_id=2, stop_ids=[3], max_tokens=32),  # [BOS] and [EOS]
        )
    if name == "base-90m":
        return ModelConfig(
            hidden_size=512,
            num_layers=8,
            num_heads=8,
            num_kv_heads=4,
            head_dim=64,
            ffn_sizes=dict.fromkeys(EXPERTS, 1536),
            vocab_size=8192,
            rep_vocab_size=16_384,
            patch_size=16,
            max_grid=32,
            default_height=256,
            default_width=256,
            encoder=EncoderConfig(hidden_size=384, num_layers=6, num_heads=6, ffn_size=1024),
        )
    shapes = {"qwen3-0.6b": (1024, 28, 16, 3072), "qwen3-1.7b": (2048, 28, 16, 6144), "qwen3-4b": (2560, 36, 32, 9728)}
    if name not in shapes:
        raise ValueError(f"unknown preset {name!r}; choose from tiny, reference, base-90m, {', '.join(shapes)}")
    return _qwen3(*shapes[name])
