"""The command `serve`: a bundle behind OpenAI's API, and a page to look at."""

from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import Any

import click

from runtime.commands import parameters as arg

PORT = click.IntRange(0, 65535)
_ON_RAY = ["precision", "backend", "dialect", "threads", "allow_unverified", "model_name", "api_key", "grace"]
_ON_RAY += ["max_batch", "max_queue", "max_steps", "max_body_mib"]  # options that are settings there


@arg.command()
@arg.BUNDLE
@arg.option("--host", "Address to listen on; 0.0.0.0 for every network of this machine.", default="127.0.0.1")
@arg.option("--port", "Port to listen on; 0 takes a free one.", PORT, 8000)
@arg.option(
    "--api-key",
    "Key that clients have to send; from the variable RF_EXPORT_API_KEY it is not seen in lists of processes.",
    envvar="RF_EXPORT_API_KEY",
    shown="none",
)
@arg.option("--model-name", "Name of the model in the API.", default="rf-export")
@arg.option("--max-batch", "Pictures drawn together, at most.", arg.COUNT, 8)
@arg.option("--max-queue", "Pictures that wait, at most; more are refused with status 429.", arg.COUNT, 64)
@arg.option("--max-steps", "Denoising steps of a picture, at most.", arg.COUNT, 250)
@arg.option("--max-body-mib", "Size of a request, at most.", arg.COUNT, 32)
@arg.option(
    "--workers", "Threads that run graphs.", arg.COUNT, shown="one for each core that --threads leaves; with --ray 1"
)
@arg.option("--grace", "Seconds that running requests have to end after SIGTERM or Ctrl-C.", arg.COUNT, 60)
@arg.option("--write-triton", "Folder to write a model repository for NVIDIA's Triton into, and no more.", arg.PATH)
@arg.flag("--ray", "Serve with Ray on this machine: replicas that start and end as they are needed.")
@arg.option("--replicas", "Replicas of --ray, at most.", arg.COUNT, shown="as many as the cores have workers")
@arg.flag("--open open_page", "Open the page in a browser.")
@arg.bundle_options
def serve(
    bundle: Path, host: str, port: int, write_triton: Path | None, ray: bool, open_page: bool, **options: Any
) -> None:
    """Serve BUNDLE over HTTP: OpenAI's API for pictures and chat under /v1, and a page at /.

    Each run of a graph takes one thread unless --threads says otherwise, and each core has a worker: that draws most
    pictures a second. Ctrl-C, or SIGTERM, finishes what runs.

    \b
    rf-export serve bundle
    rf-export serve bundle --host 0.0.0.0 --port 8080 --api-key SECRET
    rf-export serve bundle --ray --replicas 4
    rf-export serve bundle --write-triton models
    """
    if write_triton is not None:
        _write_triton(write_triton, bundle, options)
        return
    from runtime.serving.server import LOOPBACK, listen, url_of

    listening = listen(host, port)

    def tell() -> None:
        click.echo(f"{url}  the page; the API is under /v1; Ctrl-C ends it")
        if host not in LOOPBACK and not options["api_key"]:
            click.echo("note: everybody who reaches this address may use it; --api-key asks for a key", err=True)
        if open_page:
            click.launch(url)

    url, hosts = url_of(listening), LOOPBACK if host in LOOPBACK else None
    options["threads"] = options["threads"] or 1
    (_serve_on_ray if ray else _serve)(bundle, listening, hosts, tell, options)


def _serve(
    bundle: Path, listening: socket, hosts: frozenset[str] | None, on_ready: Callable[[], None], options: dict[str, Any]
) -> None:
    from runtime.serving.drawer import Drawer
    from runtime.serving.http.guard import Limits
    from runtime.serving.openai_api import create_app
    from runtime.serving.server import run

    pipeline = arg.load(bundle, options)
    drawer = Drawer(
        pipeline,
        max_batch=options["max_batch"],
        max_queue=options["max_queue"],
        num_workers=options["workers"],
        max_steps=options["max_steps"],
    )
    limits = Limits(
        api_key=options["api_key"],
        hosts=hosts,
        max_body=options["max_body_mib"] << 20,
        max_bodies=max(256, options["max_body_mib"]) << 20,
    )

    application = create_app(drawer, limits, model_name=options["model_name"])
    run(application, listening, grace_s=options["grace"], on_ready=on_ready)


def _serve_on_ray(
    bundle: Path, listening: socket, hosts: frozenset[str] | None, on_ready: Callable[[], None], options: dict[str, Any]
) -> None:
    from runtime.backends.host.machine import usable_cpus
    from runtime.bundle.folder import open_bundle
    from runtime.serving.ray_app import Settings, run

    open_bundle(bundle)  # refuses what is none
    workers = options["workers"] or 1
    settings = Settings(
        bundle=str(bundle.resolve()),
        hosts=hosts,
        workers=workers,
        max_replicas=options["replicas"] or max(1, usable_cpus() // (workers * options["threads"])),
        allow_spinning=not options["no_spinning"],
        engine=options["engine"] if options["engine"] in ("auto", "none") else str(Path(options["engine"]).resolve()),
        **{name: options[name] for name in _ON_RAY},
    )
    host, port = listening.getsockname()[:2]
    listening.close()  # it was free; Ray's proxies listen themselves
    run(settings, host, port, on_ready)


def _write_triton(folder: Path, bundle: Path, options: dict[str, Any]) -> None:
    from runtime.bundle.folder import open_bundle
    from runtime.serving.triton_repository import write_repository

    open_bundle(bundle)  # refuses what is none
    names = ("precision", "backend", "max_batch", "max_queue", "allow_unverified")
    settings = {name: options[name] for name in names}
    click.echo(write_repository(folder, bundle, {**settings, "threads": options["threads"] or 1}))
