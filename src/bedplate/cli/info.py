"""`bedplate info`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json


def command(
    model: Annotated[str, typer.Argument(help="A model directory, zoo:NAME or hf:ORG/NAME.")], json: Json = False
) -> None:
    """Say what a model is: family, size, context, tokenizer, card.

    \b
    Example:
      bedplate info quickstart/model
    """
    from bedplate.api.info import info

    facts = info(model)
    if json:
        print_json(facts)
        return
    for key, value in facts.items():
        if key not in ("card", "trunk") and value is not None:
            print(
                f"{key:<12} {value:,}"
                if isinstance(value, int) and not isinstance(value, bool)
                else f"{key:<12} {value}"
            )
    for key, value in facts.get("trunk", {}).items():  # an image tokenizer has none
        print(f"  {key:<24} {value}")
