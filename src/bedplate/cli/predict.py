"""`bedplate predict`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json


def command(
    model: Annotated[str, typer.Argument(help="A model directory, zoo:NAME or hf:ORG/NAME.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to predict.")] = None,
    file: Annotated[str | None, typer.Option(help="A .txt (one text), or .csv, .jsonl, ... (one a row).")] = None,
    column: Annotated[str, typer.Option(help="The column of the text in the file.")] = "text",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    adapter: Annotated[str | None, typer.Option(help="A LoRA adapter to put on the model: a folder.")] = None,
    json: Json = False,
) -> None:
    """Use a model: the label of each text, or its continuation.

    \b
    Example:
      bedplate predict quickstart/sentiment "A film of rare beauty." "Two hours of my life, gone."
    """
    from bedplate.api.predict import predict

    predictions = predict(model, texts or (), file=file, column=column, device=device, adapter=adapter)
    if json:
        print_json(predictions)
        return
    for number, prediction in enumerate(predictions):
        if "label" in prediction:
            shown = f"  {' '.join(texts[number].split())[:100]}" if texts else ""
            print(f"{prediction['label']}\t{prediction['score']:.3f}{shown}")
        else:
            print(prediction["text"])
