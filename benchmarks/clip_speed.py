"""CLIP: training steps of bedplate against `transformers`' CLIPModel, same weights, pictures and texts.

A training step is forward, the contrastive loss of all pairs of the batch both ways, backward, clipping to norm 1 and
fused AdamW. Neither side gets a mask of padding: behind a causal text tower's end token nothing is read, and without
one `transformers` takes the faster kernel, too. Of the last block of each tower, bedplate computes queries and MLP for
the one token that is projected; `transformers` computes them for all.

    python benchmarks/clip_speed.py [--threads 2] [--rounds 5] [--clock cpu] [--json FILE]

The shape is "small", towers of 256 for 64 pixels in patches of 8 and texts of 24 tokens, in batches of 32. On a GPU:

    python benchmarks/clip_speed.py --shapes base --device cuda --precision bf16 --compile --steps 10

"base" is ViT-B/32 with batches of 512 and texts of 77 tokens. bf16 is autocast over fp32 weights, on both sides. The
script fails where the two sides differ in parameters or, by more than 1e-4, in their fp32 logits. Read the ratios.
Where a machine is busy with other work, measure `--threads 1 --clock cpu`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from side_by_side import DTYPES, Way, measure, parser, precisions, report
from torch import Tensor, nn
from transformers import CLIPModel

from bedplate.hub.clip_directory import save_clip_directory
from bedplate.hub.processor import ImageProcessor
from bedplate.models.clip import Clip, ClipConfig
from bedplate.recipe.schema import OptimizerRecipe, TrainRecipe
from bedplate.train.hardware import Hardware
from bedplate.train.optim import finish_gradients, make_optimizers
from bedplate.train.parallel import wrap

OPTIMIZER = OptimizerRecipe(name="adamw", learning_rate=1e-4)
HEAD_DIM = 64


class Shape(NamedTuple):
    text: tuple[int, int]  # hidden size, layers
    vision: tuple[int, int]
    image_size: int
    patch_size: int
    length: int
    vocab_size: int
    projection_dim: int
    batch: int


SHAPES = {
    "small": Shape((256, 4), (256, 6), 64, 8, 24, 8192, 256, 32),
    "base": Shape((512, 12), (768, 12), 224, 32, 77, 49408, 512, 512),
}


def our_model(shape: Shape) -> Clip:
    towers: list[dict[str, Any]] = [
        {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": d // HEAD_DIM}
        for d, layers in (shape.text, shape.vision)
    ]
    config = ClipConfig.standard(
        *towers,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.length,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        projection_dim=shape.projection_dim,
        eos_token_id=shape.vocab_size - 1,
    )
    module = Clip(config)
    module.init_weights(seed=0)
    return module


def their_model(shape: Shape) -> nn.Module:
    """The same weights in `transformers`, by way of a model directory."""
    with tempfile.TemporaryDirectory() as folder:
        save_clip_directory(f"{folder}/model", our_model(shape), ImageProcessor((shape.image_size,) * 2))
        return CLIPModel.from_pretrained(f"{folder}/model", dtype=torch.float32)


MAKERS = {"bedplate": our_model, "transformers": their_model}


def batch_of(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels, and texts of a third of the context to all of it, ended and padded with the end token."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(shape.batch, 3, shape.image_size, shape.image_size, generator=generator)
    end = shape.vocab_size - 1
    ids = torch.randint(0, end, (shape.batch, shape.length), generator=generator)
    lengths = torch.randint(shape.length // 3, shape.length, (shape.batch, 1), generator=generator)
    ids[torch.arange(shape.length) >= lengths] = end
    return pixels.to(device), ids.to(device)


def logits_of(name: str, module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The module as a function from pixels and ids to logits, a row a picture."""
    if name == "bedplate":
        return module
    return lambda pixels, ids: module(input_ids=ids, pixel_values=pixels).logits_per_image


def training(name: str, shape: Shape, compiled: bool, hardware: Hardware) -> Callable[[], Tensor]:
    """A training step, which returns the loss before it: ours compiled block by block, as in training, a peer whole."""
    module = MAKERS[name](shape).to(hardware.device).train()
    pixels, ids = batch_of(shape, hardware.device)
    target = torch.arange(shape.batch, device=hardware.device)
    parameters = list(module.parameters())
    if name == "bedplate":
        wrap(module, TrainRecipe(steps=1, compile=compiled))
        optimizers = make_optimizers(module, OPTIMIZER, hardware.dtype)
        logits = logits_of(name, module)
    else:
        betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
        optimizers = [torch.optim.AdamW(parameters, lr=OPTIMIZER.learning_rate, betas=betas, fused=True)]
        logits = logits_of(name, torch.compile(module) if compiled else module)
    count = torch.tensor(1.0, device=hardware.device)

    def step() -> Tensor:
        with hardware.autocast():
            scores = logits(pixels, ids).float()
        loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
        loss.backward()
        if name == "bedplate":
            finish_gradients(parameters, count, OPTIMIZER.clip_norm)
        else:
            torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def check(shape: Shape) -> None:
    """Both sides are the same model, or there is nothing to compare."""
    models = {name: make(shape).eval() for name, make in MAKERS.items()}
    sizes = [sum(p.numel() for p in model.parameters()) for model in models.values()]
    pixels, ids = batch_of(shape._replace(batch=8), torch.device("cpu"))
    with torch.no_grad():
        ours, theirs = (logits_of(name, model)(pixels, ids) for name, model in models.items())
    worst = (ours - theirs).abs().max().item()
    print(f"parameters {sizes[0]:,} and {sizes[1]:,}; fp32 logits, of spread {ours.std():.2f}, differ by {worst:.1e}")
    if sizes[0] != sizes[1] or worst > 1e-4:
        raise SystemExit("the two sides are not the same model: the comparison would mean nothing")


def running(step: Callable[[], Tensor], steps: int) -> Callable[[], None]:
    """So many steps, the last one waited for."""

    def run() -> None:
        for _ in range(steps):
            last = step()
        last.item()

    return run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["small"])
    options.add_argument("--batch", type=int, help="pairs of a batch, instead of the shape's own number")
    options.add_argument("--steps", type=int, default=3, help="batches a round of each way")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--compile", action="store_true", help="compiled rows as well; the CPU needs a C++ compiler")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.shapes:
        shape = SHAPES[name]._replace(**({"batch": args.batch} if args.batch else {}))
        print(f"\n{name}: {shape}")
        check(shape)
        ways = _ways(args, shape)
        file = args.json and args.json.with_stem(f"{args.json.stem}-{name}")
        report(ways, measure(ways, args.rounds, args.clock), file, unit="pairs")


def _ways(args: argparse.Namespace, shape: Shape) -> list[Way]:
    ways = []
    for precision in precisions(args.precision):
        hardware = Hardware(torch.device(args.device), DTYPES[precision], args.threads, "as asked")
        for compiled in (False, True) if args.compile else (False,):
            for name in MAKERS:
                label = f"{name} {'compiled' if compiled else 'eager'}, {precision}"
                step = running(training(name, shape, compiled, hardware), args.steps)
                ways.append(Way(label, args.steps * shape.batch, step, name == "bedplate"))
    return ways


if __name__ == "__main__":
    main()
