"""Eager PyTorch as the reference that graphs and engines are verified against: see `verification.traces.Reference`.

Everything is `rf_export.eager`'s own: loop, caches, sampling, times, and the defaults of the checkpoint where a case
leaves a value open; shared with the runtime is the noise alone.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rf_export.eager import EagerPrefix, EagerQuestion, EagerRequest, EagerResult, answer, generate, shifted_times
from rf_export.layers import Linear
from rf_export.model import RFModel
from runtime import noise
from runtime.signature import GraphName
from verification.cases import AnswerCase, DrawCase
from verification.traces import Answer, Drawing, Taps


class EagerReference:
    """A model in eager fp32."""

    def __init__(self, model: RFModel) -> None:
        self.model = model
        self.name = f"eager PyTorch {torch.__version__}"

    def draw(self, case: DrawCase) -> list[Drawing]:
        """Every request alone."""
        return [_drawing(generate(self.model, self._request(case.alone(i)))) for i in range(len(case.prompts))]

    def answer(self, case: AnswerCase) -> Answer:
        """The whole prompt in one pass, and then token by token."""
        result = answer(self.model, self._question(case))
        return Answer(
            features=result.features.numpy(), ids=result.ids, logits=np.stack([row.numpy() for row in result.logits])
        )

    def tap_drawing(self, case: DrawCase, graph: GraphName, step: int, names: Collection[str]) -> Taps:
        """Inputs and outputs of linear layers, rows as in the graph: with the prefix, without."""
        text, num_tokens = int(len(case.prompts[0]) > 0), self._num_tokens(case)
        with _Tapped(self.model, names) as tapped:
            generate(self.model, self._request(case))
        if graph == "text_decoder":
            return tapped.rows(0)
        if graph == "rep_decoder":
            return tapped.rows(text + 2 * step, text + 2 * step + 1)
        first = text + 2 * (num_tokens + 1)
        passes = [self._passes(self._request(case), before) for before in range(step + 1)]
        first += sum(passes[:-1])
        return tapped.rows(*([first + 1, first] if passes[-1] == 2 else [first]))

    @staticmethod
    def _passes(request: EagerRequest, step: int) -> int:
        """Passes of a denoising step."""
        is_guided = request.guided[0] <= request.timesteps[step] < request.guided[1]
        return 2 if is_guided and request.pix_guidance_scale not in (0, 1) else 1

    def tap_answer(self, case: AnswerCase, graph: GraphName, step: int, names: Collection[str]) -> Taps:
        """The same of an answer."""
        with _Tapped(self.model, names) as tapped:
            answer(self.model, self._question(case))
        return tapped.rows(step)

    def _num_tokens(self, case: DrawCase) -> int:
        rows, columns = self.model.config.rep_grid(*self._size(case))
        return rows * columns

    def _size(self, case: DrawCase) -> tuple[int, int]:
        config = self.model.config
        return case.options.height or config.default_height, case.options.width or config.default_width

    def _request(self, case: DrawCase) -> EagerRequest:
        config, sampling, options = self.model.config, self.model.config.sampling, case.options
        num_tokens, (height, width) = self._num_tokens(case), self._size(case)
        gumbel = np.stack([noise.gumbel(case.seed, n, config.rep_vocab_size) for n in range(num_tokens)])

        sources = (options, options.plan, sampling)

        def chosen(name: str) -> Any:
            found = [getattr(each, name, None) for each in sources]
            return next((value for value in found if value is not None), None)

        # Who says anything about steps says all of them: a number of steps replaces times of the defaults.
        about_steps = ("times", "num_steps", "shift")
        saying = next(each for each in sources if any(getattr(each, name, None) is not None for name in about_steps))
        times = getattr(saying, "times", None)
        timesteps = shifted_times(chosen("num_steps"), 4 * num_tokens, sampling, chosen("shift"))
        return EagerRequest(
            prompt_ids=torch.tensor(case.prompts[0], dtype=torch.int64),
            gumbel=torch.from_numpy(gumbel),
            noise=sampling.noise_scale * torch.from_numpy(noise.normal(case.seed, (3, height, width))),
            timesteps=timesteps if times is None else torch.tensor(times),
            guided=chosen("guided"),
            rep_guidance_scale=chosen("rep_guidance_scale"),
            pix_guidance_scale=chosen("pix_guidance_scale"),
            temperature=chosen("temperature"),
            top_k=min(chosen("top_k"), config.rep_vocab_size),
        )

    def _question(self, case: AnswerCase) -> EagerQuestion:
        gumbel = [case.gumbel(step, self.model.config.vocab_size) for step in range(case.max_tokens)]
        return EagerQuestion(
            images=[torch.from_numpy(picture) for picture in case.pictures()],
            ids=torch.tensor(case.question),
            max_tokens=case.max_tokens,
            gumbel=None if case.temperature == 0 else torch.from_numpy(np.stack(gumbel)),
            temperature=case.temperature,
            top_k=case.top_k,
            top_p=case.top_p,
            repetition_penalty=case.repetition_penalty,
        )


def _drawing(result: EagerResult) -> Drawing:
    with_text, without_text = result.prefixes
    return Drawing(
        logits=_stack(result.logits),
        rep_ids=result.rep_ids.numpy(),
        cache=_cache_of(with_text),
        uncond_cache=_cache_of(without_text),
        times=result.timesteps.numpy(),
        x_preds=_stack(result.x_preds),
        x_nexts=_stack(result.x_nexts),
        pixels=result.pixels.numpy(),
    )


def _cache_of(prefix: EagerPrefix) -> NDArray[np.float32]:
    return _stack([part[0] for layer in prefix.past or [] for part in layer])


def _stack(tensors: list[Tensor]) -> NDArray[np.float32]:
    return torch.stack(tensors).numpy()


class _Tapped:
    """Keeps what goes into and comes out of linear layers while the model runs, pass by pass."""

    def __init__(self, model: RFModel, names: Collection[str]) -> None:
        self._passes: list[Taps] = []
        modules = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
        self._modules = {name: modules[name] for name in {tap.split(" ")[0] for tap in names} & modules.keys()}
        self._handles: list[Any] = []

    def __enter__(self) -> "_Tapped":
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keeper(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # A new pass begins where a layer runs again; the layer that patches go through first runs before them.
            if not self._passes or f"{name} input" in self._passes[-1] or name == "pixel_in":
                self._passes.append({})
            assert isinstance(module, Linear)
            product = output if module.bias is None else output - module.bias
            self._passes[-1] |= {f"{name} input": inputs[0].numpy(), f"{name} output": product.numpy()}

        return keep

    def rows(self, *passes: int) -> Taps:
        """Some passes as rows of one batch."""
        first = self._passes[passes[0]]
        return {name: np.concatenate([self._passes[i][name] for i in passes]) for name in first}
