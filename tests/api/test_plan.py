"""`plan`: what it says of a recipe on GPUs and on this machine, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

import bedplate
from bedplate.api import plan as module
from bedplate.errors import InputError
from bedplate.recipe import Recipe, read_recipe


@pytest.fixture
def recipe() -> Recipe:
    """GPT-2 124M; its data and tokenizer are not there."""
    values = {
        "out": "-",
        "data": {"path": "no-such-folder"},
        "model": {"preset": "gpt2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        "tokenizer": {"vocab_size": 50304},
        "train": {"steps": 5000, "batch_size": 512, "micro_batch_size": 32, "sequence_length": 1024, "compile": True},
    }
    return read_recipe(values)


def test_time_energy_and_cost_follow_from_the_efficiency(recipe: Recipe) -> None:
    plan = bedplate.plan(recipe, "optimizer.name=adamw", gpu="h100", gpus=8, efficiency=0.5, price=3, pue=1.2)
    seconds = plan["flops"] / (8 * 989.4e12 * 0.5)
    assert plan["time"]["seconds"] == pytest.approx(seconds) and plan["time"]["efficiency"] == pytest.approx(0.5)
    assert plan["time"]["tokens_per_second"] == pytest.approx(plan["tokens"] / seconds)
    hours = 8 * seconds / 3600
    assert plan["cost"] == pytest.approx({"gpu_hours": hours, "kwh": hours * 0.7 * 1.2, "dollars": 3 * hours})
    assert plan["hardware"] == "8 x NVIDIA H100 SXM, bf16" and plan["layout"]["rows"] == 64


def test_without_a_price_there_is_no_cost(recipe: Recipe) -> None:
    assert bedplate.plan(recipe, gpu="h100")["cost"]["dollars"] is None


def test_an_h100_trains_gpt2_as_fast_as_was_measured(recipe: Recipe) -> None:
    plan = bedplate.plan(recipe, "optimizer.name=adamw", gpu="h100")
    assert plan["time"]["tokens_per_second"] == pytest.approx(503e3, rel=0.02)  # nanoGPT's
    assert any(note.startswith("published: efficiency 0.43") for note in plan["notes"])


def test_an_efficiency_from_another_gpu_is_called_an_assumption(recipe: Recipe) -> None:
    notes = bedplate.plan(recipe, gpu="l4")["notes"]
    assert any(note.startswith("assumed, from another GPU: efficiency 0.43") for note in notes)
    assert any(
        note == "given: efficiency 0.3 of that" for note in bedplate.plan(recipe, gpu="l4", efficiency=0.3)["notes"]
    )


def test_activation_checkpointing_takes_longer(recipe: Recipe) -> None:
    times = [
        bedplate.plan(recipe, f"train.activation_checkpointing={on}", gpu="h100")["time"] for on in ("false", "true")
    ]
    assert 1.15 < times[1]["seconds"] / times[0]["seconds"] < 4 / 3
    assert times[1]["efficiency"] < times[0]["efficiency"]  # of the model's own FLOPs


def test_tokens_beside_parameters(recipe: Recipe) -> None:
    plan = bedplate.plan(recipe, gpu="h100")
    assert plan["tokens"] == 5000 * 512 * 1024 and plan["tokens_per_step"] == 512 * 1024
    assert plan["tokens_per_parameter"] == plan["tokens"] / plan["parameters"]


@pytest.mark.parametrize(
    ("overrides", "gpus", "change"),
    [
        (["train.micro_batch_size=512"], 1, "train.micro_batch_size=128"),
        (["model.hidden_size=6144", "train.batch_size=64", "train.micro_batch_size=1"], 64, "parallel.shard="),
        (
            [
                "train.sequence_length=131072",
                "train.batch_size=1",
                "train.micro_batch_size=1",
                "model.hidden_size=1536",
            ],
            1,
            "train.activation_checkpointing=true",
        ),
    ],
)
def test_what_does_not_fit_is_given_changes_with_which_it_does(
    recipe: Recipe, overrides: list[str], gpus: int, change: str
) -> None:
    plan = bedplate.plan(recipe, *overrides, gpu="h100", gpus=gpus)
    assert not plan["fit"]["fits"] and plan["fit"]["change"][0].startswith(change)
    changed = bedplate.plan(recipe, *overrides, *plan["fit"]["change"], gpu="h100", gpus=gpus)
    assert changed["fit"]["fits"] and changed["fit"]["change"] == []
    assert changed["memory"]["total"] <= changed["fit"]["usable"] == 72_000_000_000


def test_tensor_parallelism_stays_in_a_machine(recipe: Recipe) -> None:
    """Rows so long that one GPU cannot hold a block's activations."""
    long = ["train.sequence_length=524288", "model.max_position_embeddings=524288", "train.batch_size=16"]
    change = bedplate.plan(recipe, *long, "train.micro_batch_size=1", gpu="rtx4090", gpus=16)["fit"]["change"]
    assert all(int(each.partition("=")[2]) <= 8 for each in change if each.startswith("parallel.tensor"))


def test_a_network_too_large_for_all_that_is_there(recipe: Recipe) -> None:
    plan = bedplate.plan(recipe, "model.hidden_size=12288", gpu="rtx4090")
    assert plan["fit"] == {"fits": False, "memory": 24_000_000_000, "usable": 21_600_000_000, "change": []}


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ([], {"gpu": "h1000x"}, "GPU 'h1000x' is not known; did you mean 'h100'"),
        ([], {"gpu": "h100", "gpus": 0}, "gpus=0 is not a number of GPUs; give 1 or more"),
        ([], {"gpu": "h100", "efficiency": 1.5}, "efficiency=1.5 is not a share of the peak"),
        ([], {"gpu": "h100", "price": 0}, "price=0 is not dollars for a GPU hour"),
        ([], {"gpu": "h100", "pue": 0.9}, "pue=0.9 is less than the computers themselves take"),
        ([], {"gpu": "h100", "gpus": 3}, "train.batch_size=512 is not a multiple of 3 data ranks"),
        (["parallel.shard=3"], {"gpu": "h100", "gpus": 8}, "and 8 GPUs are no multiple of 3"),
        (["evaluate.metric=f1"], {"gpu": "h100"}, "evaluate.metric='f1' is not measured"),
        (["train.stps=3"], {"gpu": "h100"}, "unknown key 'train.stps'; did you mean 'train.steps'"),
    ],
)
def test_bad_input(recipe: Recipe, overrides: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bedplate.plan(recipe, *overrides, **options)


def test_fp32_on_a_gpu_has_no_time(recipe: Recipe) -> None:
    plan = bedplate.plan(recipe, "train.precision=fp32", gpu="h100")
    assert plan["time"] is None and plan["cost"] is None and any("bf16 products" in note for note in plan["notes"])
    assert plan["memory"]["weight_casts"] == 0


def test_this_machine_is_measured(tmp_path: Path, tiny_recipe: Any) -> None:
    recipe = tiny_recipe(tmp_path / "run")
    plan = bedplate.plan(recipe)
    assert plan["hardware"].startswith("cpu, 1 threads, fp32") and plan["fit"]["fits"]
    assert 1e-4 < plan["time"]["step_seconds"] < 10 and plan["cost"]["kwh"] is None
    assert any(note.startswith("measured: ") for note in plan["notes"]) and not recipe.out.exists()
    given = bedplate.plan(recipe, efficiency=0.5, gpu="cpu")
    assert 0 < given["time"]["efficiency"] <= 0.5


def test_what_does_not_fit_here_is_not_measured(
    tmp_path: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_memory_bytes", lambda: (1_000_000, None))
    monkeypatch.setattr(module, "measure_speed", None)
    plan = bedplate.plan(tiny_recipe(tmp_path / "run", "train.batch_size=64"))
    assert plan["time"] is None and plan["fit"]["fits"] is False


def test_a_dry_run_is_the_plan_without_measuring(
    tmp_path: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_speed", None)
    recipe = tiny_recipe(tmp_path / "run")
    dry = bedplate.pretrain(recipe, dry_run=True)
    assert dry["time"] is None and dry == bedplate.plan(recipe, measure=False)


def test_nothing_of_the_network_is_allocated(recipe: Recipe) -> None:
    """70 billion parameters would not fit into any machine that runs this test."""
    sizes = [
        "model.preset=llama",
        "model.hidden_size=8192",
        "model.num_hidden_layers=80",
        "model.num_attention_heads=64",
    ]
    sizes += ["model.num_key_value_heads=8", "model.intermediate_size=28672", "tokenizer.vocab_size=128256"]
    plan = bedplate.plan(
        recipe, *sizes, "model.tie_word_embeddings=false", "train.micro_batch_size=1", gpu="h100", gpus=512
    )
    assert plan["parameters"] == 70_553_706_496
    assert "parallel.shard=" in " ".join(plan["fit"]["change"]) and torch.get_default_device().type == "cpu"
