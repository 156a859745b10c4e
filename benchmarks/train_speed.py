"""Training steps: bedplate against `transformers`, each eager and compiled, in fp32 and bf16 autocast.

One GPT-2 shape on both sides, from the same weights: 6 layers of 384, 6 heads, vocabulary 8,192 (tied), context 256, no
dropout, 13,891,584 parameters. A step is forward, loss, backward, clipping to norm 1 and fused AdamW on 8 x 256 tokens.
On a GPU:

    python benchmarks/train_speed.py --device cuda --precision bf16 --layers 12 --hidden-size 768 --vocab-size 50304 \\
        --rows 32 --length 1024 --steps 20

which also prints each way's share of the speed of a large matrix product and its peak memory.

bedplate steps as `bedplate.train.loop` does and is compiled as `train.compile=true` does; `transformers` computes its
own loss, without a cache, and is compiled whole. The script fails where the two sides differ in parameters or, by more
than 1e-4, in their first fp32 loss.

    python benchmarks/train_speed.py [--precision fp32] [--threads 2] [--steps 5] [--rounds 5] [--json FILE]

Read the ratios. The project's targets are 1.6 times `transformers compiled, fp32` and 1.05 times `transformers
compiled, bf16`, both for our best row. Compilation needs a C++ compiler, takes a minute or two, and is not counted.
Where a machine is busy with other work, measure `--threads 1 --clock cpu`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from side_by_side import DTYPES, Way, measure, parser, precisions, report
from torch import Tensor
from transformers import GPT2LMHeadModel

from bedplate.hub.directory import save_directory
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.nn.heads import IGNORE
from bedplate.recipe.schema import OptimizerRecipe, TrainRecipe
from bedplate.train.hardware import Hardware, matmul_ceiling
from bedplate.train.optim import finish_gradients, make_optimizers
from bedplate.train.parallel import wrap

OPTIMIZER = OptimizerRecipe(name="adamw", learning_rate=6e-4)
HEAD_DIM = 64


def our_model(args: argparse.Namespace) -> GPT:
    config = GPTConfig.from_preset(
        "gpt2",
        vocab_size=args.vocab_size,
        max_position_embeddings=args.length,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // HEAD_DIM,
    )
    module = GPT(config)
    module.init_weights(seed=0)
    return module


def their_model(args: argparse.Namespace) -> GPT2LMHeadModel:
    """The same weights in `transformers`, by way of a model directory."""
    with tempfile.TemporaryDirectory() as folder:
        save_directory(f"{folder}/model", our_model(args))
        return GPT2LMHeadModel.from_pretrained(f"{folder}/model", dtype=torch.float32).train()


def our_step(args: argparse.Namespace, compiled: bool, hardware: Hardware, ids: Tensor) -> Callable[[], Tensor]:
    """A training step on `ids`, which returns the mean loss before it."""
    module = our_model(args).to(hardware.device).train()
    wrap(module, TrainRecipe(steps=1, compile=compiled))
    optimizers = make_optimizers(module, OPTIMIZER, hardware.dtype)
    parameters: list[Tensor] = list(module.parameters())
    targets = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], IGNORE)), 1)

    def step() -> Tensor:
        with hardware.autocast():
            loss, count = module.loss(ids, targets)
        loss.backward()
        finish_gradients(parameters, count, OPTIMIZER.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach() / count

    return step


def their_step(args: argparse.Namespace, compiled: bool, hardware: Hardware, ids: Tensor) -> Callable[[], Tensor]:
    """The same of `transformers`, as its documentation trains."""
    module = their_model(args).to(hardware.device)
    called = torch.compile(module) if compiled else module
    betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=OPTIMIZER.learning_rate, betas=betas, fused=True)

    def step() -> Tensor:
        context: AbstractContextManager[object] = hardware.autocast()
        with context:
            loss = called(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def check(args: argparse.Namespace, ids: Tensor) -> None:
    """Both sides are the same model with the same loss, or there is nothing to compare."""
    fp32 = Hardware(torch.device("cpu"), torch.float32, torch.get_num_threads(), "checked")
    sizes = [sum(p.numel() for p in make(args).parameters()) for make in (our_model, their_model)]
    losses = [make(args, False, fp32, ids.cpu()[:2])().item() for make in (our_step, their_step)]
    print(f"parameters {sizes[0]:,} and {sizes[1]:,}; first fp32 loss {losses[0]:.6f} and {losses[1]:.6f}")
    if sizes[0] != sizes[1] or abs(losses[0] - losses[1]) > 1e-4:
        raise SystemExit("the two sides are not the same model: the comparison would mean nothing")


def running(step: Callable[[], Tensor], steps: int) -> Callable[[], None]:
    """So many steps, the last one waited for."""

    def run() -> None:
        for _ in range(steps):
            loss = step()
        loss.item()

    return run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=5, help="steps a round of each way")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for name, value in {"layers": 6, "hidden-size": 384, "vocab-size": 8192, "rows": 8, "length": 256}.items():
        options.add_argument(f"--{name}", type=int, default=value)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(args.vocab_size, (args.rows, args.length), generator=generator).to(device)
    check(args, ids)
    ways, memory = [], {}
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        print("compiled rows are left out: torch.compile needs a C++ compiler, and there is none")
    for precision in precisions(args.precision):
        hardware = Hardware(device, DTYPES[precision], args.threads, "as asked")
        for compiled in (False, True) if compiler else (False,):
            for name, make in (("bedplate", our_step), ("transformers", their_step)):
                before = torch.cuda.memory_allocated() if args.device == "cuda" else 0
                step = make(args, compiled, hardware, ids)
                label = f"{name} {'compiled' if compiled else 'eager'}, {precision}"
                if args.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    running(step, 3)()
                    memory[label] = torch.cuda.max_memory_allocated() - before
                ways.append(Way(label, args.steps * ids.numel(), running(step, args.steps), name == "bedplate"))
    speeds = measure(ways, args.rounds, args.clock)
    report(ways, speeds, args.json)
    flops = our_model(args).flops_per_token(args.length)
    for precision in precisions(args.precision):
        ceiling = matmul_ceiling(Hardware(device, DTYPES[precision], args.threads, "as asked"))
        print(f"\nshare of {ceiling / 1e12:.3g} TFLOP/s, a large product's, {precision}")
        for label in (label for label in speeds if label.endswith(precision)):
            gigabytes = f", peak {memory[label] / 1e9:.1f} GB" if memory else ""
            print(f"  {label:<34} {statistics.median(speeds[label]) * flops / ceiling:6.1%}{gigabytes}")


if __name__ == "__main__":
    main()
