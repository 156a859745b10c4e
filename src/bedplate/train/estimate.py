"""What a training step holds and computes, worked out from the shape of the network: memory by part, and FLOPs.

The bytes are those of the code: what autograd keeps of `nn/block.py`, what `nn/heads.py` and `train/muon.py` hold at
one time, what `train/parallel.py` shards. The tests count the same bytes in real steps.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch

from bedplate.data.documents import PASSAGES
from bedplate.errors import InputError
from bedplate.models.bert import LanguageModel
from bedplate.nn import attention
from bedplate.nn.config import TrunkConfig
from bedplate.nn.heads import CPU_ROWS, GPU_ROWS
from bedplate.recipe import Recipe
from bedplate.recipe.pictures import PictureRecipe
from bedplate.recipe.schema import TrainRecipe

FULL = 4  # bytes of an fp32 value: weights, gradients, moments and the residual stream
NEWTON_SCHULZ_STEPS = 5  # of Muon


@dataclass(frozen=True)
class Layout:
    """How GPUs share a recipe's step."""

    gpus: int
    shard: int
    tensor: int
    rows: int  # of a step on one GPU
    micro: int  # of these, at one time

    @property
    def is_sharded(self) -> bool:
        return self.shard * self.tensor > 1

    @property
    def replicas(self) -> int:
        return self.gpus // (self.shard * self.tensor)

    @staticmethod
    def of(recipe: Recipe | PictureRecipe, config: TrunkConfig | None, gpus: int) -> Layout:
        """The layout of a recipe on so many GPUs; `config` is of the trunk that `parallel.tensor` splits.

        Raises:
            InputError: the GPUs, the batch, the heads or the MLP cannot be shared equally.
        """
        train, shard, tensor = recipe.train, recipe.parallel.shard, recipe.parallel.tensor
        if gpus % (shard * tensor):
            raise InputError(
                f"parallel.shard={shard} x parallel.tensor={tensor} ranks hold one copy of the model, and {gpus} GPUs "
                f"are no multiple of {shard * tensor}; change them or the number of GPUs"
            )
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size") if config else ():
            if (size := getattr(config, name)) % tensor:
                raise InputError(
                    f"model.{name}={size} is not a multiple of parallel.tensor={tensor}; change one of them"
                )
        ranks = gpus // tensor
        micro = train.micro_batch_size
        each = ranks * (micro or 1)
        if train.batch_size % each:
            times = f" x train.micro_batch_size={micro}" if micro else ""
            rows = train.batch_size // ranks  # of a rank, where the batch itself can be shared
            fits = [size for size in range(1, min(rows, micro or 1) + 1) if rows % size == 0]
            keep = f"train.micro_batch_size={fits[-1]}, or " if train.batch_size % ranks == 0 and fits else ""
            raise InputError(
                f"train.batch_size={train.batch_size} is not a multiple of {ranks} data ranks{times}; "
                f"take {keep}a multiple of {each}"
            )
        rows = train.batch_size // ranks
        if isinstance(recipe, Recipe):
            check_masked_rows(recipe.objective.masked_share, micro or rows)
        return Layout(gpus, shard, tensor, rows, micro or rows)


def check_masked_rows(share: float, rows: int) -> None:
    """Refuse a share of masked rows that is no whole number of those that a rank takes at one time.

    Raises:
        InputError: it is none: rounded, it might be none of them, or all.
    """
    if abs(share * rows - round(share * rows)) > 1e-6:
        raise InputError(
            f"objective.masked_share={share} of the {rows} rows that a rank takes at one time is no whole number of "
            "rows; change it, train.batch_size, train.micro_batch_size or the number of ranks"
        )


def block_bytes(c: TrunkConfig, train: TrainRecipe, low: int, *, isolate: bool, on_gpu: bool, tensor: int = 1) -> int:
    """Bytes that autograd keeps of one block for each token.

    Args:
        low: bytes of a value in matrix products, 2 for bf16 and 4 for fp32.
        isolate: whether documents are hidden from each other by a mask.
        tensor: ranks that share the heads and the MLP.
    """
    d, inner = c.hidden_size, c.intermediate_size // tensor
    heads, kv_heads = c.num_attention_heads // tensor, c.num_key_value_heads // tensor
    query, key = heads * c.head_dim, kv_heads * c.head_dim
    again = low if train.compile else FULL  # compiled, what fp32 work reads is kept as it left the product
    norms = FULL * d + again * d + 2 * low * d + 2 * (FULL if c.norm == "rms" else 2 * FULL)
    qk_norms = again * (query + key) + FULL * (heads + kv_heads) if c.qk_norm else 0
    if written_out := not on_gpu and low < FULL and attention.writes_out(train.sequence_length):
        heads_kept = low * (4 * query + heads * train.sequence_length)  # q, k and v of all heads, output, the softmax
    else:
        heads_kept = low * (2 * query + 2 * key) + FULL * heads  # q, k, v, the output and the log of the softmax's sums
    width = (3 if train.compile else 4) if c.gated else 2  # compiled, silu(gate) is computed again
    kept = norms + qk_norms + heads_kept + low * width * inner
    if isolate:
        kept += 0 if written_out else low * train.sequence_length  # the mask as numbers
        kept += 4 * low * c.head_dim if c.rope and low < FULL else 0  # and the rotary tables cast
    if c.dropout:
        kept += 2 * d * (1 if on_gpu else low)
        if written_out:
            kept += low * heads * train.sequence_length  # the mask
        elif not on_gpu:  # no fused kernel: probabilities, dropped ones and the mask
            kept += 3 * FULL * heads * train.sequence_length
    return kept


def activation_bytes(
    c: TrunkConfig, train: TrainRecipe, low: int, *, isolate: bool, on_gpu: bool, tensor: int = 1
) -> int:
    """Bytes that the backward pass needs of the forward pass, for each token of a micro-batch."""
    block = block_bytes(c, train, low, isolate=isolate, on_gpu=on_gpu, tensor=tensor)
    ends = FULL * c.hidden_size // tensor + 16  # what the final norm reads; ids and targets
    if isolate:
        ends += train.sequence_length + (2 * FULL * c.head_dim if c.rope else 0)
    if c.dropout:
        ends += c.hidden_size * (1 if on_gpu else FULL)
    if train.activation_checkpointing:  # the input of each block, and all of the one that is computed again
        return ends + (c.num_hidden_layers - 1) * FULL * c.hidden_size + block
    return ends + c.num_hidden_layers * block


def memory(
    module: LanguageModel, recipe: Recipe, layout: Layout, dtype: torch.dtype, *, on_gpu: bool
) -> dict[str, int]:
    """Bytes on one GPU by part. "total" is the fullest moment of a step and the sum of the others.

    Parts are counted whole although not all of them live at one time; "not_at_once", zero or less, is what that saves.
    benchmarks/plan_check.py compares it with runs.

    Args:
        module: may be on the meta device.
        dtype: of matrix products.
    """
    c, train, low = module.config.trunk, recipe.train, dtype.itemsize
    shard, tensor = layout.shard, layout.tensor
    tokens = layout.micro * train.sequence_length
    in_matrices = sum(p.numel() for p in module.trunk.blocks.parameters() if p.dim() == 2) // tensor
    in_blocks = in_matrices + sum(p.numel() for p in module.trunk.blocks.parameters() if p.dim() < 2)
    in_ends = sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in module.trunk.blocks.parameters())
    block = in_blocks // c.num_hidden_layers
    weights = FULL * -(-(in_blocks + in_ends) // shard)
    moments = 2 * weights - (FULL * in_matrices // shard if recipe.optimizer.name == "muon" else 0)
    passages = recipe.objective.passage_batch if recipe.objective.passage_weight else 0
    read = tokens + layout.micro * passages // train.batch_size * max(PASSAGES)  # and kept until the way back
    activations = read * activation_bytes(
        c, train, low, isolate=recipe.data.isolate_documents, on_gpu=on_gpu, tensor=tensor
    )
    casts = 0 if layout.is_sharded or low == FULL else low * in_blocks  # autocast's copies of the blocks' weights
    gathered = _gathered(block, in_ends, low) if layout.is_sharded else 0
    forward, backward, head = _workspace(module, recipe, tokens, layout, low, on_gpu)
    update = _update_bytes(module, layout, low) if recipe.optimizer.name == "muon" else 0

    # DDP keeps its buckets; otherwise gradients are there only from an earlier micro-batch, or at the end.
    held = weights if layout.micro < layout.rows or (layout.replicas > 1 and not layout.is_sharded) else 0
    stream, recomputes = tokens * FULL * c.hidden_size, train.activation_checkpointing
    first_block = 0  # whose activations, computed again, meet the gradients of all others
    if recomputes:
        alive = activations - stream * (c.num_hidden_layers - 1) + backward
        first_block = weights - FULL * block // shard - FULL * module.head.weight.numel() // shard + alive
    moments_of_a_step = (
        held + (stream * c.num_hidden_layers if recomputes else activations) + casts + forward,  # the loss
        held + activations + (casts // c.num_hidden_layers if recomputes else casts) + backward,
        first_block,
        weights + head + stream,  # the embedding's gradient
        weights + update,
    )
    always = {"weights": weights, "optimizer": moments, "ema": weights if train.ema is not None else 0}
    peak = sum(always.values()) + gathered + max(moments_of_a_step)
    parts = always | {
        "gradients": weights,
        "activations": activations,
        "weight_casts": casts,
        "workspace": max(forward, backward, head),
        "update": update,
        "gathered": gathered,
    }
    return parts | {"not_at_once": peak - sum(parts.values()), "total": peak}


def _workspace(
    module: LanguageModel, recipe: Recipe, tokens: int, layout: Layout, low: int, on_gpu: bool
) -> tuple[int, int, int]:
    """Bytes of the head's loss, and of the first block's way back; and of the head's gradient at the end of it."""
    c, train = module.config.trunk, recipe.train
    d, head = c.hidden_size, module.head.weight.numel()
    own = tokens // layout.tensor  # ranks of a tensor group share the loss by tokens
    logits = min(GPU_ROWS if on_gpu else CPU_ROWS, own) * module.head.weight.shape[0]
    chunk = logits * FULL
    if low < FULL:  # as they leave the product, too; the head's weight cast, and the product of the logits' gradient
        chunk += logits * low + low * head + (low + FULL) * head
    loss = 2 * FULL * d * own + FULL * head + chunk
    objective, documents = recipe.objective, 0
    if objective.document_weight:
        documents += objective.document_batch
    if objective.passage_weight:
        documents += objective.passage_batch * max(PASSAGES) // min(PASSAGES)
    documents = documents * layout.micro // train.batch_size  # of a micro-batch
    documents *= 5 * FULL * module.head.weight.shape[0]  # bags, logits and probabilities
    gradient = 2 * FULL * d * own + 2 * FULL * head  # of the hidden states and of the head, summed and divided
    width = (2 if c.gated else 1) * low * c.intermediate_size // layout.tensor
    norm = 4 * FULL * d * own + FULL * head
    mlp = (width + FULL * d + (low * d if low < FULL else 0)) * tokens + FULL * head
    return loss + documents, max(gradient, norm, mlp) + documents, FULL * head * (2 if _tied(module) else 1)


def _tied(module: LanguageModel) -> bool:
    return module.head.weight is module.embed.weight


def _update_bytes(module: LanguageModel, layout: Layout, low: int) -> int:
    """Bytes that Muon holds while it orthogonalises the largest group of matrices of one shape.

    Four copies in the dtype of the products (momentum, stack, the iterate and the next one) and two Gram matrices.
    """
    by_shape: dict[torch.Size, int] = defaultdict(int)
    for p in module.trunk.blocks.parameters():
        if p.dim() == 2:
            by_shape[p.shape] += 1
    largest = 0
    for shape, count in by_shape.items():
        own = -(-count // layout.gpus)  # each rank orthogonalises its share of the matrices
        sent = 2 * count * shape.numel() // (layout.shard * layout.tensor) if layout.gpus > 1 else 0
        copies = (3 if layout.gpus > 1 else 4) * own * shape.numel()
        largest = max(largest, low * (copies + sent + 2 * own * min(shape) ** 2))
    return largest


def _gathered(block: int, ends: int, low: int) -> int:
    """Bytes of whole weights under FSDP2, and of their gradients before they are shared out.

    Two blocks (one at work, one on its way) in low precision, the gradient of one as it is and in fp32; embeddings,
    head and final norm whole in fp32.
    """
    return 2 * low * block + (low + FULL) * block + FULL * ends


def step_flops(module: LanguageModel, recipe: Recipe) -> tuple[int, int]:
    """FLOPs of one step of all ranks: (the model's, all that are computed).

    The second adds what activation checkpointing computes again (the blocks' forward pass, a third of theirs) and
    Muon's Newton-Schulz products, which ranks share.
    """
    train, head = recipe.train, module.head.weight.numel()
    tokens = train.batch_size * train.sequence_length
    model = tokens * module.flops_per_token(train.sequence_length)
    objective = recipe.objective
    spared = train.sequence_length - max(1, round(objective.mask_rate * train.sequence_length))
    model -= (
        round(objective.masked_share * train.batch_size) * spared * 6 * head
    )  # masked rows ask for hidden tokens alone
    if objective.document_weight:  # into the embedding and out of the head
        model += 12 * objective.document_batch * head
    if objective.passage_weight:  # of the head as much as passages of the middle length
        longest, middle = max(PASSAGES), sorted(PASSAGES)[len(PASSAGES) // 2]
        model += objective.passage_batch * longest * (module.flops_per_token(middle) - 6 * head)
        model += objective.passage_batch * longest // middle * 6 * head
    work = model
    if train.activation_checkpointing:
        work += tokens * (module.flops_per_token(train.sequence_length) - 6 * head) // 3
    if recipe.optimizer.name == "muon":
        for p in module.trunk.blocks.parameters():
            if p.dim() == 2:
                short, long = sorted(p.shape)
                work += NEWTON_SCHULZ_STEPS * (4 * short * short * long + 2 * short**3)
    return model, work
