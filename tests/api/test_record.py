"""What a card says of the recipe: no sizes that a base had others of."""

from pathlib import Path

from bedplate.api.folders import word
from bedplate.api.record import as_used
from bedplate.recipe.multimodal import RECIPES
from bedplate.recipe.schema import Recipe


def test_commands_name_folders_with_spaces_as_one_word() -> None:
    assert word(Path("runs/my run")) == "'runs/my run'" and word(Path("runs/x")) == "runs/x"


def test_sizes_of_a_base_are_left_out() -> None:
    run = {"out": "x", "data": {"path": "x.txt"}, "train": {"steps": 1}}
    fresh = Recipe.model_validate({**run, "model": {"hidden_size": 64, "num_attention_heads": 2}})
    assert as_used(fresh.model_dump())["model"]["hidden_size"] == 64
    further = Recipe.model_validate({**run, "base": "zoo:text-mini"}).model_dump()
    used = as_used(further)
    assert "hidden_size" not in used["model"] and used["model"]["dropout"] == further["model"]["dropout"]
    assert {**used, "model": None} == {**further, "model": None}


def test_sizes_of_a_tower_that_a_base_brings_are_left_out() -> None:
    model = {"image_base": "zoo:vision-mini", "image": {"image_size": 32}}
    clip = RECIPES["contrast"].model_validate({"task": "contrast", "out": "x", "data": {"path": "x"}, "model": model})
    used = as_used(clip.model_dump())["model"]
    assert used["image"] == {"image_size": 32, "pooling": "cls"} and used["text"]["hidden_size"] == 192
    assert used["projection_dim"] == 192
    values = {"task": "answer", "out": "x", "data": {"path": "x"}, "vision_base": "zoo:clip-mini"}
    reader = RECIPES["answer"].model_validate(values)
    used = as_used(reader.model_dump())["model"]
    assert used["vision"].keys() <= {"image_size", "pooling"} and used["language"]["hidden_size"]
