"""`pretrain`: from a recipe to a model directory."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bedplate.api.folders import cache_folder
from bedplate.api.multimodal import run_multimodal
from bedplate.api.plan import PLANS, check_metric, gpt_config, plan
from bedplate.api.record import write_report
from bedplate.api.run import Run
from bedplate.api.tokenizer import train_on_text
from bedplate.api.vision import run_vision
from bedplate.data.documents import DocumentLoader, PassageLoader, token_statistics
from bedplate.data.loader import Batch, EvalLoader, Loader, TextLoader, prefetch
from bedplate.data.masking import MaskedBatches, MaskedLoader, Masking
from bedplate.data.shards import TextData
from bedplate.data.text import prepare
from bedplate.data.tokenizer import end_of_text_id, frame_texts, load_tokenizer, mask_id, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub.config import config_to_hf
from bedplate.hub.directory import save_directory
from bedplate.hub.model import Model, load
from bedplate.models.bert import MaskedLM, language_model
from bedplate.models.gpt import GPT
from bedplate.models.grow import grown_config, grown_weights
from bedplate.recipe import PICTURES, Recipe, read_recipe, task_of
from bedplate.recipe.multimodal import RECIPES
from bedplate.recipe.pictures import PictureRecipe
from bedplate.recipe.schema import ParallelRecipe
from bedplate.tasks.language import Language
from bedplate.tasks.masked import Masked
from bedplate.train.estimate import check_masked_rows
from bedplate.train.log import RunLog
from bedplate.train.loop import Data, Trainer


def pretrain(
    recipe: str | Path | Mapping[str, Any] | Recipe | PictureRecipe,
    *overrides: str,
    resume: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train a model on text or pictures as a recipe says, from scratch or from where a base stands.

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
    task = task_of(recipe, overrides)
    if task in PICTURES or task in RECIPES:
        if dry_run:
            raise InputError(PLANS.format(task))
        runs = run_vision if task in PICTURES else run_multimodal
        return runs(recipe, overrides, resume=resume, verb="pretrain")
    resolved = read_recipe(recipe, overrides)  # type: ignore[arg-type]  # pictures are done with
    if dry_run:
        return plan(resolved, measure=False)
    name = recipe if isinstance(recipe, str | Path) else resolved.out / "recipe.yaml"
    return Pretraining(resolved, resume, shlex.join(["bedplate", "pretrain", str(name), *overrides])).run()


class Pretraining(Run[Recipe]):
    """A language model from text: one that writes on, or one that fills blanks."""

    verb = "pretrain"
    scales = True
    module: GPT | MaskedLM

    def __init__(self, recipe: Recipe, resume: bool, command: str) -> None:
        check_metric(recipe)
        super().__init__(recipe, resume, command)
        self.check_reached(recipe.train.steps)

    def prepare(self, log: RunLog) -> None:
        recipe = self.recipe
        self.base = self._load_base()
        log.say(f"Tokenizer: {recipe.base or recipe.tokenizer.path or 'training one on the text'}.")
        whole = self.timed("tokenizer", lambda: self.ranks.on_main(lambda: self._tokenizer().to_str()))
        self.tokenizer = Tokenizer.from_str(whole)
        log.say(f"Text: tokenising {', '.join(recipe.data.path)}, or finding it done.")
        self.data = self.timed("data", lambda: self.ranks.main_first(self._data))
        config = gpt_config(recipe, vocabulary_size(self.tokenizer))
        if self.base:
            config = self.base.config  # a checkpoint may have an untied head against its config
            config = grown_config(config, recipe.grow_layers) if recipe.grow_layers else config
        config_to_hf(config)  # what could not be written at the end is refused now
        self.context = config.max_position_embeddings
        is_sharded = recipe.parallel.shard * recipe.parallel.tensor > 1
        with torch.device("meta") if is_sharded else nullcontext():
            self.module = language_model(config)
        weights = self._base_weights(self.base) if self.base else self.module.initial_weights(recipe.seed)
        self.weights = weights if is_sharded else None
        if self.weights is None:
            parameters = dict(self.module.named_parameters())
            with torch.no_grad():
                for name, value in weights:
                    parameters[name].copy_(value)
        tokens = sum(len(data.train) for data in self.data)
        held = self.data[0].val
        apart = "" if held is None else f", {len(held):,} held out"
        log.say(f"{self.parameters():,} parameters, {tokens:,} tokens of text to read from{apart}.")

    def _load_base(self) -> Model | None:
        """The recipe's base in fp32: a model that writes, with its tokenizer."""
        if not self.recipe.base:
            return None
        base = load(self.recipe.base, dtype="fp32")
        base.merge_adapter()
        base.need_tokenizer()
        base.need_language_model()
        return base

    def _base_weights(self, base: Model) -> Iterable[tuple[str, torch.Tensor]]:
        """Those of the base, in the order of this network's, with the copies of a grown one."""
        own, before = base.module.named_parameters(), base.config.trunk.num_hidden_layers
        return grown_weights(own, before, self.recipe.grow_layers) if self.recipe.grow_layers else own

    def trainer(self, log: RunLog) -> Trainer:
        recipe = self.recipe
        masking, loader, held_out = self._masking(), self._loader(), self._held_out()
        val: Iterable[Batch] | None = held_out
        if masking is not None:
            loader = MaskedLoader(loader, masking)
            val = None if held_out is None else MaskedBatches(held_out, masking)
        loader = self._with_documents(loader)
        return Trainer(
            recipe,
            self._task(),
            Data(
                partial(prefetch, loader, pin=self.hardware.device.type == "cuda"),
                None if val is None else val.__iter__,
            ),
            self.hardware,
            self.out,
            self.save_model,
            log,
            steps=recipe.train.steps,
            evaluate_every=recipe.evaluate.every,
            metric=recipe.evaluate.metric,
            ranks=self.ranks,
            parallel=recipe.parallel,
            weights=self.weights,
        )

    @property
    def _shares(self) -> tuple[int, int]:
        """(this rank, all) among those that share batches."""
        return self.ranks.data_rank, self.ranks.data_size

    def _loader(self) -> Loader:
        """Rows of tokens as they follow each other."""
        recipe, train = self.recipe, self.recipe.train
        own = train.batch_size // self.ranks.data_size
        check_masked_rows(recipe.objective.masked_share, min(train.micro_batch_size or own, own))
        return TextLoader(
            [data.train for data in self.data],
            recipe.data.weights,
            train.sequence_length,
            train.batch_size,
            recipe.seed,
            recipe.data.isolate_documents,
            *self._shares,
        )

    def _with_documents(self, loader: Loader) -> Loader:
        """The rows, with documents and passages beside them where the recipe learns from these."""
        objective, rows, seed = self.recipe.objective, self.recipe.train.batch_size, self.recipe.seed
        streams, weights = [data.train for data in self.data], self.recipe.data.weights
        if objective.document_weight:
            drawn = objective.document_batch
            loader = DocumentLoader(loader, streams, rows, drawn, seed, *self._shares, weights=weights)
        if objective.passage_weight:
            drawn = objective.passage_batch
            loader = PassageLoader(loader, streams, rows, drawn, seed, *self._shares, weights=weights)
        return loader

    def _task(self) -> Language | Masked:
        recipe, objective = self.recipe, self.recipe.objective
        if isinstance(self.module, MaskedLM):
            return Masked(self.module, self.tokenizer, self._prompts(), self.ranks.interleave)
        statistics = None
        if objective.document_weight or objective.passage_weight:
            ends = [end_of_text_id(self.tokenizer)]
            streams = [data.train for data in self.data]
            statistics = token_statistics(streams, vocabulary_size(self.tokenizer), ends, recipe.data.weights)
        return Language(
            self.module,
            self.tokenizer,
            recipe.evaluate.prompts,
            recipe.evaluate.sample_tokens,
            masked_share=objective.masked_share,
            document_weight=objective.document_weight,
            passage_weight=objective.passage_weight,
            token_statistics=statistics,
            collect=self.ranks.interleave,
        )

    def _held_out(self) -> EvalLoader | None:
        """Held-out rows, as many as so many batches of training hold."""
        held_out, recipe, train = self.data[0].val, self.recipe, self.recipe.train
        if held_out is None:
            return None
        rows = train.micro_batch_size or train.batch_size // self.ranks.data_size
        batches = recipe.evaluate.batches and recipe.evaluate.batches * train.batch_size // rows
        return EvalLoader(held_out, train.sequence_length, rows, batches, recipe.data.isolate_documents, *self._shares)

    def _masking(self) -> Masking | None:
        """What is hidden in the rows that are read from both sides; their states foretell the token after their own."""
        objective = self.recipe.objective
        if not objective.masked_share:
            return None
        shift = 0 if isinstance(self.module, MaskedLM) else 1
        return Masking.of(self.tokenizer, objective.mask_rate, shift, self.recipe.seed)

    def _prompts(self) -> list[str]:
        return self.recipe.evaluate.prompts if self.recipe.evaluate.sample_tokens else []

    @property
    def parallel(self) -> ParallelRecipe:
        return self.recipe.parallel

    def facts(self) -> list[dict[str, Any]]:
        return [dict(data.meta) for data in self.data]

    def read_recipe(self, path: Path) -> Recipe:
        return read_recipe(path)

    def settled(self, recipe: Recipe) -> dict[str, Any]:
        """The network, what checkpoints hold, the order of the data, and what "best" means."""
        return {
            "task": recipe.task,
            "seed": recipe.seed,
            "base": recipe.base,
            "grow_layers": recipe.grow_layers,
            "model": recipe.model.model_dump(mode="json"),
            "tokenizer": recipe.tokenizer.model_dump(mode="json"),
            "optimizer.name": recipe.optimizer.name,
            "train.ema": recipe.train.ema,
            "evaluate.metric": recipe.evaluate.metric,
            "train.batch_size": recipe.train.batch_size,
            "train.sequence_length": recipe.train.sequence_length,
            "data.isolate_documents": recipe.data.isolate_documents,
            "data.weights": recipe.data.weights,
            "objective": recipe.objective.model_dump(),
        }

    def best_metric(self) -> tuple[str, str]:
        metric = self.recipe.evaluate.metric
        return metric, (Masked if isinstance(self.module, MaskedLM) else Language).metrics[metric]

    def write_model(self, card: str) -> None:
        if self.base is not None:
            of = self.base
            Model(self.module, self.tokenizer, card, of.special, of.tokenizer_config).save(
                self.out / "model", overwrite=True
            )
            return
        tokenizer = frame_texts(self.tokenizer) if isinstance(self.module, MaskedLM) else self.tokenizer
        save_directory(self.out / "model", self.module, tokenizer, card, overwrite=True)

    def record(self) -> dict[str, Any]:
        masked = isinstance(self.module, MaskedLM)
        blank = {"blank": self.tokenizer.id_to_token(mask_id(self.tokenizer))} if masked else {}
        return super().record() | {"family": self.module.config.family} | blank

    def write_report(self, record: dict[str, Any]) -> None:
        write_report(self.out, record, self.timings)

    def _tokenizer(self) -> Tokenizer:
        """The recipe's tokenizer, or one trained on its text; a resumed run has its own."""
        kept, recipe = self.out / "tokenizer", self.recipe
        if self.resume and kept.exists():
            return load_tokenizer(kept)
        if self.base is not None:
            return self.base.need_tokenizer()
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
            cache_dir=cache_folder(data.cache, local=False) / "text",
            workers=data.workers,
        )
        sources = [data.path] if data.weights is None else [[path] for path in data.path]
        # Held-out text is that of the first source: nothing is split off the others.
        first = make(sources[0], val_path=data.val_path, val_fraction=data.val_fraction)
        return [first, *(make(source, val_fraction=0) for source in sources[1:])]
