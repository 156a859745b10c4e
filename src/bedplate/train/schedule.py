"""Learning-rate schedules."""

from __future__ import annotations

import math

from bedplate.recipe.schema import ScheduleRecipe


def learning_rate_factor(schedule: ScheduleRecipe, step: int, steps: int) -> float:
    """The learning rate of `step` (0 .. steps - 1) as a share of its peak.

    wsd: linear warm-up, plateau, linear decay over the last `decay` of the run (arXiv 2404.06395). cosine: half a
    period after the warm-up (arXiv 1608.03983).
    """
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "cosine":
        progress = (step - warmup) / max(steps - warmup, 1)
        return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = min(round(schedule.decay * steps), steps - warmup)
    left = steps - step
    if left >= decay:
        return 1.0
    return schedule.final + (1 - schedule.final) * left / decay
