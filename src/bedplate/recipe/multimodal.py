"""Recipes of texts and pictures together, by their task."""

from collections.abc import Mapping
from types import MappingProxyType

from bedplate.recipe.answer import AnswerRecipe
from bedplate.recipe.contrast import ContrastRecipe
from bedplate.recipe.draw import DrawRecipe
from bedplate.recipe.image_tokens import ImageTokensRecipe
from bedplate.recipe.pictures import PictureRecipe

RECIPES: Mapping[str, type[PictureRecipe]] = MappingProxyType(
    {
        "contrast": ContrastRecipe,
        "answer": AnswerRecipe,
        "image_tokens": ImageTokensRecipe,
        "draw": DrawRecipe,
    }
)
"""`task` -> the kind of recipe that has it."""
