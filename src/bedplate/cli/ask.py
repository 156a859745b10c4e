"""`bedplate ask`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json


def command(
    image: Annotated[str, typer.Argument(metavar="PICTURE", help="A picture.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="Questions about it.")],
    model: Annotated[str, typer.Option(help="A reader: a model directory, zoo:NAME.")] = "zoo:reader-mini",
    beams: Annotated[int, typer.Option(help="Beams of the search; 1: the likeliest word each time.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Ask questions about a picture.

    \b
    Example:
      bedplate ask photo.png "how many cats?" "what colour is the car?"
    """
    from bedplate.api.ask import ask

    found = ask(image, questions, model=model, device=device, num_beams=beams)
    if json:
        print_json(found)
        return
    for row in found:
        print(row["text"] if len(found) == 1 else f"{row['question']}\t{row['text']}\t{row['score']:.3f}")
