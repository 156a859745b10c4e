"""`bedplate plan`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from bedplate.cli.output import Json, print_json


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="h100, h200, b200, a100, l40s, l4, a10, rtx4090, ... or cpu.", show_default="this machine"),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="How many in all.", show_default="parallel.shard x parallel.tensor")
    ] = None,
    efficiency: Annotated[
        float | None,
        typer.Option(
            help="Share of the peak that training reaches.", show_default="published for the GPU, or measured"
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Dollars for an hour of one GPU.", show_default="no cost")] = None,
    pue: Annotated[float, typer.Option(help="Power of the data centre over that of its computers.")] = 1.0,
    json: Json = False,
) -> None:
    """Say what pre-training by a recipe needs: memory, time, energy, cost, and what to change where it does not fit.

    \b
    Example:
      bedplate plan recipes/gpt-mini.yaml
      bedplate plan recipes/gpt-mini.yaml --gpu h100 --gpus 8 --price 2.50 train.batch_size=64
    """
    from bedplate.api.plan import plan

    result = plan(recipe, *(overrides or ()), gpu=gpu, gpus=gpus, efficiency=efficiency, price=price, pue=pue)
    if json:
        print_json(result)
    else:
        print_plan(result)


def print_plan(plan: Mapping[str, Any]) -> None:
    """A plan as a table."""
    layout = plan["layout"]
    _row("Parameters", f"{plan['parameters']:,}, {plan['family']}")
    _row("Tokens", f"{plan['tokens']:,}, {plan['tokens_per_step']:,} a step")
    _row("", f"{plan['tokens_per_parameter']:.3g} a parameter; about 20 are compute-optimal (arXiv 2203.15556)")
    _row("FLOPs", f"{plan['flops']:.3g}")
    _row("Hardware", plan["hardware"])
    if layout["gpus"] > 1:
        _row("Layout", f"{layout['replicas']} replicas x {layout['shard']} shards x {layout['tensor']} tensor ranks")
    _row("Rows", f"{layout['rows']} a step on each device, {layout['micro_batch_size']} at one time")
    _print_memory(plan["memory"], plan["fit"])
    if plan["time"]:
        _print_time(plan["time"], plan["cost"])
    for note in plan["notes"]:
        print(f"- {note}")


PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "ema": "averaged weights",
    "activations": "activations",
    "weight_casts": "weights in bf16",
    "workspace": "logits, and work space of the backward pass",
    "update": "work space of Muon",
    "gathered": "weights gathered from other ranks",
    "not_at_once": "less what is not held at the same time",
    "total": "at the fullest moment",
}


def _print_memory(parts: Mapping[str, int], fit: Mapping[str, Any]) -> None:
    for part, name in PARTS.items():
        if parts[part]:
            _row("Memory" if part == "weights" else "", f"{parts[part] / 1e6:>12,.1f} MB  {name}")
    if fit["fits"] is None:
        return
    _row("", f"{fit['usable'] / 1e6:>12,.1f} MB  can be used: {'it fits' if fit['fits'] else 'IT DOES NOT FIT'}")
    if fit["change"]:
        _row("Fits with", " ".join(fit["change"]))
    elif not fit["fits"]:
        _row("", "no micro-batch, checkpointing, sharding or tensor parallelism makes it fit; take more or larger GPUs")


def _print_time(time: Mapping[str, float], cost: Mapping[str, float | None]) -> None:
    _row("Time", f"{_duration(time['seconds'])}, {time['step_seconds']:.3g} s a step")
    _row("", f"{time['tokens_per_second']:,.0f} tokens/s, {time['efficiency']:.1%} of the peak in model FLOPs")
    energy = "" if cost["kwh"] is None else f", {cost['kwh']:,.1f} kWh"
    dollars = "" if cost["dollars"] is None else f", ${cost['dollars']:,.2f}"
    _row("Cost", f"{cost['gpu_hours']:,.2f} device hours{energy}{dollars}")


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _row(name: str, text: str) -> None:
    print(f"{name:<11} {text}")
