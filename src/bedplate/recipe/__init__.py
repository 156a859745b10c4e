"""Recipes: a run as data. Strict models, YAML files, `key.path=value` overrides, and errors that name the key."""

from bedplate.recipe.finetune import FinetuneRecipe
from bedplate.recipe.read import read_finetune_recipe, read_recipe, write_recipe
from bedplate.recipe.schema import Recipe, RunRecipe

__all__ = ["FinetuneRecipe", "Recipe", "RunRecipe", "read_finetune_recipe", "read_recipe", "write_recipe"]
