"""`pretrain`: what a run directory holds, what a dry run says, and what is refused before anything is written."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import bedplate
from bedplate.api.folders import cache_folder, only_one
from bedplate.api.pretrain import Pretraining
from bedplate.errors import InputError
from bedplate.recipe import read_recipe
from bedplate.train.checkpoint import Checkpoints
from bedplate.train.log import read_rows
from bedplate.train.loop import Trainer


def test_a_run_directory_is_whole(tiny_run: Path, tiny_recipe: Any) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert names == {
        *("recipe.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "report.html"),
        *("checkpoints", "model", "tokenizer"),
    }
    assert read_recipe(tiny_run / "recipe.yaml").train.steps == 40
    facts = json.loads((tiny_run / "environment.json").read_text("utf-8"))
    assert {"versions", "hardware", "git", "data"} <= set(facts) and facts["data"][0]["fingerprint"]


def test_a_model_learns_and_its_directory_holds_what_was_measured(tiny_run: Path) -> None:
    rows = [row for row in read_rows(tiny_run / "metrics.jsonl") if "val_bits_per_byte" in row]
    assert [row["step"] for row in rows] == [0, 20, 40]
    assert rows[2]["val_bits_per_byte"] < rows[1]["val_bits_per_byte"] < rows[0]["val_bits_per_byte"] - 0.5
    assert f"{rows[2]['val_bits_per_byte']:.3f}"[:4] in (tiny_run / "model" / "README.md").read_text("utf-8")


def test_the_model_directory_is_the_last_checkpoint(tiny_run: Path) -> None:
    module = bedplate.load(tiny_run).module
    saved = Checkpoints(tiny_run / "checkpoints", 1).load().model
    assert all(torch.equal(parameter, saved[name]) for name, parameter in module.named_parameters())


@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_dry_run_counts_what_a_run_has_and_makes_no_folder(
    tmp_path: Path, tiny_recipe: Any, preset: str, tied: str
) -> None:
    recipe = tiny_recipe(tmp_path / "run", f"model.preset={preset}", f"model.tie_word_embeddings={tied}")
    plan = bedplate.pretrain(recipe, dry_run=True)
    assert not recipe.out.exists()
    ran = bedplate.pretrain(recipe, "train.steps=1", "evaluate.sample_tokens=0", "train.ema=0.5")
    assert plan["parameters"] == ran["parameters"]
    assert plan["tokens"] == 20 * 8 * 32 and plan["recipe"] == recipe.model_dump(mode="json")
    checkpoint = Checkpoints(recipe.out / "checkpoints", 1).load()
    weights, moments = (sum(t.nbytes for t in part.values()) for part in (checkpoint.model, checkpoint.optimizer))
    assert plan["memory"]["weights"] == weights
    assert plan["memory"]["optimizer"] == pytest.approx(moments, rel=0.01)


def test_the_memory_of_a_dry_run_adds_up_and_follows_the_switches(tmp_path: Path, tiny_recipe: Any) -> None:
    def memory(*overrides: str) -> dict[str, int]:
        parts: dict[str, int] = bedplate.pretrain(tiny_recipe(tmp_path / "run", *overrides), dry_run=True)["memory"]
        assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
        return parts

    plain = memory()
    assert plain["ema"] == 0 and memory("train.ema=0.9")["ema"] == plain["weights"]
    assert memory("optimizer.name=adamw")["optimizer"] == 2 * plain["weights"] > plain["optimizer"]
    assert memory("train.micro_batch_size=2")["activations"] == plain["activations"] // 4
    assert memory("train.activation_checkpointing=true")["activations"] < plain["activations"]


def test_a_dry_run_counts_the_tokenizer_that_is_given(tmp_path: Path, tiny_recipe: Any, tiny_run: Path) -> None:
    given = tiny_recipe(tmp_path / "run", "tokenizer.vocab_size=9999", f"tokenizer.path={tiny_run / 'tokenizer'}")
    trained = tiny_recipe(tmp_path / "run")
    counts = [bedplate.pretrain(recipe, dry_run=True)["parameters"] for recipe in (given, trained)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["evaluate.metric=perplexity"],
            "evaluate.metric='perplexity' is not measured; choose one of bits_per_byte, loss",
        ),
        (["train.sequence_length=99999"], "the training text has .* tokens, but one window needs 100,000"),
        (["model.num_attention_heads=5"], "model.hidden_size=32 is not a multiple of model.num_attention_heads=5"),
        (["model.num_attention_heads=4", "model.num_key_value_heads=3"], "must be a multiple of num_key_value_heads=3"),
        (["tokenizer.path=no-such-folder"], "no-such-folder: no such file; give a tokenizer.json"),
        (["tokenizer.vocab_size=100"], "vocab_size 100 is too small"),
        (["data.column=body"], "no column 'body'; present are 'text'"),
        (["data.path=no-such-file.txt"], "no-such-file.txt: no such file or folder"),
    ],
)
def test_a_recipe_that_cannot_run_leaves_no_folder(
    tmp_path: Path, tiny_recipe: Any, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        bedplate.pretrain(tiny_recipe(tmp_path / "deep" / "run", *overrides))
    assert not (tmp_path / "deep").exists()


def test_a_mixture_splits_held_out_text_off_its_first_source_only(
    tmp_path: Path, tiny_recipe: Any, corpus: Path
) -> None:
    lone = tmp_path / "lone.jsonl"
    lone.write_text(json.dumps({"text": "The cat sees the river near the sea. " * 40}) + "\n")  # cannot be split
    recipe = tiny_recipe(tmp_path / "run", f"data.path=[{corpus}, {lone}]", "data.weights=[3, 1]", "train.steps=2")
    bedplate.pretrain(recipe)
    first, second = json.loads((recipe.out / "environment.json").read_text("utf-8"))["data"]
    assert first["val"]["documents"] > 0 and second["val"]["documents"] == 0


def test_held_out_text_of_its_own(tmp_path: Path, tiny_recipe: Any, corpus: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", f"data.val_path={corpus}", "train.steps=2")
    assert bedplate.pretrain(recipe)["metrics"]["loss"]["value"] < 7
    (data,) = json.loads((recipe.out / "environment.json").read_text("utf-8"))["data"]
    assert data["train"]["documents"] == data["val"]["documents"] == 400


def test_a_run_without_held_out_text_still_makes_a_model(tmp_path: Path, tiny_recipe: Any) -> None:
    result = bedplate.pretrain(tiny_recipe(tmp_path / "run", "data.val_fraction=0", "train.steps=2"))
    assert result["metrics"] == {} and bedplate.load(result["model"])


def test_an_output_folder_that_cannot_be_made(tmp_path: Path, tiny_recipe: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run: cannot be made \(Not a directory\); give another `out`"):
        bedplate.pretrain(tiny_recipe(tmp_path / "file" / "run", "train.steps=1"))


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, tiny_recipe: Any) -> None:
    recipe = tiny_recipe(tmp_path / "run", "train.steps=1")
    recipe.out.mkdir()
    with only_one(recipe.out), pytest.raises(InputError, match="another process trains here"):
        bedplate.pretrain(recipe, resume=True)


def test_the_card_does_not_tell_where_its_owner_keeps_files(tiny_run: Path) -> None:
    card = (tiny_run / "model" / "README.md").read_text("utf-8")
    assert [line for line in card.splitlines() if str(tiny_run.parent) in line] == []
    assert Path(read_recipe(tiny_run / "recipe.yaml").data.path[0]).name in card


@pytest.mark.slow
def test_neither_samples_nor_depth_add_to_what_is_compiled(tmp_path: Path, tiny_recipe: Any) -> None:
    """Past a number of variants PyTorch runs blocks uncompiled; the states of a sample's cache were variants."""

    def graphs(*overrides: str) -> int:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        given = "train.compile=true", "train.steps=1", "data.isolate_documents=true"
        bedplate.pretrain(tiny_recipe(tmp_path / f"run-{len(overrides)}", *given, *overrides))
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    few = graphs("evaluate.prompts=[]", "model.num_hidden_layers=2")
    assert few
    assert graphs("evaluate.prompts=[One, Another one]", "evaluate.sample_tokens=4", "model.num_hidden_layers=3") == few


def test_home_is_found_where_no_shell_has(tmp_path: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tiny_recipe(Path("~/run"), "tokenizer.path=~/tok").out == tmp_path / "run"
    assert tiny_recipe(Path("~/run"), "tokenizer.path=~/tok").tokenizer.path == tmp_path / "tok"


def test_a_prepared_folder_is_measured_by_what_it_holds_out(tmp_path: Path, tiny_run: Path, corpus: Path) -> None:
    prepared = bedplate.prepare(str(corpus), tokenizer=tiny_run / "tokenizer", cache=tmp_path, val_fraction=0.2)
    measured = bedplate.evaluate(tiny_run, tmp_path / "text" / prepared["fingerprint"])
    assert 0 < measured["tokens"] == prepared["val"]["tokens"] < prepared["train"]["tokens"]


def test_a_cache_of_shards_elsewhere_leaves_other_caches_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDPLATE_CACHE", "memory://shards")
    assert cache_folder() == Path("~/.cache/bedplate").expanduser()
    assert str(cache_folder(local=False)) == "memory:/shards"
    with pytest.raises(InputError, match="pictures are kept on this machine"):
        cache_folder(Path("s3://bucket/cache"))


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("step", [3, 10, 20])  # before the first checkpoint, beside one, behind the last step
def test_a_run_directory_that_is_removed_is_told(
    tmp_path: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch, step: int, is_stopped: bool
) -> None:
    train_step = Trainer._train_step

    def removing(self: Trainer, batch: Any) -> None:
        train_step(self, batch)
        if self.step + 1 == step:
            shutil.rmtree(tmp_path / "run")
            if is_stopped:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_train_step", removing)
    with pytest.raises(InputError, match=r"environment\.json: the file or its folder was removed"):
        bedplate.pretrain(tiny_recipe(tmp_path / "run"))


def test_a_run_directory_that_is_removed_at_the_end_is_told(
    tmp_path: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pretraining, "write_report", lambda self, record: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(InputError, match="the file or its folder was removed while the run went on"):
        bedplate.pretrain(tiny_recipe(tmp_path / "run", "train.steps=1"))
