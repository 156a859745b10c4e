"""`plan`: what a recipe will do and cost, worked out without touching its data: network, memory, time, energy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bedplate.api.doctor import _memory_bytes
from bedplate.data.tokenizer import load_tokenizer, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub.config import config_to_hf
from bedplate.hub.directory import read_config
from bedplate.hub.locate import locate
from bedplate.models.bert import LanguageModel, language_model
from bedplate.models.gpt import GPTConfig
from bedplate.models.grow import grown_config
from bedplate.nn.presets import ENCODERS, PRESETS
from bedplate.nn.rotary import RopeConfig
from bedplate.recipe import PICTURES, Recipe, read_recipe, task_of
from bedplate.recipe.multimodal import RECIPES
from bedplate.tasks.language import Language
from bedplate.tasks.masked import Masked
from bedplate.train.accelerators import Accelerator, find_accelerator, nearest_anchor
from bedplate.train.calibrate import measure_speed
from bedplate.train.estimate import Layout, memory, step_flops
from bedplate.train.fit import first_fit
from bedplate.train.hardware import Hardware, choose_hardware, matmul_ceiling

GPU_USABLE = 0.9  # assumed: the rest is for CUDA's context, the libraries' work space, communication, fragments
CPU_USABLE = 0.45  # glibc keeps freed blocks: processes grew to 1.1 to 2.2 times the plan (benchmarks/plan_check.py)
HOUR = 3600.0
BUSY = 0.5  # load average of a machine on which somebody else works
PLANS = "task={}: plans are of language models; a run on pictures says its parameters as it begins"
SHORT = 0.1  # seconds of a step in which a GPU may wait for Python


def gpt_config(recipe: Recipe, vocab_size: int) -> GPTConfig:
    """The network that a recipe describes, or that its base has.

    Raises:
        InputError: what `load` raises of a base, or a row that is longer than its context.
    """
    if recipe.base:
        config, length = read_config(locate(recipe.base)), recipe.train.sequence_length
        if length > config.max_position_embeddings:
            raise InputError(
                f"train.sequence_length={length} is longer than the context of {recipe.base}, "
                f"{config.max_position_embeddings} tokens; give at most that"
            )
        return grown_config(config, recipe.grow_layers) if recipe.grow_layers else config
    values = recipe.model.model_dump(exclude={"preset", "rope_theta", "max_position_embeddings"})
    if PRESETS[recipe.model.preset].get("rope", True):
        values["rope"] = RopeConfig(rope_theta=recipe.model.rope_theta)
    return GPTConfig.from_preset(
        recipe.model.preset,
        vocab_size=vocab_size,
        max_position_embeddings=recipe.model.max_position_embeddings or recipe.train.sequence_length,
        **values,
    )


def check_metric(recipe: Recipe) -> None:
    """Raise InputError if the task does not measure `evaluate.metric`."""
    encodes = recipe.model.preset in ENCODERS
    measures = Masked.metrics if encodes else Language.metrics
    if recipe.evaluate.metric not in measures:
        measured = ", ".join(measures)
        raise InputError(f"evaluate.metric={recipe.evaluate.metric!r} is not measured; choose one of {measured}")
    if recipe.evaluate.metric.startswith("masked") and not recipe.objective.masked_share:
        raise InputError(
            f"evaluate.metric={recipe.evaluate.metric!r} is measured where objective.masked_share is above 0; set it"
        )


@dataclass(frozen=True)
class Target:
    """What is planned for: GPUs of a datasheet, or this machine."""

    name: str
    dtype: torch.dtype  # of matrix products
    on_gpu: bool
    memory: float | None  # bytes of one device; None: this platform does not tell
    accelerator: Accelerator | None = None
    hardware: Hardware | None = None  # of this machine

    @property
    def usable(self) -> float | None:
        return self.memory and self.memory * (GPU_USABLE if self.on_gpu else CPU_USABLE)


def plan(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *overrides: str,
    gpu: str | None = None,
    gpus: int | None = None,
    efficiency: float | None = None,
    price: float | None = None,
    pue: float = 1.0,
    measure: bool = True,
) -> dict[str, Any]:
    """Say what pre-training by a recipe needs: memory, time, energy, cost, and what to change where it does not fit.

    A tokenizer that is still to be trained counts with `tokenizer.vocab_size`; little text may give fewer entries.

    Args:
        recipe: a YAML file, or the same as a mapping.
        overrides: `key.path=value` each.
        gpu: a name of `train/accelerators.py`, or cpu; by default what this machine trains on.
        gpus: how many in all (default: as many as hold one copy of the model).
        efficiency: share of the peak that training reaches, instead of a published or measured one.
        price: dollars for an hour of one GPU.
        pue: power of the whole data centre over that of its computers.
        measure: train on this machine for a few seconds, where it is planned for, to know its speed.

    Returns:
        {"recipe", "hardware", "family", "parameters", "tokens_per_step", "tokens", "tokens_per_parameter", "flops",
        "layout", "memory": bytes on one device by part, "fit", "time", "cost", "notes"}; see docs/scaling.md.

    Raises:
        InputError: the recipe is wrong, or the GPUs cannot share it.
    """
    if (task := task_of(recipe, overrides)) in PICTURES or task in RECIPES:
        raise InputError(PLANS.format(task))
    resolved = read_recipe(recipe, overrides)
    _check_options(gpus, efficiency, price, pue)
    target, given, train = _target(resolved, gpu), resolved.tokenizer.path, resolved.train
    vocab_size = resolved.tokenizer.vocab_size if given is None else vocabulary_size(load_tokenizer(given))
    check_metric(resolved)
    config = gpt_config(resolved, vocab_size)
    config_to_hf(config)  # refuses what no model directory could hold
    with torch.device("meta"):
        module = language_model(config)
    count = gpus or resolved.parallel.shard * resolved.parallel.tensor
    layout = Layout.of(resolved, config.trunk, count)
    parameters = sum(p.numel() for p in module.parameters())
    tokens_per_step = train.batch_size * train.sequence_length
    parts = memory(module, resolved, layout, target.dtype, on_gpu=target.on_gpu)
    fit = _fit(module, resolved, layout, target, parts["total"])
    flops, _ = step_flops(module, resolved)
    time, notes = _time(module, resolved, layout, target, efficiency, measure and fit["fits"] is not False)
    return {
        "recipe": resolved.model_dump(mode="json"),
        "hardware": target.name if count == 1 else f"{count} x {target.name}",
        "family": config.family,
        "parameters": parameters,
        "tokens_per_step": tokens_per_step,
        "tokens": tokens_per_step * train.steps,
        "tokens_per_parameter": tokens_per_step * train.steps / parameters,
        "flops": flops * train.steps,
        "layout": {
            "gpus": count,
            "replicas": layout.replicas,
            "shard": layout.shard,
            "tensor": layout.tensor,
            "rows": layout.rows,
            "micro_batch_size": layout.micro,
        },
        "memory": parts,
        "fit": fit,
        "time": time,
        "cost": _cost(time, count, target.accelerator, price, pue),
        "notes": [*_memory_notes(target, layout), *notes],
    }


def _check_options(gpus: int | None, efficiency: float | None, price: float | None, pue: float) -> None:
    if gpus is not None and gpus < 1:
        raise InputError(f"gpus={gpus} is not a number of GPUs; give 1 or more")
    if efficiency is not None and not 0 < efficiency <= 1:
        raise InputError(f"efficiency={efficiency} is not a share of the peak; give more than 0 and at most 1")
    if price is not None and not price > 0:
        raise InputError(f"price={price} is not dollars for a GPU hour; give more than 0, or leave it out")
    if not pue >= 1:
        raise InputError(f"pue={pue} is less than the computers themselves take; give 1 or more")


def _target(recipe: Recipe, gpu: str | None) -> Target:
    if gpu is not None and gpu.lower() != "cpu":
        accelerator = find_accelerator(gpu)
        low = recipe.train.precision != "fp32"
        name = f"{accelerator.name}, {'bf16' if low else 'fp32'}"
        return Target(name, torch.bfloat16 if low else torch.float32, True, accelerator.memory, accelerator)
    train = recipe.train if gpu is None else recipe.train.model_copy(update={"device": "cpu"})
    hardware = choose_hardware(train)
    on_gpu = hardware.device.type == "cuda"
    size = torch.cuda.get_device_properties(hardware.device).total_memory if on_gpu else _memory_bytes()[0]
    return Target(str(hardware), hardware.dtype, on_gpu, size, hardware=hardware)


def _fit(module: LanguageModel, recipe: Recipe, layout: Layout, target: Target, total: int) -> dict[str, Any]:
    """{"fits", "memory", "usable" in bytes, "change"}: the first overrides that fit, [] if none are needed or known."""
    usable = target.usable
    if usable is None:
        return {"fits": None, "memory": None, "usable": None, "change": []}

    change = []
    if total > usable:
        change = first_fit(module, recipe, layout.gpus, target.dtype, usable, on_gpu=target.on_gpu)
    return {"fits": total <= usable, "memory": int(target.memory or 0), "usable": int(usable), "change": change}


def _time(
    module: LanguageModel, recipe: Recipe, layout: Layout, target: Target, efficiency: float | None, measure: bool
) -> tuple[dict[str, float] | None, list[str]]:
    """({"seconds", "step_seconds", "tokens_per_second", "efficiency", "peak_flops"} or None, where they come from)."""
    flops, work = step_flops(module, recipe)
    if target.accelerator is not None:
        if target.dtype == torch.float32:
            return None, ["time: not known, the datasheet's figure is of bf16 products; give train.precision=bf16"]
        peak, source = target.accelerator.flops * layout.gpus, target.accelerator.source
        notes = [f"published: {peak / layout.gpus / 1e12:,.0f} TFLOP/s a GPU, {source}"]
        if efficiency is None:
            hidden_size = module.config.trunk.hidden_size
            anchor, own = nearest_anchor(target.accelerator, recipe.train.compile, hidden_size)
            efficiency, kind = anchor.efficiency, "published" if own else "assumed, from another GPU"
            notes.append(f"{kind}: efficiency {efficiency:.2f} of that, {anchor.run}")
            notes.append("assumed: this software, sharing the work in this way, is as fast; that was not measured")
        else:
            notes.append(f"given: efficiency {efficiency:g} of that")
        step = work / (peak * efficiency)
        if step < SHORT:
            notes.append("time: a step is so short that starting its kernels, which is not counted, may take longer")
    elif layout.gpus > 1:
        return None, ["time: not known for several processes of this machine; name their GPU with --gpu"]
    elif efficiency is not None:
        assert target.hardware is not None
        peak = matmul_ceiling(target.hardware)
        step = work / (peak * efficiency)
        notes = [f"measured: {peak / 1e9:,.0f} GFLOP/s in a large matrix product", f"given: efficiency {efficiency:g}"]
    elif measure:
        assert target.hardware is not None
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        speed = measure_speed(module.config, recipe, target.hardware)
        peak, step = speed.ceiling, speed.step
        notes = [
            f"measured: {peak / 1e9:,.0f} GFLOP/s in a large matrix product; training steps of a network of "
            f"fewer layers, {speed.passes:.3g} s of passes and {speed.update:.3g} s of update for all layers"
        ]
        if load > BUSY:
            notes.append(f"time: the machine was busy with other work (load {load:.1f}); an idle one is faster")
    else:
        return None, []
    tokens = recipe.train.batch_size * recipe.train.sequence_length
    return {
        "seconds": step * recipe.train.steps,
        "step_seconds": step,
        "tokens_per_second": tokens / step,
        "efficiency": flops / step / peak,
        "peak_flops": peak,
    }, notes


def _cost(
    time: dict[str, float] | None, gpus: int, accelerator: Accelerator | None, price: float | None, pue: float
) -> dict[str, float | None] | None:
    """{"gpu_hours", "kwh", "dollars"}; None for what is not known."""
    if time is None:
        return None
    hours = time["seconds"] / HOUR * gpus
    kwh = hours * accelerator.watts / 1000 * pue if accelerator else None
    return {"gpu_hours": hours, "kwh": kwh, "dollars": None if price is None else hours * price}


def _memory_notes(target: Target, layout: Layout) -> list[str]:
    ranks = " of one process and of two" if layout.gpus > 1 else ""
    notes = [f"memory: what tensors hold, by formulas that were compared with runs{ranks} on a CPU (docs/scaling.md)"]
    if target.on_gpu:
        notes.append(f"assumed: the same formulas on a GPU, and that {GPU_USABLE:.0%} of its memory can hold tensors")
    else:
        notes.append(
            "memory: glibc keeps freed blocks, so that a process may grow to twice as much; "
            f"the plan counts on {CPU_USABLE:.0%} of this machine's"
        )
    if target.accelerator is not None:
        notes.append(f"assumed: {target.accelerator.watts:.0f} W a GPU throughout, the most that its board takes")
    return notes
