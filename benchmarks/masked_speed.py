"""Masked language modelling: training steps of bedplate's BERT against `transformers`' BERT, from the same weights.

Rows of text without padding first: 15% of their tokens are hidden, the same on both sides, dropout is 0, and a step is
forward, loss, backward, clipping to norm 1 and fused AdamW. bedplate computes the last layer's queries and MLP, the
transform and the head for hidden tokens alone, `transformers` for all. Then short texts, as most collections have them:
bedplate packs several into a row, where they do not see each other; both sides pad a batch to its longest text as well.
There only the texts' own tokens count.

    python benchmarks/masked_speed.py [--compile] [--precision fp32] [--threads 2] [--rounds 5] [--json FILE]

is 4 layers of 256 on 16 x 128 tokens with a vocabulary of 8,192. A BERT-base on a GPU:

    python benchmarks/masked_speed.py --device cuda --precision bf16 --layers 12 --hidden-size 768 --vocab-size 30522 \\
        --rows 64 --length 512 --steps 20 --compile

The script fails where the two sides differ in parameters or, by more than 1e-4, in their first fp32 losses. Where a
machine is busy with other work, measure `--threads 1 --clock cpu`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from side_by_side import DTYPES, Way, measure, parser, precisions, report
from torch import Tensor
from transformers import BertForMaskedLM

from bedplate.hub.directory import save_directory
from bedplate.models.bert import MaskedLM
from bedplate.models.gpt import GPTConfig
from bedplate.nn.heads import IGNORE
from bedplate.recipe.schema import OptimizerRecipe, TrainRecipe
from bedplate.train.hardware import Hardware
from bedplate.train.optim import finish_gradients, make_optimizers
from bedplate.train.parallel import wrap

OPTIMIZER = OptimizerRecipe(name="adamw", learning_rate=6e-4)
HEAD_DIM, RATE = 64, 0.15


@dataclass
class Work:
    """One step's rows `ids (B, N)`; the states `at (B, K)` foretell `targets (B, K)`; `tokens` are those of texts."""

    ids: Tensor
    at: Tensor
    targets: Tensor
    tokens: int
    options: dict[str, Tensor] = field(default_factory=dict)  # of `MaskedLM.loss`

    def to(self, device: torch.device) -> Work:
        options = {key: value.to(device) for key, value in self.options.items()}
        return Work(self.ids.to(device), self.at.to(device), self.targets.to(device), self.tokens, options)

    def labels(self) -> Tensor:
        """The targets where `transformers` wants them, `(B, N)`."""
        rows, length = self.ids.shape
        beside = torch.full((rows, length + 1), IGNORE, device=self.ids.device)  # one more, for no place
        places = torch.where(self.targets == IGNORE, length, self.at)
        return beside.scatter_(1, places, self.targets)[:, :-1].contiguous()


def our_model(args: argparse.Namespace) -> MaskedLM:
    config = GPTConfig.from_preset(
        "bert",
        vocab_size=args.vocab_size,
        max_position_embeddings=args.length,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // HEAD_DIM,
    )
    module = MaskedLM(config)
    module.init_weights(seed=0)
    return module


def their_model(args: argparse.Namespace) -> BertForMaskedLM:
    """The same weights in `transformers`, by way of a model directory."""
    with tempfile.TemporaryDirectory() as folder:
        save_directory(f"{folder}/model", our_model(args))
        return BertForMaskedLM.from_pretrained(f"{folder}/model", dtype=torch.float32).train()


def our_step(args: argparse.Namespace, compiled: bool, hardware: Hardware, work: Work) -> Callable[[], Tensor]:
    """A training step, which returns the mean loss before it."""
    module, work = our_model(args).to(hardware.device).train(), work.to(hardware.device)
    wrap(module, TrainRecipe(steps=1, compile=compiled))
    optimizers = make_optimizers(module, OPTIMIZER, hardware.dtype)
    parameters: list[Tensor] = list(module.parameters())

    def step() -> Tensor:
        with hardware.autocast():
            loss, count = module.loss(work.ids, work.at, work.targets, **work.options)
        loss.backward()
        finish_gradients(parameters, count, OPTIMIZER.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach() / count

    return step


def their_step(args: argparse.Namespace, compiled: bool, hardware: Hardware, work: Work) -> Callable[[], Tensor]:
    """The same of `transformers`, as its documentation trains."""
    module, work = their_model(args).to(hardware.device), work.to(hardware.device)
    called = torch.compile(module) if compiled else module
    betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=OPTIMIZER.learning_rate, betas=betas, fused=True)
    labels, valid = work.labels(), work.options.get("valid")
    mask = None if valid is None else valid.long()

    def step() -> Tensor:
        with hardware.autocast():
            loss = called(input_ids=work.ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def whole_rows(args: argparse.Namespace, generator: torch.Generator) -> Work:
    """Rows of text without an end."""
    ids = torch.randint(args.vocab_size, (args.rows, args.length), generator=generator)
    count = round(RATE * args.length)
    at = torch.stack([torch.randperm(args.length, generator=generator)[:count].sort()[0] for _ in range(args.rows)])
    return Work(ids, at, ids.gather(1, at), ids.numel())


def short_texts(args: argparse.Namespace, generator: torch.Generator) -> tuple[Work, Work]:
    """(texts of an eighth to a half of a row packed into the rows, the same texts padded to the longest)."""
    packed, padded = _Batch(args.rows, args.length), _Batch(0, args.length)
    row, used, number = 0, 0, 0
    while row < args.rows:
        length = int(torch.randint(args.length // 8, args.length // 2 + 1, (), generator=generator))
        if used + length > args.length:
            row, used, number = row + 1, 0, 0
            continue
        text = torch.randint(args.vocab_size, (length,), generator=generator)
        hidden = torch.randperm(length, generator=generator)[: max(1, round(RATE * length))].sort()[0]
        number += 1
        packed.put(row, used, text, hidden, number)
        padded.put(len(padded.targets), 0, text, hidden, 1)
        used += length
    return packed.work(is_packed=True), padded.work(is_packed=False)


class _Batch:
    """Rows into which texts are put; what is left of a row is a document of its own, of which nothing is asked."""

    def __init__(self, rows: int, length: int) -> None:
        self.length = length
        self.ids, self.doc, self.pos = (torch.zeros(0, length, dtype=torch.long) for _ in range(3))
        self.at: list[list[int]] = []
        self.targets: list[list[int]] = []
        self._grow(rows)

    def _grow(self, rows: int) -> None:
        more = rows - len(self.targets)
        self.ids, self.pos = (torch.nn.functional.pad(t, (0, 0, 0, more)) for t in (self.ids, self.pos))
        self.doc = torch.nn.functional.pad(self.doc, (0, 0, 0, more), value=-1)
        self.at += [[] for _ in range(more)]
        self.targets += [[] for _ in range(more)]

    def put(self, row: int, start: int, text: Tensor, hidden: Tensor, number: int) -> None:
        self._grow(max(row + 1, len(self.targets)))
        part = row, slice(start, start + len(text))
        self.ids[part], self.doc[part], self.pos[part] = text, number, torch.arange(len(text))
        self.at[row] += (hidden + start).tolist()
        self.targets[row] += text[hidden].tolist()

    def work(self, is_packed: bool) -> Work:
        places = max(map(len, self.at))
        at = torch.tensor([row + [0] * (places - len(row)) for row in self.at])
        targets = torch.tensor([row + [IGNORE] * (places - len(row)) for row in self.targets])
        is_text = self.doc > 0
        tokens, longest = int(is_text.sum()), int(is_text.sum(1).max())
        if is_packed:
            return Work(self.ids, at, targets, tokens, {"doc": self.doc, "pos": self.pos})
        return Work(self.ids[:, :longest], at, targets, tokens, {"valid": is_text[:, :longest]})


def check(args: argparse.Namespace, whole: Work, packed: Work, padded: Work) -> None:
    """Both sides are the same model with the same losses, or there is nothing to compare."""
    fp32 = Hardware(torch.device("cpu"), torch.float32, torch.get_num_threads(), "checked")
    sizes = [sum(p.numel() for p in make(args).parameters()) for make in (our_model, their_model)]
    ways = (our_step, whole), (their_step, whole), (our_step, padded), (their_step, padded), (our_step, packed)
    losses = [make(args, False, fp32, work)().item() for make, work in ways]
    print(f"parameters {sizes[0]:,} and {sizes[1]:,}; first fp32 losses {', '.join(f'{x:.6f}' for x in losses)}")
    alike = abs(losses[0] - losses[1]) < 1e-4 and max(losses[2:]) - min(losses[2:]) < 1e-4
    if sizes[0] != sizes[1] or not alike:
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
    options.add_argument("--compile", action="store_true", help="compiled rows as well; the CPU needs a C++ compiler")
    for name, value in {"layers": 4, "hidden-size": 256, "vocab-size": 8192, "rows": 16, "length": 128}.items():
        options.add_argument(f"--{name}", type=int, default=value)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    device, generator = torch.device(args.device), torch.Generator().manual_seed(0)
    whole, (packed, padded) = whole_rows(args, generator), short_texts(args, generator)
    check(args, whole, packed, padded)
    short = len(padded.ids), packed.tokens / packed.ids.numel(), padded.tokens / padded.ids.numel()
    print(f"{short[0]} short texts; packed rows hold {short[1]:.0%} text and padded ones {short[2]:.0%}")
    both = ("bedplate", our_step), ("transformers", their_step)
    for title, kinds in (
        ("rows of text", [(f"{name}", make, whole) for name, make in both]),
        ("short texts", [("bedplate packed", our_step, packed), *((f"{n} padded", m, padded) for n, m in both)]),
    ):
        ways = []
        for precision in precisions(args.precision):
            hardware = Hardware(device, DTYPES[precision], args.threads, "as asked")
            for compiled in (False, True) if args.compile else (False,):
                for name, make, work in kinds:
                    label = f"{name} {'compiled' if compiled else 'eager'}, {precision}"
                    step = running(make(args, compiled, hardware, work), args.steps)
                    ways.append(Way(label, args.steps * work.tokens, step, name.startswith("bedplate")))
        print(f"\n{title}")
        file = args.json and args.json.with_stem(f"{args.json.stem}-{title.replace(' ', '-')}")
        report(ways, measure(ways, args.rounds, args.clock), file)


if __name__ == "__main__":
    main()
