"""The command `inspect`: what a bundle holds, and what a drawing needs."""

import json
from pathlib import Path

import click

from runtime.commands import parameters as arg


@arg.command()
@arg.BUNDLE
@arg.flag("--verify", "Hash every file, whatever its size.")
@arg.flag("--vocabulary", "Tell instead the words that prompts and questions may have.")
@arg.flag("--memory", "Tell instead what a drawing needs, and how many fit on which board.")
@arg.option("--size", "Height and width in pixels of the picture, with --memory.", arg.SIZE, shown="the model's")
@arg.option("--batch num_requests", "Pictures drawn together, with --memory.", arg.COUNT, 1)
@arg.option("--prompt-tokens", "Tokens of a prompt, with --memory.", arg.COUNT, 32)
@arg.flag("--json as_json", "Print the description as JSON.")
def inspect(
    bundle: Path,
    verify: bool,
    vocabulary: bool,
    memory: bool,
    size: tuple[int, int] | None,
    num_requests: int,
    prompt_tokens: int,
    as_json: bool,
) -> None:
    """Show what a bundle holds: signatures, sizes, memory, engines, and what verified it.

    \b
    rf-export inspect bundle --verify
    rf-export inspect bundle --vocabulary
    rf-export inspect bundle --memory --batch 4
    """
    from runtime.bundle.folder import open_bundle
    from runtime.commands.inspection import (
        describe_bundle,
        describe_memory,
        describe_vocabulary,
        format_description,
        format_vocabulary,
    )
    from runtime.commands.memory_plan import Workload, format_fits

    if size is not None and not memory:
        raise click.UsageError("--size needs --memory")
    if size is not None:
        arg.require_size(size, open_bundle(bundle).manifest.model)
    if vocabulary and memory:
        raise click.UsageError("--vocabulary and --memory are two views; name one of them")
    if vocabulary:
        words = describe_vocabulary(bundle)
        click.echo(json.dumps(words, indent=1) if as_json else format_vocabulary(words))
        return
    if memory:
        height, width = size or (None, None)
        work = Workload(num_requests=num_requests, height=height, width=width, prompt_tokens=prompt_tokens)
        rows = describe_memory(bundle, work)
        click.echo(json.dumps([row.to_dict() for row in rows], indent=1) if as_json else format_fits(rows))
        return
    description = describe_bundle(bundle, verify="hash" if verify else "auto")
    click.echo(json.dumps(description, indent=1) if as_json else format_description(description))
