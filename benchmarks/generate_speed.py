"""Generation with GPT-2 124M: bedplate against `transformers`.

Both hold the same random weights (vocabulary 50,257, 12 layers of 768) and continue the same 32 tokens by 128 greedily,
with a key-value cache and no end-of-text stop. `transformers` is measured with its default cache and with its static
one, neither compiled. In fp32 all ways must give the same tokens, or the script fails.

    python benchmarks/generate_speed.py [--precision fp32] [--threads 2] [--rounds 5] [--json FILE]
    python benchmarks/generate_speed.py --device cuda --precision bf16 [--batch 32]

Read the ratios first. Tokens a second count the new tokens of all rows; reading the prompts is within their time. At
batch 1 a token costs one pass over the weights (498 MB in fp32, half of that in bf16), so memory bandwidth bounds all
ways alike, and what differs is the rest. Where a machine is busy with other work, measure `--threads 1 --clock cpu`.
On CUDA bedplate captures its graph in the warm-up, and keeps it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from side_by_side import DTYPES, Way, measure, parser, precisions, report
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from bedplate.hub.directory import save_directory
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.sampling import generate

SHAPE = {"vocab_size": 50_257, "max_position_embeddings": 1024}
SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}


def peer_of(module: GPT) -> GPT2LMHeadModel:
    """`transformers`' model with the same weights, by way of a model directory."""
    with tempfile.TemporaryDirectory() as folder:
        save_directory(f"{folder}/model", module)
        peer = GPT2LMHeadModel.from_pretrained(f"{folder}/model", dtype=torch.float32).eval()
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0
    return peer


def peer_generate(peer: nn.Module, prompts: Tensor, new: int, **options: str) -> list[list[int]]:
    mask = torch.ones_like(prompts)
    out = peer.generate(prompts, attention_mask=mask, max_new_tokens=new, do_sample=False, **options)
    return out[:, prompts.shape[1] :].tolist()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--batch", type=int, default=1, help="prompts at once")
    options.add_argument("--prompt-tokens", type=int, default=32)
    options.add_argument("--new-tokens", type=int, default=128)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    module = GPT(GPTConfig.from_preset("gpt2", **SHAPE, **SIZES)).eval()
    module.init_weights(seed=0)
    peer = peer_of(module)
    shape, new = (args.batch, args.prompt_tokens), args.new_tokens
    prompts = torch.randint(SHAPE["vocab_size"], shape, generator=torch.Generator().manual_seed(0))
    ways = []
    if args.device == "cuda":
        print(torch.cuda.get_device_name())
        asked_for = list(DTYPES) if args.precision == "auto" else [args.precision]
    else:
        asked_for = precisions(args.precision)
    for precision in asked_for:
        ours, theirs = (deepcopy(each).to(args.device, DTYPES[precision]) for each in (module, peer))
        asked = partial(peer_generate, theirs, prompts.to(args.device), new)
        runs: dict[str, Callable[[], list[list[int]]]] = {
            "bedplate": lambda ours=ours: generate(ours, prompts.tolist(), max_new_tokens=new, temperature=0),
            "transformers": asked,
            "transformers, static cache": partial(asked, cache_implementation="static"),
        }
        ways += [Way(f"{name}, {precision}", args.batch * new, run, name == "bedplate") for name, run in runs.items()]
        tokens = {name: run() for name, run in runs.items()}
        same = all(rows == tokens["bedplate"] for rows in tokens.values())
        print(f"{precision}: the {new} tokens of all ways are {'the same' if same else 'NOT the same'}")
        if not same and precision == "fp32":
            raise SystemExit("generation differs in fp32: the comparison would mean nothing")
    report(ways, measure(ways, args.rounds, args.clock), args.json)


if __name__ == "__main__":
    main()
