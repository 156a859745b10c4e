"""`bedplate launch`."""

import shlex
from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json, say
from bedplate.errors import InputError

SUBMIT = {"slurm": "sbatch", "kubernetes": "kubectl apply -f", "sky": "sky jobs launch"}


def command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="An sbatch script.")] = False,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="A PyTorchJob of Kubeflow.")] = False,
    sky: Annotated[bool, typer.Option("--sky", help="A task of SkyPilot.")] = False,
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    gpus: Annotated[str, typer.Option(help="GPUs on each, or TYPE:NUMBER, as SkyPilot needs it: H100:8.")] = "8",
    image: Annotated[
        str | None, typer.Option(help="Container image with bedplate (Kubernetes, SkyPilot).", show_default=False)
    ] = None,
    volume: Annotated[
        str | None,
        typer.Option(
            help="Shared storage: a PersistentVolumeClaim (Kubernetes), a volume or s3://BUCKET (SkyPilot).",
            show_default=False,
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Longest time, such as 24:00:00 (Slurm, Kubernetes).", show_default="the scheduler's"),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Queue (Slurm).", show_default="the scheduler's")] = None,
    restarts: Annotated[int, typer.Option(help="Starts again after a failure.")] = 3,
    name: Annotated[str | None, typer.Option(help="Name of the job.", show_default="from the recipe's file")] = None,
    output: Annotated[str | None, typer.Option(help="File to write.", show_default="stdout")] = None,
    json: Json = False,
) -> None:
    """Write the job file that pre-trains on the machines of a scheduler; nothing is submitted.

    \b
    Example:
      bedplate launch recipes/llama-8b.yaml --slurm --nodes 8 --time 24:00:00 | sbatch
    """
    from bedplate.api.launch import launch

    chosen = [key for key, given in {"slurm": slurm, "kubernetes": kubernetes, "sky": sky}.items() if given]
    if len(chosen) != 1:
        raise InputError("name one scheduler: --slurm, --kubernetes or --sky")
    result = launch(
        recipe,
        *(overrides or ()),
        scheduler=chosen[0],
        nodes=nodes,
        gpus=gpus,
        image=image,
        volume=volume,
        time=time,
        partition=partition,
        restarts=restarts,
        name=name,
        output=output,
    )
    if json:
        print_json(result)
    elif output is None:
        print(result["text"], end="")
    else:
        say(f"Submit it with: {SUBMIT[chosen[0]]} {shlex.quote(result['output'])}")
