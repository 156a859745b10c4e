"""`bedplate pretrain`."""

from typing import Annotated, Any

import typer

from bedplate.cli.output import Json, is_main, print_json
from bedplate.cli.plan import print_plan


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in `out`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be trained.")] = False,
    json: Json = False,
) -> None:
    """Train a model from scratch as a recipe says.

    \b
    Example:
      bedplate pretrain recipes/gpt-mini.yaml data.path=my-books/ train.steps=500
    """
    from bedplate.api.pretrain import pretrain
    from bedplate.api.record import as_used

    result = pretrain(recipe, *(overrides or ()), resume=resume, dry_run=dry_run)
    if not is_main():
        return
    if json:
        print_json(result)
    elif dry_run:
        print_recipe(as_used(result["recipe"]))
        print_plan(result)
    else:
        print_result(result)


def print_result(result: dict[str, Any]) -> None:
    """What a run came to, and where it left its model and report."""
    for name, metric in result["metrics"].items():
        print(f"{name}: {metric['value']:.4f} (95 % interval {metric['low']:.4f} to {metric['high']:.4f})")
    if "adapter" in result:
        print(f"Adapter: {result['adapter']}")
    print(f"Model: {result['model']}\nReport: {result['out']}/report.html")


def print_recipe(recipe: dict[str, Any]) -> None:
    """A resolved recipe as YAML."""
    import yaml

    print(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
