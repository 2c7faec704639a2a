"""The command `serve`: a bundle behind OpenAI's API, and a page to look at."""

from pathlib import Path
from typing import Any

import click

from runtime.commands import parameters as arg

PORT = click.IntRange(0, 65535)


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
@arg.option("--workers", "Threads that run graphs.", arg.COUNT, shown="one for each core that --threads leaves")
@arg.option("--grace", "Seconds that running requests have to end after SIGTERM or Ctrl-C.", arg.COUNT, 60)
@arg.option("--write-triton", "Folder to write a model repository for NVIDIA's Triton into, and no more.", arg.PATH)
@arg.flag("--open open_page", "Open the page in a browser.")
@arg.bundle_options
def serve(bundle: Path, host: str, port: int, write_triton: Path | None, open_page: bool, **options: Any) -> None:
    """Serve BUNDLE over HTTP: OpenAI's API for pictures and chat under /v1, and a page at /.

    Each run of a graph takes one thread unless --threads says otherwise, and each core has a worker: that draws most
    pictures a second. Ctrl-C, or SIGTERM, finishes what runs.

    \b
    rf-export serve bundle
    rf-export serve bundle --host 0.0.0.0 --port 8080 --api-key SECRET
    rf-export serve bundle --write-triton models
    """
    if write_triton is not None:
        _write_triton(write_triton, bundle, options)
        return
    from runtime.serving.drawer import Drawer
    from runtime.serving.http.guard import Limits
    from runtime.serving.openai_api import create_app
    from runtime.serving.server import LOOPBACK, listen, run, url_of

    listening = listen(host, port)
    pipeline = arg.load(bundle, {**options, "threads": options["threads"] or 1})
    drawer = Drawer(
        pipeline,
        max_batch=options["max_batch"],
        max_queue=options["max_queue"],
        num_workers=options["workers"],
        max_steps=options["max_steps"],
    )
    limits = Limits(
        api_key=options["api_key"],
        hosts=LOOPBACK if host in LOOPBACK else None,
        max_body=options["max_body_mib"] << 20,
        max_bodies=max(256, options["max_body_mib"]) << 20,
    )

    def tell() -> None:
        click.echo(f"{url_of(listening)}  the page; the API is under /v1; Ctrl-C ends it")
        if host not in LOOPBACK and not options["api_key"]:
            click.echo("note: everybody who reaches this address may use it; --api-key asks for a key", err=True)
        if open_page:
            click.launch(url_of(listening))

    run(
        create_app(drawer, limits, model_name=options["model_name"]), listening, grace_s=options["grace"], on_ready=tell
    )


def _write_triton(folder: Path, bundle: Path, options: dict[str, Any]) -> None:
    from runtime.bundle.folder import open_bundle
    from runtime.serving.triton_repository import write_repository

    open_bundle(bundle)  # refuses what is none
    names = ("precision", "backend", "max_batch", "max_queue", "allow_unverified")
    settings = {name: options[name] for name in names}
    click.echo(write_repository(folder, bundle, {**settings, "threads": options["threads"] or 1}))
