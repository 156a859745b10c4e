"""Recipes: what a file may say, and the one sentence for what it may not."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from bedplate.errors import InputError
from bedplate.recipe import (
    PICTURES,
    FinetuneRecipe,
    Recipe,
    VisionRecipe,
    read_finetune_recipe,
    read_recipe,
    read_vision_recipe,
    task_of,
    write_recipe,
)
from bedplate.recipe.multimodal import RECIPES
from bedplate.recipe.read import read_as

LEAST: dict[str, Any] = {"out": "runs/x", "data": {"path": "text.txt"}, "train": {"steps": 10}}


def fault(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        read_recipe(LEAST, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=5", "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        ("learning_rate=1", "unknown key 'learning_rate'; did you mean 'optimizer.learning_rate'?"),
        ("model.vocab_size=9", "unknown key 'model.vocab_size'; did you mean 'tokenizer.vocab_size'?"),
        ("log.zzz=1", "unknown key 'log.zzz'; known keys are every, tensorboard"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, message: str) -> None:
    assert message in fault(override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.steps=ten", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=0", "train.steps"),
        ("train.steps=", "train.steps"),
        ("train.compile=maybe", "train.compile"),
        ("train.precision=fp8", "train.precision"),
        ("train=5", "train"),
        ("data.path=true", "data.path"),
        ("optimizer.beta1=1", "optimizer.beta1"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate"),
        ("optimizer.weight_decay=.nan", "optimizer.weight_decay"),
        ("seed=-1", "seed"),
        ("seed=99999999999", "seed"),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_what_was_got(override: str, key: str) -> None:
    assert re.match(rf"recipe: {key}: .+, got .+", fault(override))


@pytest.mark.parametrize(
    "name",
    [
        "books #2/",
        "#x",
        "5 #x",
        "2024-01-01",
        "2024-13-45",
        "2024",
        "notes: mine.txt",
        "a, b",
        "- x",
        "~/x",
        "*",
        "&a b",
    ],
)
def test_an_override_names_a_file_as_it_is_called(name: str) -> None:
    assert read_recipe(LEAST, [f"data.path={name}"]).data.path == [name]


def test_an_override_may_be_a_value_of_yaml() -> None:
    def read(*overrides: str) -> Recipe:
        return read_recipe(LEAST, overrides)

    assert read('data.path=[a.txt, "b #2.txt"]').data.path == ["a.txt", "b #2.txt"]
    assert read("data.path='a: b'").data.path == ["a: b"]
    assert read("data={path: x}").data.path == ["x"]
    assert read("optimizer.learning_rate=1e-3").optimizer.learning_rate == 0.001
    assert read("train.ema=null").train.ema is None and read("train.compile=true").train.compile
    assert read_recipe({**LEAST, "model": None}, ["model.hidden_size=96"]).model.hidden_size == 96


def test_a_recipe_that_makes_a_network_is_not_for_finetuning() -> None:
    with pytest.raises(InputError, match=r"it makes a network \(model.preset\), so it is for `bedplate pretrain`"):
        read_finetune_recipe({**LEAST, "model": {"preset": "qwen3"}})


@pytest.mark.parametrize("key", ["out", "data", "train.steps", "data.path"])
def test_a_missing_key_is_named(key: str) -> None:
    section, _, name = key.rpartition(".")
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in LEAST.items()}
    del (values[section] if section else values)[name]
    with pytest.raises(InputError, match=f"key '{key}' is missing; add it to the recipe or give {key}=VALUE"):
        read_recipe(values)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.sequence_length=100", "parallel.tensor=8"],
            "train.sequence_length=100 is not a multiple of parallel.tensor=8",
        ),
        (["parallel.tensor=2", "train.compile=true"], "train.compile fails in PyTorch where parallel.tensor splits"),
        (["parallel.tensor=2", "objective.document_weight=1"], "document_weight is not shared by parallel.tensor"),
        (["parallel.tensor=2", "objective.passage_weight=1"], "passage_weight is not shared by parallel.tensor ranks"),
        (["objective.passage_weight=1", "objective.passage_batch=3"], "passage_batch=3 is not a multiple of"),
        (
            ["parallel.tensor=2", "objective.masked_share=0.5"],
            "objective.masked_share is not shared by parallel.tensor",
        ),
        (
            ["train.batch_size=8", "train.micro_batch_size=2", "objective.masked_share=0.25"],
            "objective.masked_share=0.25 of train.micro_batch_size=2 is no whole number of rows",
        ),
        (
            ["train.batch_size=8", "train.micro_batch_size=3"],
            "batch_size=8 is not a multiple of train.micro_batch_size=3",
        ),
        (["model.max_position_embeddings=8"], "max_position_embeddings=8 is shorter than train.sequence_length=256"),
        (["data.path=[a, b]", "data.weights=[1]"], "data.weights has 1 entries for 2 paths"),
        (["data.path=[]"], "data.path names no file"),
    ],
)
def test_values_that_contradict_each_other(overrides: list[str], message: str) -> None:
    assert message in fault(*overrides)


@pytest.mark.parametrize("override", ["train.steps", "=5", "train.steps.more=1"])
def test_a_malformed_override_is_shown(override: str) -> None:
    assert f"override {override!r}" in fault(override)


def test_several_faults_are_counted() -> None:
    assert fault("train.steps=ten", "seed=x").endswith("(and 1 more)")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.yaml: no such recipe"):
        read_recipe(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"out: x\ndata: [1, 2\ntrain: y\n", r"r\.yaml:3: not valid YAML: "),
        (b"out: x\n\ttrain: y\n", r"r\.yaml:2: not valid YAML: "),
        (b"out: x\x00\n", r"r\.yaml: not valid YAML: .*#x0000.*"),
        (b"out: caf\xe9\n", r"r\.yaml: byte 8 is not UTF-8"),
        (b"", r"r\.yaml: a recipe is a mapping"),
        (b"- 1\n", r"r\.yaml: a recipe is a mapping"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_overrides_change_values_of_any_type_and_later_ones_win() -> None:
    overrides = [
        "seed=1",
        "seed=2",
        "train.compile=true",
        "data.path=[a,b]",
        "model.head_dim=16",
        "optimizer.clip_norm=null",
    ]
    recipe = read_recipe({**LEAST, "model": {"head_dim": 8}}, overrides)
    assert (recipe.seed, recipe.train.compile, recipe.model.head_dim) == (2, True, 16)
    assert recipe.data.path == ["a", "b"] and recipe.optimizer.clip_norm is None


def test_overrides_leave_the_given_mapping_as_it_was() -> None:
    read_recipe(LEAST, ["train.steps=99", "data.column=body"])
    assert LEAST == {"out": "runs/x", "data": {"path": "text.txt"}, "train": {"steps": 10}}


def test_a_number_like_1e_3_is_a_float_although_yaml_reads_a_string(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("out: x\ndata: {path: a}\ntrain: {steps: 1}\noptimizer: {learning_rate: 1e-3}\n")
    assert read_recipe(path).optimizer.learning_rate == 1e-3
    assert read_recipe(path, ["optimizer.learning_rate=2e-3"]).optimizer.learning_rate == 2e-3


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(deadline=None)
@example(seed=0, path=["a\x85b"], prompts=["a\x85b"], rate=1.0, decay=0.5, limit=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    path=st.lists(text, min_size=1, max_size=3),
    prompts=st.lists(text, max_size=3),
    rate=st.floats(0, exclude_min=True, allow_infinity=False),
    decay=st.floats(0, 1),
    limit=st.none() | st.integers(256, 10**9),
)
def test_writing_and_reading_gives_the_same_recipe(
    tmp_path_factory: pytest.TempPathFactory, seed: int, path: list[str], prompts: list[str], **numbers: Any
) -> None:
    recipe = Recipe.model_validate(
        {
            **LEAST,
            "seed": seed,
            "data": {"path": path},
            "evaluate": {"prompts": prompts},
            "optimizer": {"learning_rate": numbers["rate"]},
            "schedule": {"decay": numbers["decay"]},
            "model": {"max_position_embeddings": numbers["limit"]},
        }
    )
    file = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    write_recipe(recipe, file)
    assert read_recipe(file) == recipe == read_recipe(recipe)


def test_a_recipe_of_images_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    values = {
        "task": "classify_images",
        "out": "runs/x",
        "data": {"path": ["a", "b"]},
        "model": {"image_size": [32, 48]},
    }
    recipe = read_vision_recipe(values, ["augment.crop_scale=[0.5, 1]", "base=zoo:x"])
    write_recipe(recipe, tmp_path / "r.yaml")
    assert read_vision_recipe(tmp_path / "r.yaml") == recipe and recipe.model.size == (32, 48)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_size=8", "base=zoo:x brings its own network; leave model.hidden_size out, or base"),
        ("model.image_size=[1, 2, 3]", "model.image_size=[1, 2, 3]: give one side in pixels, or [height, width]"),
        ("detector.head=set", "detector is for task: detect, not for classify_images"),
        ("train.epochs=null", "train.steps and train.epochs are both null; give one of them"),
        ("data.fit=crop", "data.fit: input should be 'stretch', 'cover' or 'letterbox', got 'crop'"),
        ("train.batch_size=true", "recipe: train.batch_size: a number is needed, not true or false"),
        ("model.image_size=0", "recipe: model.image_size: input should be greater than 0, got 0"),
        ("model.image_size=16.5", "model.image_size: input should be a valid integer, got a number with a frac"),
        ("model.image_size=[16, 0]", "model.image_size.1: input should be greater than 0, got 0"),
        ("augment.crop_scale=[0.9, 0.2]", "augment.crop_scale=[0.9, 0.2]: give two numbers in 0.001..1, the smaller"),
        ("augment.randaugment=[1, 99]", "augment.randaugment=[1, 99]: give a number of operations and a magnitude"),
        ("augment.randaugment=[-1, 5]", "augment.randaugment.0: input should be greater than or equal to 0, got -1"),
        ("augment.shift=2000", "augment.shift: input should be less than or equal to 1024, got 2000"),
    ],
)
def test_a_recipe_of_images_that_contradicts_itself_is_refused(override: str, message: str) -> None:
    values = {"task": "classify_images", "out": "runs/x", "base": "zoo:x", "data": {"path": "a"}}
    with pytest.raises(InputError) as caught:
        read_vision_recipe(values, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        (
            "mae",
            "decoder.hidden_size=32",
            "decoder.hidden_size=32 is not a multiple of decoder.num_attention_heads=3",
        ),
        ("mae", "decoder.hidden_size=18", "decoder.hidden_size=18 is not a multiple of 4"),
        ("mae", "model.hidden_size=18", "model.hidden_size=18 is not a multiple of 4"),
        ("mae", "objective.mask_ratio=1", "objective.mask_ratio: input should be less than 1, got 1"),
        ("simclr", "parallel.shard=2", "parallel.shard=2 is not for task: simclr, which runs in one process"),
        ("detect", "augment.scale=[0, 1]", "augment.scale=[0.0, 1.0]: give two numbers in 0.01..100"),
    ],
)
def test_what_a_task_of_images_cannot_do_is_refused_before_it_trains(task: str, override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_vision_recipe({"task": task, "out": "runs/x", "data": {"path": "a"}}, [override])
    assert str(caught.value).startswith(f"recipe: {message}")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("detct", "recipe: task 'detct' is unknown; did you mean 'detect'?"),
        ("foo", "recipe: task 'foo' is unknown; choose one of language, classify, chat, summarize, mae, simclr,"),
    ],
)
def test_an_unknown_task_is_told_before_the_keys_of_the_one_that_was_meant(task: str, message: str) -> None:
    values = {"task": task, "out": "runs/x", "data": {"path": "a"}, "train": {"epochs": 3}, "augment": {"flip": True}}
    for read in (task_of, read_recipe, read_finetune_recipe, read_vision_recipe):
        with pytest.raises(InputError) as caught:
            read(values)  # type: ignore[operator]
        assert str(caught.value).startswith(message)


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [field.annotation for field in model.model_fields.values()]
    return [model, *(each for each in inner if isinstance(each, type) and issubclass(each, BaseModel))]


@pytest.mark.parametrize("kind", [Recipe, FinetuneRecipe, VisionRecipe])
def test_every_key_is_documented(kind: type[BaseModel]) -> None:
    for section in sections(kind):
        assert section.__doc__, section
        for name, field in section.model_fields.items():
            assert field.description or field.annotation in sections(kind), f"{section.__name__}.{name}"


def test_the_recipe_that_the_readme_promises_is_valid() -> None:
    root = Path(__file__).parents[2] / "recipes"
    for file in sorted(root.glob("*.yaml")):
        task = yaml.safe_load(file.read_text("utf-8")).get("task", "language")
        if task in RECIPES:
            assert read_as(RECIPES[task], file).task == task
            continue
        read = read_vision_recipe if task in PICTURES else read_finetune_recipe
        (read_recipe if task == "language" else read)(file)
    assert (root / "gpt-mini.yaml").is_file()
