"""The shape of an RF model, from the tiny reference to Qwen3 sizes. Knows nothing of weights."""

from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta

from runtime.bundle.manifest import SamplingDefaults, UnderstandingDefaults
from runtime.bundle.strict_json import Record, expected, read_as, shortened
from runtime.errors import RFError
from runtime.signature import MAX_LAYERS, MAX_TOP_K, PictureSizes, Positive

MAX_SIZE: Final = 1 << 24  # of any dimension: beyond every model, and a product of two is far from overflowing
_LARGEST: Final = 1e30  # fits fp32
MODEL_TYPE: Final = "representation-forcing"
Expert = Literal["understanding", "representation", "pixel"]
EXPERTS: tuple[Expert, ...] = ("understanding", "representation", "pixel")

_Size = Annotated[int, Meta(ge=1, le=MAX_SIZE, description=f"a whole number 1 to {MAX_SIZE}")]
_Layers = Annotated[int, Meta(ge=1, le=MAX_LAYERS, description=f"a whole number 1 to {MAX_LAYERS}")]
_Scale = Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST, description="a finite number")]
_AboveZero = Annotated[float, Meta(gt=0, le=_LARGEST, description="a finite number > 0")]


def _check(part: Record | PictureSizes) -> None:
    """Hold the values of a part against their annotations, for those who make one in Python; raises ValueError."""
    for name, kind in get_type_hints(type(part), include_extras=True).items():
        try:
            msgspec.convert(getattr(part, name), kind)
        except msgspec.ValidationError:
            raise ValueError(f"{name} must be {expected(kind)}, got {getattr(part, name)!r}") from None


class SamplingConfig(SamplingDefaults, frozen=True, kw_only=True, omit_defaults=False):
    """Defaults of generation that belong to a checkpoint (arXiv 2605.31604, inference)."""

    num_steps: Positive = 25
    rep_guidance_scale: _Scale = 2.0
    pix_guidance_scale: _Scale = 3.0
    temperature: Annotated[float, Meta(ge=0, le=_LARGEST, description="a finite number >= 0")] = 1.0
    top_k: Annotated[int, Meta(ge=1, le=MAX_TOP_K, description=f"a whole number 1 to {MAX_TOP_K}")] = 50
    shift: _AboveZero = 1.0  # at `shift_base_patches` patches; grows with the square root of their number
    shift_base_patches: Positive = 256

    def __post_init__(self) -> None:
        _check(self)
        SamplingDefaults.__post_init__(self)


class UnderstandingConfig(UnderstandingDefaults, frozen=True, kw_only=True):
    """How the model was trained to read pictures: `[image features][start_id][question][answer][one of stop_ids]`."""

    max_tokens: Positive = 64  # of an answer, where the caller does not say

    def __post_init__(self) -> None:
        _check(self)


class EncoderConfig(Record, frozen=True, kw_only=True):
    """Shape of the ViT image encoder. Its patch size is the decoder's."""

    hidden_size: _Size
    num_layers: _Layers
    num_heads: _Size
    ffn_size: _Size

    def __post_init__(self) -> None:
        _check(self)
        if self.hidden_size % self.num_heads:
            raise ValueError(f"encoder hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")


class ModelConfig(PictureSizes, frozen=True, kw_only=True, omit_defaults=False):
    """Shape of an RF model.

    A Qwen3-style decoder with one shared attention per layer and three feed-forward experts, chosen by token type.
    Sizes of pictures are multiples of `2 * patch_size`: one representation token stands for 2x2 pixel patches.
    """

    hidden_size: _Size
    num_layers: _Layers
    num_heads: _Size
    num_kv_heads: _Size
    head_dim: _Size
    ffn_sizes: dict[Expert, _Size]
    vocab_size: _Size
    rep_vocab_size: _Size
    patch_size: _Size
    max_grid: _Size
    encoder: EncoderConfig
    max_positions: _Size = 40960
    rope_theta: _AboveZero = 1e6
    norm_eps: _AboveZero = 1e-6
    sampling: SamplingConfig = SamplingConfig()
    understanding: UnderstandingConfig | None = None  # None: trained to draw only

    def __post_init__(self) -> None:
        _check(self)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if len(self.ffn_sizes) != len(EXPERTS):
            raise ValueError(f"ffn_sizes must name exactly {EXPERTS}, got {tuple(self.ffn_sizes)}")
        self.rep_grid(self.default_height, self.default_width)
        if self.understanding:
            self.understanding.require_known(self.vocab_size)

    @property
    def patch_dim(self) -> int:
        """Numbers in one RGB pixel patch."""
        return 3 * self.patch_size**2

    @property
    def rep_start_id(self) -> int:
        """Input id of the start token of the representation sequence; it is never predicted."""
        return self.rep_vocab_size

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        content = {"model_type": MODEL_TYPE, **msgspec.to_builtins(self)}
        if self.understanding is None:
            del content["understanding"]
        return content

    @classmethod
    def from_dict(cls, content: Any, where: str) -> "ModelConfig":
        """Read `config.json`; raises RFError naming unknown or missing keys and values out of range."""
        if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
            found = shortened(content.get("model_type") if isinstance(content, dict) else content)
            raise RFError(
                f'{where}: model_type must be "{MODEL_TYPE}", found {found}. Give a checkpoint of such a model.'
            )
        if content.get("understanding", {}) is None:
            raise RFError(
                f"{where}: 'understanding' must be an object, found null. Leave it out if the model only draws."
            )
        return read_as(cls, {key: value for key, value in content.items() if key != "model_type"}, where)


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
            understanding=UnderstandingConfig(start_id=2, stop_ids=(3,), max_tokens=16),
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
            understanding=UnderstandingConfig(start_id=2, stop_ids=(3,), max_tokens=32),  # [BOS] and [EOS]
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
