"""A run: what pre-training and fine-tuning have in common, from an empty folder to a model directory and a report."""

from __future__ import annotations

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn

from bedplate.api.folders import check_disk, make_folder, only_one, refuse_existing
from bedplate.api.record import as_used, environment
from bedplate.data.tokenizer import save_tokenizer
from bedplate.errors import InputError, Interrupted
from bedplate.hub.card import model_card
from bedplate.recipe import RunRecipe, write_recipe
from bedplate.recipe.schema import ParallelRecipe
from bedplate.train.checkpoint import Checkpoints, is_full
from bedplate.train.hardware import choose_hardware
from bedplate.train.log import RunLog, read_rows, write_whole
from bedplate.train.loop import Trainer
from bedplate.train.ranks import Ranks

BASES = "base", "vision_base", "text_base", "image_base", "tokenizer_base"

R = TypeVar("R", bound=RunRecipe)


class Run(ABC, Generic[R]):
    """A run's parts, made in the order in which data flows through them."""

    verb: ClassVar[str]  # which starts such a run
    scales: ClassVar[bool] = False  # whether several processes may share it
    tokenizer: Tokenizer
    module: nn.Module
    context: int  # tokens that the model reads at most

    def __init__(self, recipe: R, resume: bool, command: str) -> None:
        self.recipe, self.out, self.command = recipe, recipe.out, command
        self.timings: dict[str, float] = {}
        self.found: dict[str, Any] = {}  # what there is of data, once it has been read
        self.hardware = choose_hardware(recipe.train)
        self.ranks = Ranks()
        if Ranks.started() > 1 and not self.scales:
            raise InputError(f"{self.verb} runs in one process; start it without torchrun")
        # All ranks look before any of them can go on: they meet in `run`.
        self.resume = resume or Ranks.is_restart()
        if self.resume:
            self._check_same_run()
        else:
            refuse_existing(self.out, "give another `out`, or go on with it by --resume")

    @abstractmethod
    def prepare(self, log: RunLog) -> None:
        """Make the tokenizer, the data and the module."""

    @abstractmethod
    def trainer(self, log: RunLog) -> Trainer: ...

    @abstractmethod
    def facts(self) -> list[dict[str, Any]]:
        """What is known of the data: a dict a source, each with its "fingerprint"."""

    @abstractmethod
    def settled(self, recipe: R) -> dict[str, Any]:
        """What a run keeps to its end, whatever a resumed recipe says."""

    @abstractmethod
    def read_recipe(self, path: Path) -> R: ...

    @abstractmethod
    def write_model(self, card: str) -> None:
        """Write the model directory `out/model`."""

    @abstractmethod
    def write_report(self, record: dict[str, Any]) -> None:
        """Write `out/report.html`."""

    def score(self) -> None:  # most runs have nothing to add
        """What is measured on the final weights, averaged ones included, before the model is written."""

    def run(self) -> dict[str, Any]:
        """Train, and leave a model directory and a report.

        Returns:
            {"out", "model", "steps", "parameters", "metrics", "seconds"}; "data", what was found of it; "test", metrics
            of the test set, where there is one.
        """
        with Ranks.joined(self.parallel, self.hardware.device) as self.ranks:
            return self._run()

    def _run(self) -> dict[str, Any]:
        ranks = self.ranks
        # The number of steps may follow from the data, and is told to the bar when the trainer has it.
        with RunLog(self.out, self.recipe.log, muted=not ranks.is_main) as log:
            log.say(f"Training on {self.hardware}{f', {ranks.size} ranks' if ranks.size > 1 else ''}.")
            self.prepare(log)
            ranks.on_main(self._check_same_data)
            trainer = self.trainer(log)
            log.total(trainer.steps)
            with ExitStack() as held:
                ranks.on_main(lambda: self._open_folder(held))  # last of all: what cannot run leaves no folder behind
                self._train(trainer, log)
            self.steps = trainer.step
            return ranks.on_main(self.result)

    @property
    def parallel(self) -> ParallelRecipe:
        """How ranks share the work."""
        return ParallelRecipe()

    def timed(self, name: str, work: Any) -> Any:
        """Do `work` and note how long it took."""
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.timings[name] = time.perf_counter() - start

    def record(self) -> dict[str, Any]:
        """What the card and the report are written from."""
        facts = self.environment()
        return {
            "name": self.out.name,
            "command": self.command,
            "recipe": as_used(self.recipe.model_dump(mode="json")),
            "parameters": self.parameters(),
            "metrics": self.metrics(),
            "data": facts["data"],
            "environment": facts,
        }

    def result(self) -> dict[str, Any]:
        record = self.record()
        return {
            "out": str(self.out),
            "model": str(self.out / "model"),
            "steps": self.steps,
            "parameters": record["parameters"],
            "metrics": record["metrics"],
            "seconds": self.timings,
            **({"data": self.found} if self.found else {}),
            **({"test": record["test"]["metrics"]} if "test" in record else {}),
        }

    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def metrics(self) -> dict[str, dict[str, float]]:
        """The held-out metrics of the evaluation that the model is from."""
        rows = [row for row in read_rows(self.out / "metrics.jsonl") if "val_loss" in row]
        rows = [row for row in rows if row["step"]] or rows  # the untrained network is no candidate
        if not rows:
            return {}
        metric, direction = self.best_metric()
        sign = -1 if direction == "max" else 1
        best = min(rows, key=lambda row: (sign * row[f"val_{metric}"], row["val_loss"]))  # as the loop chooses it
        names = [key.removeprefix("val_") for key in best if key.startswith("val_") and f"{key}_low" in best]
        return {
            name: {"value": best[f"val_{name}"]} | {key: best[f"val_{name}_{key}"] for key in ("low", "high", "n")}
            for name in names
        }

    @abstractmethod
    def best_metric(self) -> tuple[str, str]:
        """(the metric whose best evaluation the model is from, "min" or "max")."""

    def save_model(self) -> None:
        """Write the model directory with its card; what a killed writer left goes."""
        for leftover in self.out.glob(".model.*"):
            shutil.rmtree(leftover)
        self.score()
        self.write_model(model_card(without_paths(self.record(), self.verb)))

    def _train(self, trainer: Trainer, log: RunLog) -> None:
        """Train from the start or the newest checkpoint, and leave a report however that ends."""
        if self.resume:
            trainer.resume()
            log.say(f"Going on from step {trainer.step} of {trainer.steps}.")
        try:
            try:
                self.timed("training", trainer.run)
            finally:
                if self.ranks.is_main:
                    self.write_report(self.record())
        except Interrupted as stop:
            raise Interrupted(f"{stop} Go on with: {self.command} --resume") from None
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"out of memory on {self.hardware.device}: lower train.micro_batch_size, or set "
                "train.activation_checkpointing=true"
            ) from error
        except OSError as error:
            if not is_full(error):
                raise
            go_on = f"free some space, then go on with: {self.command} --resume"
            raise InputError(f"{self.out}: no space left on the disk; every checkpoint is whole; {go_on}") from error

    def _open_folder(self, held: ExitStack) -> None:
        """Lock the run directory as long as `held` is open, and write what is known before the first step."""
        check_disk(self.out, self._bytes_to_write())
        make_folder(self.out)
        held.enter_context(only_one(self.out))
        self.keep_preprocessing()
        facts = environment(self.hardware) | {"data": self.facts()}
        write_whole(self.out / "environment.json", json.dumps(facts, indent=2))
        write_recipe(self.recipe, self.out / "recipe.yaml")

    def keep_preprocessing(self) -> None:
        """Write what a resumed run must find as it was: the tokenizer."""
        kept, partial = self.out / "tokenizer", self.out / ".tokenizer.partial"
        if not kept.exists():
            self.save_tokenizer(partial)
            partial.rename(kept)

    def save_tokenizer(self, directory: Path) -> None:
        save_tokenizer(self.tokenizer, directory, self.context)

    def _check_same_run(self) -> None:
        """A run is resumed with the network, data and tokenizer that it began with; the rest may change."""
        path = self.out / "recipe.yaml"
        if not path.exists():
            others = [p.name for p in self.out.glob("*") if p.name not in ("tokenizer", "environment.json")]
            if others and not all(name.startswith(".") for name in others):
                raise InputError(f"{self.out}: no run to resume, and the folder is not empty; give another `out`")
            return  # killed before its first step, or never started: begin
        before, now = self.settled(self.read_recipe(path)), self.settled(self.recipe)
        for key, began, says in differing(before, now):
            raise InputError(
                f"{path}: the run began with {key}={began}, the recipe now says {says}; "
                "resume with the same, or start a new run with another `out`"
            )

    def environment(self) -> dict[str, Any]:
        """What the run wrote of its data and machine as it began."""
        path = self.out / "environment.json"
        try:
            facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
            _ = [source["fingerprint"] for source in facts["data"]]
        except FileNotFoundError:  # a writer of checkpoints may have made the folder anew
            raise InputError(
                f"{path}: the file or its folder was removed while the run went on; start the run again with another "
                "`out`"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: the file is damaged ({error}); remove it and resume with the same data"
            ) from None
        return facts

    def check_reached(self, steps: int) -> None:
        """Refuse to resume a run that is past `steps`."""
        reached = Checkpoints(self.out / "checkpoints", keep=1).steps() if self.resume else []
        if reached and reached[-1] > steps:
            raise InputError(f"{self.out}: the run is at step {reached[-1]}, past train.steps={steps}; give more")

    def _check_same_data(self) -> None:
        path = self.out / "environment.json"
        if not (self.resume and path.exists()):
            return
        began = [source["fingerprint"] for source in self.environment()["data"]]
        if began != [source["fingerprint"] for source in self.facts()]:
            raise InputError(
                f"{path}: the run began with other data; resume with the same files and settings of `data`, "
                "or start a new run with another `out`"
            )

    def _bytes_to_write(self) -> int:
        """Checkpoints hold what is trained, its average and up to two moments, fp32; one is written before one goes."""
        copies = 3 if self.recipe.train.ema is None else 4
        there = len(Checkpoints(self.out / "checkpoints", self.recipe.checkpoint.keep).steps())
        checkpoints = max(1, self.recipe.checkpoint.keep + 2 - there)
        trained = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        return 4 * (trained * copies * checkpoints + self.parameters())


def differing(before: Mapping[str, Any], now: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key.path, value before, value now) of what is not equal, section by section."""
    for key, says in now.items():
        began = before.get(key)
        if isinstance(says, Mapping) and isinstance(began, Mapping):
            yield from differing(began, says, f"{section}{key}.")
        elif began != says:
            yield f"{section}{key}", began, says


def without_paths(record: dict[str, Any], verb: str) -> dict[str, Any]:
    """A record for others to read: a model is given away, and where its owner keeps files is not part of it."""
    recipe: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in record["recipe"].items()}
    private = [("data", key) for key in ("path", "val_path", "test_path", "cache")]
    private += [("tokenizer", "path"), ("teacher", "path")]
    for section, key in private:
        value: Any = recipe.get(section, {}).get(key)
        if value:
            recipe[section][key] = [Path(str(each)).name for each in value] if isinstance(value, list) else "..."
    for named, keys in (recipe, BASES), (recipe.get("model", {}), BASES), (recipe.get("teacher", {}), ("model",)):
        for key in keys:
            if base := named.get(key):
                named[key] = base if ":" in base else Path(base).name
    return record | {"recipe": recipe | {"out": record["name"]}, "command": f"bedplate {verb} recipe.yaml"}
