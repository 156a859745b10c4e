"""How long a step takes on this machine, from short measurements of a shallower network of the same width."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bedplate.models.gpt import GPT, GPTConfig
from bedplate.recipe import Recipe
from bedplate.recipe.schema import ParallelRecipe
from bedplate.train.hardware import Hardware, matmul_ceiling
from bedplate.train.optim import finish_gradients, make_optimizers
from bedplate.train.parallel import Parallel
from bedplate.train.ranks import Ranks

LAYERS = (1, 3)  # what is measured; deeper networks take as much more for each layer
ROUNDS = 3
PASS = 8.0  # seconds that one measured pass may take, about
ENOUGH = 15.0  # seconds after which no further round is begun


@dataclass(frozen=True)
class Speed:
    """Seconds of one optimizer step: its micro-batches, and its update."""

    passes: float
    update: float
    ceiling: float  # FLOP/s of a large matrix product, measured beside

    @property
    def step(self) -> float:
        return self.passes + self.update


def measure_speed(config: GPTConfig, recipe: Recipe, hardware: Hardware) -> Speed:
    """Train networks of one and three layers for a moment, and say what a step of all layers takes.

    Forward, backward, clipping, optimizer and average are those of the loop. Rows are fewer, and if need be shorter,
    where a pass would take long; time then grows with the FLOPs.
    """
    ceiling, layers = matmul_ceiling(hardware), config.trunk.num_hidden_layers
    depths = LAYERS if layers > LAYERS[-1] else (layers,)
    probes = [_Probe(config, depth, recipe, hardware, ceiling) for depth in depths]
    for probe in probes:  # the first step makes moments, and compiles where that is asked
        probe.run()
        probe.times.clear()
    begun = time.perf_counter()
    for _ in range(ROUNDS):  # in turn, so that a machine that drifts slows all alike
        for probe in probes:
            probe.run()
        if time.perf_counter() - begun > ENOUGH:
            break
    passes, updates = zip(*(probe.best() for probe in probes), strict=True)
    return Speed(_at(depths, passes, layers), _at(depths, updates, layers), ceiling)


def _at(depths: tuple[int, ...], seconds: tuple[float, ...], layers: int) -> float:
    """The line through the measured depths, at `layers`."""
    if len(depths) == 1:
        return seconds[0]
    each = max(0.0, (seconds[1] - seconds[0]) / (depths[1] - depths[0]))
    return seconds[1] + each * (layers - depths[1])


class _Probe:
    """A shallow network in training; `times` are (seconds of all passes of a step, seconds of the update)."""

    def __init__(self, config: GPTConfig, depth: int, recipe: Recipe, hardware: Hardware, ceiling: float) -> None:
        self.recipe, self.hardware, train = recipe, hardware, recipe.train
        self.module = GPT(replace(config, trunk=replace(config.trunk, num_hidden_layers=depth))).train()
        self.module.init_weights(recipe.seed)
        Parallel(Ranks(), ParallelRecipe(), train, hardware).wrap(self.module)
        self.parameters: list[Tensor] = list(self.module.parameters())
        self.optimizers = make_optimizers(self.module, recipe.optimizer, hardware.dtype)
        self.average = [p.detach().clone() for p in self.parameters] if train.ema is not None else []
        self.times: list[tuple[float, float]] = []

        rows, length = train.micro_batch_size or train.batch_size, train.sequence_length
        affordable = PASS * 0.5 * ceiling / self.module.flops_per_token(length)  # tokens, at half the ceiling
        shown = max(1, min(rows, int(affordable // length)))
        short = min(length, max(256, int(affordable))) if shown == 1 else length
        self.ids = torch.randint(config.vocab_size, (shown, short), device=hardware.device)
        self.packing: dict[str, Tensor] = {}
        if recipe.data.isolate_documents:  # what matters is that there is a mask
            self.packing = {
                "doc": torch.ones_like(self.ids),
                "pos": torch.arange(short, device=hardware.device).expand_as(self.ids),
            }
        per_token = self.module.flops_per_token(length) / self.module.flops_per_token(short)
        self.repeats = train.batch_size * length / (shown * short) * per_token

    def run(self) -> None:
        begun = self._now()
        with self.hardware.autocast():
            loss, count = self.module.loss(self.ids, self.ids, **self.packing)
        loss.backward()
        passed = self._now()
        finish_gradients(self.parameters, count, self.recipe.optimizer.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.recipe.train.ema is not None:
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self.recipe.train.ema)
        self.times.append(((passed - begun) * self.repeats, self._now() - passed))

    def best(self) -> tuple[float, float]:
        """What other work on the machine disturbed least."""
        passes, updates = zip(*self.times, strict=True)
        return min(passes), min(updates)

    def _now(self) -> float:
        if self.hardware.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
