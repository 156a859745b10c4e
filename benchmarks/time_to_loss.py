"""Time to loss: bedplate's default recipe against transformers' GPT-2 with AdamW and a cosine schedule.

    python benchmarks/time_to_loss.py --data TEXT [--minutes 15] [--share 0.45] [--threads 2]

On a GPU, on books with a held-out file of their own:

    python benchmarks/time_to_loss.py --data train.tar.xz --val-data val.tar.xz --device cuda --compile --length 1024 \\
        --batch-size 32 --hidden-size 512 --layers 8 --heads 8 --vocab-size 16384 --minutes 1 --share 0.33 \\
        --ours train.batch_size=32 --ours model.dropout=0.1

Both see the same text, the same byte-level BPE, the same rows of tokens, and are judged by the same function on the
same held-out rows, in the same precision, one after the other in one run. The peer has the same hidden size, depth and
heads (its MLP of 4 D has about as many weights as ours of 8/3 D gated). Its learning rate is tuned over three values,
each given the full time; its number of steps is set from its own measured speed, so that its cosine ends with its time.
Ours is then trained once with `recipes/gpt-mini.yaml` as it stands but for the sizes and the number of steps, which is
set from its measured speed so that it ends after `--share` of the peer's time. Only training time counts on both sides;
evaluation does not. The ratio printed at the end is our time over the peer's at a loss at least as low.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from bedplate.api.pretrain import pretrain
from bedplate.api.tokenizer import tokenizer as train_tokenizer
from bedplate.data.loader import EvalLoader, TextLoader
from bedplate.data.text import prepare
from bedplate.data.tokenizer import load_tokenizer
from bedplate.recipe import read_recipe
from bedplate.recipe.schema import TrainRecipe
from bedplate.tasks.language import Language
from bedplate.train.hardware import choose_hardware
from bedplate.train.log import read_rows

RECIPE = Path(__file__).parents[1] / "recipes" / "gpt-mini.yaml"
WARMUP = 0.05


class PeerLanguage(Language):
    """The peer, measured by the very function that measures ours."""

    def __init__(self, peer: torch.nn.Module, tokenizer: Any) -> None:
        self.peer = peer
        super().__init__(_HiddenOf(peer), tokenizer)  # type: ignore[arg-type]


class _HiddenOf(torch.nn.Module):
    """transformers' GPT-2 behind the names that `Language.evaluate` uses."""

    def __init__(self, peer: Any) -> None:
        super().__init__()
        self.peer, self.head, self.config = peer, peer.lm_head, peer.config
        self.embed = peer.transformer.wte

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        return self.peer.transformer(ids).last_hidden_state


def train_peer(args: argparse.Namespace, text: Any, tokenizer: Any, rate: float, hardware: Any) -> dict[str, float]:
    """One run of the peer: GPT-2, fused AdamW (0.9, 0.95), weight decay 0.1, clipping at 1, cosine to a tenth."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=args.length,
        n_embd=args.hidden_size,
        n_layer=args.layers,
        n_head=args.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = transformers.GPT2LMHeadModel(config).to(hardware.device).train()
    called = torch.compile(model) if args.compile else model
    parameters = sum(p.numel() for p in model.parameters())
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    loader = TextLoader([text.train], None, args.length, args.batch_size, 0, False)

    def step(number: int) -> None:
        ids = {key: value.to(hardware.device, non_blocking=True) for key, value in loader.batch(number).items()}
        with hardware.autocast():
            logits = called(ids["ids"]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids["targets"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    start_state = {name: p.detach().clone() for name, p in model.named_parameters()}
    for number in range(3):  # compilation is among them
        step(number)
    wait(hardware)
    began = time.perf_counter()
    for number in range(5):
        step(number)
    wait(hardware)
    steps = int(60 * args.minutes / ((time.perf_counter() - began) / 5))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start_state[name])
    optimizer.state.clear()

    warmup = max(1, int(WARMUP * steps))
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup, eta_min=rate / 10),
        ],
        [warmup],
    )
    began = time.perf_counter()
    for number in range(steps):
        step(number)
        scheduler.step()
    wait(hardware)
    seconds = time.perf_counter() - began
    model.eval()
    value = evaluate(PeerLanguage(model, tokenizer), text, args, hardware)
    tokens = steps * args.batch_size * args.length
    print(f"peer  lr {rate:<7g} {value:.4f} bits/byte  {seconds:6.0f} s  {tokens / seconds:,.0f} tokens/s", flush=True)
    return {
        "learning_rate": rate,
        "bits_per_byte": value,
        "seconds": seconds,
        "steps": steps,
        "tokens": tokens,
        "parameters": parameters,
    }


def wait(hardware: Any) -> None:
    if hardware.device.type == "cuda":
        torch.cuda.synchronize()


def evaluate(task: Language, text: Any, args: argparse.Namespace, hardware: Any) -> float:
    with hardware.autocast(), torch.no_grad():
        return task.evaluate(EvalLoader(text.val, args.length, 8, args.eval_batches))["bits_per_byte"]["value"]


def train_ours(args: argparse.Namespace, folder: Path, seconds: float) -> dict[str, float]:
    """bedplate's recipe, its number of steps set to last `seconds`."""
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    batch_size = read_recipe(recipe, [f"out={folder}", "data.path=text", *args.ours]).train.batch_size

    def run(name: str, steps: int) -> dict[str, float]:
        overrides = [
            f"out={folder / name}",
            f"data.path={args.data}",
            f"data.column={args.column}",
            f"data.cache={folder / 'cache'}",
            f"tokenizer.path={folder / 'tokenizer'}",
            f"model.hidden_size={args.hidden_size}",
            f"model.num_hidden_layers={args.layers}",
            f"model.num_attention_heads={args.heads}",
            f"train.sequence_length={args.length}",
            f"train.device={args.device}",
            f"train.compile={str(args.compile).lower()}",
            f"train.steps={steps}",
            f"train.precision={args.precision}",
            f"train.threads={args.threads}",
            "evaluate.every=1000000",
            f"evaluate.batches={max(1, args.eval_batches * 8 // batch_size)}",
            "evaluate.sample_tokens=0",
            "checkpoint.every=1000000",
            *([f"data.val_path={args.val_data}"] if args.val_data else []),
            *args.ours,
        ]
        result = pretrain(recipe, *overrides)
        rows = [row for row in read_rows(folder / name / "metrics.jsonl") if "seconds" in row]
        took = sum(row["seconds"] for row in rows)
        if args.compile:  # which is in the first row
            took = sum(row["seconds"] for row in rows[1:]) * steps / (steps - rows[0]["step"])
        return {
            "bits_per_byte": result["metrics"]["bits_per_byte"]["value"],
            "seconds": took,
            "steps": steps,
            "tokens": steps * batch_size * args.length,
            "parameters": result["parameters"],
        }

    short = run("speed", 12)
    ours = run("ours", max(20, int(seconds / (short["seconds"] / short["steps"]))))
    rate = ours["tokens"] / ours["seconds"]
    print(f"ours             {ours['bits_per_byte']:.4f} bits/byte  {ours['seconds']:6.0f} s  {rate:,.0f} tokens/s")
    return ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="text: a file, folder, glob or archive")
    parser.add_argument("--column", default="text")
    parser.add_argument("--val-data", help="held-out text of its own")
    parser.add_argument("--length", type=int, default=256, help="tokens a row")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile both sides; not counted")
    parser.add_argument("--ours", action="append", default=[], metavar="KEY=VALUE", help="changes to our recipe")
    parser.add_argument("--minutes", type=float, default=15, help="training time of each of the peer's runs")
    parser.add_argument("--share", type=float, default=0.45, help="our training time as a share of the peer's")
    parser.add_argument("--rates", default="5e-4,1e-3,2e-3", help="the peer's learning rates")
    parser.add_argument("--batch-size", type=int, default=8, help="the peer's rows a step")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--eval-batches", type=int, default=32, help="held-out batches of 8 rows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    hardware = choose_hardware(TrainRecipe(steps=1, threads=args.threads, precision=args.precision, device=args.device))
    print(f"{hardware}; torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train_tokenizer(args.data, folder / "tokenizer", vocab_size=args.vocab_size, column=args.column)
        tokenizer = load_tokenizer(folder / "tokenizer")
        text = prepare(
            args.data, tokenizer, column=args.column, val_path=args.val_data, cache_dir=folder / "cache" / "text"
        )
        peers = [train_peer(args, text, tokenizer, float(rate), hardware) for rate in args.rates.split(",")]
        best = min(peers, key=lambda peer: peer["bits_per_byte"])
        ours = train_ours(args, folder, args.share * best["seconds"])
    ratio = ours["seconds"] / best["seconds"]
    verdict = "reached" if ours["bits_per_byte"] <= best["bits_per_byte"] else "NOT reached"
    print(f"peer's best: {best['bits_per_byte']:.4f} bits/byte after {best['seconds']:.0f} s")
    print(f"ours: {ours['bits_per_byte']:.4f} after {ours['seconds']:.0f} s, {verdict} in {ratio:.0%} of its time")
    if args.json:
        Path(args.json).write_text(json.dumps({"peers": peers, "ours": ours, "ratio": ratio}, indent=2), "utf-8")


if __name__ == "__main__":
    main()
