"""The command `doctor`: what this machine can do, and what it lacks."""

import json

import click

from runtime.commands import parameters as arg


@arg.command()
@arg.flag("--json as_json", "Print the facts as JSON.")
def doctor(as_json: bool) -> None:
    """Tell what this machine can export, build and run, and what is missing.

    \b
    rf-export doctor
    """
    from runtime.commands.diagnosis import examine, format_report

    facts = examine()
    click.echo(json.dumps(facts, indent=1) if as_json else format_report(facts))
