"""Where a training step's time goes on the CPU: the operations of one recipe-sized step, by kind.

    python benchmarks/step_profile.py [--precision bf16] [--threads 2] [--optimizer muon] [--steps 5]

The network is that of `recipes/gpt-mini.yaml` (Qwen3 shape, 6 layers of 384, vocabulary 8,192), 8 x 256 tokens a step.
Shares are of the operations' own time as PyTorch's profiler counts it, which slows small operations down a little.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from bedplate.models.gpt import GPT, GPTConfig
from bedplate.recipe.schema import OptimizerRecipe
from bedplate.train.hardware import Hardware, available_cores
from bedplate.train.optim import finish_gradients, make_optimizers

ROWS, LENGTH, VOCABULARY = 8, 256, 8192
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "linear"}
KINDS = {
    "attention": ("attention",),
    "AdamW": ("fused_adamw",),
    "exp, sums, norms": ("exp", "sum", "amax", "norm", "log", "scatter", "gather", "rsqrt"),
    "copies and conversions": ("copy", "cat", "clone", "fill", "zero", "empty", "stack"),
}


def kind_of(operation: str) -> str:
    if operation in PRODUCTS:
        return "matrix products"
    return next((kind for kind, words in KINDS.items() if any(word in operation for word in words)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
    module = GPT(GPTConfig.from_preset("qwen3", vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **sizes))
    module.init_weights(seed=0)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    hardware = Hardware(torch.device("cpu"), dtype, args.threads, "as asked")
    optimizers = make_optimizers(module, OptimizerRecipe(name=args.optimizer), dtype)
    parameters: list[torch.Tensor] = list(module.parameters())
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with hardware.autocast():
            loss, count = module.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        finish_gradients(parameters, count, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    start = time.perf_counter()
    for _ in range(args.steps):
        step()
    seconds = (time.perf_counter() - start) / args.steps
    print(f"{args.precision}, {args.optimizer}, {args.threads} threads: {seconds * 1e3:.0f} ms a step, ", end="")
    print(f"{ROWS * LENGTH / seconds:,.0f} tokens/s")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(args.steps):
            step()
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            spent[kind_of(event.key.removeprefix("aten::"))] += event.self_cpu_time_total
    total = sum(spent.values())
    for kind, microseconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {microseconds / total:6.1%}  {microseconds / args.steps / 1e3:6.0f} ms  {kind}")


if __name__ == "__main__":
    main()
