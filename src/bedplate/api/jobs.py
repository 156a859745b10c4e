"""Job files of schedulers that start one torchrun on each node: Slurm, Kubeflow's PyTorchJob, SkyPilot.

Each of them starts the same command again after a stop or a failure: `pretrain --resume` begins a run that has no
checkpoint, and goes on with one that has.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

GRACE = 300  # seconds from the request to stop until the scheduler kills: the step ends and a checkpoint is written
TORCHRUN = {
    # Seconds that its workers have to save before it kills them (by itself 30).
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE - 30),
    # A new store for each start: in one that outlives restarts, addresses of dead processes are found again.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
SHARED = Path("/shared")  # where containers find the volume, and where a recipe's relative paths begin
PORT = 23456  # the port that PyTorchJobs have by default


@dataclass(frozen=True)
class Job:
    """A run as a scheduler is told of it.

    Attributes:
        recipe: as the user named it; `text` is what it says.
        gpus: on each node, of the type `gpu` where one is named.
        restarts: how often torchrun starts the processes again after a failure.
        time: seconds; `limit` is the same as the user wrote it.
    """

    name: str
    recipe: Path
    text: str
    overrides: tuple[str, ...]
    out: Path
    nodes: int
    gpus: int
    gpu: str | None
    restarts: int
    image: str | None
    volume: str | None
    limit: str | None
    time: int | None
    partition: str | None

    @property
    def shared(self) -> Path:
        """Where containers mount the volume: what holds an absolute `out`."""
        return self.out.parent if self.out.is_absolute() else SHARED

    def environment(self) -> dict[str, str]:
        """What containers are told beside their command."""
        return {"BEDPLATE_CACHE": str(self.shared / "cache"), **TORCHRUN}

    def torchrun(self, *options: str) -> list[str]:
        return [
            "torchrun",
            f"--nnodes={self.nodes}",
            f"--nproc-per-node={self.gpus}",
            f"--max-restarts={self.restarts}",
            "--rdzv-backend=c10d",
            *options,
        ]

    def pretrain(self, recipe: str) -> list[str]:
        return ["-m", "bedplate", "pretrain", recipe, "--resume", *self.overrides]

    def comment(self, text: str) -> str:
        """The file's first lines; `text` may name what the job has."""
        title = "# {name}: {recipe} on {nodes} x {gpus} GPUs, by `bedplate launch`.\n"
        # On one line each: what follows a line end would be no comment any more.
        values = {**vars(self), "shared": self.shared, "grace": GRACE}
        return (title + text).format(**{name: " ".join(str(value).split()) for name, value in values.items()})


SLURM = """\
#
#   sbatch FILE    from the folder where the recipe's relative paths begin; what is given to sbatch itself (--account,
#                  --cpus-per-task, --mem, ..) goes before the lines below
#
# All nodes must see the same files, so these lie on a shared file system: the recipe, data.path, `out` ({out}),
# the Python environment that is active when this is submitted, and the cache of tokenised text ($BEDPLATE_CACHE, else
# ~/.cache/bedplate).
#
# {grace} s before the time limit Slurm sends SIGUSR1, as `scancel --signal=USR1 JOB` does: the run ends its step, saves
# and goes back into the queue. After a node failure, or a preemption that requeues, Slurm puts it there itself. It goes
# on from the newest checkpoint in `out`; where there is none, it begins. `scancel JOB` ends it for good.
"""

SLURM_BODY = """\
set -u
if [ ! -f {recipe} ]; then
  echo {missing} >&2
  exit 2
fi
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
endpoint="${{hosts[0]}}:$((20000 + SLURM_JOB_ID % 10000))"  # jobs that share a node have ports of their own

# SIGTERM must reach each training process once: the first saves, a second one ends it on the spot. torchrun passes on
# the one that it gets. But Slurm signals, depending on the cluster, the task alone or all below it, and srun answers
# SIGTERM with SIGKILL. So Slurm sends SIGUSR1, on which only the shell below acts: it sends torchrun one SIGTERM.
on_node() {{
  local asked=0 code
  export {environment}  # time to save in; a new store for each start
  trap '' USR1  # inherited by what is started now
  {torchrun} \\
    --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$1" --rdzv-conf="is_host=$((SLURM_PROCID == 0))" \\
    {pretrain} &
  trap 'asked=130; trap "" USR1 TERM; kill -TERM $!' USR1
  trap 'asked=143; trap "" USR1 TERM; kill -TERM $!' TERM
  wait $!
  code=$?
  if [ "$asked" -ne 0 ]; then  # the signal ended that `wait`
    wait $!
    code=$?
    [ "$code" -eq 0 ] || code=$asked
  fi
  exit "$code"
}}

# One task a node, which may use all cores that the job has there. A node that has ended does not end the others, which
# may still be saving.
code=0
srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 --wait={grace} \\
  bash -c "$(declare -f on_node); on_node \\"\\$1\\"" bash "$endpoint" || code=$?
if [ "$code" -eq 130 ]; then  # stopped by SIGUSR1, saved, and not finished
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def slurm(job: Job) -> str:
    """An sbatch script."""
    gpus = f"{job.gpu}:{job.gpus}" if job.gpu else str(job.gpus)
    options = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus,
        "time": job.limit,
        "partition": job.partition,
        "signal": f"USR1@{GRACE}",
        "open-mode": "append",  # a requeued job goes on with its log
        "output": "%x-%j.log",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
    flags = ["--requeue"] + (["--exclusive", "--mem=0"] if job.nodes > 1 else [])  # of several nodes, all of each
    recipe = shlex.quote(str(job.recipe))
    directives = "\n".join([*lines, *(f"#SBATCH {flag}" for flag in flags)])
    body = SLURM_BODY.format(
        grace=GRACE,
        recipe=recipe,
        missing=shlex.quote(f"{job.recipe}: not found from here; submit from the folder where this path begins"),
        environment=shlex.join(f"{key}={value}" for key, value in TORCHRUN.items()),
        torchrun=shlex.join(job.torchrun()),
        pretrain=shlex.join(job.pretrain(str(job.recipe))),
        nodes=job.nodes,
    )
    return f"#!/bin/bash\n{job.comment(SLURM)}\n{directives}\n\n{body}"


KUBERNETES = """\
#
#   kubectl apply -f FILE    needs Kubeflow's training operator (v1), an image with bedplate, and the
#                            PersistentVolumeClaim {volume}, which several nodes may write (ReadWriteMany)
#
# The volume is {shared} in all pods, where the recipe's relative paths begin: data.path is put there beforehand, `out`
# ({out}) and the cache of tokenised text come there.
#
# A pod that is evicted gets SIGTERM: the run ends its step and saves, on all nodes. torchrun starts it again when the
# operator has replaced the pod, and so it does after a failure. It goes on from the newest checkpoint in `out`; where
# there is none, it begins. `kubectl delete -f FILE` ends it; the volume stays.
"""


def kubernetes(job: Job) -> str:
    """A ConfigMap with the recipe and a PyTorchJob (kubeflow.org/v1), whose operator restarts lost pods."""
    recipe = Path("/etc/bedplate/recipe.yaml")  # a key of a ConfigMap holds no space and no umlaut
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": job.name},
        "data": {recipe.name: job.text},
    }
    # A torchrun that is early waits for the first pod (read_timeout), and all wait for a replaced one (join_timeout).
    endpoint = f"{job.name}-worker-0:{PORT}"
    waiting = "--rdzv-conf=read_timeout=900,join_timeout=3600"
    command = job.torchrun(f"--rdzv-id={job.name}", f"--rdzv-endpoint={endpoint}", waiting)
    container = {
        "name": "pytorch",  # the operator looks for this name
        "image": job.image,
        # Kubernetes replaces $(NAME) in commands, and takes $$ for a dollar.
        "command": [word.replace("$", "$$") for word in [*command, *job.pretrain(str(recipe))]],
        "workingDir": str(job.shared),
        "env": [{"name": key, "value": value} for key, value in job.environment().items()],
        "resources": {"limits": {"nvidia.com/gpu": job.gpus}},
        "volumeMounts": [
            {"name": "shared", "mountPath": str(job.shared)},
            {"name": "recipe", "mountPath": str(recipe.parent), "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": job.volume}},
            {"name": "recipe", "configMap": {"name": job.name}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},  # NCCL needs more than the 64 MB of a container
        ],
    }
    policy: dict[str, Any] = {
        "cleanPodPolicy": "Running",
        # The operator counts restarts of all pods, and where the first one is lost all of them restart.
        "backoffLimit": job.restarts * job.nodes,
    }
    if job.time is not None:
        policy["activeDeadlineSeconds"] = job.time
    worker = {"replicas": job.nodes, "restartPolicy": "OnFailure", "template": {"spec": pod}}
    elastic = {
        "rdzvBackend": "c10d",
        "minReplicas": job.nodes,
        "maxReplicas": job.nodes,
        "maxRestarts": job.restarts,
    }
    pytorch = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": job.name},
        "spec": {
            "runPolicy": policy,
            "nprocPerNode": str(job.gpus),
            "elasticPolicy": elastic,
            "pytorchReplicaSpecs": {"Worker": worker},
        },
    }
    return job.comment(KUBERNETES) + _yaml(config) + "---\n" + _yaml(pytorch)


SKY = """\
#
#   sky jobs launch FILE    starts it again where a machine is lost, with --use-spot on cheaper ones; `sky launch FILE`
#                           starts it once
#
# {volume} is {shared} on all machines, where the recipe's relative paths begin: data.path is put there beforehand,
# `out` ({out}) and the cache of tokenised text come there. Started again, the run goes on from the newest checkpoint
# in `out`; where there is none, it begins.
"""

SKY_RUN = """\
cd {shared}
{torchrun} \\
  --rdzv-id="$SKYPILOT_TASK_ID" --rdzv-endpoint="$(head -n 1 <<< "$SKYPILOT_NODE_IPS"):{port}" \\
  --rdzv-conf="read_timeout=900,is_host=$((SKYPILOT_NODE_RANK == 0))" \\
  {pretrain}
"""


def sky(job: Job) -> str:
    """A SkyPilot task."""
    assert job.volume is not None
    recipe = f"/etc/bedplate/{job.recipe.name}"
    mounts: dict[str, Any] = {recipe: str(job.recipe.absolute())}
    volumes = {}
    if "://" in job.volume:
        # Not MOUNT: files that grow line by line, as metrics.jsonl does, cannot be written there.
        mounts[str(job.shared)] = {"source": job.volume, "mode": "MOUNT_CACHED"}
    else:
        volumes[str(job.shared)] = job.volume
    run = SKY_RUN.format(
        shared=shlex.quote(str(job.shared)),
        torchrun=shlex.join(job.torchrun()),
        port=PORT,
        pretrain=shlex.join(job.pretrain(recipe)),
    )
    task = {
        "name": job.name,
        "num_nodes": job.nodes,
        "resources": {
            "accelerators": f"{job.gpu}:{job.gpus}",
            "image_id": f"docker:{job.image}",
            "job_recovery": {"max_restarts_on_errors": job.restarts},
        },
        "file_mounts": mounts,
        **({"volumes": volumes} if volumes else {}),
        "envs": job.environment(),
        "run": run,
    }
    return job.comment(SKY) + _yaml(task)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it stands."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _yaml(value: dict[str, Any]) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
