"""`bedplate finetune`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, is_main, print_json
from bedplate.cli.pretrain import print_result


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in `out`.")] = False,
    json: Json = False,
) -> None:
    """Adapt a pre-trained model to labelled texts, conversations or summaries.

    \b
    Example:
      bedplate finetune recipes/classify.yaml base=quickstart/model data.path=reviews.csv
      bedplate finetune recipes/classify.yaml base=quickstart/model data.path=reviews.csv adapter.rank=8
    """
    from bedplate.api.finetune import finetune

    result = finetune(recipe, *(overrides or ()), resume=resume)
    if not is_main():
        return
    if json:
        print_json(result)
        return
    for name, metric in result.get("test", {}).items():
        print(f"test {name}: {metric['value']:.4f} (95 % interval {metric['low']:.4f} to {metric['high']:.4f})")
    print_result(result)
