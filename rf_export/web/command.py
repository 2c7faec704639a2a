"""The command `export-web`: a site that draws in the browser, and a look at it."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.commands import parameters as arg
from runtime.commands.terminal import progress

if TYPE_CHECKING:
    from rf_export.web.site import Site


@arg.command("export-web")
@arg.BUNDLE
@arg.option("-o --output site", "Folder to write.", arg.PATH, required=True, metavar="SITE")
@arg.option("--precision", "Precision of the graphs.", arg.PRECISION, shown="fp16 if it is verified, or fp32")
@arg.option("--dialect", "Spelling of the graphs.", arg.DIALECT, "classic")
@arg.option(
    "--onnxruntime-web",
    "Folder of the unpacked npm package, for machines without a network.",
    arg.PATH,
    shown="fetched once, and kept",
)
@arg.flag("--allow-unverified", "Take also graphs that failed a verification, or that nobody verified.")
@arg.flag("--force", "Replace an existing site.")
@arg.flag("--serve serve_it", "Serve the site on 127.0.0.1 then, until Ctrl-C.")
@arg.option("--port", "Port of --serve; 0 takes a free one.", click.IntRange(0, 65535), 8000)
@arg.flag("--open open_page", "Open the page in a browser; implies --serve.")
@arg.flag("--json as_json", "Print the summary as JSON.")
def export_web(
    bundle: Path, site: Path, serve_it: bool, port: int, open_page: bool, as_json: bool, **options: Any
) -> None:
    """Write a folder for any static server: a page that draws with BUNDLE in the browser, and asks no server.

    \b
    rf-export export-web bundle -o site
    rf-export export-web bundle -o site --precision int8 --force --serve
    """
    from rf_export.web import preview
    from rf_export.web.site import SiteOptions, export_site

    with preview.open_server(site, port) if serve_it or open_page else nullcontext() as server:
        with progress("export-web") as report:
            written = export_site(bundle, site, SiteOptions(**options), report)
        click.echo(json.dumps({**vars(written), "path": str(site)}, indent=1) if as_json else _summary(written))
        if server is not None:
            preview.serve(server, lambda: _tell(preview.url_of(server), open_page))


def _summary(site: "Site") -> str:
    size, first = (f"{each / 2**20:.1f} MiB" for each in (site.size, site.packed_size))
    return (
        f"{site.path}  {site.precision}, bundle {site.bundle_id}\n"
        f"  {site.num_files} files, {size}; a first visit loads {first}, later ones what has changed"
    )


def _tell(url: str, open_page: bool) -> None:
    click.echo(f"{url}  the page; Ctrl-C ends it")
    if open_page:
        click.launch(url)
