"""The command `understand`: answers about pictures, written as they come."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.commands import parameters as arg
from runtime.options import MAX_PENALTY, MAX_TEMPERATURE

if TYPE_CHECKING:
    from runtime.events import AnswerEvent, WordEvent

SHARE, PENALTY = arg.number(0, 1, min_open=True), arg.number(0, MAX_PENALTY, min_open=True)


@arg.command()
@arg.BUNDLE
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGE... [QUESTION]")
@arg.option("-q --question", "Question, where it could be taken for a file, such as a single word.")
@arg.flag("--each", "Answer once per image, not once for all of them together.")
@arg.option("--max-tokens", "Tokens of an answer, at most.", arg.COUNT, shown=arg.BUNDLES)
@arg.option("--temperature", "Temperature of the answer; 0 is greedy.", arg.number(0, MAX_TEMPERATURE), 0.0)
@arg.option("--top-k", "Number of likeliest tokens among which each is drawn.", arg.COUNT, shown="all")
@arg.option("--top-p", "Probability of the likeliest tokens among which each is drawn.", SHARE, 1.0)
@arg.option("--repetition-penalty", "Penalty of what was said; above 1 it becomes less likely.", PENALTY, 1.0)
@arg.option("--seed", "Seed of the first answer; answer i uses seed + i.", arg.SEED, 0)
@arg.option("--size", "Height and width in pixels that images are fitted into.", arg.SIZE, shown="the model's")
@arg.bundle_options
@arg.flag("--json as_json", "Print answers, token ids and times as JSON.")
def understand(
    bundle: Path,
    inputs: tuple[str, ...],
    question: str | None,
    each: bool,
    seed: int,
    size: tuple[int, int] | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer a QUESTION about IMAGEs, or caption them; the answer is written as it comes.

    \b
    rf-export understand bundle photo.jpg
    rf-export understand bundle photo.jpg "how many fish?"
    rf-export understand bundle *.png --each --json
    """
    from runtime.options import AnswerOptions
    from runtime.plans import plan_answer

    images, question = split_question(inputs, question)
    height, width = size or (None, None)
    names = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty")
    with arg.usage_errors():
        chosen = AnswerOptions(**{name: options[name] for name in names})
    pipeline = arg.load(bundle, options)
    pipeline.converse()  # refuses a model that answers nothing
    with arg.usage_errors():
        plan_answer(chosen, pipeline.bundle.manifest)
    arg.require_size(size, pipeline.bundle.manifest.model)
    rows = []
    for index, group in enumerate([[image] for image in images] if each else [images]):
        started = time.perf_counter()
        conversation = pipeline.converse()
        conversation.show(*group, height=height, width=width)
        if each and not as_json:
            click.echo(f"{group[0]}: ", nl=False)
        events = conversation.ask(question, seed=seed + index, options=chosen)
        rows.append({"images": group, **_tell(events, started, quiet=as_json)})
    if as_json:
        common = {
            "bundle_id": pipeline.bundle.manifest.bundle_id,
            "precision": options["precision"],
            "dialect": options["dialect"],
            **vars(chosen),
        }
        click.echo(json.dumps({**common, "answers": rows}, indent=1))


def split_question(inputs: tuple[str, ...], question: str | None) -> tuple[list[str], str]:
    """Images and question; without --question, a last argument that is no file and looks like words is the question."""
    images = list(inputs)
    if question is None:
        last = inputs[-1]
        is_file = False
        with contextlib.suppress(OSError):  # a question may be longer than a name of a file
            is_file = Path(last).exists()
        is_question = not is_file and (" " in last.strip() or last.endswith("?") or not last.strip())
        question = images.pop() if is_question else ""
    if not images:
        raise click.UsageError("give at least one IMAGE before the question")
    return images, question


def _tell(events: "Iterator[WordEvent | AnswerEvent]", started: float, *, quiet: bool) -> dict[str, Any]:
    """Write an answer while it comes; returns what --json says of it."""
    from runtime.events import AnswerEvent

    times: list[float] = []
    answer: AnswerEvent | None = None
    for event in events:
        if isinstance(event, AnswerEvent):
            answer = event
        else:
            times.append(time.perf_counter() - started)
            if not quiet:
                click.echo(event.text, nl=False)
    if not quiet:
        click.echo()
    assert answer is not None
    return {
        "question": answer.question,
        "answer": answer.text,
        "token_ids": answer.token_ids,
        "seed": answer.seed,
        "ended_by": answer.ended_by,
        "seconds_to_first_token": times[0],
        "seconds": times[-1],
    }
