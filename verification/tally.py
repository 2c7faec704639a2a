"""Keeps what comparing one candidate with the reference shows: figures, failures, counts, worst pictures.

Knows nothing of what is compared, and of who draws.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.signature import GraphName
from verification.measures.metrics import agreement, psnr_db
from verification.traces import Floats

ORDER: Final[tuple[GraphName, ...]] = ("vision_encoder", "text_decoder", "rep_decoder", "denoiser")
MAX_FAILURES: Final = 50
NUM_PICTURES: Final = 3
_Steps: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something that is not as it has to be."""

    graph: GraphName
    tensor: str
    case: str
    request: int
    step: int  # of the stage; for the cache, the token whose keys and values these are
    what: str  # such as "cosine 0.912, expected at least 0.99999"

    def __str__(self) -> str:
        return f"{self.graph} {self.tensor}: {self.what} (step {self.step}, case {self.case!r}, request {self.request})"

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller is nearer to the cause: graphs feed those after them, steps those after them."""
        return ORDER.index(self.graph), self.step


@dataclass
class Figures:
    """Agreement of one tensor over all cases."""

    cosine: float = 1.0  # the smallest
    step: int = 0  # where that is
    case: str = ""
    norm_ratio: float = 1.0  # the one furthest from 1
    max_abs_error: float = 0.0

    def add(self, cosines: _Steps, ratios: _Steps, errors: _Steps, *, first_step: int, case: str) -> None:
        """Take in the steps of a case."""
        step = int(cosines.argmin())
        if cosines[step] < self.cosine or not self.case:
            self.cosine, self.step, self.case = float(cosines[step]), first_step + step, case
        worst = float(ratios[np.abs(ratios - 1).argmax()])
        if abs(worst - 1) >= abs(self.norm_ratio - 1):
            self.norm_ratio = worst
        self.max_abs_error = max(self.max_abs_error, float(errors.max()))


@dataclass(frozen=True, eq=False)
class WorstPicture:
    """A pair of pictures that agree less than others."""

    case: str
    request: int
    psnr_db: float
    found: Floats  # [3, H, W]
    expected: Floats


Where: TypeAlias = tuple[GraphName, str, int]  # graph, case, request


@dataclass
class Tally:
    """What was found out about one candidate.

    Attributes:
        figures: By graph and tensor.
        curves: Per tensor the worst cosine of every step of the case that is drawn with all defaults.
        guidance: Per graph how much guidance changes, of the reference and of the candidate.
        range_checked: Of fp16 graphs: it was looked for tensors inside that leave the range of float16.
    """

    figures: dict[GraphName, dict[str, Figures]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    pictures: list[WorstPicture] = field(default_factory=list)
    guidance: dict[GraphName, tuple[float, float]] = field(default_factory=dict)
    rep_tokens: int = 0
    rep_tokens_equal: int = 0
    windowed_tokens: int = 0  # drawn again in windows, without being given any
    windowed_tokens_equal: int = 0  # the same as one by one
    answer_tokens: int = 0
    answer_tokens_equal: int = 0
    denoising_steps: int = 0
    picture_psnr_db: float = math.inf
    num_cases: int = 0
    range_checked: bool = False

    @property
    def first(self) -> Failure | None:
        """The failure that is nearest to the cause."""
        return min(self.failures, key=lambda failure: failure.rank, default=None)

    def tensor(
        self,
        where: Where,
        tensor: str,
        found: Floats,
        expected: Floats,
        least_cosine: float,
        norm: float,
        first_step: int = 0,
    ) -> _Steps:
        """Take in `[steps, ..., n]`; returns the worst cosine of every step."""
        graph, case, _ = where
        if not self.same_shape(where, tensor, 0, found, expected):
            return np.full(len(expected), -1.0)
        cosines, ratios, errors = agreement(found, expected)
        self.figures.setdefault(graph, {}).setdefault(tensor, Figures()).add(
            cosines, ratios, errors, first_step=first_step, case=case
        )
        bad = np.flatnonzero(~((cosines >= least_cosine) & (np.abs(ratios - 1) <= norm)))
        if len(bad):
            step = int(bad[0])
            what = f"norm {ratios[step]:.4f} times the expected one"
            if not cosines[step] >= least_cosine:
                what = f"cosine {cosines[step]:.6f}, expected at least {least_cosine}"
            self.fail(where, tensor, first_step + step, what)
        return cosines

    def curve(self, name: str, cosines: _Steps) -> None:
        """Keep the worst of every step."""
        self.curves[name] = np.minimum(self.curves.get(name, [1.0] * len(cosines)), cosines).tolist()

    def picture(self, where: Where, step: int, found: Floats, expected: Floats, least_psnr_db: float) -> None:
        """Take in a picture `[3, H, W]`, as the last step left it."""
        _, case, request = where
        if not self.same_shape(where, "picture", step, found, expected):
            return
        psnr = psnr_db(found, expected)
        self.picture_psnr_db = min(self.picture_psnr_db, psnr)
        if not psnr >= least_psnr_db:
            self.fail(where, "picture", step, f"PSNR {psnr:.1f} dB, expected {least_psnr_db}")
        pictures = [*self.pictures, WorstPicture(case, request, psnr, found, expected)]
        self.pictures = sorted(pictures, key=lambda pair: pair.psnr_db)[:NUM_PICTURES]

    def same_shape(self, where: Where, tensor: str, step: int, found: Floats, expected: Floats) -> bool:
        """Whether two arrays can be compared; it is a failure where they cannot."""
        if found.shape == expected.shape:
            return True
        self.fail(where, tensor, step, f"shape {list(found.shape)}, expected {list(expected.shape)}")
        return False

    def same_length(self, where: Where, tensor: str, found: int, expected: int, what: str) -> bool:
        """The same of how many there are."""
        if found == expected:
            return True
        self.fail(where, tensor, 0, f"{found} {what}, expected {expected}")
        return False

    def fail(self, where: Where, tensor: str, step: int, what: str) -> None:
        """Something is not as it has to be."""
        graph, case, request = where
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(Failure(graph=graph, tensor=tensor, case=case, request=request, step=step, what=what))

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        figures = {
            graph: {name: _rounded(asdict(each)) for name, each in _summed(tensors).items()}
            for graph, tensors in sorted(self.figures.items(), key=lambda item: ORDER.index(item[0]))
        }
        return {
            "cases": self.num_cases,
            "figures": figures,
            "rep_tokens": self.rep_tokens,
            "rep_tokens_equal": self.rep_tokens_equal,
            "windowed_tokens": self.windowed_tokens,
            "windowed_tokens_equal": self.windowed_tokens_equal,
            "answer_tokens": self.answer_tokens,
            "answer_tokens_equal": self.answer_tokens_equal,
            "denoising_steps": self.denoising_steps,
            **({"range_checked": True} if self.range_checked else {}),
            "picture_psnr_db": round(min(self.picture_psnr_db, 999.0), 2),
            "guidance_effect": {
                graph: {"expected": float(f"{a:.4g}"), "found": float(f"{b:.4g}")}
                for graph, (a, b) in self.guidance.items()
            },
        }


def _summed(tensors: dict[str, Figures]) -> dict[str, Figures]:
    """The keys and values of all layers as one line each."""
    summed: dict[str, Figures] = {}
    for name, figures in tensors.items():
        kind = f"present.*.{name.rsplit('.', 1)[1]}" if name.startswith("present.") else name
        before = summed.get(kind)
        if before is None:
            summed[kind] = Figures(**vars(figures))
            continue
        if figures.cosine < before.cosine:
            before.cosine, before.step, before.case = figures.cosine, figures.step, figures.case
        before.norm_ratio = max(before.norm_ratio, figures.norm_ratio, key=lambda ratio: abs(ratio - 1))
        before.max_abs_error = max(before.max_abs_error, figures.max_abs_error)
    return summed


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.9g}") if isinstance(value, float) else value for name, value in figures.items()}
