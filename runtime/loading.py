"""Opens a bundle to run it: the graphs or the engine that fit, verified, checked and loaded.

Knows nothing of drawing and answering. Everything that is refused is refused here, before a graph runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from runtime.backends import create_backend
from runtime.backends.host import format2
from runtime.backends.host.stages import HostRunner
from runtime.backends.interface import Backend, DrawingShape, Runner, Session, StageRunner, TextRow
from runtime.bundle.engine import Engine, check_engine, find_engine, open_engine, require_weights
from runtime.bundle.folder import Bundle, Verify, open_bundle
from runtime.bundle.manifest import Manifest
from runtime.bundle.verdict import require_verified
from runtime.errors import RFError
from runtime.signature import GRAPHS, GraphName, Variant, check_signature
from runtime.text.tokenizer import PromptTokenizer

EngineChoice: TypeAlias = Literal["auto", "none"] | Path


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A bundle whose graphs are loaded: all that drawing and answering need. It keeps nothing of a request.

    Attributes:
        bundle: The bundle.
        variant: The graphs that run.
        sessions: The loaded graphs, or the engine's.
        engine: The engine in use; None for the ONNX graphs.
        num_threads: Threads per run; None leaves it to the backend.
        allow_spinning: Whether they wait busily for the next run.
        runner: Runs drawings and conversations with the sessions.
        tokenizer: Turns texts into ids and back.
    """

    bundle: Bundle
    sessions: Mapping[GraphName, Session]
    variant: Variant = field(default_factory=Variant)
    engine: Engine | None = None
    num_threads: int | None = None
    allow_spinning: bool = True
    runner: Runner = field(default_factory=HostRunner)
    tokenizer: PromptTokenizer

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def window(self) -> int:
        """Representation tokens of a pass: what the engine measured best on this machine; else one."""
        return 1 if self.engine is None else self.engine.record.window

    @property
    def cache_slots(self) -> int | None:
        """Slots of the cache, where the graphs have a fixed number of them."""
        return self.sessions["rep_decoder"].signature.cache_slots

    def with_sessions(self, sessions: Mapping[GraphName, Session]) -> "LoadedModel":
        """The same model with some of its graphs exchanged."""
        return replace(self, sessions={**self.sessions, **sessions})

    def start(
        self, num_requests: int, prompt_length: int, num_rep_tokens: int, *, previews: bool = True
    ) -> StageRunner:
        """The stages of a drawing, for callers with token ids and noise of their own; nothing is checked."""
        shape = DrawingShape(
            model=self.manifest.model,
            variant=self.variant,
            num_requests=num_requests,
            prompt_length=prompt_length,
            num_rep_tokens=num_rep_tokens,
            num_slots=self.cache_slots or prompt_length + num_rep_tokens + 1,
            previews=previews,
        )
        return self.runner.stages(self.sessions, shape)

    def text_row(self) -> TextRow:
        """An empty row of keys and values, for callers with token ids of their own; nothing is checked."""
        return self.runner.text_row(self.sessions["text_decoder"], self.manifest.model, self.variant)


def load_model(
    path: str | Path,
    variant: Variant,
    *,
    backend: str = "ort",
    num_threads: int | None = None,
    engine: EngineChoice = "auto",
    verify: Verify = "auto",
    allow_unverified: bool = False,
    allow_spinning: bool = True,
) -> LoadedModel:
    """Load a bundle; see `runtime.Pipeline.load` for the arguments and what is refused."""
    bundle = open_bundle(path)
    runner = create_backend(backend, allow_spinning=allow_spinning)
    _require_known(bundle, variant, backend)
    if variant.dialect != "classic" and not runner.needs_engine:
        if backend != "ort":
            raise RFError(
                f"The backend {backend} runs classic graphs, and {variant.dialect} was asked for. Use classic."
            )
        engine = "none" if engine == "auto" else engine
    chosen = _choose_engine(bundle, variant, runner, engine, verify)
    entries = {name: bundle.graph(name, variant) for name in GRAPHS}
    require_verified(bundle, variant, chosen, allow_unverified=allow_unverified)
    needed = [] if chosen else [file for entry in entries.values() for file in entry.files]
    bundle.verify([*needed, bundle.manifest.tokenizer.file], verify)
    sessions: dict[GraphName, Session] = {}
    for name, entry in entries.items():
        file = chosen.file(name) if chosen else bundle.file(entry.file)
        sessions[name] = runner.open(file, num_threads=num_threads, compiled=chosen is not None)
        check_signature(entry.signature, sessions[name].signature, str(file))
        if bundle.manifest.format_version == format2.FORMAT_VERSION:
            sessions[name] = format2.Format2Session(sessions[name], name, bundle.manifest.model, variant)
    return LoadedModel(
        bundle=bundle,
        variant=variant,
        sessions=sessions,
        engine=chosen,
        num_threads=num_threads,
        allow_spinning=allow_spinning,
        runner=runner,
        tokenizer=open_tokenizer(bundle),
    )


def _require_known(bundle: Bundle, variant: Variant, backend: str) -> None:
    """Refuse what this runtime cannot do with a bundle."""
    manifest = bundle.manifest
    if manifest.requires:
        raise RFError(
            f"{bundle.path} requires what this rf-export does not know: {', '.join(manifest.requires)}. "
            "Install a newer one.",
            "mismatch",
        )
    if manifest.format_version == format2.FORMAT_VERSION and (backend != "ort" or variant.dialect != "classic"):
        raise RFError(
            f"{bundle.path} is in format 2, of which classic graphs run on the backend ort alone. Export it again.",
            "mismatch",
        )


def open_tokenizer(bundle: Bundle) -> PromptTokenizer:
    """The tokenizer of a bundle."""
    manifest = bundle.manifest
    ids = manifest.understanding
    control_ids = () if ids is None else (ids.start_id, *ids.stop_ids)
    return PromptTokenizer(bundle.file(manifest.tokenizer.file), manifest.model.vocab_size, control_ids=control_ids)


def _choose_engine(
    bundle: Bundle, variant: Variant, backend: Backend, choice: EngineChoice, verify: Verify
) -> Engine | None:
    if choice == "none":
        return None
    if choice == "auto":
        return find_engine(bundle, variant, backend.target(), verify, required=backend.needs_engine)
    engine = open_engine(Path(choice))
    check_engine(engine, bundle, variant, backend.target(), verify)
    require_weights(engine, bundle)
    return engine
