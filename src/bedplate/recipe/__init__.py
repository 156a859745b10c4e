"""Recipes: a run as data. Strict models, YAML files, `key.path=value` overrides, and errors that name the key."""

from bedplate.recipe.finetune import FinetuneRecipe
from bedplate.recipe.read import (
    PICTURES,
    read_finetune_recipe,
    read_recipe,
    read_vision_recipe,
    task_of,
    write_recipe,
)
from bedplate.recipe.schema import Recipe, RunRecipe
from bedplate.recipe.vision import VisionRecipe

__all__ = [
    "PICTURES",
    "FinetuneRecipe",
    "Recipe",
    "RunRecipe",
    "VisionRecipe",
    "read_finetune_recipe",
    "read_recipe",
    "read_vision_recipe",
    "task_of",
    "write_recipe",
]
