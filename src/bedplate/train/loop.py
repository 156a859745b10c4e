"""The training loop. It knows batches, losses and steps, and nothing of what is learnt."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bedplate.errors import InputError, Interrupted
from bedplate.recipe.schema import RunRecipe
from bedplate.tasks import Batch, Task
from bedplate.train.checkpoint import Checkpoint, Checkpoints, copy_into
from bedplate.train.hardware import Hardware, matmul_ceiling
from bedplate.train.log import RunLog
from bedplate.train.optim import (
    finish_gradients,
    load_state_tensors,
    make_optimizers,
    set_learning_rate,
    state_tensors,
)
from bedplate.train.parallel import wrap
from bedplate.train.schedule import learning_rate_factor


@dataclass
class Data:
    """The loop's batches: `train(first, stop)` yields those of steps first .. stop - 1, `val()` the held-out ones."""

    train: Callable[[int, int], Generator[Batch]]
    val: Callable[[], Iterable[Batch]] | None


@dataclass
class Trainer:
    """One run, from its first step or its newest checkpoint to its end."""

    recipe: RunRecipe
    task: Task
    data: Data
    hardware: Hardware
    folder: Path | None  # of the checkpoints; None keeps none
    save_model: Callable[[], None]  # writes the model directory from the module's current weights
    log: RunLog
    steps: int
    evaluate_every: int
    metric: str  # whose best evaluation the model is from
    patience: int | None = None  # evaluations without a better one after which training stops
    step: int = 0
    best: dict[str, Any] | None = None
    ema: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.module: nn.Module = self.task.module.to(self.hardware.device).train()
        self.parameters: dict[str, Tensor] = dict(self.module.named_parameters())
        self.optimizers = make_optimizers(self.module, self.recipe.optimizer, self.hardware.dtype)
        self.checkpoints: Checkpoints | None = None
        if self.folder is not None:
            self.checkpoints = Checkpoints(self.folder / "checkpoints", self.recipe.checkpoint.keep)
        if self.recipe.train.ema is not None:
            self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._unread: list[tuple[int, Tensor, Tensor]] = []  # (step, loss, gradient norm) still on the device
        self._losses: list[float] = []  # of the steps since the last row of the log
        self._seconds, self._tokens, self._flops = 0.0, 0, 0

    def resume(self) -> None:
        """Go back to the newest checkpoint, if there is one. The next batch and random numbers follow from its step."""
        assert self.checkpoints is not None
        self.checkpoints.clean()
        if not self.checkpoints.steps():
            self.log.rewind(-1)
            return
        checkpoint = self.checkpoints.load()
        where = self.checkpoints.path(checkpoint.step)
        copy_into(self.parameters, checkpoint.model, where)
        copy_into(self.ema, checkpoint.ema, where)
        load_state_tensors(self.optimizers, self.module, checkpoint.optimizer)
        self.step, self.best, self._losses = checkpoint.step, checkpoint.best, checkpoint.losses
        self.log.rewind(self.step)

    def run(self) -> None:
        """Train to the last step, then write the model from the best evaluated weights.

        Raises:
            Interrupted: told to stop; a checkpoint has been written.
            InputError: the loss is not finite, or the disk is full.
        """
        recipe = self.recipe
        wrap(self.module, recipe.train)
        self._peak = matmul_ceiling(self.hardware)
        steps = self.steps
        with stop_signals() as stopped, closing(self.data.train(self.step, steps)) as batches:
            if self.step == 0:
                self._evaluate()
            if self._is_over():
                batches.close()  # resumed where it had stopped early
            self._started = time.perf_counter()  # waiting for data counts; evaluating and saving do not
            for batch in batches:
                self._train_step(batch)
                self.step += 1
                last = self.step == steps
                if self.step % recipe.log.every == 0 or last:
                    self._log_step()
                if self.step % self.evaluate_every == 0 or last:
                    self._evaluate()
                    last = last or self._is_over()
                if self.step % recipe.checkpoint.every == 0 or last:
                    self._save()
                self.log.advance(self.step, None)
                if last:
                    break
                if stopped():
                    self._save()
                    raise Interrupted(
                        f"Stopped after step {self.step} of {steps}; everything is saved in {self.folder}."
                    )
                self._started = time.perf_counter()
        self._load_best()
        with self._averaged():
            self.save_model()

    def _train_step(self, batch: Batch) -> None:
        recipe = self.recipe
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)  # dropout follows from the step alone
        set_learning_rate(self.optimizers, learning_rate_factor(recipe.schedule, self.step, self.steps))
        batch = {key: value.to(self.hardware.device, non_blocking=True) for key, value in batch.items()}
        rows = recipe.train.micro_batch_size or recipe.train.batch_size
        shown = weight = torch.zeros((), device=self.hardware.device)
        for micro in split(batch, rows):
            with self.hardware.autocast():
                losses = self.task.loss(micro)
            (loss, count), (part, _) = losses["loss"], losses.get("next_token", losses["loss"])
            loss.backward()
            shown, weight = shown + part.detach(), weight + count
        mean = shown / weight.clamp(min=1)
        self._norm = finish_gradients(list(self.parameters.values()), weight, recipe.optimizer.clip_norm)
        self._unread.append((self.step + 1, mean, self._norm))  # counted from 1, as in metrics.jsonl
        if self.hardware.device.type == "cpu":  # reading is free here; elsewhere it would stall the device
            self._read_losses()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if recipe.train.ema is not None:
            torch._foreach_lerp_(
                list(self.ema.values()), [p.detach() for p in self.parameters.values()], 1 - recipe.train.ema
            )
        self._tick()
        self._tokens += next(iter(batch.values())).numel()
        self._flops += self.task.flops(batch)

    def _read_losses(self) -> None:
        """Read what is still on the device.

        Raises:
            InputError: a loss or a gradient is not finite. Weights were last good at the newest checkpoint.
        """
        for step, loss, norm in self._unread:
            for name, value in (("loss", loss.item()), ("gradient norm", norm.item())):
                if not math.isfinite(value):
                    raise self._spoilt(f"the {name} became {value} at step {step}")
            self._losses.append(loss.item())
        self._unread.clear()

    def _spoilt(self, what: str) -> InputError:
        steps = self.checkpoints.steps() if self.checkpoints else []
        good = "nothing was saved yet"
        if self.checkpoints and steps:
            good = f"the last good checkpoint is {self.checkpoints.path(steps[-1])}"
        return InputError(
            f"{what}; {good}; lower optimizer.learning_rate and optimizer.muon_learning_rate, "
            "or look at the data of that step"
        )

    def _tick(self) -> None:
        """Count the time since `_started` as time of training."""
        now = time.perf_counter()
        self._seconds, self._started = self._seconds + now - self._started, now

    def _log_step(self) -> None:
        self._read_losses()  # a GPU still works on the steps that were launched: waiting for them is training too
        self._tick()
        row = {
            "step": self.step,
            "loss": sum(self._losses) / len(self._losses),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": self._norm.item(),
            "tokens_per_second": self._tokens / self._seconds,
            "mfu": self._flops / self._seconds / self._peak,
            "seconds": self._seconds,
        }
        self._losses, self._seconds, self._tokens, self._flops = [], 0.0, 0, 0
        self.log.numbers(row)
        self.log.advance(self.step, row)

    def _evaluate(self) -> None:
        """Measure held-out metrics and draw samples; save when the named metric is the best so far."""
        if self.data.val is None:
            return
        if self.step:
            self._read_losses()  # nothing is measured or drawn with weights that a bad loss has spoilt
            self._tick()
        with self._averaged(), self.hardware.autocast(), torch.no_grad():
            metrics = self.task.evaluate(self.data.val())
            samples = self.task.samples(seed=self.recipe.seed)
        row: dict[str, Any] = {"step": self.step}
        for name, metric in metrics.items():
            row |= {
                f"val_{name}": metric["value"],
                f"val_{name}_low": metric["low"],
                f"val_{name}_high": metric["high"],
                f"val_{name}_n": metric["n"],
            }
        self.log.numbers(row)
        self.log.samples(self.step, samples)
        value, loss = metrics[self.metric]["value"], metrics["loss"]["value"]
        if self.step and math.isfinite(value) and (self.best is None or self._is_better(value, loss)):
            self.best = {"metric": self.metric, "value": value, "loss": loss, "step": self.step}
            self._save()

    def _is_better(self, value: float, loss: float) -> bool:
        """Whether an evaluation beats the best one; of equal ones, as accuracies of few texts are, the lower loss."""
        assert self.best is not None
        best = self.best["value"]
        if value == best:
            return loss < self.best.get("loss", -math.inf)
        return value > best if self.task.metrics[self.metric] == "max" else value < best

    def _is_over(self) -> bool:
        """Whether the best evaluation is `patience` evaluations ago."""
        if self.patience is None or self.best is None or self.step == self.steps:
            return False
        return self.step // self.evaluate_every - self.best["step"] // self.evaluate_every >= self.patience

    def _save(self) -> None:
        self._read_losses()  # never keep weights that a bad loss has spoilt, or a last update
        if not all(norm.isfinite() for norm in torch._foreach_norm([p.detach() for p in self.parameters.values()])):
            raise self._spoilt(f"the weights are not finite after step {self.step}")
        if self.checkpoints is None:
            return
        checkpoint = Checkpoint(
            step=self.step,
            model=self.parameters,
            optimizer=state_tensors(self.optimizers, self.module),
            ema=self.ema,
            best=self.best,
            losses=self._losses,
        )
        self.checkpoints.save(checkpoint)

    def _load_best(self) -> None:
        """Take the weights of the best evaluation, where a later one was worse."""
        if self.best is None or self.best["step"] == self.step:
            return
        assert self.checkpoints is not None, "the best weights are in a checkpoint"
        checkpoint = self.checkpoints.load(self.best["step"])
        where = self.checkpoints.path(checkpoint.step)
        copy_into(self.parameters, checkpoint.model, where)
        copy_into(self.ema, checkpoint.ema, where)
        self.log.say(f"The model is that of step {checkpoint.step}, whose {self.best['metric']} was the best.")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averaged weights (EMA) into the module for a while."""
        own = {name: self.parameters[name].detach().clone() for name in self.ema}
        with torch.no_grad():
            for name, value in self.ema.items():
                self.parameters[name].copy_(value)
            try:
                yield
            finally:
                for name, value in own.items():
                    self.parameters[name].copy_(value)


def split(batch: Batch, rows: int) -> list[Batch]:
    """Cut a batch into micro-batches of `rows` rows."""
    size = next(iter(batch.values())).shape[0]
    return [{k: v[start : start + rows] for k, v in batch.items()} for start in range(0, size, rows)]


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request that the loop sees after its step; the second acts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        asked.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
