"""`bedplate generate`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json


def command(
    model: Annotated[str, typer.Argument(help="A model directory, zoo:NAME or hf:ORG/NAME.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token; higher: bolder.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens only (0: all).")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that reach this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was written becomes less likely.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.", show_default="random")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Continue texts; a single one is shown as it is written.

    \b
    Example:
      bedplate generate quickstart/model "This film is" --temperature 0.7 --seed 1
    """
    from bedplate.api.generate import generate

    streaming = len(prompts) == 1 and not json
    unsaid = [prompts[0]]  # said with the first piece, when nothing can be refused any more

    def show(_: int, piece: str) -> None:
        print(*unsaid, piece, sep="", end="", flush=True)
        unsaid.clear()

    result = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k or None,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        stop=stop or (),
        seed=seed,
        device=device,
        stream=show if streaming else None,
    )
    if json:
        print_json(result)
    elif streaming:
        print(*unsaid)
    else:
        print("\n\n".join(row["prompt"] + row["text"] for row in result))
