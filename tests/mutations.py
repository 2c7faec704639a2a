"""Faults that an exporter, a compiler or a host can have, and what verification has to say of each.

Faults of graphs are edits of the ONNX files: they load, and their signature is the right one. Faults of the host are
exchanged functions of the runtime. `python tests/mutations.py` prints the table of docs/verification.md.
"""

import contextlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir

from runtime import plans
from runtime.backends.host import stages
from runtime.backends.host.cache import CacheWrite, KVCache
from runtime.backends.interface import Arrays, Session
from runtime.bundle.folder import describe_file, open_bundle, write_manifest
from runtime.signature import GraphName, Precision, Variant

Edit = Callable[[ir.Graph, Path], None]  # the graph, and the bundle that it is of


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A fault, and where it has to be found."""

    name: str
    graph: GraphName  # that is to be named
    tensor: str  # pattern of the first bad tensor
    inside: str = ""  # pattern of what a look inside of the graph finds
    precision: Precision = "fp32"
    edit: Edit | None = None  # of the graph's file
    patch: Callable[[], Any] | None = None  # a context in which the runtime is faulty
    session: Callable[[Session], Session] | None = None  # of the graph


def mutate(source: Path, out: Path, mutation: Mutation) -> Path:
    """A copy of a bundle with the fault in its file; the manifest has the new hash, and no verdict."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("engines"))
    manifest = open_bundle(out).manifest
    if mutation.edit is not None:
        (entry,) = (each for each in manifest.graphs_of(Variant(mutation.precision)) if each.name == mutation.graph)
        model = ir.load(out / entry.file)
        mutation.edit(model.graph, out)
        ir.save(model, out / entry.file)
        files = {**manifest.files, entry.file: describe_file(out / entry.file)}
        manifest = manifest.replace(files=files)
    write_manifest(out, manifest.replace(verified={}))
    return out


@contextlib.contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The runtime with the fault."""
    with mutation.patch() if mutation.patch is not None else contextlib.nullcontext():
        yield


def weight(name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Edit:
    """Change an initialiser."""

    def edit(graph: ir.Graph, _: Path) -> None:
        value = graph.initializers[f"model.{name}"]
        assert value.const_value is not None
        before = value.const_value.numpy()
        after = np.ascontiguousarray(change(before.copy())).astype(before.dtype)
        assert after.shape == before.shape and not np.array_equal(after, before)
        value.const_value = ir.tensor(after, name=value.name)

    return edit


def replaced_input(name: str, op_type: str, constant: float | None = None, consumer: str = "") -> Edit:
    """Let nodes read `op_type(input, input)`, or `op_type(input, constant)`, instead of an input."""

    def edit(graph: ir.Graph, _: Path) -> None:
        (value,) = (each for each in graph.inputs if each.name == name)
        users = [use for use in value.uses() if use.node.op_type == consumer or not consumer]
        # Through what reshapes it, to the node that computes with it.
        if consumer and not users:
            for use in value.uses():
                users += [more for out in use.node.outputs for more in out.uses() if more.node.op_type == consumer]
            value = users[0].node.inputs[users[0].idx]  # type: ignore[assignment]
        assert users
        other = value
        if constant is not None:
            other = ir.Value(name=f"mutated.{name}.constant")
            assert value.dtype is not None
            array = np.array(constant, value.dtype.numpy())
            other.const_value = ir.tensor(array, name=other.name)
            graph.register_initializer(other)
        node = ir.node(op_type, [value, other])
        node.outputs[0].name = f"mutated.{name}"
        graph.insert_before(users[0].node, node)
        for use in users:
            use.node.replace_input_with(use.idx, node.outputs[0])

    return edit


def roll_heads(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Heads of 8 numbers as the rows of an output projection, each in the place of the next."""
    return np.roll(array, 8, 0)


def pixel_expert(graph: ir.Graph, bundle: Path) -> None:
    """The first layer's feed-forward weights of the pixel expert, cut to the size of the representation expert's."""
    denoiser = ir.load(bundle / "graphs/denoiser.fp32.classic.onnx").graph.initializers
    for name in ("gate_up", "down"):
        theirs = denoiser[f"model.layers.0.experts.pixel.ffn.{name}.weight"].const_value
        assert theirs is not None
        array = theirs.numpy()

        def change(ours: np.ndarray[Any, Any], array: np.ndarray[Any, Any] = array) -> np.ndarray[Any, Any]:
            return array[: ours.shape[0], : ours.shape[1]]

        weight(f"layers.0.experts.representation.ffn.{name}.weight", change)(graph, bundle)


def overflow(graph: ir.Graph, bundle: Path) -> None:
    """The same function in exact arithmetic: what is scaled up before a product is scaled down after it."""
    name = "layers.1.experts.pixel.ffn"

    def up(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array[:, array.shape[1] // 2 :] *= 2.0**15
        return array

    weight(f"{name}.gate_up.weight", up)(graph, bundle)
    weight(f"{name}.down.weight", lambda array: array * 2.0**-15)(graph, bundle)


def patched(target: Any, name: str, new: Any) -> Callable[[], Any]:
    """A context with one attribute exchanged."""
    return lambda: mock.patch.object(target, name, new)


class LateRow(KVCache):
    """Writes the new tokens of one row a slot too late."""

    def keep(self, write: CacheWrite, line: int, row: int, tokens: slice, slot: int) -> None:
        super().keep(write, line, row, tokens, slot)
        if row == 1 and tokens.stop - tokens.start == 1 and slot + 1 < self.values.shape[3]:
            self.values[:, row, :, slot + 1] = self.values[:, row, :, slot]
            self.values[:, row, :, slot] = 0


class StaleCache(KVCache):
    """Keeps what is there when the third token after a text of seven is written."""

    def keep(self, write: CacheWrite, line: int, row: int, tokens: slice, slot: int) -> None:
        stale = self.values.copy()
        super().keep(write, line, row, tokens, slot)
        if slot == 9:
            self.values[:] = stale


class SwappedKeysAndValues(KVCache):
    """Mixes up key and value of a layer."""

    def keep(self, write: CacheWrite, line: int, row: int, tokens: slice, slot: int) -> None:
        assert write.new is not None
        super().keep(replace(write, new=write.new[[0, 1, 3, 2]]), line, row, tokens, slot)


class LeakingCache(KVCache):
    """Gives the second request, whose text has three tokens, the keys and values of the first one's third token."""

    def keep(self, write: CacheWrite, line: int, row: int, tokens: slice, slot: int) -> None:
        super().keep(write, line, row, tokens, slot)
        if (row, slot) == (1, 5) and self.values.shape[1] == 4:
            self.values[:, 1, :, slot] = self.values[:, 0, :, 9]


class OtherPicture:
    """An image encoder that hands out what it saw before."""

    def __init__(self, session: Session) -> None:
        self._session, self._before = session, None
        self.signature = session.signature

    def run(self, inputs: Arrays) -> dict[str, Any]:
        found = self._session.run({"pixels": inputs["pixels"][..., ::-1].copy()})
        self._before, found = found, self._before or found
        return found if found["image_features"].shape == self._before["image_features"].shape else self._before

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        return self._session.bind(inputs, outputs)


_prefill, _draw_tokens, _denoise, _timesteps = (
    stages.prefill,
    stages.HostStages.draw_tokens,
    stages.HostStages.denoise,
    plans.timesteps,
)


def late_start(session: Any, prompts: Any, cache: KVCache) -> None:
    _prefill(session, prompts, cache)
    if len(prompts) > 1:
        cache.values[:, 1] = np.roll(cache.values[:, 1], 1, axis=2)


def without_last_run(self: Any, *arguments: Any) -> Any:
    drawn = yield from _draw_tokens(self, *arguments)
    self.cache.lengths -= 1
    return drawn


def one_step_fewer(self: Any, plan: Any, times: Any, x_t: Any) -> Any:
    return _denoise(self, plan, np.delete(times, len(times) - 2), x_t)


def last_step_not_taken(self: Any, plan: Any, times: Any, x_t: Any) -> Any:
    """Every prediction is right, and the picture alone is not."""
    kept = None
    for event in _denoise(self, plan, times, x_t):
        if event.step == event.num_steps - 1 and kept is not None:
            x_t[:] = kept
        kept = event.x_next
        yield event
    return x_t


def shifted_more(num_steps: int, num_patches: int, *, shift: float, shift_base_patches: int) -> Any:
    return _timesteps(num_steps, num_patches, shift=1.1 * shift, shift_base_patches=shift_base_patches)


MUTATIONS = [
    Mutation(
        name="guidance of tokens forced to 1",
        graph="rep_decoder",
        tensor="logits|guidance",
        inside="every layer of rep_decoder agrees",
        edit=replaced_input("guidance_scale", "Div"),
    ),
    Mutation(
        name="guidance of pixels forced to 1",
        graph="denoiser",
        tensor="x_pred|guidance",
        inside="every layer of denoiser agrees",
        edit=replaced_input("guidance_scale", "Div"),
    ),
    Mutation(
        name="top-k ignored",
        graph="rep_decoder",
        tensor="next_rep_ids",
        inside="every layer",
        edit=replaced_input("top_k", "Add", 30),
    ),
    Mutation(
        name="temperature ignored",
        graph="rep_decoder",
        tensor="next_rep_ids",
        inside="every layer",
        edit=replaced_input("temperature", "Add", 1.0),
    ),
    Mutation(
        name="top-p of answers ignored",
        graph="text_decoder",
        tensor="next_ids",
        inside="every layer",
        edit=replaced_input("top_p", "Add", 1.0),
    ),
    Mutation(
        name="another expert's weights",
        graph="rep_decoder",
        tensor=r"logits|present\.1\.key",
        inside=r"layers\.0\.experts\.representation\.ffn\.gate_up output",
        edit=pixel_expert,
    ),
    Mutation(
        name="permuted heads",
        graph="text_decoder",
        tensor=r"logits",
        inside=r"layers\.0\.out output",
        edit=weight("layers.0.out.weight", roll_heads),
    ),
    Mutation(
        name="a transposed square weight",
        graph="denoiser",
        tensor="x_pred",
        inside=r"layers\.1\.out output",
        edit=weight("layers.1.out.weight", np.transpose),
    ),
    Mutation(
        name="a transposed weight of the time",
        graph="denoiser",
        tensor="x_pred",
        inside=r"time\.fc2 output",
        edit=weight("time.fc2.weight", np.transpose),
    ),
    Mutation(
        name="a layer's weight zeroed",
        graph="denoiser",
        tensor="x_pred",
        inside=r"layers\.1\.experts\.pixel\.ffn\.down output",
        edit=weight("layers.1.experts.pixel.ffn.down.weight", np.zeros_like),
    ),
    Mutation(
        name="gate and up swapped",
        graph="rep_decoder",
        tensor=r"logits|present\.1\.key",
        inside=r"layers\.0\.experts\.representation\.ffn\.gate_up output",
        edit=weight(
            "layers.0.experts.representation.ffn.gate_up.weight", lambda array: np.roll(array, array.shape[1] // 2, 1)
        ),
    ),
    Mutation(
        name="rows of the encoder's positions reversed",
        graph="vision_encoder",
        tensor="image_features",
        inside="layers.0.qkv input",
        edit=weight("encoder.position.rows", lambda array: array[::-1]),
    ),
    Mutation(
        name="patches merged in another order",
        graph="vision_encoder",
        tensor="image_features",
        inside=r"connector\.fc1 output",
        edit=weight("connector.fc1.weight", lambda array: np.roll(array, 24, 0)),
    ),
    Mutation(
        name="a scale of 1.05 on the pixels",
        graph="denoiser",
        tensor="x_pred",
        inside=r"pixel_out output, norm 1.05",
        edit=weight("pixel_out.weight", lambda array: 1.05 * array),
    ),
    Mutation(
        name="hidden slots seen by the mask",
        graph="rep_decoder",
        tensor=r"present\.1\.key|logits",
        inside=r"layers\.0\.out input",
        edit=replaced_input("past_lengths", "Add", None, "Less"),
    ),
    Mutation(
        name="fp16 overflow",
        graph="denoiser",
        tensor=r"layers\.1\.experts.*",
        precision="fp16",
        inside=r"layers\.1\.experts\.pixel\.ffn.*keep layers\.1\.experts\.pixel\.ffn",
        edit=overflow,
    ),
    Mutation(
        name="one step fewer",
        graph="denoiser",
        tensor="steps",
        patch=patched(stages.HostStages, "denoise", one_step_fewer),
    ),
    Mutation(
        name="the last step is not taken",
        graph="denoiser",
        tensor="picture",
        patch=patched(stages.HostStages, "denoise", last_step_not_taken),
    ),
    Mutation(
        name="a wrong timestep shift",
        graph="denoiser",
        tensor="t_next",
        patch=patched(plans, "timesteps", shifted_more),
    ),
    Mutation(
        name="a shifted cache row",
        graph="rep_decoder",
        tensor=r"present\.0\.key",
        patch=patched(stages, "KVCache", LateRow),
    ),
    Mutation(
        name="a stale cache",
        graph="rep_decoder",
        tensor=r"present\.0\.key",
        patch=patched(stages, "KVCache", StaleCache),
    ),
    Mutation(
        name="keys and values swapped",
        graph="text_decoder",
        tensor=r"present\.1\.key",
        patch=patched(stages, "KVCache", SwappedKeysAndValues),
    ),
    Mutation(
        name="a leak between requests",
        graph="rep_decoder",
        tensor=r"present\.0\.key",
        patch=patched(stages, "KVCache", LeakingCache),
    ),
    Mutation(
        name="a row that starts a slot off",
        graph="text_decoder",
        tensor=r"present\.0\.key",
        patch=patched(stages, "prefill", late_start),
    ),
    Mutation(
        name="the last token never enters the cache",
        graph="rep_decoder",
        tensor="cache",
        patch=patched(stages.HostStages, "draw_tokens", without_last_run),
    ),
    Mutation(
        name="image features of another picture", graph="vision_encoder", tensor="image_features", session=OtherPicture
    ),
]


def table(source: Path, checkpoint: Path) -> list[str]:
    """Lines of Markdown: every fault, and what verification says."""
    from verifying import compare

    from rf_export.checkpoint import load_checkpoint
    from rf_export.eager_reference import EagerReference
    from verification import Remembering

    memory = Remembering(EagerReference(load_checkpoint(checkpoint)))
    lines = ["| fault | verdict | first failure | look inside |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for number, mutation in enumerate(MUTATIONS):
            outcome = run(mutation, source, Path(folder) / str(number), memory, compare)
            found = outcome.record["first_failure"] or "none"
            lines.append(f"| {mutation.name} | {outcome.verdict} | {found} | {outcome.inside} |")
    return lines


def run(mutation: Mutation, source: Path, out: Path, memory: Any, compare: Callable[..., Any]) -> Any:
    """Verify a bundle with the fault."""
    from runtime import Pipeline

    bundle = mutate(source, out, mutation)
    sessions = {}
    if mutation.session is not None:
        pipeline = Pipeline.load(bundle, mutation.precision, num_threads=1, engine="none", allow_unverified=True)
        sessions = {mutation.graph: mutation.session(pipeline.sessions[mutation.graph])}
    with applied(mutation):
        return compare(memory, bundle, mutation.precision, sessions=sessions)


def is_named(mutation: Mutation, outcome: Any) -> bool:
    """Whether the verdict is red and names the right graph and tensor."""
    first = outcome.tally.first
    return (
        outcome.verdict == "failed"
        and first.graph == mutation.graph
        and re.fullmatch(mutation.tensor, first.tensor.replace("guidance effect", "guidance")) is not None
        and re.search(mutation.inside, outcome.inside) is not None
    )


def main() -> None:
    """Make a tiny checkpoint and its bundle, and print the table."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from exporting import make_tiny

    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = make_tiny(Path(folder))
        print("\n".join(table(bundle, checkpoint)))


if __name__ == "__main__":
    main()
