"""What a decoded token costs on the CPU beside its matrix products: calls, operations and time.

    python benchmarks/decode_overhead.py [--families gpt2 llama qwen3] [--rows 1]

A bf16 model of 12 layers that is so narrow (48, 12 heads, MLP of 64, vocabulary 512) that its products cost next to
nothing; 79 tokens continued by 128 on one thread. The time is the thread's own, the fastest tenth of the tokens and the
best of seven runs, so that a busy machine disturbs it little. In a wide model each call costs a few times as much, as
the products empty the caches.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bedplate.models.decoder import Decoder
from bedplate.models.gpt import GPT, GPTConfig

PROMPT, NEW, RUNS = 79, 128, 7
SIZES = {"hidden_size": 48, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 64}


def started(module: GPT, ids: Tensor) -> Decoder:
    cache = module.trunk.make_cache(*ids.shape)
    module.hidden(ids, cache=cache)
    decoder = Decoder(module, len(ids), PROMPT + NEW)
    decoder.start(cache, None)
    return decoder


def seconds_a_token(decoder: Decoder, token: Tensor) -> float:
    took = []
    for _ in range(NEW):
        start = time.thread_time()
        decoder.step(token).argmax(-1)
        took.append(time.thread_time() - start)
    return sorted(took)[NEW // 10]


def count(decoder: Decoder, token: Tensor) -> tuple[int, int]:
    """Calls from Python, and operations in all, of a step."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        decoder.step(token)
    operations = [event for event in record.events() if event.name.startswith("aten::")]
    calls = [op for op in operations if op.cpu_parent is None or not op.cpu_parent.name.startswith("aten::")]
    return len(calls), len(operations)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--families", nargs="+", default=["gpt2", "llama", "qwen3"])
    options.add_argument("--rows", type=int, default=1)
    args = options.parse_args()
    torch.set_num_threads(1)
    print("family  calls  operations  us a token")
    for family in args.families:
        config = GPTConfig.from_preset(family, vocab_size=512, max_position_embeddings=512, **SIZES)
        module = GPT(config).eval().bfloat16()
        ids, token = torch.zeros(args.rows, PROMPT, dtype=torch.long), torch.zeros(args.rows, 1, dtype=torch.long)
        with torch.inference_mode():
            best = min(seconds_a_token(started(module, ids), token) for _ in range(RUNS))
            calls, operations = count(started(module, ids), token)
        print(f"{family:6}  {calls:5}  {operations:10}  {best * 1e6:10.0f}")


if __name__ == "__main__":
    main()
