"""GPUs by name: what their datasheets say, and what share of it training was seen to reach."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from bedplate.errors import InputError

TERA, GB = 1e12, 1e9


@dataclass(frozen=True)
class Accelerator:
    """One GPU. `flops` are bf16 products with fp32 sums a second, without sparsity; all as its datasheet says."""

    name: str
    memory: float  # bytes
    flops: float
    watts: float  # of the board, at most
    source: str


ACCELERATORS = {
    "b200": Accelerator("NVIDIA B200", 180 * GB, 2250 * TERA, 1000, "NVIDIA Blackwell datasheet (HGX B200)"),
    "h200": Accelerator("NVIDIA H200 SXM", 141 * GB, 989.4 * TERA, 700, "NVIDIA H200 datasheet"),
    "h100": Accelerator("NVIDIA H100 SXM", 80 * GB, 989.4 * TERA, 700, "NVIDIA H100 datasheet"),
    "h100-pcie": Accelerator("NVIDIA H100 PCIe", 80 * GB, 756 * TERA, 350, "NVIDIA H100 datasheet"),
    "a100": Accelerator("NVIDIA A100 SXM 80 GB", 80 * GB, 312 * TERA, 400, "NVIDIA A100 datasheet"),
    "a100-40gb": Accelerator("NVIDIA A100 SXM 40 GB", 40 * GB, 312 * TERA, 400, "NVIDIA A100 datasheet"),
    "l40s": Accelerator("NVIDIA L40S", 48 * GB, 362 * TERA, 350, "NVIDIA L40S datasheet"),
    "l4": Accelerator("NVIDIA L4", 24 * GB, 121 * TERA, 72, "NVIDIA L4 datasheet"),
    "a10": Accelerator("NVIDIA A10", 24 * GB, 125 * TERA, 150, "NVIDIA A10 datasheet"),
    "rtx4090": Accelerator("NVIDIA RTX 4090", 24 * GB, 165.2 * TERA, 450, "NVIDIA Ada GPU architecture whitepaper"),
    "rtx3090": Accelerator("NVIDIA RTX 3090", 24 * GB, 71 * TERA, 350, "NVIDIA GA102 GPU architecture whitepaper"),
}


@dataclass(frozen=True)
class Anchor:
    """A run that somebody measured: model FLOPs a second as a share of the datasheet's."""

    gpu: str
    compiled: bool
    hidden_size: int
    efficiency: float
    run: str


# FLOPs as `GPT.flops_per_token` counts them: 854,654,976 a token of GPT-2 124M at 1,024 tokens, 57,912,852,480 of
# Llama 3 8B at 8,192. None of these runs is bedplate's own.
_TITAN = "torchtitan's Llama 3.1 8B, FSDP2 on 8 GPUs limited to 500 W (its benchmarks/llama3_h100_202412)"
ANCHORS = (
    Anchor("h100", True, 768, 0.43, "nanoGPT's GPT-2 124M on one GPU, 503k tokens/s"),
    Anchor("h100", False, 768, 0.16, "transformers' GPT-2 124M on one GPU, 181k tokens/s"),
    Anchor("h100", True, 4096, 0.39, f"{_TITAN}, 6,667 tokens/s"),
    Anchor("h100", False, 4096, 0.34, f"{_TITAN}, 5,762 tokens/s"),
    Anchor(
        "a100", True, 4096, 0.55, "torchtitan's Llama 3 8B, FSDP2 on 64 GPUs (its docs/performance), 2,973 tokens/s"
    ),
)


def find_accelerator(name: str) -> Accelerator:
    """The GPU of that name.

    Raises:
        InputError: no such name is known.
    """
    key = name.lower().replace("_", "-").replace(" ", "")
    if key not in ACCELERATORS:
        near = difflib.get_close_matches(key, ACCELERATORS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"GPU {name!r} is not known; {hint}Known are {', '.join(ACCELERATORS)}, and cpu")
    return ACCELERATORS[key]


def nearest_anchor(gpu: Accelerator, compiled: bool, hidden_size: int) -> tuple[Anchor, bool]:
    """The measured run of the most similar width, and whether it was on this GPU (else it was on an H100)."""

    def distance(anchor: Anchor) -> float:
        return abs(math.log(anchor.hidden_size / hidden_size))

    alike = [anchor for anchor in ANCHORS if anchor.compiled == compiled]
    own = [anchor for anchor in alike if ACCELERATORS[anchor.gpu].name == gpu.name]
    return min(own or [anchor for anchor in alike if anchor.gpu == "h100"], key=distance), bool(own)
