"""`bedplate predict`."""

from typing import Annotated

import typer

from bedplate.cli.labels import Calibrate, Examples, Labels, Method, Seed, Shots, TemplateOption, line_breaks
from bedplate.cli.output import Json, print_json


def command(
    model: Annotated[str, typer.Argument(help="A model directory, zoo:NAME or hf:ORG/NAME.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to predict.")] = None,
    file: Annotated[str | None, typer.Option(help="A .txt (one text), or .csv, .jsonl, ... (one a row).")] = None,
    column: Annotated[str, typer.Option(help="The column of the text in the file.")] = "text",
    labels: Labels = None,
    method: Method = None,
    template: TemplateOption = None,
    examples: Examples = None,
    shots: Shots = None,
    seed: Seed = 0,
    calibrate: Calibrate = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Use a model: the label of each text, its continuation, or the one of some labels that fits it best.

    \b
    Example:
      bedplate predict quickstart/sentiment "A film of rare beauty." "Two hours of my life, gone."
      bedplate predict quickstart/model "The match ended 2-1." --labels "sports,politics,business"
    """
    from bedplate.api.predict import predict

    options = {"method": method, "template": line_breaks(template), "calibrate": calibrate}
    predictions = predict(
        model,
        texts or (),
        file=file,
        column=column,
        device=device,
        labels=labels,
        examples=examples,
        shots=shots,
        seed=seed,
        **{name: value for name, value in options.items() if value is not None},
    )
    if json:
        print_json(predictions)
        return
    for number, prediction in enumerate(predictions):
        if "label" in prediction:
            shown = f"  {' '.join(texts[number].split())[:100]}" if texts else ""
            print(f"{prediction['label']}\t{prediction['score']:.3f}{shown}")
        else:
            print(prediction["text"])
