"""What `bedplate plan` says of memory and time, beside what training steps take on this CPU.

Each setting trains a few steps on random tokens with the package's own loop, in a child process, twice:

- for memory, with `MALLOC_MMAP_THRESHOLD_` set, so that freed blocks go back to the system and the process's size is
  what its tensors hold: the growth of the resident set from before the module is built to its highest;
- as it comes, for the time of a step (median without the first), and for what glibc's way of keeping freed blocks adds.

Settings of two ranks are started by torchrun, one process a rank, and only their memory is compared.

The plan is made in a child too: memory by its formulas, time from its short measurement of a shallower network.

    python benchmarks/plan_check.py [--threads 1] [--steps 5] [--clock cpu] [--only 0,3] [--json FILE]

Fails where memory is off by more than 10 % or time by more than 25 %. Where a machine is busy with other work, measure
`--threads 1 --clock cpu`: it counts the CPU seconds of plan and run alike.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

MEMORY, TIME = 0.10, 0.25
QWEN = "model.preset=qwen3 model.hidden_size=512 model.num_attention_heads=8 tokenizer.vocab_size=8192"
GPT2 = "model.preset=gpt2 model.hidden_size=768 model.num_attention_heads=12 optimizer.name=adamw"
AGAIN = "train.activation_checkpointing=true"
SETTINGS = [  # ranks and overrides; 6 layers, 256 tokens a row and Muon where nothing else is said
    (1, f"{QWEN} train.batch_size=8 train.precision=fp32"),
    (1, f"{QWEN} train.batch_size=16 train.precision=bf16 optimizer.name=adamw"),
    (1, f"{QWEN} model.num_hidden_layers=12 train.batch_size=16 train.precision=bf16 {AGAIN}"),
    (1, f"{GPT2} model.num_hidden_layers=4 tokenizer.vocab_size=16384 train.batch_size=4 train.precision=fp32"),
    (
        1,
        "model.preset=llama model.hidden_size=512 model.num_attention_heads=8 model.num_key_value_heads=2 "
        "tokenizer.vocab_size=16384 model.tie_word_embeddings=false train.batch_size=16 train.micro_batch_size=4 "
        "train.precision=bf16 train.ema=0.99",
    ),
    (1, f"{GPT2} tokenizer.vocab_size=8192 train.batch_size=8 train.precision=fp32 {AGAIN}"),
    (1, f"{QWEN} train.batch_size=4 train.sequence_length=512 train.precision=bf16 data.isolate_documents=true"),
    (1, f"{GPT2} model.num_hidden_layers=12 tokenizer.vocab_size=50304 train.batch_size=8 train.precision=bf16"),
    (2, f"{QWEN} train.batch_size=16 train.precision=bf16"),
    (2, f"{QWEN} train.batch_size=16 train.precision=fp32 parallel.shard=2"),
    (2, f"{QWEN} train.batch_size=16 train.precision=bf16 parallel.shard=2 optimizer.name=adamw {AGAIN}"),
    (2, f"{QWEN} train.batch_size=8 train.precision=fp32 parallel.tensor=2"),
]


class RandomText:
    """The task: the next of random tokens."""

    metrics: ClassVar[dict[str, str]] = {}

    def __init__(self, module: Any) -> None:
        self.module = module

    def loss(self, batch: Any) -> dict[str, Any]:
        packing = {key: batch[key] for key in ("doc", "pos") if key in batch}
        return {"loss": self.module.loss(batch["ids"], batch["targets"], **packing)}

    def flops(self, batch: Any) -> int:
        return 1


def train(overrides: list[str], steps: int, folder: Path) -> dict[str, float] | None:
    """Train for some steps: {"memory": growth of the resident set in bytes, "seconds": of a step}; on rank 0 only."""
    import torch

    from bedplate.api.plan import gpt_config
    from bedplate.models.gpt import GPT
    from bedplate.recipe import Recipe
    from bedplate.train.hardware import choose_hardware
    from bedplate.train.log import RunLog, read_rows
    from bedplate.train.loop import Data, Trainer
    from bedplate.train.ranks import Ranks

    def run(recipe: Recipe, ranks: Ranks, out: Path) -> None:
        size, length = recipe.train.batch_size // ranks.data_size, recipe.train.sequence_length

        def batches(first: int, stop: int) -> Generator[dict[str, torch.Tensor]]:
            for _ in range(first, stop):
                ids = torch.randint(recipe.tokenizer.vocab_size, (size, length))
                packing = {}
                if recipe.data.isolate_documents:
                    pos = torch.arange(length).expand_as(ids) % 100
                    packing = {"doc": (pos == 0).cumsum(1), "pos": pos}
                yield {"ids": ids, "targets": ids, **packing}

        is_sharded = recipe.parallel.shard * recipe.parallel.tensor > 1
        with torch.device("meta") if is_sharded else nullcontext():
            module = GPT(gpt_config(recipe, recipe.tokenizer.vocab_size))
        weights = module.initial_weights(recipe.seed) if is_sharded else None
        if weights is None:
            module.init_weights(recipe.seed)
        out.mkdir()
        with RunLog(out, recipe.log, muted=not ranks.is_main) as log:
            Trainer(
                recipe,
                RandomText(module),  # type: ignore[arg-type]  # it is never evaluated
                Data(batches, None),
                choose_hardware(recipe.train),
                None,
                lambda: None,
                log,
                steps=steps,
                evaluate_every=steps,
                metric="",
                ranks=ranks,
                parallel=recipe.parallel,
                weights=weights,
            ).run()

    small = ["model.hidden_size=64", "model.num_hidden_layers=1", "model.num_attention_heads=2"]
    small += ["model.num_key_value_heads=2", "tokenizer.vocab_size=512", "train.batch_size=4", "train.ema=null"]
    recipe = recipe_of(overrides)
    with Ranks.joined(recipe.parallel, torch.device("cpu")) as ranks:
        # A small run first brings in the code itself.
        run(recipe_of([*overrides, *small, "train.micro_batch_size=null"]), ranks, folder / "warm")
        before = int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * resource.getpagesize()
        run(recipe, ranks, folder / "run")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        if not ranks.is_main:
            return None
    speeds = [row["tokens_per_second"] for row in read_rows(folder / "run" / "metrics.jsonl")][1:]
    tokens = recipe.train.batch_size * recipe.train.sequence_length
    return {"memory": grown, "seconds": tokens / statistics.median(speeds)}


def recipe_of(overrides: list[str]) -> Any:
    from bedplate.recipe import read_recipe

    base = {"out": "-", "data": {"path": "-"}, "train": {"steps": 100}, "log": {"every": 1}}
    return read_recipe(base, overrides)


def child(kind: str, overrides: list[str], ranks: int, steps: int) -> dict[str, float] | None:
    """What a child process is asked for: the plan, or the run."""
    if kind == "plan":
        from bedplate.api.plan import plan

        result = plan(recipe_of(overrides), gpus=ranks)
        time_of = {"seconds": result["time"]["step_seconds"]} if result["time"] else {}  # of several ranks none
        return {"memory": result["memory"]["total"], **time_of}
    with tempfile.TemporaryDirectory() as folder:
        return train(overrides, steps, Path(folder))


def ask(kind: str, ranks: int, setting: str, args: argparse.Namespace, **environment: str) -> dict[str, float]:
    """The answer of a child process of its own."""
    threads = args.threads
    command = [sys.executable]
    if kind == "run" and ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [__file__, "--child", kind, "--ranks", str(ranks), "--steps", str(args.steps), "--clock", args.clock]
    command += ["--", setting, f"train.threads={threads}"]
    own = {**os.environ, "OMP_NUM_THREADS": str(threads), **environment}
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{setting}: {kind} failed\n{done.stderr}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    options.add_argument("--steps", type=int, default=5, help="steps of each run")
    options.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what time means")
    options.add_argument("--only", help="numbers of settings, by commas")
    options.add_argument("--json", help="file for all figures")
    options.add_argument("--ranks", type=int, help=argparse.SUPPRESS)
    options.add_argument("--child", choices=("plan", "run"), help=argparse.SUPPRESS)
    options.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.clock == "cpu":
        time.perf_counter = time.process_time  # for everything in this process
    if args.child:
        answer = child(args.child, " ".join(args.overrides).split(), args.ranks, args.steps)
        if answer:
            print(json.dumps(answer))
        return
    chosen = range(len(SETTINGS)) if args.only is None else [int(number) for number in args.only.split(",")]
    rows: list[dict[str, Any]] = []
    worst = {"memory": 0.0, "seconds": 0.0}
    print("     memory: plan  measured   error  as it comes     step: plan  measured   error")
    for number in chosen:
        ranks, setting = SETTINGS[number]
        planned = ask("plan", ranks, setting, args)
        free = ask("run", ranks, setting, args)
        exact = ask("run", ranks, setting, args, MALLOC_MMAP_THRESHOLD_="65536")
        errors = {"memory": planned["memory"] / exact["memory"] - 1}
        line = (
            f"{number:>2} {planned['memory'] / 1e6:9,.0f} MB {exact['memory'] / 1e6:6,.0f} MB {errors['memory']:+6.1%} "
            f"{free['memory'] / 1e6:9,.0f} MB"
        )
        if ranks == 1:
            errors["seconds"] = planned["seconds"] / free["seconds"] - 1
            line += f" {planned['seconds']:13.2f} s {free['seconds']:7.2f} s {errors['seconds']:+6.1%}"
        print(f"{line:<82} {ranks} x {setting}", flush=True)
        worst |= {key: max(worst[key], abs(error)) for key, error in errors.items()}
        rows.append(
            {"ranks": ranks, "setting": setting, "planned": planned, "exact": exact, "free": free, "errors": errors}
        )
    print(f"largest error: memory {worst['memory']:.1%}, time {worst['seconds']:.1%}")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2), "utf-8")
    if worst["memory"] > MEMORY or worst["seconds"] > TIME:
        raise SystemExit(f"the plan is off by more than {MEMORY:.0%} of memory or {TIME:.0%} of time")


if __name__ == "__main__":
    main()
