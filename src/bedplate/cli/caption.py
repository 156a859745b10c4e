"""`bedplate caption`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json, say


def command(
    images: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Pictures, or folders of them.")],
    model: Annotated[str, typer.Option(help="A reader: a model directory, zoo:NAME.")] = "zoo:reader-mini",
    beams: Annotated[int, typer.Option(help="Beams of the search; 1: the likeliest word each time.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Say what pictures show.

    \b
    Example:
      bedplate caption photo.png
      bedplate caption photos/ --model runs/reader --beams 4
    """
    from bedplate.api.caption import caption
    from bedplate.api.vision_draw import expanded

    found = caption(images, model=model, device=device, num_beams=beams, progress=say)
    if json:
        print_json(found)
        return
    names = [str(image) for each in images for image in expanded(each)]
    for name, row in zip(names, found, strict=True):
        if row is None:  # a picture that cannot be decoded, which has been said
            continue
        print(row["text"] if len(found) == 1 else f"{name}: {row['text']}")
