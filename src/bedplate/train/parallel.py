"""What is wrapped around a module before it is trained. The order of the lines is the order of the wrappers."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from bedplate.recipe.schema import LoopRecipe


def wrap(module: nn.Module, recipe: LoopRecipe) -> None:
    """Apply what the recipe asks for, in place; parameter names stay as they are."""
    if recipe.activation_checkpointing:
        for block in blocks(module):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if recipe.compile:
        for block in blocks(module):
            block.compile()


def blocks(module: nn.Module) -> list[nn.Module]:
    """All blocks of all trunks inside a module."""
    return [block for name, child in module.named_modules() if name.endswith("blocks") for block in child.children()]
