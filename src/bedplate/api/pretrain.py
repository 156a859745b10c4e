"""`pretrain`: from a recipe to a model directory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bedplate.api.folders import cache_folder, check_disk, refuse_existing
from bedplate.api.plan import gpt_config, plan
from bedplate.api.record import environment, write_report
from bedplate.api.tokenizer import train_on_text
from bedplate.data.loader import EvalLoader, TextLoader, prefetch
from bedplate.data.shards import TextData
from bedplate.data.text import prepare
from bedplate.data.tokenizer import load_tokenizer, save_tokenizer, vocabulary_size
from bedplate.errors import InputError, Interrupted
from bedplate.hub.card import model_card
from bedplate.hub.directory import save_directory
from bedplate.models.gpt import GPT
from bedplate.recipe import Recipe, read_recipe, write_recipe
from bedplate.tasks.language import Language
from bedplate.train.hardware import choose_hardware
from bedplate.train.log import RunLog, read_rows
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
    return _Pretraining(resolved, resume, _command(recipe, overrides)).run()


def _command(recipe: object, overrides: tuple[str, ...]) -> str:
    name = str(recipe) if isinstance(recipe, str | Path) else "RECIPE"
    return " ".join(["bedplate pretrain", name, *overrides])


class _Pretraining:
    """A run's parts, made in the order in which data flows through them."""

    def __init__(self, recipe: Recipe, resume: bool, command: str) -> None:
        self.recipe, self.out, self.resume, self.command = recipe, recipe.out, resume, command
        self.timings: dict[str, float] = {}
        self.hardware = choose_hardware(recipe.train)
        if resume:
            self._check_same_run()
        else:
            refuse_existing(self.out, "give another `out`, or go on with it by --resume")

    def run(self) -> dict[str, Any]:
        with RunLog(self.out, self.recipe.log, self.recipe.train.steps) as log:
            log.say(f"Training on {self.hardware}.")
            self.tokenizer = self._timed("tokenizer", self._tokenizer)
            self.data = self._timed("data", self._data)
            self.module = self._module()
            tokens = sum(len(data.train) for data in self.data)
            log.say(f"{_parameters(self.module):,} parameters, {tokens:,} tokens of text to read from.")
            self._open_folder()  # last of all: a recipe that cannot run leaves no folder behind
            trainer = self._trainer(log)
            if self.resume:
                trainer.resume()
                log.say(f"Going on from step {trainer.step} of {self.recipe.train.steps}.")
            try:
                self._timed("training", trainer.run)
            except Interrupted as stop:
                raise Interrupted(f"{stop} Go on with: {self.command} --resume") from None
            finally:
                write_report(self.out, self._record(), self.timings)
        return self._result()

    def _open_folder(self) -> None:
        """Create the run directory with what is known before the first step."""
        self.out.mkdir(parents=True, exist_ok=True)
        check_disk(self.out, self._bytes_to_write())
        save_tokenizer(self.tokenizer, self.out / "tokenizer", self.recipe.train.sequence_length)
        facts = environment(self.hardware) | {"data": [data.meta for data in self.data]}
        (self.out / "environment.json").write_text(json.dumps(facts, indent=2), "utf-8")
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
            return  # killed before its first step, or never started: begin
        before, now = read_recipe(path).model_dump(mode="json"), self.recipe.model_dump(mode="json")
        for section in ("task", "seed", "model", "tokenizer"):
            if before[section] != now[section]:
                raise InputError(
                    f"{path}: the run began with {section}={before[section]}, the recipe now says {now[section]}; "
                    "resume with the same, or start a new run with another `out`"
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
            val_fraction=data.val_fraction,
            cache_dir=cache_folder(data.cache) / "text",
            workers=data.workers,
        )
        sources = [data.path] if data.weights is None else [[path] for path in data.path]
        # Held-out text of its own belongs to the first source, whose evaluation is the run's.
        return [make(path, val_path=data.val_path if i == 0 else None) for i, path in enumerate(sources)]

    def _module(self) -> GPT:
        module = GPT(gpt_config(self.recipe, vocabulary_size(self.tokenizer)))
        module.init_weights(self.recipe.seed)
        return module

    def _bytes_to_write(self) -> int:
        """Checkpoints hold weights and up to two moments in fp32; one more is written before an old one goes."""
        return 4 * _parameters(self.module) * (3 * (self.recipe.checkpoint.keep + 2) + 1)

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
            rows = train.micro_batch_size or train.batch_size
            val = EvalLoader(
                held_out, train.sequence_length, rows, recipe.evaluate.batches, recipe.data.isolate_documents
            )
        data = Data(partial(prefetch, loader), None if val is None else val.__iter__)
        return Trainer(recipe, task, data, self.hardware, self.out, self._save_model, log)

    def _save_model(self) -> None:
        card = model_card(self._record())
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
        if not rows:
            return {}
        best = min(rows, key=lambda row: row[f"val_{self.recipe.evaluate.metric}"])
        names = [key.removeprefix("val_") for key in best if key.startswith("val_") and f"{key}_low" in best]
        return {
            name: {"value": best[f"val_{name}"], "low": best[f"val_{name}_low"], "high": best[f"val_{name}_high"]}
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


def _parameters(module: GPT) -> int:
    return sum(p.numel() for p in module.parameters())
