"""Vision transformers: training steps and predictions of bedplate against a peer's, same weights and images.

The peer is `transformers`' ViT with its own attention (SDPA), or timm's (`--peer timm`). A training step is forward,
loss, backward, clipping to norm 1 and fused AdamW, which is also what the Trainer of `transformers` does; a prediction
is the logits of a batch in evaluation mode, without gradients. Of the last block, bedplate computes queries and MLP for
the class token alone, the one that the score reads; the peers compute them for all tokens.

    python benchmarks/vision_speed.py [--shapes tiny small-image] [--compile] [--threads 2] [--rounds 5] [--json FILE]

Shapes are ViT-Ti/16 at 224 with batches of 16 ("tiny"), 6 layers of 192 on 64 images of 32 pixels in patches of 4
("small-image"), and ViT-S/16 at 224 with batches of 256 ("small"), which is for a GPU:

    python benchmarks/vision_speed.py --shapes small --device cuda --precision bf16 --compile --steps 10 --peer timm

bf16 is autocast over fp32 weights, on both sides. The script fails where the two sides differ in parameters or, by more
than 1e-4, in their fp32 logits. Read the ratios. "products alone" is how many images a second there would be if all
FLOPs of the peer's model were those of a large matrix product and nothing else took time: on the same hardware, in the
same precision, nobody can gain much more than the peer's distance to it, except by leaving work out. Where a machine is
busy with other work, measure `--threads 1 --clock cpu`.
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
from transformers import ViTForImageClassification

from bedplate.hub.processor import ImageProcessor
from bedplate.hub.vision_directory import save_vision_directory
from bedplate.models.vit import VisionConfig, ViT
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS
from bedplate.recipe.schema import OptimizerRecipe, TrainRecipe
from bedplate.train.hardware import Hardware
from bedplate.train.optim import finish_gradients, make_optimizers
from bedplate.train.parallel import wrap

OPTIMIZER = OptimizerRecipe(name="adamw", learning_rate=1e-4)
HEAD_DIM, SIDE = 64, 1024


class Shape(NamedTuple):
    hidden_size: int
    layers: int
    image_size: int
    patch_size: int
    batch: int
    labels: int


SHAPES = {
    "tiny": Shape(192, 12, 224, 16, 16, 1000),
    "small-image": Shape(192, 6, 32, 4, 64, 10),
    "small": Shape(384, 12, 224, 16, 256, 1000),
}


def our_model(shape: Shape) -> ViT:
    heads, inner = shape.hidden_size // HEAD_DIM, 4 * shape.hidden_size
    trunk = TrunkConfig(shape.hidden_size, shape.layers, heads, heads, HEAD_DIM, inner, **PRESETS["vit"])
    module = ViT(VisionConfig((shape.image_size,) * 2, shape.patch_size, trunk), [str(i) for i in range(shape.labels)])
    module.init_weights(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # fresh blocks add nothing, and fresh scores are zero: equal logits would prove nothing
        for name, weight in module.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "score.weight")):
                weight.normal_(std=0.05, generator=generator)
    return module


def transformers_model(shape: Shape) -> nn.Module:
    """The same weights in `transformers`, by way of a model directory."""
    with tempfile.TemporaryDirectory() as folder:
        module = our_model(shape)
        save_vision_directory(f"{folder}/model", module, ImageProcessor(module.config.image_size))
        return ViTForImageClassification.from_pretrained(f"{folder}/model", dtype=torch.float32)


def timm_model(shape: Shape) -> nn.Module:
    """The same weights in timm's model of that shape."""
    import timm

    module = our_model(shape)
    trunk = module.config.trunk
    model = timm.create_model(
        "vit_small_patch16_224",
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        embed_dim=shape.hidden_size,
        depth=shape.layers,
        num_heads=trunk.num_attention_heads,
        num_classes=shape.labels,
    )
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = trunk.norm_eps
    ours = module.state_dict()
    names = {"attn_norm": "norm1", "mlp_norm": "norm2", "attn.o_proj": "attn.proj"}
    names |= {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    theirs = {"cls_token": ours["cls_token"], "pos_embed": ours["positions"]}
    for kind in ("weight", "bias"):
        theirs[f"patch_embed.proj.{kind}"] = ours[f"embed.projection.{kind}"]
        theirs[f"norm.{kind}"], theirs[f"head.{kind}"] = ours[f"trunk.norm.{kind}"], ours[f"score.{kind}"]
        for i in range(shape.layers):
            block = f"trunk.blocks.{i}."
            joined = torch.cat([ours[f"{block}attn.{part}_proj.{kind}"] for part in "qkv"])
            theirs[f"blocks.{i}.attn.qkv.{kind}"] = joined
            theirs |= {f"blocks.{i}.{their}.{kind}": ours[f"{block}{own}.{kind}"] for own, their in names.items()}
    model.load_state_dict(theirs)
    return model


MAKERS = {"bedplate": our_model, "transformers": transformers_model, "timm": timm_model}


def logits_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module as a function from pixels to logits."""

    def logits(pixels: Tensor) -> Tensor:
        out: Any = module(pixels)
        return out if isinstance(out, Tensor) else out.logits

    return logits


def ready(name: str, shape: Shape, compiled: bool, hardware: Hardware) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A side's model on the device, and its logits: ours compiled block by block, as in training, a peer whole."""
    module = MAKERS[name](shape).to(hardware.device)
    if name == "bedplate":
        wrap(module, TrainRecipe(steps=1, compile=compiled))
        return module, logits_of(module)
    return module, logits_of(torch.compile(module) if compiled else module)


def training(name: str, shape: Shape, compiled: bool, hardware: Hardware, pixels: Tensor) -> Callable[[], Tensor]:
    """A training step, which returns the mean loss before it."""
    module, logits = ready(name, shape, compiled, hardware)
    module.train()
    labels = torch.arange(len(pixels), device=pixels.device) % shape.labels
    parameters: list[Tensor] = list(module.parameters())
    if name == "bedplate":
        optimizers = make_optimizers(module, OPTIMIZER, hardware.dtype)
    else:
        betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
        optimizers = [torch.optim.AdamW(parameters, lr=OPTIMIZER.learning_rate, betas=betas, fused=True)]
    count = torch.tensor(float(len(pixels)), device=pixels.device)

    def step() -> Tensor:
        with hardware.autocast():
            scores = logits(pixels)
        if name == "bedplate":
            loss = F.cross_entropy(scores.float(), labels, reduction="sum")
            loss.backward()
            finish_gradients(parameters, count, OPTIMIZER.clip_norm)
            loss = loss.detach() / count
        else:
            loss = F.cross_entropy(scores.float(), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def predicting(name: str, shape: Shape, compiled: bool, hardware: Hardware, pixels: Tensor) -> Callable[[], Tensor]:
    """The logits of a batch; returns one of them, which can be waited for."""
    module, logits = ready(name, shape, compiled, hardware)
    module.eval()

    @torch.no_grad()
    def predict() -> Tensor:
        with hardware.autocast():
            return logits(pixels)[0, 0]

    return predict


def check(peer: str, shape: Shape, pixels: Tensor) -> None:
    """Both sides are the same model, or there is nothing to compare."""
    models = [MAKERS[name](shape).eval() for name in ("bedplate", peer)]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    with torch.no_grad():
        ours, theirs = (logits_of(model)(pixels.cpu()[:4]) for model in models)
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


def products(shape: Shape, work: str, precision: str, steps: int, device: torch.device) -> Way:
    """As many FLOPs as the peer's products have, in large square ones: in this precision nobody is much faster."""
    flops = our_model(shape).flops_per_image() / (1 if work == "training" else 3)
    a = torch.randn(SIDE, SIDE, device=device, dtype=DTYPES[precision])
    repeats = max(1, round(flops * shape.batch * steps / (2 * SIDE**3)))
    images = round(repeats * 2 * SIDE**3 / flops)
    return Way(f"products alone, {precision}", images, running(lambda: (a @ a)[0, 0], repeats), False)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["tiny", "small-image"])
    options.add_argument("--work", nargs="+", choices=["training", "prediction"], default=["training", "prediction"])
    options.add_argument("--peer", choices=["transformers", "timm"], default="transformers")
    options.add_argument("--batch", type=int, help="images of a batch, instead of the shape's own number")
    options.add_argument("--steps", type=int, default=3, help="batches a round of each way")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--compile", action="store_true", help="compiled rows as well; the CPU needs a C++ compiler")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    for shape_name in args.shapes:
        shape = SHAPES[shape_name]._replace(**({"batch": args.batch} if args.batch else {}))
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(shape.batch, 3, shape.image_size, shape.image_size, generator=generator).to(device)
        print(f"\n{shape_name}: {shape}")
        check(args.peer, shape, pixels)
        for work in args.work:
            print(f"\n{shape_name}, {work}")
            ways = _ways(args, shape, work, pixels)
            file = args.json and args.json.with_stem(f"{args.json.stem}-{shape_name}-{work}")
            report(ways, measure(ways, args.rounds, args.clock), file, unit="images")


def _ways(args: argparse.Namespace, shape: Shape, work: str, pixels: Tensor) -> list[Way]:
    make = {"training": training, "prediction": predicting}[work]
    ways = []
    for precision in precisions(args.precision):
        hardware = Hardware(pixels.device, DTYPES[precision], args.threads, "as asked")
        for compiled in (False, True) if args.compile else (False,):
            for name in ("bedplate", args.peer):
                label = f"{name} {'compiled' if compiled else 'eager'}, {precision}"
                step = make(name, shape, compiled, hardware, pixels)
                ways.append(Way(label, args.steps * len(pixels), running(step, args.steps), name == "bedplate"))
        ways.append(products(shape, work, precision, args.steps, pixels.device))
    return ways


if __name__ == "__main__":
    main()
