"""Job files: that a scheduler takes them, and that what they start is stopped, saved and begun again as they say."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from bedplate import launch
from bedplate.errors import InputError
from bedplate.recipe import read_recipe, write_recipe

CONTAINER = {"image": "registry/bedplate:1", "volume": "runs"}
AWKWARD = 'data.path=my books/it\'s $HOME `x` $(y) "z"\n*.txt'

# What stands in for Slurm: `srun` starts the tasks here and passes signals on to them, to the task alone or, as some
# clusters do, to everything that it started; `scontrol` knows the nodes and notes requeueing.
SRUN = """\
#!/bin/bash
tasks=()
while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && n=${1#*=}; shift; done
for ((i = 0; i < n; i++)); do SLURM_PROCID=$i "$@" & tasks+=($!); done
below() { for p in $(cat /proc/$1/task/*/children); do echo $p; below $p; done; }
pass() { for t in "${tasks[@]}"; do kill -s "$1" $t ${EVERYTHING:+$(below $t)}; done; }
trap 'pass USR1' USR1
trap 'pass TERM' TERM
echo $BASHPID > "$NOTES/srun"
code=0
for t in "${tasks[@]}"; do
  while kill -0 $t 2> /dev/null; do wait $t; c=$?; done
  (( c > code )) && code=$c
done
exit $code
"""
SCONTROL = """\
#!/bin/bash
case $1 in show) printf '%s\\n' $HEAD node-1 ;; requeue) echo "$2" >> "$NOTES/requeued" ;; esac
"""
# It notes what it was started with, and each SIGTERM; then it saves for a moment and ends as a stopped torchrun does.
TORCHRUN = f"""\
#!{sys.executable}
import json, os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
note = open(os.environ["NOTES"] + "/torchrun-" + os.environ["SLURM_PROCID"], "w")
ignored = signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
print(json.dumps([sys.argv[1:], dict(os.environ), ignored]), file=note, flush=True)
end = time.time() + float(os.environ.get("SECONDS_OF_WORK", 30))
while not asked and time.time() < end:
    time.sleep(0.02)
if asked:
    time.sleep(0.5)
    print(len(asked), file=note, flush=True)
sys.exit(1 if asked else int(os.environ.get("CODE", 0)))
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe with a relative `out`, as seen from its folder."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tiny_recipe(Path("runs/tiny")), tmp_path / "Tiny_0.1 run.yaml")
    return "Tiny_0.1 run.yaml"


class Cluster:
    """One machine that plays Slurm for a script."""

    def __init__(self, folder: Path, **tools: str) -> None:
        if sys.platform != "linux":
            pytest.skip("Slurm is for Linux")
        self.folder, self.notes = folder, folder / "notes"
        self.notes.mkdir()
        (folder / "bin").mkdir()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **tools}.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def start(self, script: str, **environment: str) -> "subprocess.Popen[str]":
        (self.folder / "job.sbatch").write_text(script)
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        slurm = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node-[0-1]", "HEAD": "node-0", "NOTES": str(self.notes)}
        return subprocess.Popen(
            ["bash", "job.sbatch"],
            cwd=self.folder,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | slurm | environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, note: str, text: str = "", seconds: float = 30) -> Path:
        end, path = time.time() + seconds, self.folder / note
        while not (path.exists() and path.stat().st_size and text in path.read_text()):
            assert time.time() < end, f"{note} does not come"
            time.sleep(0.05)
        return path

    def signal(self, number: int) -> None:
        """What Slurm does, or scancel: signal the tasks."""
        os.kill(int(self.until("notes/srun").read_text()), number)

    def requeued(self) -> bool:
        return (self.notes / "requeued").exists()


def finished(job: "subprocess.Popen[str]", seconds: float = 60) -> int:
    _, errors = job.communicate(timeout=seconds)
    print(errors)
    return job.returncode


def test_runs_on_pictures_are_launched_as_those_on_text_are(tmp_path: Path) -> None:
    path = tmp_path / "mae.yaml"
    path.write_text("task: mae\nout: runs/mae\ndata: {path: pictures}\ntrain: {batch_size: 12}\n")
    text = launch(path, "parallel.shard=2", scheduler="slurm", gpus="4")["text"]
    assert f"bedplate pretrain {path} --resume parallel.shard=2" in text
    with pytest.raises(InputError, match=r"train\.batch_size=12 is not a multiple of 8 data ranks"):
        launch(path, scheduler="slurm", gpus="8")
    with pytest.raises(InputError, match="tensor parallelism is for language models"):
        launch(path, "parallel.tensor=2", scheduler="slurm")


def test_what_runs_in_one_process_is_launched_as_one(tmp_path: Path) -> None:
    path = tmp_path / "simclr.yaml"
    path.write_text("task: simclr\nout: runs/simclr\ndata: {path: pictures}\n")
    for gpus, nodes, one in (("8", 1, "1"), ("h100:1", 2, "h100:1")):
        with pytest.raises(InputError, match=rf"simclr runs in one process, .* give --nodes 1 and --gpus {one}$"):
            launch(path, scheduler="slurm", gpus=gpus, nodes=nodes)
    assert "--nproc-per-node" in launch(path, scheduler="slurm", gpus="1")["text"]


def test_an_sbatch_script_is_valid_and_asks_for_what_was_said(recipe: str) -> None:
    text = launch(recipe, AWKWARD, scheduler="slurm", nodes=2, gpus="h100:2", time="1-12", partition="gpu", restarts=5)[
        "text"
    ]
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    directives = dict(line[8:].partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH "))
    assert directives == {
        "--job-name": "tiny-0-1-run",
        "--nodes": "2",
        "--ntasks-per-node": "1",
        "--gpus-per-node": "h100:2",
        "--time": "1-12",
        "--partition": "gpu",
        "--signal": "USR1@300",
        "--open-mode": "append",
        "--output": "%x-%j.log",
        "--requeue": "",
        "--exclusive": "",
        "--mem": "0",
    }
    before, _, _ = text.partition("#SBATCH")  # directives behind a command would not be read
    assert all(line.startswith("#") or not line for line in before.splitlines())
    assert "runs/tiny" in before, "the comments say which folder must be shared"


def test_every_node_starts_one_torchrun_with_the_whole_command(recipe: str, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, torchrun=TORCHRUN)
    script = launch(recipe, AWKWARD, scheduler="slurm", nodes=2, gpus="4", restarts=5)["text"]
    assert finished(cluster.start(script, SECONDS_OF_WORK="0")) == 0
    for rank in "01":
        argv, environment, ignored = json.loads((cluster.notes / f"torchrun-{rank}").read_text())
        options, command = argv[: argv.index("-m")], argv[argv.index("-m") :]
        assert command == ["-m", "bedplate", "pretrain", recipe, "--resume", AWKWARD]
        assert dict(option.split("=", 1) for option in options) == {
            "--nnodes": "2",
            "--nproc-per-node": "4",
            "--max-restarts": "5",
            "--rdzv-backend": "c10d",
            "--rdzv-id": "42",
            "--rdzv-endpoint": "node-0:20042",
            "--rdzv-conf": f"is_host={int(rank == '0')}",
        }
        assert ignored and environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "270"
        assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert not cluster.requeued()


@pytest.mark.parametrize("everything", ["", "yes"])
def test_before_the_time_limit_torchrun_gets_one_sigterm_and_the_job_is_requeued(
    recipe: str, tmp_path: Path, everything: str
) -> None:
    cluster = Cluster(tmp_path, torchrun=TORCHRUN)
    job = cluster.start(launch(recipe, scheduler="slurm", nodes=2, gpus="4")["text"], EVERYTHING=everything)
    for rank in "01":
        cluster.until(f"notes/torchrun-{rank}")
    time.sleep(0.2)  # the shell sets its traps after it has started torchrun
    cluster.signal(signal.SIGUSR1)
    assert finished(job) == 130
    for rank in "01":
        assert (cluster.notes / f"torchrun-{rank}").read_text().splitlines()[1] == "1", "told once, and waited for"
    assert (cluster.notes / "requeued").read_text() == "42\n"


def test_a_cancelled_job_saves_and_is_not_requeued(recipe: str, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, torchrun=TORCHRUN)
    job = cluster.start(launch(recipe, scheduler="slurm", nodes=2, gpus="4")["text"])
    for rank in "01":
        cluster.until(f"notes/torchrun-{rank}")
    time.sleep(0.2)
    cluster.signal(signal.SIGTERM)
    assert finished(job) == 143 and not cluster.requeued()


def test_a_failed_job_keeps_its_code_and_is_not_requeued(recipe: str, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, torchrun=TORCHRUN)
    script = launch(recipe, scheduler="slurm", nodes=2, gpus="4")["text"]
    assert finished(cluster.start(script, SECONDS_OF_WORK="0", CODE="1")) == 1 and not cluster.requeued()


def test_a_script_that_is_submitted_from_elsewhere_says_so(recipe: str, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, torchrun=TORCHRUN)
    script = launch(recipe, scheduler="slurm", gpus="4")["text"]
    (tmp_path / recipe).rename(tmp_path / "moved.yaml")
    job = cluster.start(script)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 2 and recipe in errors and "submit from the folder" in errors


@pytest.mark.slow
def test_a_job_is_stopped_requeued_and_finished(recipe: str, tmp_path: Path) -> None:
    """The real torchrun and the real training, on two nodes of one process that this machine plays."""
    cluster = Cluster(tmp_path)
    overrides = ["train.steps=2000", "train.device=cpu", "log.every=1", "checkpoint.every=1000"]
    script = launch(recipe, *overrides, scheduler="slurm", nodes=2, gpus="1", restarts=0)["text"]
    slurm = {"HEAD": "127.0.0.1", "SLURM_JOB_ID": str(os.getpid())}  # from which the port follows
    job = cluster.start(script, EVERYTHING="yes", **slurm)
    cluster.until("runs/tiny/metrics.jsonl", '"step": 3', seconds=120)
    cluster.signal(signal.SIGUSR1)
    assert finished(job, 120) == 130 and cluster.requeued()
    (saved,) = (tmp_path / "runs/tiny/checkpoints").glob("step-*")
    step = int(saved.name.removeprefix("step-"))
    assert 3 <= step < 2000, "it was saved between two regular checkpoints"
    again = script.replace("train.steps=2000", f"train.steps={step + 5}")
    assert finished(cluster.start(again, **slurm), 300) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, step + 6))
    assert (tmp_path / "runs/tiny/model/model.safetensors").exists()


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Named(Strict):
    name: str


class Env(Named):
    value: str  # a number is refused by Kubernetes


class Mount(Named):
    mountPath: str
    readOnly: bool = False


class Claim(Strict):
    claimName: str


class EmptyDir(Strict):
    medium: Literal["", "Memory"]


class Volume(Named):
    persistentVolumeClaim: Claim | None = None
    configMap: Named | None = None
    emptyDir: EmptyDir | None = None


class Limits(Strict):
    limits: dict[str, int | str]


class Container(Named):
    image: str
    command: list[str]
    workingDir: str
    env: list[Env]
    resources: Limits
    volumeMounts: list[Mount]


class Pod(Strict):
    containers: list[Container]
    terminationGracePeriodSeconds: int
    volumes: list[Volume]


class Template(Strict):
    spec: Pod


class Replica(Strict):
    replicas: int
    restartPolicy: Literal["Always", "OnFailure", "Never", "ExitCode"]
    template: Template


class RunPolicy(Strict):
    cleanPodPolicy: Literal["All", "Running", "None"]
    backoffLimit: int
    activeDeadlineSeconds: int | None = None


class ElasticPolicy(Strict):
    rdzvBackend: Literal["c10d", "etcd", "etcd-v2"]
    minReplicas: int
    maxReplicas: int
    maxRestarts: int


class Spec(Strict):
    runPolicy: RunPolicy
    elasticPolicy: ElasticPolicy
    nprocPerNode: str
    pytorchReplicaSpecs: dict[Literal["Master", "Worker"], Replica]


class PyTorchJob(Strict):
    """The fields that are used here, with the types of the CustomResourceDefinition pytorchjobs.kubeflow.org v1."""

    apiVersion: Literal["kubeflow.org/v1"]
    kind: Literal["PyTorchJob"]
    metadata: Named
    spec: Spec


def test_a_pytorchjob_has_the_fields_of_its_definition(recipe: str) -> None:
    text = launch(recipe, scheduler="kubernetes", nodes=2, gpus="4", time="90", restarts=2, **CONTAINER)["text"]
    config, values = yaml.safe_load_all(text)
    job = PyTorchJob.model_validate(values)
    worker = job.spec.pytorchReplicaSpecs["Worker"]
    (container,) = worker.template.spec.containers
    assert container.name == "pytorch" and container.image == CONTAINER["image"]
    assert (worker.replicas, job.spec.nprocPerNode, job.spec.elasticPolicy.minReplicas) == (2, "4", 2)
    assert container.resources.limits == {"nvidia.com/gpu": 4} and job.spec.runPolicy.activeDeadlineSeconds == 5400
    volumes = {volume.name for volume in worker.template.spec.volumes}
    assert volumes == {mount.name for mount in container.volumeMounts}
    assert config["kind"] == "ConfigMap" and config["metadata"] == {"name": job.metadata.name}
    assert yaml.safe_load(config["data"]["recipe.yaml"]) == yaml.safe_load(Path(recipe).read_text())


def test_pods_read_the_recipe_and_write_where_the_volume_is(recipe: str) -> None:
    text = launch(recipe, AWKWARD, scheduler="kubernetes", nodes=2, gpus="4", **CONTAINER)["text"]
    _, job = yaml.safe_load_all(text)
    pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["workingDir"] == mounts["shared"], "a relative `out` is in the volume"
    command = [word.replace("$$", "$") for word in container["command"]]  # as Kubernetes reads it
    assert command[-5:] == ["bedplate", "pretrain", f"{mounts['recipe']}/recipe.yaml", "--resume", AWKWARD]
    assert "--rdzv-endpoint=tiny-0-1-run-worker-0:23456" in command and "--nnodes=2" in command
    assert "$(" not in " ".join(container["command"]).replace("$$", "")
    assert {each["name"]: each["value"] for each in container["env"]}["BEDPLATE_CACHE"].startswith(mounts["shared"])


def test_an_absolute_out_has_the_volume_around_it(recipe: str) -> None:
    text = launch(recipe, "out=/mnt/disk/run", scheduler="kubernetes", **CONTAINER)["text"]
    _, job = yaml.safe_load_all(text)
    (container,) = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert container["workingDir"] == "/mnt/disk" == container["volumeMounts"][0]["mountPath"]


def sky_task(recipe: str, *overrides: str, **options: Any) -> dict[str, Any]:
    text = launch(recipe, *overrides, scheduler="sky", gpus="H100:4", **{**CONTAINER, **options})["text"]
    task: dict[str, Any] = yaml.safe_load(text)
    return task


def test_a_sky_task_mounts_recipe_and_storage(recipe: str) -> None:
    one = sky_task(recipe, volume="s3://bucket")
    mounts = one["file_mounts"]
    assert mounts["/shared"] == {"source": "s3://bucket", "mode": "MOUNT_CACHED"} and "volumes" not in one
    assert mounts[f"/etc/bedplate/{recipe}"] == str(Path(recipe).absolute())
    several = sky_task(recipe, nodes=2)
    assert several["volumes"] == {"/shared": "runs"} and several["num_nodes"] == 2
    assert several["resources"]["accelerators"] == "H100:4"


def test_a_sky_task_runs_the_whole_command(recipe: str, tmp_path: Path) -> None:
    run = sky_task(recipe, AWKWARD, nodes=2)["run"]
    assert run.startswith("cd /shared\n")
    tool = tmp_path / "torchrun"
    tool.write_text(TORCHRUN)
    tool.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "NOTES": str(tmp_path),
        "SLURM_PROCID": "x",
        "SECONDS_OF_WORK": "0",
        "SKYPILOT_TASK_ID": "sky-1",
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
        "SKYPILOT_NODE_RANK": "1",
    }
    subprocess.run(["bash", "-euc", run.replace("cd /shared", "")], env=os.environ | environment, check=True)
    argv = json.loads((tmp_path / "torchrun-x").read_text())[0]
    assert argv[-3:] == [f"/etc/bedplate/{recipe}", "--resume", AWKWARD]
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=10.0.0.7:23456"} <= set(argv)
    assert "--rdzv-conf=read_timeout=900,is_host=0" in argv


def test_sky_takes_the_task(recipe: str) -> None:
    schemas = pytest.importorskip("sky.utils.schemas")
    jsonschema = pytest.importorskip("jsonschema")
    for options in ({"volume": "s3://bucket"}, {"nodes": 2}):
        task = sky_task(recipe, **options)
        jsonschema.validate(task, schemas.get_task_schema())
        jsonschema.validate(task["resources"], schemas.get_resources_schema())


@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes", "sky"])
def test_names_with_line_ends_stay_inside_comments(tiny_recipe: Any, tmp_path: Path, scheduler: str) -> None:
    path = tmp_path / "a\nrm -rf x: [\n.yaml"
    write_recipe(tiny_recipe(Path("runs/x\ntouch y")), path)
    options: dict[str, Any] = {} if scheduler == "slurm" else CONTAINER
    text = launch(path, scheduler=scheduler, gpus="H100:1" if scheduler == "sky" else "1", **options)["text"]
    if scheduler != "slurm":
        assert list(yaml.safe_load_all(text))
    head = text.partition("#SBATCH" if scheduler == "slurm" else "\napiVersion" if "Version" in text else "\nname")[0]
    assert all(line.startswith("#") or not line for line in head.splitlines())


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ([], {"nodes": 3}, "train.batch_size=8 is not a multiple of 24"),
        (["parallel.shard=4", "parallel.tensor=2"], {"gpus": "4"}, "4 GPUs are no multiple of 8"),
        (["parallel.tensor=8"], {}, "num_attention_heads=2 is not a multiple of parallel.tensor=8"),
        ([], {"gpus": "none"}, "gpus 'none' is not a number of GPUs"),
        ([], {"gpus": "0"}, "gpus '0'"),
        ([], {"nodes": 0}, "nodes=0"),
        ([], {"restarts": -1}, "restarts=-1"),
        ([], {"scheduler": "pbs"}, "'pbs' is unknown; choose one of slurm, kubernetes, sky"),
        ([], {"time": "soon"}, "time 'soon' is not a time such as 24:00:00"),
        ([], {"time": "10"}, "time 10 leaves nothing to train in"),
        ([], {"time": "0:10:00"}, "leaves nothing"),
        ([], {"partition": "a b"}, "'a b' is not one word"),
        ([], {"partition": "a\n#SBATCH --mem=1"}, "is not one word"),
        ([], {"image": "x"}, "--image means nothing to slurm"),
        ([], {"name": "Big Run"}, "'Big Run' is not a name of a job"),
        (["out=/tmp/run"], {}, "out=/tmp/run is on the disk of one node"),
        ([], {"scheduler": "kubernetes"}, "kubernetes needs --image"),
        ([], {"scheduler": "sky", "image": "x"}, "sky needs --volume"),
        ([], {"scheduler": "sky", "gpus": "8", **CONTAINER}, "--gpus H100:8"),
        ([], {"scheduler": "kubernetes", "gpus": "H100:8", **CONTAINER}, "give --gpus 8"),
        ([], {"scheduler": "sky", "partition": "x", **CONTAINER}, "--partition means nothing to sky"),
        ([], {"scheduler": "sky", "nodes": 2, "gpus": "H100:4", "image": "x", "volume": "gs://b"}, "a bucket cannot"),
        (["out=../run"], {"scheduler": "kubernetes", **CONTAINER}, "out=../run is not inside a folder"),
        (["out=/run"], {"scheduler": "kubernetes", **CONTAINER}, "out=/run is not inside a folder"),
    ],
)
def test_what_cannot_run_is_refused(recipe: str, overrides: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        launch(recipe, *overrides, **{"scheduler": "slurm", **options})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("90:30", 5430), ("2:00:05", 7205), ("1-0", 86400), ("1-2:30", 95400), ("1-2:30:05", 95405)],
)
def test_times_are_those_of_slurm(recipe: str, limit: str, seconds: int) -> None:
    _, job = yaml.safe_load_all(launch(recipe, scheduler="kubernetes", time=limit, **CONTAINER)["text"])
    assert job["spec"]["runPolicy"]["activeDeadlineSeconds"] == seconds


def test_a_file_is_never_overwritten(recipe: str, tmp_path: Path) -> None:
    result = launch(recipe, scheduler="slurm", output="job.sbatch", name="mine")
    assert Path("job.sbatch").read_text() == result["text"] and result["output"] == "job.sbatch"
    with pytest.raises(InputError, match=r"job\.sbatch: already exists"):
        launch(recipe, scheduler="slurm", output="job.sbatch")
    with pytest.raises(InputError, match="cannot be written"):
        launch(recipe, scheduler="slurm", output="no/such/folder.sbatch")


def test_the_recipe_is_checked_with_its_overrides(recipe: str) -> None:
    with pytest.raises(InputError, match=r"did you mean 'train\.steps'"):
        launch(recipe, "train.stepz=5", scheduler="slurm")
    text = launch(recipe, "out=runs/other", scheduler="slurm")["text"]
    assert "`out` (runs/other)" in text and shlex.quote("out=runs/other") in text
    assert read_recipe(recipe).out == Path("runs/tiny")
