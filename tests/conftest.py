"""What many rooms' tests share: a tiny corpus, a tiny recipe, a tiny trained model; all made here, nothing fetched."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from bedplate.recipe import FinetuneRecipe, Recipe, read_finetune_recipe, read_recipe

# The same examples in every run, without a deadline: a busy machine is no defect. To search for new ones:
# pytest --hypothesis-profile=search
settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("repeat")

SUBJECTS = ("the cat", "a dog", "my friend", "the old man", "the river", "a small bird", "the house", "her sister")
VERBS = ("sees", "finds", "likes", "follows", "leaves", "hears")
ENDS = ("today", "at night", "in the garden", "near the sea", "again", "without a word", "für immer", "in 1984")

TinyRecipe = Callable[..., Recipe]
TinyFinetune = Callable[..., FinetuneRecipe]


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes into the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 400 short documents of a small grammar: some 17,000 tokens of a 300-entry tokenizer."""
    draw = random.Random(0)

    def sentence() -> str:
        return f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(SUBJECTS)} {draw.choice(ENDS)}.".capitalize()

    rows = [{"text": " ".join(sentence() for _ in range(draw.randint(1, 4)))} for _ in range(400)]
    path = tmp_path_factory.mktemp("corpus") / "sentences.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_recipe(corpus: Path) -> TinyRecipe:
    """`tiny_recipe(out, *overrides)`: 2 layers of width 32, rows of 32 tokens, fp32, one thread; 20 steps."""
    values = {
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "tokenizer": {"vocab_size": 300},
        "data": {"path": str(corpus), "val_fraction": 0.1},
        "train": {"steps": 20, "batch_size": 8, "sequence_length": 32, "precision": "fp32", "threads": 1},
        "evaluate": {"every": 10, "batches": 2, "sample_tokens": 2},
        "checkpoint": {"every": 10},
    }

    def make(out: Path, *overrides: str) -> Recipe:
        return read_recipe(values | {"out": str(out)}, overrides)

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: TinyRecipe) -> Path:
    """The run directory of a tiny model trained for 40 steps; not to be changed."""
    from bedplate.api.pretrain import pretrain

    out = tmp_path_factory.mktemp("tiny") / "run"
    pretrain(tiny_recipe(out, "train.steps=40", "train.batch_size=16", "evaluate.every=20"))
    return out


@pytest.fixture(scope="session")
def tiny_model(tiny_run: Path) -> Path:
    """The model directory of `tiny_run`; not to be changed."""
    return tiny_run / "model"


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .csv file of 160 short texts: their last words say whether the label is `place` or `time`."""
    draw, ends = random.Random(1), {"place": ("in the garden", "near the sea"), "time": ("today", "at night")}
    starts = [f"{one} {verb} {other}" for one in SUBJECTS for verb in VERBS for other in SUBJECTS]
    labels = ("place", "time") * 80
    chosen = zip(draw.sample(starts, len(labels)), labels, strict=True)
    rows = [f"{start} {draw.choice(ends[label])},{label}\n" for start, label in chosen]
    path = tmp_path_factory.mktemp("labelled") / "labelled.csv"
    path.write_text("text,label\n" + "".join(rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_finetune(tiny_model: Path, labelled: Path) -> TinyFinetune:
    """`tiny_finetune(out, *overrides)`: the tiny model on `labelled`, fp32, one thread; 3 epochs of 9 steps."""
    values = {
        "base": str(tiny_model),
        "data": {"path": str(labelled)},
        "train": {"epochs": 3, "precision": "fp32", "threads": 1},
        "optimizer": {"name": "adamw", "learning_rate": 5e-3},
        "log": {"every": 5},
    }

    def make(out: Path, *overrides: str) -> FinetuneRecipe:
        return read_finetune_recipe(values | {"out": str(out)}, overrides)

    return make


@pytest.fixture(scope="session")
def tiny_classified(tmp_path_factory: pytest.TempPathFactory, tiny_finetune: TinyFinetune) -> Path:
    """The run directory of a classifier of `labelled`; not to be changed."""
    from bedplate.api.finetune import finetune

    out = tmp_path_factory.mktemp("classified") / "run"
    finetune(tiny_finetune(out))
    return out
