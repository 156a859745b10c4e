"""Recipes: a run as data. Strict models, YAML files, `key.path=value` overrides, and errors that name the key."""

from bedplate.recipe.read import read_recipe, write_recipe
from bedplate.recipe.schema import Recipe

__all__ = ["Recipe", "read_recipe", "write_recipe"]
