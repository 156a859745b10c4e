"""The training loop. It knows batches, losses and steps, and nothing of what is learnt."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bedplate.errors import InputError, Interrupted
from bedplate.nn.cache import uncompiled
from bedplate.recipe.schema import ParallelRecipe, RunRecipe
from bedplate.tasks import Batch, Task
from bedplate.train.checkpoint import Checkpoint, Checkpoints
from bedplate.train.exchange import local
from bedplate.train.hardware import Hardware, matmul_ceiling
from bedplate.train.log import RunLog
from bedplate.train.optim import (
    finish_gradients,
    load_state_tensors,
    make_optimizers,
    set_learning_rate,
    state_tensors,
)
from bedplate.train.parallel import Parallel, Weights
from bedplate.train.ranks import Ranks, Watchdog
from bedplate.train.schedule import learning_rate_factor

SHOWN = "next_token", "masked"  # parts of a loss that evaluations measure, too


@dataclass
class Data:
    """The loop's batches: `train(first, stop)` yields those of steps first .. stop - 1, `val()` the held-out ones."""

    train: Callable[[int, int], Generator[Batch]]
    val: Callable[[], Iterable[Batch]] | None


def step_seed(seed: int, step: int, rank: int) -> int:
    """What the random numbers of a step follow from. Ranks draw others, on a CPU, too: its generator reads 32 bits."""
    return (seed * 1_000_003 + step + rank * 0x9E3779B1) % 2**64


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
    ranks: Ranks = field(default_factory=Ranks)
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    weights: Weights | None = None  # of a module on the meta device, which is filled while it is sharded
    measure: Callable[[], None] | None = None  # what all ranks measure of the final weights, before they are saved
    step: int = 0
    best: dict[str, Any] | None = None
    ema: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.module: nn.Module = self.task.module.train()
        self.shared = Parallel(self.ranks, self.parallel, self.recipe.train, self.hardware)
        self.shared.wrap(self.module, self.weights)
        self.parameters: dict[str, Tensor] = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self.optimizers = make_optimizers(self.module, self.recipe.optimizer, self.hardware.dtype, self.shared.exchange)
        self.checkpoints: Checkpoints | None = None
        if self.folder is not None:
            self.checkpoints = Checkpoints(self.folder / "checkpoints", self.recipe.checkpoint.keep, self.ranks)
        if self.recipe.train.ema is not None:
            self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._unread: list[tuple[int, Tensor, Tensor]] = []  # (step, loss, gradient norm) still on the device
        self._losses: list[float] = []  # of the steps since the last row of the log
        self._seconds, self._waited, self._read, self._flops = 0.0, 0.0, 0, 0

    def resume(self) -> None:
        """Go back to the newest checkpoint, if there is one. The next batch and random numbers follow from its step."""
        assert self.checkpoints is not None
        self.ranks.on_main(self.checkpoints.clean)
        if not self.checkpoints.steps():
            self.log.rewind(-1)
            return
        checkpoint = self.checkpoints.load(into=self._weights())
        load_state_tensors(self.optimizers, self.module, checkpoint.optimizer)
        self.step, self.best, self._losses = checkpoint.step, checkpoint.best, checkpoint.losses
        self.log.rewind(self.step)

    def _weights(self) -> dict[str, Tensor]:
        """What an evaluation depends on, by the names that checkpoints give it."""
        own = {f"model/{name}": p for name, p in self.parameters.items()}
        return own | {f"ema/{name}": average for name, average in self.ema.items()}

    def run(self) -> None:
        """Train to the last step, then write the model from the best evaluated weights.

        Raises:
            Interrupted: told to stop; a checkpoint has been written.
            InputError: the loss is not finite, or the disk is full.
        """
        self._peak = matmul_ceiling(self.hardware) * self.ranks.size
        with (
            stop_signals() as stopped,
            closing(self.data.train(self.step, self.steps)) as batches,
            Watchdog(self.ranks, self.parallel.timeout, self._advice) as self.watchdog,
        ):
            if self.checkpoints is not None:
                self.checkpoints.alive = self.watchdog.beat
            try:
                self._steps(batches, stopped)
            finally:
                self._wait()
            self._load_best()
        with self._averaged(), uncompiled():  # what is measured once is not worth compiling
            self._measure()
            with self.shared.whole(self.module):
                self.ranks.on_main(self.save_model)

    def _steps(self, batches: Generator[Batch], stopped: Callable[[], bool]) -> None:
        recipe = self.recipe
        if self.step == 0:
            self._evaluate()
        if self._is_over():
            batches.close()  # resumed where it had stopped early
        self._started = time.perf_counter()  # waiting for data counts; evaluating and saving do not
        for batch in self._taken(batches):
            self._train_step(batch)
            self.step += 1
            last = self.step == self.steps
            if self.step % recipe.log.every == 0 or last:
                self._log_step()
            if self.step % self.evaluate_every == 0 or last:
                self._evaluate()
                last = last or self._is_over()
            if self.step % recipe.checkpoint.every == 0 or last:
                self._settle()
                self._save()
            self.log.advance(self.step, None)
            self.watchdog.beat()
            if last:
                break
            if self.ranks.any(stopped()):
                self._save()
                raise Interrupted(
                    f"Stopped after step {self.step} of {self.steps}; everything is saved in {self.folder}."
                )
            self._started = time.perf_counter()

    def _taken(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, counting the time until each of them is there.

        A GPU may still work on the last step meanwhile, and asking it would stall it: there this is the most that
        waiting can have cost.
        """
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _train_step(self, batch: Batch) -> None:
        recipe = self.recipe
        # Dropout follows from the step and the rank alone; ranks that share their products share it too.
        torch.manual_seed(step_seed(recipe.seed, self.step, self.ranks.data_rank))
        set_learning_rate(self.optimizers, learning_rate_factor(recipe.schedule, self.step, self.steps))
        batch = {key: value.to(self.hardware.device, non_blocking=True) for key, value in batch.items()}
        shown = count_shown = weight = torch.zeros((), device=self.hardware.device)
        micros = self._micro_batches(batch)
        for number, micro in enumerate(micros, start=1):
            with self.hardware.autocast():
                losses = self.shared.learn(self.task.loss, micro, number == len(micros))
            loss, count = losses["loss"]
            part, its_count = next((losses[name] for name in SHOWN if name in losses), losses["loss"])
            loss.backward()
            shown, count_shown, weight = shown + part.detach(), count_shown + its_count, weight + count
        shown, count_shown, weight = self.ranks.sum(torch.stack([shown, count_shown, weight])).unbind()
        mean = shown / count_shown.clamp(min=1)
        parameters = list(self.parameters.values())
        self._norm = finish_gradients(
            parameters,
            weight.clamp(min=1) / self.ranks.data_size,  # ranks have averaged their gradients
            recipe.optimizer.clip_norm,
            self.shared.gradient_norm(parameters),
        )
        self._unread.append((self.step + 1, mean, self._norm))  # counted from 1, as in metrics.jsonl
        if self.hardware.device.type == "cpu":  # reading is free here; elsewhere it would stall the device
            self._read_losses()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if recipe.train.ema is not None:
            averages = [local(average) for average in self.ema.values()]
            torch._foreach_lerp_(averages, [local(p.detach()) for p in parameters], 1 - recipe.train.ema)
        self._tick()
        first = next(iter(batch.values()))
        self._read += (len(first) if self.task.unit == "images" else first.numel()) * self.ranks.data_size
        self._flops += self.task.flops(batch) * self.ranks.data_size

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """The batch in parts that are learnt from one after the other.

        A task whose loss is of a batch as a whole, and no sum over its rows, has `micro_batches(batch, rows)`: it looks
        at all of the batch first, and gives each part what `loss` needs to know of the others.
        """
        rows = self.recipe.train.micro_batch_size or self.recipe.train.batch_size
        cut = getattr(self.task, "micro_batches", None)
        if cut is None or len(next(iter(batch.values()))) <= rows:
            return split(batch, rows)
        with self.hardware.autocast():
            return self.shared.run(cut, batch, rows)

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
        self._wait()
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

    def _settle(self) -> None:
        """Wait for the steps that were launched, on which a GPU may still work: that is training, too."""
        self._read_losses()
        self._tick()

    def _log_step(self) -> None:
        self._settle()
        row = {
            "step": self.step,
            "loss": sum(self._losses) / len(self._losses),
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": self._norm.item(),
            f"{self.task.unit}_per_second": self._read / self._seconds,
            "mfu": self._flops / self._seconds / self._peak,
            "waiting": self._waited / self._seconds,
            "seconds": self._seconds,
        }
        self._losses, self._seconds, self._waited, self._read, self._flops = [], 0.0, 0.0, 0, 0
        self.log.numbers(row)
        self.log.advance(self.step, row)

    def _evaluate(self) -> None:
        """Measure held-out metrics and draw samples; save when the named metric is the best so far."""
        if self.data.val is None:
            return
        if self.step:
            self._settle()  # nothing is measured or drawn with weights that a bad loss has spoilt
        with self._averaged(), self.hardware.autocast(), torch.no_grad():
            metrics = self.shared.run(self.task.evaluate, self.watchdog.beating(self.data.val()))
            with uncompiled():
                samples = self.shared.run(partial(self.task.samples, seed=self.recipe.seed))
        metrics = self.ranks.same(metrics)  # to the last bit: from it follows whether all of them save, or stop
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
        self._started = time.perf_counter()

    def _measure(self) -> None:
        if self.measure is None:
            return
        # In fp32, as the model is used that is loaded again; sharded blocks gather weights of the products' dtype.
        with self.hardware.autocast() if self.shared.is_sharded else nullcontext(), torch.no_grad():
            self.shared.run(self.measure)

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
        norms = torch._foreach_norm([local(p.detach()) for p in self.parameters.values()])
        if self.ranks.any(not torch.stack(norms).isfinite().all()):
            raise self._spoilt(f"the weights are not finite after step {self.step}")
        if self.checkpoints is None:
            return
        checkpoint = Checkpoint(
            step=self.step,
            model=self.parameters,
            optimizer=state_tensors(self.optimizers, self.module),
            ema=self.ema,
            best=self.best,
            losses=list(self._losses),
        )
        self.checkpoints.save(checkpoint)

    def _wait(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        if self.checkpoints is not None:
            self.checkpoints.wait()

    def _advice(self) -> str:
        steps = self.checkpoints.steps() if self.checkpoints else []
        last = f"The last checkpoint is {self.checkpoints.path(steps[-1])}" if steps else "There is no checkpoint"  # type: ignore[union-attr]
        return f"It was in step {self.step + 1}. {last}; start the run again with --resume."

    def _load_best(self) -> None:
        """Take the weights of the best evaluation, where a later one was worse."""
        if self.best is None or self.best["step"] == self.step:
            return
        assert self.checkpoints is not None, "the best weights are in a checkpoint"
        checkpoint = self.checkpoints.load(self.best["step"], into=self._weights())
        self.log.say(f"The model is that of step {checkpoint.step}, whose {self.best['metric']} was the best.")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averaged weights (EMA) into the module for a while."""
        own = {name: local(self.parameters[name].detach()).clone() for name in self.ema}

        def put(values: dict[str, Tensor]) -> None:
            for name, value in values.items():
                local(self.parameters[name].detach()).copy_(local(value))

        put(self.ema)
        try:
            yield
        finally:
            put(own)


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
