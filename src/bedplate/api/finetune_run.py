"""What fine-tuning is for any task: a base model, examples, an end by steps or epochs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

from bedplate.api.folders import cache_folder
from bedplate.api.run import Run
from bedplate.data.examples import READING
from bedplate.data.sources import content_hash
from bedplate.data.summaries import KEY
from bedplate.errors import InputError
from bedplate.hub.adapter import fingerprint, put_adapter, save_adapter, targets_of
from bedplate.hub.model import Model, load
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPT
from bedplate.nn.lora import adapted_layers, merged_copy
from bedplate.recipe import FinetuneRecipe, read_finetune_recipe
from bedplate.tasks import Task
from bedplate.train.log import RunLog
from bedplate.train.loop import Data, Trainer


class FinetuneRun(Run[FinetuneRecipe]):
    """The parts that classifying and chatting share."""

    verb = "finetune"
    longest: ClassVar[int] = 256  # tokens of a row where the recipe names no length and the base reads more
    task: Task
    module: GPT | Classifier
    base: Model  # its module is the one that is trained

    def __init__(self, recipe: FinetuneRecipe, resume: bool, command: str) -> None:
        super().__init__(recipe, resume, command)
        self.length = 0

    def load_base(self) -> Model:
        """The base model with its tokenizer, in fp32; `length` and `context` follow from it."""
        base = load(self.recipe.base, device=self.hardware.device, dtype="fp32")
        base.merge_adapter()  # of a base that is an adapter itself
        if base.tokenizer is None:
            raise InputError(
                f"{self.recipe.base}: the base model has no tokenizer.json, which fine-tuning on text needs"
            )
        for key in (KEY, READING):  # how it was taught to read and to summarise is now taught over
            base.tokenizer_config.pop(key, None)
        self.tokenizer = base.tokenizer
        self.context = base.config.max_position_embeddings
        self.length = self.recipe.train.sequence_length or min(self.context, self.longest)
        if self.length > self.context:
            raise InputError(
                f"train.sequence_length={self.length} is longer than the context of {self.recipe.base}, "
                f"{self.context} tokens; give at most that"
            )
        return base

    def adapt(self, module: GPT | Classifier, log: RunLog) -> None:
        """Take the module for training: all of it, or the recipe's adapter on it."""
        self.module = self.base.module = module
        adapter = self.recipe.adapter
        if not adapter.rank:
            return
        put_adapter(module, adapter, self.recipe.seed)
        trained, targets = self.trained(), ", ".join(targets_of(module, adapter))
        log.say(
            f"{trained:,} weights are trained, {trained / self.parameters():.1%} of {self.parameters():,}: "
            f"an adapter of rank {adapter.rank} on {targets}."
        )

    def trained(self) -> int:
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    def parameters(self) -> int:
        """Of the network that is written, in which an adapter is merged."""
        return sum(p.numel() for name, p in self.module.named_parameters() if ".lora_" not in name)

    def write_model(self, card: str) -> None:
        """Write the adapter, if there is one, and the whole model, in which it is merged."""
        module = self.module
        if adapted_layers(module):
            save_adapter(self.out / "adapter", self.base, self.recipe.adapter, self.recipe.base)
            module = merged_copy(module)
        model = Model(module, self.tokenizer, card, self.base.special, self.base.tokenizer_config)
        model.save(self.out / "model", overwrite=True)

    def result(self) -> dict[str, Any]:
        result = super().result()
        if self.recipe.adapter.rank:
            result |= {"adapter": str(self.out / "adapter"), "trained": self.trained()}
        return result

    def make_trainer(self, task: Task, data: Data, steps_per_epoch: int, log: RunLog) -> Trainer:
        recipe, train = self.recipe, self.recipe.train
        by_epochs = math.inf if train.epochs is None else max(1, round(train.epochs * steps_per_epoch))
        steps = int(min(train.steps or math.inf, by_epochs))
        self.check_reached(steps)
        metric, _ = self.best_metric()
        if metric not in task.metrics:
            raise InputError(f"evaluate.metric={metric!r} is not measured; choose one of {', '.join(task.metrics)}")
        return Trainer(
            recipe,
            task,
            data,
            self.hardware,
            self.out,
            self.save_model,
            log,
            steps=steps,
            evaluate_every=recipe.evaluate.every or steps_per_epoch,
            metric=metric,
            patience=recipe.evaluate.patience,
        )

    def fingerprint(self) -> str:
        """Of the files, each in its role: what was trained on must not be scored after a resumption."""
        data = self.recipe.data
        roles = {"path": data.path, "val": data.val_path, "test": data.test_path, "teacher": self.recipe.teacher.path}
        return " ".join(f"{role}:{content_hash(paths, cache_folder())}" for role, paths in roles.items() if paths)

    def foreign_facts(self) -> dict[str, str]:
        """What a resumed run must find again beside its data: checkpoints of an adapter do not hold the base."""
        return {"base_fingerprint": fingerprint(self.module)} if self.recipe.adapter.rank else {}

    def _check_same_data(self) -> None:
        super()._check_same_data()
        if not (self.resume and (self.out / "environment.json").exists()):
            return
        began = self.environment()["data"][0]
        models = {"base_fingerprint": self.recipe.base, "teacher_fingerprint": self.recipe.teacher.model}
        for key, value in self.foreign_facts().items():
            if began[key] != value:
                what = key.removesuffix("_fingerprint")
                raise InputError(
                    f"{models[key]}: the {what} is not the one that the run in {self.out} began with; put that back, "
                    "or start a new run with another `out`"
                )

    def read_recipe(self, path: Path) -> FinetuneRecipe:
        return read_finetune_recipe(path)

    def settled(self, recipe: FinetuneRecipe) -> dict[str, Any]:
        data = recipe.data.model_dump(mode="json", exclude={"path", "val_path", "test_path"})
        return {
            "task": recipe.task,
            "seed": recipe.seed,
            "base": recipe.base,
            "model": recipe.model.model_dump(mode="json"),
            "adapter": recipe.adapter.model_dump(mode="json"),
            "teacher": recipe.teacher.model_dump(mode="json", exclude={"path"}),
            "optimizer.name": recipe.optimizer.name,
            "train.ema": recipe.train.ema,
            "evaluate.metric": recipe.evaluate.metric,
            "train.batch_size": recipe.train.batch_size,
            "train.sequence_length": recipe.train.sequence_length,
            **{f"data.{key}": value for key, value in data.items()},
        }
