"""`bedplate evaluate`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json


def command(
    model: Annotated[str, typer.Argument(help="A model directory, zoo:NAME or hf:ORG/NAME.")],
    data: Annotated[list[str], typer.Option(help="Text to measure on; may be repeated.")],
    column: Annotated[str, typer.Option(help="The column or key that holds the text.")] = "text",
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens of a row.", show_default="the model's context, at most 1024")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows at one time.")] = 8,
    isolate_documents: Annotated[
        bool, typer.Option("--isolate-documents", help="Hide the documents of a row from each other.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Measure a model on text: bits per byte and loss per token, with 95 % intervals.

    \b
    Example:
      bedplate evaluate quickstart/model --data my-text.txt
    """
    from bedplate.api.evaluate import evaluate

    result = evaluate(
        model,
        data,
        column=column,
        sequence_length=sequence_length,
        batch_size=batch_size,
        isolate_documents=isolate_documents,
        device=device,
    )
    if json:
        print_json(result)
        return
    for name, metric in result["metrics"].items():
        print(f"{name}: {metric['value']:.4f} (95 % interval {metric['low']:.4f} to {metric['high']:.4f})")
    print(f"{result['tokens']:,} tokens, {result['bytes']:,} bytes, rows of {result['sequence_length']} tokens")
