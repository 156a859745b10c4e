"""The recipes of published networks: each has the published size, and what its first lines say is so."""

import re
from pathlib import Path

import pytest

from bedplate.api.plan import plan

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("name", "parameters", "tokens", "gpus"),
    [
        ("gpt2-124m", 124_439_808, 9_890_693_120, (1, 8)),
        ("qwen3-0.6b", 596_049_920, 12_582_912_000, (8,)),
        ("llama-8b", 8_030_261_248, 160_222_412_800, (64,)),
    ],
)
def test_a_published_network_has_the_published_number_of_parameters(
    name: str, parameters: int, tokens: int, gpus: tuple[int, ...]
) -> None:
    path = RECIPES / f"{name}.yaml"
    for count in gpus:  # refused where they could not share the recipe
        planned = plan(path, gpu="h100", gpus=count)
        assert (planned["parameters"], planned["tokens"]) == (parameters, tokens)
        assert planned["fit"]["fits"], f"{name} does not fit {count} GPUs of 80 GB"
    assert f"{parameters:,} parameters" in path.read_text("utf-8")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_begins_with_its_command_and_writes_to_a_folder_of_its_own(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    first = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert re.search(rf"bedplate (pretrain|finetune|launch) recipes/{re.escape(path.name)}", "\n".join(first))
    assert f"out: runs/{path.stem}" in lines
