"""The Transformer that every model of this package is a thin composition over."""

from __future__ import annotations

from torch import Tensor, nn

from bedplate.nn.attention import Context
from bedplate.nn.block import Block, PostNormBlock, make_norm
from bedplate.nn.cache import Cache
from bedplate.nn.config import TrunkConfig
from bedplate.nn.rotary import Rotary
from bedplate.nn.span import Span


class Trunk(nn.Module):
    """A stack of blocks over one `Span`, with a final norm where blocks do not end with one."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        kind = PostNormBlock if config.post_norm else Block
        self.blocks = nn.ModuleList(kind(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.Identity() if config.post_norm else make_norm(config)
        self.rotary = Rotary(config.rope, config.head_dim) if config.rope else None
        self.local_rotary = Rotary(config.local_rope, config.head_dim) if config.local_rope else None

    def forward(self, span: Span, cache: Cache | None = None, at: Tensor | None = None) -> Tensor:
        """Final hidden states `(B, N, D)`. With a cache, the span stands behind what the cache holds.

        With `at (B,)` or `(B, K)`, only those of K tokens of each row, `(B, K, D)`: the last block spares the others.
        """
        tables, local_tables = (r.tables(span.pos) if r else None for r in (self.rotary, self.local_rotary))
        ctx = Context.of(span, cache, tables, local_tables)
        last = ctx if at is None else ctx.last(at)
        contexts = [ctx] * (len(self.blocks) - 1) + [last]
        for layer, context in enumerate(contexts):
            context.mask(self.config.windows[layer] if self.config.windows else None)
        x = span.x
        for block, context in zip(self.blocks, contexts, strict=True):
            x = block(x, context)
        return self.norm(x)

    def make_cache(self, batch_size: int, capacity: int) -> Cache:
        """An empty key-value cache for `batch_size` rows of at most `capacity` tokens."""
        return Cache(self.config.num_hidden_layers, batch_size, capacity)

    def flops_per_token(self, length: int) -> int:
        """Training FLOPs a token (forward and backward) at rows of `length` tokens, heads and embeddings not counted.

        6 a weight of every matrix, and 12 * length * heads * head_dim a layer for attention's two products; causal
        attention counts in full, as in PaLM (arXiv 2204.02311, appendix B). See `matrix_flops` for frozen weights.
        """
        c = self.config
        linears = [m for m in self.modules() if isinstance(m, nn.Linear)]
        products = sum(matrix_flops(p) for m in linears for p in m.parameters() if p.dim() == 2)
        return products + 12 * length * c.num_attention_heads * c.head_dim * c.num_hidden_layers


def matrix_flops(weight: Tensor) -> int:
    """Training FLOPs a row of a product with `weight`: 2 an entry for the output, the input's gradient, its own.

    A frozen weight has none of its own.
    """
    return (6 if weight.requires_grad else 4) * weight.numel()
