"""`launch`: the job file with which a scheduler runs a recipe on its machines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bedplate.api import jobs
from bedplate.api.plan import gpt_config
from bedplate.errors import InputError
from bedplate.recipe import PICTURES, Recipe, RunRecipe, VisionRecipe, task_of
from bedplate.recipe.multimodal import RECIPES
from bedplate.recipe.pictures import PictureRecipe
from bedplate.recipe.read import read_as
from bedplate.train.estimate import Layout

WRITERS = {"slurm": jobs.slurm, "kubernetes": jobs.kubernetes, "sky": jobs.sky}
USES = {"slurm": {"time", "partition"}, "kubernetes": {"image", "volume", "time"}, "sky": {"image", "volume"}}
NEEDS = {
    "image": "a container image in which bedplate is installed",
    "volume": "the storage that holds the data and gets `out`: on Kubernetes a PersistentVolumeClaim, for SkyPilot a "
    "volume or, on one node, a bucket such as s3://NAME",
}
OF_ONE_NODE = ("/tmp", "/var/tmp", "/dev/shm")


def launch(
    recipe: str | Path,
    *overrides: str,
    scheduler: str,
    nodes: int = 1,
    gpus: str = "8",
    image: str | None = None,
    volume: str | None = None,
    time: str | None = None,
    partition: str | None = None,
    restarts: int = 3,
    name: str | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Write the job file that runs a recipe on the machines of a scheduler. Nothing is submitted.

    Args:
        recipe: a YAML file of pre-training.
        overrides: `key.path=value` each.
        scheduler: slurm, kubernetes (Kubeflow's PyTorchJob) or sky (SkyPilot).
        gpus: on each node: a number, or TYPE:NUMBER as in H100:8, which SkyPilot needs.
        image: a container image with bedplate (kubernetes, sky).
        volume: shared storage: a PersistentVolumeClaim (kubernetes), a volume or a bucket's URL (sky).
        time: longest time, as [DAYS-]HOURS:MINUTES:SECONDS or in minutes: of one start (slurm), or in all (kubernetes).
        restarts: how often torchrun starts the processes again after a failure.
        name: of the job (default: from the recipe's file).
        output: the file; it must not exist yet. Without it nothing is written.

    Returns:
        {"scheduler", "name", "output", "text"}, the text being that of the file.

    Raises:
        InputError: the recipe is wrong, the ranks cannot share it, an option is missing or has no meaning for this
            scheduler, `out` is a folder that other nodes do not see, or `output` exists.
    """
    path, task = Path(recipe), task_of(recipe, overrides)
    kinds: dict[str, type[Recipe | PictureRecipe]] = dict(RECIPES)
    kinds |= dict.fromkeys(PICTURES, VisionRecipe)
    resolved = read_as(kinds.get(task or "", Recipe), recipe, overrides)
    if scheduler not in WRITERS:
        raise InputError(f"scheduler {scheduler!r} is unknown; choose one of {', '.join(WRITERS)}")
    options = {"image": image, "volume": volume, "time": time, "partition": partition}
    _check_options(scheduler, options, nodes, restarts)
    gpu, count = _gpus(gpus, scheduler)
    if volume and "://" in volume and (nodes > 1 or scheduler != "sky"):
        raise InputError(
            f"--volume {volume}: a bucket cannot hold a run that several nodes write; give a volume that many may write"
        )
    if task == "simclr" and nodes * count > 1:
        raise InputError(
            f"task: simclr runs in one process, and {nodes * count} GPUs start as many; give --nodes 1 and "
            f"--gpus {f'{gpu}:1' if gpu else 1}"
        )
    matrices = gpt_config(resolved, vocab_size=1).trunk if isinstance(resolved, Recipe) else None
    Layout.of(resolved, matrices, nodes * count)  # refuses what ranks cannot share
    job = jobs.Job(
        name=_name(name, path),
        recipe=path,
        text=path.read_text("utf-8"),
        overrides=overrides,
        out=_out(resolved, scheduler),
        nodes=nodes,
        gpus=count,
        gpu=gpu,
        restarts=restarts,
        image=image,
        volume=volume,
        limit=time,
        time=None if time is None else _seconds(time),
        partition=partition,
    )
    text = WRITERS[scheduler](job)
    if output is not None:
        output = Path(output).expanduser()
        _write(output, text)
    return {
        "scheduler": scheduler,
        "name": job.name,
        "output": None if output is None else str(output),
        "text": text,
    }


def _check_options(scheduler: str, options: dict[str, str | None], nodes: int, restarts: int) -> None:
    for option, value in options.items():
        if value is not None and option not in USES[scheduler]:
            raise InputError(f"--{option} means nothing to {scheduler}; leave it out")
        if value is None and option in USES[scheduler] & NEEDS.keys():
            raise InputError(f"{scheduler} needs --{option}: {NEEDS[option]}")
        if value is not None and not re.fullmatch(r"\S+", value):
            raise InputError(f"--{option} {value!r} is not one word; give it without spaces")
    if nodes < 1 or restarts < 0:
        raise InputError(f"nodes={nodes}, restarts={restarts}: give at least one node, and no restart or more")


def _gpus(text: str, scheduler: str) -> tuple[str | None, int]:
    """(type or None, number) of TYPE:NUMBER or NUMBER."""
    match = re.fullmatch(r"(?:([A-Za-z][\w.-]*):)?([1-9]\d*)", text)
    if match is None:
        raise InputError(f"gpus {text!r} is not a number of GPUs on each node, such as 8 or H100:8")
    kind, count = match[1], int(match[2])
    if scheduler == "sky" and kind is None:
        raise InputError(f"SkyPilot chooses machines by their GPU; give its type too, for example --gpus H100:{count}")
    if scheduler == "kubernetes" and kind is not None:
        raise InputError(
            f"--gpus {text}: Kubernetes counts GPUs of any type; give --gpus {count}, and add a nodeSelector"
        )
    return kind, count


def _seconds(text: str) -> int:
    """Slurm's forms of time: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise InputError(f"time {text!r} is not a time such as 24:00:00, 2-12 (days-hours) or 90 (minutes)")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:
        parts.insert(0, 0)  # minutes come first
    hours, minutes, seconds = [*parts, 0, 0][:3]
    total = int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    if total <= 2 * jobs.GRACE:
        raise InputError(
            f"time {text} leaves nothing to train in, since the run stops {jobs.GRACE} s before its end to save; "
            f"give more than {2 * jobs.GRACE // 60} minutes"
        )
    return total


def _name(name: str | None, recipe: Path) -> str:
    """A name that is a DNS label, as Kubernetes wants it, with room for what is added to it."""
    if name is None:
        name = re.sub(r"[^a-z0-9]+", "-", recipe.stem.lower())[:40].strip("-")
        name = name if name[:1].isalpha() else f"run-{name}".strip("-")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?", name):
        raise InputError(
            f"name {name!r} is not a name of a job: at most 50 lower-case letters, digits and hyphens, a letter first"
        )
    return name


def _out(recipe: RunRecipe, scheduler: str) -> Path:
    """The run directory, if all nodes can see it and a later start finds it again."""
    out = recipe.out
    if scheduler == "slurm":
        if any(out.is_relative_to(folder) for folder in OF_ONE_NODE):
            raise InputError(
                f"out={out} is on the disk of one node; give a folder on a file system that all nodes share"
            )
    elif ".." in out.parts or out.parent == Path("/"):
        raise InputError(f"out={out} is not inside a folder that a volume can be; give one such as runs/{out.name}")
    return out


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: already exists; remove it or give another --output") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another --output") from None
