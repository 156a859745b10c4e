"""Generation on the CPU with 16-bit weights: bedplate against `transformers` (bf16) and llama.cpp (F16).

All hold the same random weights in the shape of a Llama (vocabulary 32,000, 12 layers of 768, MLP of 2,048, untied:
134,105,856 parameters, of which a token passes 109,529,856) and continue the same 79 tokens by 128, greedily.

    pip install -e ".[hub]" xllamacpp gguf
    python benchmarks/cpu_generation.py [--threads 2] [--rounds 5] [--json FILE]

Two speeds: of reading the prompt, its tokens by the time to the first new one; and of decoding, the new tokens but the
first by the time they take. bedplate and `transformers` are timed as their tokens come, llama.cpp by its own clock. The
ways take turns, each time in a process of its own after a run that does not count: an idle llama.cpp server takes a
third of the speed of what runs beside it. They must begin with the same token. Decoding costs one pass over 219 MB of
weights a token.

The llama.cpp of PyPI's wheel is built for AVX2; one built for the machine's own instructions reads prompts faster.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import torch
import xllamacpp
from side_by_side import Way, report
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from bedplate.hub.directory import save_directory
from bedplate.hub.model import load
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.sampling import generate
from bedplate.train.hardware import available_cores

VOCABULARY, CONTEXT = 32_000, 512
SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048}
OURS, THEIRS, LLAMA_CPP = "bedplate, bf16", "transformers, bf16", "llama.cpp, F16"
SPECIAL = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]  # what llama.cpp asks of a vocabulary


class Run(NamedTuple):
    prompt: float  # seconds to the first token
    rest: float  # seconds from there to the last
    tokens: list[int]


Generate = Callable[[list[int], int], Run]


class Clock(BaseStreamer):
    """When each token came; `transformers` puts the prompt first."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def put(self, value: Tensor) -> None:
        self.stamps.append(time.perf_counter())

    def end(self) -> None:
        pass


def bedplate(module: GPT) -> Generate:
    def run(prompt: list[int], new: int) -> Run:
        stamps = [time.perf_counter()]
        options = {"max_new_tokens": new, "temperature": 0}
        tokens = generate(module, [prompt], on_token=lambda *_: stamps.append(time.perf_counter()), **options)[0]
        return Run(stamps[1] - stamps[0], stamps[-1] - stamps[1], tokens)

    return run


def transformers(folder: Path) -> Generate:
    peer = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0

    def run(prompt: list[int], new: int) -> Run:
        ids, clock = torch.tensor([prompt]), Clock()
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "do_sample": False}
        start = time.perf_counter()
        out = peer.generate(ids, streamer=clock, **options)
        return Run(clock.stamps[1] - start, clock.stamps[-1] - clock.stamps[1], out[0, len(prompt) :].tolist())

    return run


def llama_cpp(file: Path, threads: int) -> Generate:
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = CONTEXT, 1, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def run(prompt: list[int], new: int) -> Run:
        options = {"max_tokens": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions({"prompt": prompt, **options})
        took = answer["timings"]
        assert (took["prompt_n"], took["predicted_n"]) == (len(prompt), new), took
        tokens = [int(word) + len(SPECIAL) for word in re.findall(r"w(\d+)", answer["choices"][0]["text"])]
        return Run(took["prompt_ms"] / 1000, took["predicted_ms"] / 1000, tokens)  # the latter from the first token on

    return run


def write_gguf(module: GPT, file: Path) -> None:
    """The module as llama.cpp reads it, its matrices in fp16; entry n + 259 of the vocabulary is called wn."""
    c = module.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.trunk.hidden_size)
    writer.add_block_count(c.trunk.num_hidden_layers)
    writer.add_feed_forward_length(c.trunk.intermediate_size)
    writer.add_head_count(c.trunk.num_attention_heads)
    writer.add_rope_dimension_count(c.trunk.head_dim)
    writer.add_layer_norm_rms_eps(c.trunk.norm_eps)
    writer.add_tokenizer_model("llama")
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    words = [f"w{number}" for number in range(c.vocab_size - len(SPECIAL))]
    writer.add_token_list(SPECIAL + words)
    writer.add_token_scores([0.0] * c.vocab_size)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * len(words))
    for name, tensor in module.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # it rotates neighbours, not halves
            tensor = tensor.unflatten(0, (c.trunk.num_attention_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        kind = torch.float16 if tensor.dim() > 1 else torch.float32
        writer.add_tensor(name_in_gguf(name), tensor.detach().to(kind).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def name_in_gguf(name: str) -> str:
    outside = {"embed": "token_embd", "trunk.norm": "output_norm", "head": "output"}
    inside = {"attn_norm": "attn_norm", "attn.o_proj": "attn_output", "mlp_norm": "ffn_norm"}
    inside |= {f"attn.{part}_proj": f"attn_{part}" for part in "qkv"}
    inside |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    name = name.removesuffix(".weight")
    if name not in outside:
        _, _, layer, part = name.split(".", 3)
        return f"blk.{layer}.{inside[part]}.weight"
    return f"{outside[name]}.weight"


def check_tokens(found: dict[str, list[int]]) -> None:
    """Say how far the ways agree; rounding parts them sooner or later."""
    for name, tokens in found.items():
        alike = [a == b for a, b in zip(tokens, found[OURS], strict=False)]
        if not alike[0]:
            raise SystemExit(f"{name} begins with another token: it is not the same model")
        print(f"{name}: the first {[*alike, False].index(False)} tokens are those of {OURS}")


def child(name: str, folder: Path, args: argparse.Namespace) -> None:
    """Run one way twice and print the second as JSON."""
    prompt = json.loads((folder / "prompt.json").read_text())
    if name == OURS:
        way = bedplate(load(folder / "model", dtype="bf16").module)
    elif name == THEIRS:
        way = transformers(folder / "model")
    else:
        way = llama_cpp(folder / "model.gguf", args.threads)
    way(prompt, args.new_tokens)
    print(json.dumps(way(prompt, args.new_tokens)), flush=True)
    os._exit(0)  # llama.cpp's server does not end by itself


def in_turn(name: str, folder: str) -> Run:
    """One run of a way in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name, folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return Run(*json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=available_cores())
    options.add_argument("--rounds", type=int, default=5, help="times that each way is measured, in turn")
    options.add_argument("--prompt-tokens", type=int, default=79)
    options.add_argument("--new-tokens", type=int, default=128)
    options.add_argument("--json", type=Path, metavar="FILE", help="write decoding's figures there, prompts' beside it")
    options.add_argument("--child", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args.child[0], Path(args.child[1]), args)
    config = GPTConfig.from_preset(
        "llama", vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, tie_word_embeddings=False, **SIZES
    )
    module, generator = GPT(config).eval(), torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    module = module.bfloat16()
    prompt = torch.randint(len(SPECIAL), VOCABULARY, (args.prompt_tokens,), generator=generator).tolist()
    ways = (OURS, THEIRS, LLAMA_CPP)
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        save_directory(f"{folder}/model", module)
        write_gguf(module, Path(folder, "model.gguf"))
        Path(folder, "prompt.json").write_text(json.dumps(prompt))
        for number in range(args.rounds):
            for name in ways:
                runs[name].append(in_turn(name, folder))
            print(f"  round {number + 1} of {args.rounds}", file=sys.stderr)
    check_tokens({name: of[0].tokens for name, of in runs.items()})
    reading = {name: [args.prompt_tokens / run.prompt for run in of] for name, of in runs.items()}
    decoding = {name: [(args.new_tokens - 1) / run.rest for run in of] for name, of in runs.items()}
    shown = [Way(name, 0, lambda: None, name == OURS) for name in ways]
    print("\nreading the prompt")
    report(shown, reading, args.json and args.json.with_stem(f"{args.json.stem}-prompt"))
    print("\ndecoding")
    report(shown, decoding, args.json)


if __name__ == "__main__":
    main()
