"""Generation on the CPU with 16-bit weights: bedplate against `transformers` (bf16) and llama.cpp (F16).

All hold the same random weights in the shape of a Llama (vocabulary 32,000, 12 layers of 768, MLP 2,048, tied:
109,529,856 parameters) and continue the same 79 tokens by 128, greedily, one prompt at a time.

    pip install xllamacpp gguf
    python benchmarks/cpu_generation.py [--threads 2] [--rounds 5] [--json FILE]

Two speeds each: of the prompt, its tokens by the time to the first new token, and of decoding, the tokens after the
first by the time that they take. llama.cpp reports its own, the others are timed as tokens arrive. All ways must begin
with the same token. A decoded token costs one pass over 219 MB of weights, so memory bounds decoding.

The llama.cpp of the PyPI wheel is built for AVX2 and F16C; a build for the machine's own instructions reads prompts
faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import torch
import xllamacpp
from side_by_side import processor
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from bedplate.hub.directory import save_directory
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.sampling import generate
from bedplate.train.hardware import available_cores

VOCABULARY, CONTEXT, OURS = 32_000, 512, "bedplate bf16"
SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048}


class Run(NamedTuple):
    first_token: float  # seconds
    others: float  # seconds
    tokens: list[int]


Way = Callable[[list[int], int], Run]


class Clock(BaseStreamer):
    """When each token came; `transformers` puts the prompt first."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def put(self, value: Tensor) -> None:
        self.stamps.append(time.perf_counter())

    def end(self) -> None:
        pass


def ours(module: GPT) -> Way:
    def run(prompt: list[int], new: int) -> Run:
        stamps: list[float] = []
        start = time.perf_counter()
        tokens = generate(
            module,
            [prompt],
            max_new_tokens=new,
            temperature=0,
            on_token=lambda *_: stamps.append(time.perf_counter()),
        )[0]
        return Run(stamps[0] - start, stamps[-1] - stamps[0], tokens)

    return run


def transformers(folder: Path) -> Way:
    peer = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0

    def run(prompt: list[int], new: int) -> Run:
        ids, clock = torch.tensor([prompt]), Clock()
        start = time.perf_counter()
        with torch.inference_mode():
            out = peer.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, streamer=clock
            )
        first, last = clock.stamps[1], clock.stamps[-1]
        return Run(first - start, last - first, out[0, len(prompt) :].tolist())

    return run


def llama_cpp(module: GPT, folder: Path, threads: int) -> Way:
    write_gguf(module, folder / "model.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "model.gguf")
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = CONTEXT, 1, 0, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def run(prompt: list[int], new: int) -> Run:
        answer = server.handle_completions(
            {
                "prompt": prompt,
                "max_tokens": new,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
                "return_tokens": True,
            }
        )
        print(answer)
        timings = answer["timings"]
        return Run(timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3, answer["tokens"])

    return run


def write_gguf(module: GPT, file: Path) -> None:
    """The module as llama.cpp reads it, matrices in fp16; its vocabulary has names that mean nothing."""
    c = module.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.trunk.hidden_size)
    writer.add_block_count(c.trunk.num_hidden_layers)
    writer.add_feed_forward_length(c.trunk.intermediate_size)
    writer.add_head_count(c.trunk.num_attention_heads)
    writer.add_head_count_kv(c.trunk.num_key_value_heads)
    writer.add_rope_dimension_count(c.trunk.head_dim)
    writer.add_rope_freq_base(c.trunk.rope.rope_theta)
    writer.add_layer_norm_rms_eps(c.trunk.norm_eps)
    writer.add_vocab_size(c.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    special = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"w{number}" for number in range(c.vocab_size - len(special) - len(letters))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *letters, *words])
    writer.add_token_scores([0.0] * c.vocab_size)
    kinds = [*special, *[gguf.TokenType.BYTE] * len(letters), *[gguf.TokenType.NORMAL] * len(words)]
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    heads = c.trunk.num_attention_heads
    names = {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm", "attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}
    names |= {f"attn.{part}_proj": f"attn_{part}" for part in "qkv"}
    names |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up")}
    outside = {"embed.weight": "token_embd.weight", "trunk.norm.weight": "output_norm.weight"}
    for name, tensor in module.named_parameters():
        if name in outside:
            name = outside[name]
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            name = f"blk.{layer}.{names[part]}.weight"
            if part in ("attn.q_proj", "attn.k_proj"):  # llama.cpp rotates neighbours, not halves
                tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(name, tensor.detach().to(torch.float16 if tensor.dim() > 1 else torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=available_cores())
    options.add_argument("--rounds", type=int, default=5, help="times that each way is measured, in turn")
    options.add_argument("--prompt-tokens", type=int, default=79)
    options.add_argument("--new-tokens", type=int, default=128)
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    config = GPTConfig.from_preset("llama", vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, **SIZES)
    module = GPT(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    module = module.bfloat16()
    prompt = torch.randint(3, VOCABULARY, (args.prompt_tokens,), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as folder:
        save_directory(f"{folder}/model", module)
        ways = {
            OURS: ours(module),
            "transformers bf16": transformers(Path(folder, "model")),
            "llama.cpp F16": llama_cpp(module, Path(folder), args.threads),
        }
        runs = {name: [way(prompt, args.new_tokens)] for name, way in ways.items()}  # warm-up, for the tokens alone
        compare_tokens({name: found[0].tokens for name, found in runs.items()})
        runs = {name: [] for name in ways}
        for number in range(args.rounds):
            for name, way in ways.items():
                runs[name].append(way(prompt, args.new_tokens))
            print(f"  round {number + 1} of {args.rounds}", file=sys.stderr)
    report(runs, args)


def compare_tokens(tokens: dict[str, list[int]]) -> None:
    for name, row in tokens.items():
        alike = [a == b for a, b in zip(row, tokens[OURS], strict=True)]
        print(f"{name}: {len(row)} tokens, the first {(alike + [False]).index(False)} as of {OURS}")
        if not alike[0]:
            raise SystemExit(f"{name} begins otherwise: it is not the same model")


if __name__ == "__main__":
    main()
