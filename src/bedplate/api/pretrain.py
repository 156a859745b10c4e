"""`pretrain`: from a recipe to a model directory."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bedplate.api.folders import cache_folder, check_disk, make_folder, only_one, refuse_existing
from bedplate.api.plan import check_metric, gpt_config, plan
from bedplate.api.record import environment, write_report
from bedplate.api.tokenizer import train_on_text
from bedplate.data.loader import EvalLoader, TextLoader, prefetch
from bedplate.data.shards import TextData
from bedplate.data.text import prepare
from bedplate.data.tokenizer import load_tokenizer, save_tokenizer, vocabulary_size
from bedplate.errors import InputError, Interrupted
from bedplate.hub.card import model_card
from bedplate.hub.config import config_to_hf
from bedplate.hub.directory import save_directory
from bedplate.models.gpt import GPT
from bedplate.recipe import Recipe, read_recipe, write_recipe
from bedplate.tasks.language import Language
from bedplate.train.checkpoint import Checkpoints, is_full
from bedplate.train.hardware import choose_hardware
from bedplate.train.log import RunLog, read_rows, write_whole
from bedplate.train.loop import Data, Trainer


def pretrain(
    recipe: str | Path | Mapping[str, Any] | Recipe, *overrides: str, resume: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Train a model from scratch as a recipe says.

    Args:
        recipe: a YAML file, or the same as a mapping.
        overrides: `key.path=value` each.
        resume: go on from the newest checkpoint in `out`.
        dry_run: only say what would be trained: the resolved recipe, parameters, tokens, memory.

    Returns:
        {"out", "model", "steps", "parameters", "metrics", "seconds"}, or the plan of a dry run.

    Raises:
        InputError: the recipe or the data is wrong, `out` exists, the disk is full, or the loss is not finite.
        Interrupted: Ctrl-C or SIGTERM; everything is saved.
    """
    resolved = read_recipe(recipe, overrides)
    if dry_run:
        return plan(resolved)
    name = recipe if isinstance(recipe, str | Path) else resolved.out / "recipe.yaml"
    return _Pretraining(resolved, resume, shlex.join(["bedplate", "pretrain", str(name), *overrides])).run()


class _Pretraining:
    """A run's parts, made in the order in which data flows through them."""

    def __init__(self, recipe: Recipe, resume: bool, command: str) -> None:
        self.recipe, self.out, self.resume, self.command = recipe, recipe.out, resume, command
        self.timings: dict[str, float] = {}
        self.hardware = choose_hardware(recipe.train)
        check_metric(recipe)
        if resume:
            self._check_same_run()
        else:
            refuse_existing(self.out, "give another `out`, or go on with it by --resume")

    def run(self) -> dict[str, Any]:
        with RunLog(self.out, self.recipe.log, self.recipe.train.steps) as log:
            log.say(f"Training on {self.hardware}.")
            log.say(f"Tokenizer: {self.recipe.tokenizer.path or 'training one on the text'}.")
            self.tokenizer = self._timed("tokenizer", self._tokenizer)
            log.say(f"Text: tokenising {', '.join(self.recipe.data.path)}, or finding it done.")
            self.data = self._timed("data", self._data)
            self._check_same_data()
            self.module = self._module()
            tokens = sum(len(data.train) for data in self.data)
            log.say(f"{_parameters(self.module):,} parameters, {tokens:,} tokens of text to read from.")
            trainer = self._trainer(log)
            check_disk(self.out, self._bytes_to_write())
            make_folder(self.out)  # last of all: a recipe that cannot run leaves no folder behind
            with only_one(self.out):
                self._open_folder()
                self._train(trainer, log)
        return self._result()

    def _train(self, trainer: Trainer, log: RunLog) -> None:
        """Train from the start or the newest checkpoint, and leave a report however that ends."""
        if self.resume:
            trainer.resume()
            log.say(f"Going on from step {trainer.step} of {self.recipe.train.steps}.")
        try:
            try:
                self._timed("training", trainer.run)
            finally:
                write_report(self.out, self._record(), self.timings)
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

    def _open_folder(self) -> None:
        """Write what is known before the first step."""
        kept, partial = self.out / "tokenizer", self.out / ".tokenizer.partial"
        if not kept.exists():
            save_tokenizer(self.tokenizer, partial, self.recipe.train.sequence_length)
            partial.rename(kept)
        facts = environment(self.hardware) | {"data": [data.meta for data in self.data]}
        write_whole(self.out / "environment.json", json.dumps(facts, indent=2))
        write_recipe(self.recipe, self.out / "recipe.yaml")

    def _timed(self, name: str, work: Any) -> Any:
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.timings[name] = time.perf_counter() - start

    def _check_same_run(self) -> None:
        """A run is resumed with the network, data and tokenizer that it began with; the rest may change."""
        path = self.out / "recipe.yaml"
        if not path.exists():
            others = [p.name for p in self.out.glob("*") if p.name not in ("tokenizer", "environment.json")]
            if others and not all(name.startswith(".") for name in others):
                raise InputError(f"{self.out}: no run to resume, and the folder is not empty; give another `out`")
            return  # killed before its first step, or never started: begin
        reached = Checkpoints(self.out / "checkpoints", keep=1).steps()
        if reached and reached[-1] > self.recipe.train.steps:
            raise InputError(
                f"{self.out}: the run is at step {reached[-1]}, past train.steps={self.recipe.train.steps}; give more"
            )
        before, now = _settled(read_recipe(path)), _settled(self.recipe)
        for key in now:
            if before[key] != now[key]:
                raise InputError(
                    f"{path}: the run began with {key}={before[key]}, the recipe now says {now[key]}; "
                    "resume with the same, or start a new run with another `out`"
                )

    def _check_same_data(self) -> None:
        path = self.out / "environment.json"
        if not (self.resume and path.exists()):
            return
        began = [meta["fingerprint"] for meta in json.loads(path.read_text("utf-8"))["data"]]
        if began != [data.meta["fingerprint"] for data in self.data]:
            raise InputError(
                f"{path}: the run began with other data; resume with the same files and settings of `data`, "
                "or start a new run with another `out`"
            )

    def _tokenizer(self) -> Tokenizer:
        """The recipe's tokenizer, or one trained on its text; a resumed run has its own."""
        kept, recipe = self.out / "tokenizer", self.recipe
        if self.resume and kept.exists():
            return load_tokenizer(kept)
        if recipe.tokenizer.path:
            return load_tokenizer(recipe.tokenizer.path)
        return train_on_text(recipe.data.path, recipe.data.column, recipe.tokenizer.vocab_size)

    def _data(self) -> list[TextData]:
        """Shards of each source; without weights all paths are one source."""
        data = self.recipe.data
        make = partial(
            prepare,
            tokenizer=self.tokenizer,
            column=data.column,
            cache_dir=cache_folder(data.cache) / "text",
            workers=data.workers,
        )
        sources = [data.path] if data.weights is None else [[path] for path in data.path]
        # Held-out text is that of the first source: nothing is split off the others.
        first = make(sources[0], val_path=data.val_path, val_fraction=data.val_fraction)
        return [first, *(make(source, val_fraction=0) for source in sources[1:])]

    def _module(self) -> GPT:
        config = gpt_config(self.recipe, vocabulary_size(self.tokenizer))
        config_to_hf(config)  # what could not be written at the end is refused now
        module = GPT(config)
        module.init_weights(self.recipe.seed)
        return module

    def _bytes_to_write(self) -> int:
        """Checkpoints hold weights, their average and up to two moments, fp32; one is written before one goes."""
        copies = 3 if self.recipe.train.ema is None else 4
        there = len(Checkpoints(self.out / "checkpoints", self.recipe.checkpoint.keep).steps())
        checkpoints = max(1, self.recipe.checkpoint.keep + 2 - there)
        return 4 * _parameters(self.module) * (copies * checkpoints + 1)

    def _trainer(self, log: RunLog) -> Trainer:
        recipe, train = self.recipe, self.recipe.train
        task = Language(self.module, self.tokenizer, recipe.evaluate.prompts, recipe.evaluate.sample_tokens)
        loader = TextLoader(
            [data.train for data in self.data],
            recipe.data.weights,
            train.sequence_length,
            train.batch_size,
            recipe.seed,
            recipe.data.isolate_documents,
        )
        held_out = self.data[0].val
        val = None
        if held_out is not None:
            rows, batches = train.micro_batch_size or train.batch_size, recipe.evaluate.batches
            if batches is not None:
                batches = batches * train.batch_size // rows
            val = EvalLoader(held_out, train.sequence_length, rows, batches, recipe.data.isolate_documents)
        data = Data(partial(prefetch, loader), None if val is None else val.__iter__)
        return Trainer(recipe, task, data, self.hardware, self.out, self._save_model, log)

    def _save_model(self) -> None:
        for leftover in self.out.glob(".model.*"):  # of a run that was killed while it wrote its model
            shutil.rmtree(leftover)
        card = model_card(_without_paths(self._record()))
        save_directory(self.out / "model", self.module, self.tokenizer, card, overwrite=True)

    def _record(self) -> dict[str, Any]:
        facts = json.loads((self.out / "environment.json").read_text("utf-8"))
        return {
            "name": self.out.name,
            "command": self.command,
            "recipe": self.recipe.model_dump(mode="json"),
            "parameters": _parameters(self.module),
            "metrics": self._metrics(),
            "data": facts["data"],
            "environment": facts,
        }

    def _metrics(self) -> dict[str, dict[str, float]]:
        """The held-out metrics of the evaluation that the model is from."""
        rows = [row for row in read_rows(self.out / "metrics.jsonl") if "val_loss" in row]
        rows = [row for row in rows if row["step"]] or rows  # the untrained network is no candidate
        if not rows:
            return {}
        best = min(rows, key=lambda row: row[f"val_{self.recipe.evaluate.metric}"])
        names = [key.removeprefix("val_") for key in best if key.startswith("val_") and f"{key}_low" in best]
        return {
            name: {"value": best[f"val_{name}"]} | {key: best[f"val_{name}_{key}"] for key in ("low", "high", "n")}
            for name in names
        }

    def _result(self) -> dict[str, Any]:
        record = self._record()
        return {
            "out": str(self.out),
            "model": str(self.out / "model"),
            "steps": self.recipe.train.steps,
            "parameters": record["parameters"],
            "metrics": record["metrics"],
            "seconds": self.timings,
        }


def _settled(recipe: Recipe) -> dict[str, Any]:
    """What a run keeps to its end: the network, what checkpoints hold, the order of the data, and what "best" means."""
    return {
        "task": recipe.task,
        "seed": recipe.seed,
        "model": recipe.model.model_dump(mode="json"),
        "tokenizer": recipe.tokenizer.model_dump(mode="json"),
        "optimizer.name": recipe.optimizer.name,
        "train.ema": recipe.train.ema,
        "evaluate.metric": recipe.evaluate.metric,
        "train.batch_size": recipe.train.batch_size,
        "train.sequence_length": recipe.train.sequence_length,
        "data.isolate_documents": recipe.data.isolate_documents,
        "data.weights": recipe.data.weights,
    }


def _without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """A record for others to read: a model is given away, and where its owner keeps files is not part of it."""
    recipe = {key: dict(value) if isinstance(value, dict) else value for key, value in record["recipe"].items()}
    for section, key in (("data", "path"), ("data", "val_path"), ("tokenizer", "path"), ("data", "cache")):
        value = recipe[section][key]
        recipe[section][key] = [Path(each).name for each in value] if isinstance(value, list) else value and "..."
    return record | {"recipe": recipe | {"out": record["name"]}, "command": "bedplate pretrain recipe.yaml"}


def _parameters(module: GPT) -> int:
    return sum(p.numel() for p in module.parameters())
