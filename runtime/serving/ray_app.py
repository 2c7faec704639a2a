"""The same server on a Ray cluster: replicas that draw, and a front that speaks HTTP.

    rf-export serve bundle --ray                                   a cluster of this machine alone
    serve run runtime.serving.ray_app:app bundle=/models/bundle    on a cluster that is there; also in a config file

A replica holds a pipeline and a scheduler; Ray adds and removes replicas by how many requests each has. Where a replica
dies, its requests are drawn once more by another one: the same seed gives the same events, and those that a client has
seen are not sent again; where another bundle has taken its place meanwhile, the client is told. Knows no route: the
front is the application of openai_api.py.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime.bundle.folder import open_bundle
from runtime.errors import ErrorKind, RFError
from runtime.serving.drawer import Drawer
from runtime.serving.http.guard import Limits
from runtime.serving.metrics import Metrics, merged
from runtime.serving.orders import AnswerEvent, Drawing, DrawingEvent, Question
from runtime.serving.ray_bundles import Shelf, fetch
from runtime.signature import GRAPHS, Dialect, Precision, Variant

_NAME: Final = "rf-export"
_BUSY_S: Final = 2  # until another replica may be there
_FRONT: Final = 1000  # requests that the front holds
_METRICS_S: Final = 5.0  # that a replica has to tell its numbers
_A_BIT: Final = 0.001  # of a resource: what is there, and of which nothing is used up
_STORE: Final = 256 << 20  # bytes; pictures are small
# Ray gives a proxy 5 s to start, and then starts another one; on a busy machine it takes longer.
_PATIENCE: Final = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Settings(BaseModel):
    """What is served, and how; in a config file these are the `args`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str  # a path that every node finds
    bundle_node: str | None = None  # or a resource of Ray: its nodes find it, all others get it by the object store
    precision: Precision = "fp32"
    backend: str = "ort"
    dialect: Dialect = "classic"
    engine: str = "auto"
    threads: int = Field(default=1, ge=1)  # of a run
    allow_unverified: bool = False
    allow_spinning: bool = True
    model_name: str = _NAME
    api_key: str | None = Field(default=None, repr=False)  # or the variable RF_EXPORT_API_KEY of the front
    hosts: frozenset[str] | None = None  # names that clients may call it by
    workers: int = Field(default=1, ge=1)  # of a replica, which takes workers x threads CPUs
    gpus: float = Field(default=0, ge=0)  # of a replica
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    fronts: int = Field(default=1, ge=1)
    max_batch: int = Field(default=8, ge=1)
    max_queue: int = Field(default=64, ge=1)
    max_steps: int = Field(default=250, ge=1)
    max_body_mib: int = Field(default=32, ge=1)
    grace: int = Field(default=60, ge=1)  # seconds for what runs to end


@dataclass(frozen=True)
class Refused:
    """An error on its way from a replica."""

    message: str
    kind: ErrorKind


class Replica:
    """A drawer in a process of its own."""

    def __init__(self, settings: Settings, shelf: Any = None) -> None:
        from runtime.pipeline import Pipeline

        bundle: str | Path = settings.bundle
        if shelf is not None:
            bundle, self._mark = fetch(shelf)  # while it is open the folder stays
        pipeline = Pipeline.load(
            bundle,
            settings.precision,
            settings.backend,
            settings.threads,
            settings.engine if settings.engine in ("auto", "none") else Path(settings.engine),  # type: ignore[arg-type]
            dialect=settings.dialect,
            allow_unverified=settings.allow_unverified,
            allow_spinning=settings.allow_spinning,
        )
        self._id, self._draws = uuid.uuid4().hex[:8], f"{pipeline.bundle.manifest.bundle_id} in {settings.precision}"
        self._drawer = Drawer(
            pipeline,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            num_workers=settings.workers,
            max_steps=settings.max_steps,
        )
        self._drawer.draw_once()

    async def draw(self, drawing: Drawing) -> AsyncGenerator[tuple[str, DrawingEvent | Refused], None]:
        """As `Drawer.draw`; beside each event what draws."""
        async with aclosing(_told(self._drawer.draw(drawing))) as events:
            async for event in events:
                yield self._draws, event

    async def ask(self, question: Question) -> AsyncGenerator[tuple[str, AnswerEvent | Refused], None]:
        """As `Drawer.ask`; beside each event what answers."""
        async with aclosing(_told(self._drawer.ask(question))) as events:
            async for event in events:
                yield self._draws, event

    async def info(self) -> dict[str, Any]:
        """As `Drawer.info`."""
        return await self._drawer.info()

    async def metrics(self) -> tuple[str, bytes]:
        """The name of this replica, and its numbers."""
        return self._id, self._drawer.metrics.text()

    def check_health(self) -> None:
        """Ray starts a replica again where this raises."""
        if self._drawer.state == "broken":
            raise RuntimeError("a worker ended with a bug; the log of the replica tells which")


async def _told(events: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    async with aclosing(events) as items:
        try:
            async for item in items:
                yield item
        except RFError as error:  # that of another process would arrive wrapped
            yield Refused(error.elsewhere, error.kind)


class RemoteDrawer:
    """A drawer whose work is done by the replicas; see `Drawer`."""

    retry_after_s: Final = _BUSY_S
    state: Literal["ready", "stopping", "broken"] = "ready"

    def __init__(self, replicas: Any, settings: Settings) -> None:
        self.metrics = Metrics()
        self.max_queue = settings.max_queue
        self._replicas = replicas
        self._id = f"front-{uuid.uuid4().hex[:8]}"
        self._num_running = 0
        self.metrics.watch({"accepted": lambda: self._num_running})

    async def info(self) -> dict[str, Any]:
        """What the model is and can do."""
        told: dict[str, Any] = await self._replicas.info.remote()
        return told

    async def metrics_text(self) -> bytes:
        """The numbers of all replicas that answer, and of this front."""
        replicas = self._replicas.broadcast("metrics")
        told = []
        with contextlib.suppress(TimeoutError):
            told = await replicas.results_async(timeout_s=_METRICS_S, return_exceptions=True)
        return merged([(self._id, self.metrics.text()), *(each for each in told if isinstance(each, tuple))])

    async def warm_up(self) -> None:
        """Nothing: a replica warms itself."""

    async def close(self) -> None:
        """Take no more work, and wait for the end of what runs."""
        self.state = "stopping"
        while self._num_running:
            await asyncio.sleep(0.05)

    async def draw(self, drawing: Drawing) -> AsyncGenerator[DrawingEvent, None]:
        """As `Drawer.draw`."""
        async with aclosing(self._events("draw", drawing)) as events:
            async for event in events:
                yield event

    async def ask(self, question: Question) -> AsyncGenerator[AnswerEvent, None]:
        """As `Drawer.ask`."""
        async with aclosing(self._events("ask", question)) as events:
            async for event in events:
                yield event

    async def _events(self, method: str, order: Any) -> AsyncGenerator[Any, None]:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        if self.state != "ready":
            raise RFError("The server takes no more work. Ask another one, or come again later.", "busy")
        self._num_running += 1
        num_seen, draws = 0, ""
        try:
            for _ in range(2):
                num_left = num_seen
                with contextlib.suppress(RayActorError):  # the replica died
                    async with aclosing(self._once(method, order)) as events:
                        async for origin, event in events:
                            if num_seen and origin != draws:
                                raise RFError("The model was replaced while it worked on this. Ask again.", "cancelled")
                            draws, num_left = origin, num_left - 1
                            if num_left < 0:
                                num_seen += 1
                                yield event
                    return
            raise RFError("Two replicas that worked on this have ended. Ask again later.", "cancelled")
        except BackPressureError as error:
            raise RFError("All replicas are busy. Ask again later.", "busy") from error
        finally:
            self._num_running -= 1

    async def _once(self, method: str, order: Any) -> AsyncGenerator[tuple[str, Any], None]:
        """The events of one replica, and what it draws or answers with."""
        events = self._replicas.options(stream=True, method_name=method).remote(order)
        try:
            async for origin, event in events:
                if isinstance(event, Refused):
                    raise RFError(event.message, event.kind)
                yield origin, event
        finally:
            events.cancel()


class Front:
    """The application, as often as Ray runs it."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        self._drawer, self._settings = RemoteDrawer(replicas, settings), settings

    def __serve_build_asgi_app__(self) -> Any:  # named by Ray
        from runtime.serving.openai_api import create_app

        settings = self._settings
        limits = Limits(
            api_key=settings.api_key or os.environ.get("RF_EXPORT_API_KEY"),
            hosts=settings.hosts,
            max_body=settings.max_body_mib << 20,
            max_bodies=max(256, settings.max_body_mib) << 20,
        )
        return create_app(self._drawer, limits, model_name=settings.model_name)

    async def drain(self) -> None:
        """Take no more work, and wait for the end of what runs."""
        await self._drawer.close()


def app(settings: Settings) -> Any:
    """The Ray Serve application.

    Replicas hold what they draw together and no more, so that what waits is there for those that are added. What is no
    bundle is refused here: Ray stops replicas of before as soon as it starts new ones.

    Raises:
        RFError: It is no bundle, has not this precision, or no node is known by the name of `bundle_node`.
    """
    import ray
    from ray import serve

    where = {} if settings.bundle_node is None else {settings.bundle_node: _A_BIT}
    if not where:
        _require_bundle(settings)
    elif settings.bundle_node in ray.cluster_resources():
        ray.get(ray.remote(_require_bundle).options(num_cpus=0, resources=where).remote(settings))
    else:
        raise RFError(
            f"No node of the cluster has the resource {settings.bundle_node!r}. Start the one that has the bundle with "
            f"""`ray start --resources '{{"{settings.bundle_node}": 1}}'`."""
        )
    shelf = serve.deployment(Shelf, name="shelf", ray_actor_options={"num_cpus": 0, "resources": where})
    replicas = serve.deployment(
        Replica,
        name="drawer",
        ray_actor_options={"num_cpus": settings.workers * settings.threads, "num_gpus": settings.gpus},
        max_ongoing_requests=2 * settings.max_batch,  # a batch at tokens, and one at pixels
        max_queued_requests=settings.max_queue,
        graceful_shutdown_timeout_s=settings.grace,
        health_check_period_s=5,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": max(settings.min_replicas, settings.max_replicas),
            "target_ongoing_requests": settings.max_batch,
            "upscale_delay_s": 5,
            "downscale_delay_s": 300,
        },
    )
    front = serve.deployment(
        serve.ingress()(Front),
        name="front",
        num_replicas=settings.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_FRONT,
        graceful_shutdown_timeout_s=settings.grace,
    )
    shelves = [shelf.bind(settings.bundle)] if where else []
    return front.bind(replicas.bind(settings, *shelves), settings)


def _require_bundle(settings: Settings) -> None:
    bundle = open_bundle(settings.bundle)
    for name in GRAPHS:
        bundle.graph(name, Variant(settings.precision, settings.dialect))


def run(settings: Settings, host: str, port: int, on_ready: Callable[[], None]) -> None:
    """Serve on a cluster of this machine until SIGTERM or SIGINT, and finish what runs."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import serve

    from runtime.backends.host.machine import usable_cpus

    stopped = threading.Event()
    folder = tempfile.mkdtemp(prefix="rf-ray-")
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    try:
        ray.init(
            address="local",
            num_cpus=max(usable_cpus(), settings.workers * settings.threads),
            include_dashboard=False,
            object_store_memory=_STORE,
            logging_level="WARNING",
            _temp_dir=folder,
        )
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: stopped.set())
        serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
        serve.run(app(settings), name=_NAME, route_prefix="/", logging_config=quiet)
        on_ready()
        stopped.wait()
        with contextlib.suppress(TimeoutError):
            serve.get_app_handle(_NAME).drain.remote().result(timeout_s=settings.grace)
        serve.delete(_NAME)
    finally:
        with contextlib.suppress(Exception):  # where it did not start
            serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
