"""`finetune` with an adapter: what is trained and written, going on after a stop, and the adapter in use."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bedplate
from bedplate.errors import InputError, Interrupted
from bedplate.recipe import FinetuneRecipe, write_recipe
from bedplate.train.checkpoint import Checkpoints
from bedplate.train.log import read_rows
from bedplate.train.loop import Trainer

TIMING = {"tokens_per_second", "mfu", "waiting", "seconds"}
RANK = ("adapter.rank=4", "optimizer.learning_rate=0.01")
TEXTS = ["the cat sees a dog at night", "my friend follows the river near the sea"]


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tiny_finetune: Any) -> Path:
    """The run directory of a classifier that was made with an adapter; not to be changed."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        bedplate.finetune(tiny_finetune(out, *RANK))
    return out


@pytest.fixture(scope="module")
def chat(tiny_finetune: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`chat(out, *overrides)`: a recipe in which each of four letters has its own answer."""
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    answers = {"a": "today", "b": "at night", "c": "near the sea", "d": "again"}
    rows = [{"prompt": prompt, "response": response} for prompt, response in answers.items()] * 16
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    options = ("task=chat", f"data.path={path}", "data.val_fraction=0", "train.batch_size=8", "model.dropout=0")

    def make(out: Path, *overrides: str) -> FinetuneRecipe:
        recipe: FinetuneRecipe = tiny_finetune(out, *options, *overrides)
        return recipe

    return make


def close(got: Any, expected: Any) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one["label"] == other["label"]
        assert list(one["scores"].values()) == pytest.approx(list(other["scores"].values()), abs=1e-5)


# What is trained, and what is written.


def test_an_adapter_learns_the_task_and_leaves_the_base(adapted: Path, labelled: Path, tiny_model: Path) -> None:
    assert {path.name for path in (adapted / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer_config.json",  # how it was taught to read
    }
    assert bedplate.evaluate(adapted, labelled)["metrics"]["accuracy"]["value"] == 1
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, adapted / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    values = json.loads((adapted / "adapter/adapter_config.json").read_text())
    assert values["task_type"] == "SEQ_CLS" and values["base_model_name_or_path"] == str(tiny_model)
    assert (values["r"], values["lora_alpha"], values["modules_to_save"]) == (4, 8, ["classifier", "score"])


def test_checkpoints_and_results_hold_what_is_trained(tmp_path: Path, tiny_finetune: Any, tiny_model: Path) -> None:
    result = bedplate.finetune(tiny_finetune(tmp_path / "run", *RANK, "train.steps=2", "train.ema=0.9"))
    last = Checkpoints(tmp_path / "run/checkpoints", 1).load()
    assert all(".lora_" in name or name == "score.weight" for name in last.model)
    assert last.ema.keys() == last.model.keys()
    assert {key.rpartition("/")[0] for key in last.optimizer} == last.model.keys()
    assert result["trained"] == sum(tensor.numel() for tensor in last.model.values())
    assert result["adapter"] == str(tmp_path / "run/adapter")
    whole = bedplate.info(tmp_path / "run")["parameters"]
    assert result["parameters"] == whole == bedplate.info(tiny_model)["parameters"] + 2 * 32


def test_the_adapter_on_its_base_is_the_merged_model(adapted: Path, tiny_model: Path) -> None:
    expected = bedplate.predict(str(adapted), TEXTS)
    model = bedplate.load(tiny_model)
    plain = model.generate("the cat", temperature=0, max_new_tokens=8)
    model.load_adapter(adapted)
    close(model.predict(TEXTS), expected)
    close(bedplate.predict(adapted / "adapter", TEXTS), expected)
    close(bedplate.predict(tiny_model, TEXTS, adapter=adapted / "adapter"), expected)
    model.unload_adapter()
    assert model.generate("the cat", temperature=0, max_new_tokens=8) == plain


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.pooling=mean",),
        ("model.attention=bidirectional", "adapter.targets=[q_proj,v_proj]"),
        ("optimizer.name=muon", "adapter.dropout=0.1", "adapter.alpha=3"),
        ("train.ema=0.5", "train.activation_checkpointing=true"),
    ],
    ids=["mean", "bidirectional", "muon", "ema"],
)
def test_options_are_in_the_adapter_too(
    tmp_path: Path, tiny_finetune: Any, tiny_model: Path, overrides: tuple[str, ...]
) -> None:
    bedplate.finetune(tiny_finetune(tmp_path / "run", *RANK, *overrides, "train.epochs=1"))
    expected = bedplate.predict(tmp_path / "run/model", TEXTS)
    close(bedplate.predict(tiny_model, TEXTS, adapter=tmp_path / "run"), expected)


def test_an_adapter_keeps_how_texts_are_read(tmp_path: Path, tiny_finetune: Any, tiny_model: Path) -> None:
    options = "adapter.rank=2", "train.steps=1", "train.sequence_length=6", "data.max_tokens=9"
    bedplate.finetune(tiny_finetune(tmp_path / "run", *options))
    alone, merged = bedplate.load(tmp_path / "run" / "adapter"), bedplate.load(tmp_path / "run")
    assert alone.tokenizer_config["classify"] == merged.tokenizer_config["classify"]
    assert alone.tokenizer_config["classify"] == {"sequence_length": 6, "max_tokens": 9, "framed": True}
    alone.unload_adapter()
    assert "classify" not in alone.tokenizer_config


def test_rank_0_is_full_fine_tuning(tmp_path: Path, tiny_finetune: Any) -> None:
    for name, overrides in (("none", ()), ("zero", ("adapter.rank=0",))):
        result = bedplate.finetune(tiny_finetune(tmp_path / name, *overrides, "train.steps=3"))
        assert "adapter" not in result and not (tmp_path / name / "adapter").exists()
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("none", "zero")]
    assert weights[0] == weights[1]


def test_a_model_that_answers(tmp_path: Path, chat: Any, tiny_model: Path) -> None:
    bedplate.finetune(chat(tmp_path / "run", *RANK, "train.epochs=4"))
    rows = read_rows(tmp_path / "run/metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    values = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert values["task_type"] == "CAUSAL_LM" and values["modules_to_save"] is None
    merged, model = bedplate.load(tmp_path / "run"), bedplate.load(tiny_model)
    with pytest.raises(InputError, match="no chat template"):
        model.chat([{"role": "user", "content": "b"}])
    model.load_adapter(tmp_path / "run")
    for prompt in "abcd":
        messages = [{"role": "user", "content": prompt}]
        options = {"temperature": 0, "max_new_tokens": 8}
        assert merged.chat(messages, **options) == model.chat(messages, **options)
    model.unload_adapter()
    with pytest.raises(InputError, match="no chat template"):
        model.chat([{"role": "user", "content": "b"}])


def test_an_adapter_is_a_base_again(tmp_path: Path, tiny_finetune: Any, adapted: Path) -> None:
    bedplate.finetune(tiny_finetune(tmp_path / "run", *RANK, f"base={adapted / 'adapter'}", "train.epochs=1"))
    expected = bedplate.predict(tmp_path / "run/model", TEXTS)
    close(bedplate.predict(tmp_path / "run/adapter", TEXTS), expected)


# Going on after a stop.


def end_of(run: Path) -> dict[str, Any]:
    """The bits of the last checkpoint, the model and the adapter, and the rows without timings."""
    last = Checkpoints(run / "checkpoints", 1).load()
    bits = {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in last.tensors().items()}
    kept = ("model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(run / "metrics.jsonl")]
    return {"bits": bits, "state": last.state(), "rows": rows} | {name: (run / name).read_bytes() for name in kept}


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    train_step = Trainer._train_step

    def stopping(self: Trainer, batch: Any) -> None:
        train_step(self, batch)
        if self.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(Trainer, "_train_step", stopping)


@pytest.mark.parametrize("task", ["classify", "chat"])
@pytest.mark.parametrize(
    "options", [(), ("train.ema=0.9", "adapter.dropout=0.1", "optimizer.name=muon")], ids=["plain", "more"]
)
def test_a_stopped_run_ends_as_an_undisturbed_one(
    tmp_path: Path, tiny_finetune: Any, chat: Any, task: str, options: tuple[str, ...]
) -> None:
    make = tiny_finetune if task == "classify" else chat
    common = (*RANK, "train.steps=12", "train.epochs=null", "log.every=4", "evaluate.every=6", *options)
    straight, stopped = (make(tmp_path / name, *common) for name in ("straight", "stopped"))
    bedplate.finetune(straight)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(Interrupted, match=r"Stopped after step 7 of 12"):
            bedplate.finetune(stopped)
    assert not (tmp_path / "stopped/adapter").exists()
    assert bedplate.finetune(stopped, resume=True)["steps"] == 12
    expected, found = end_of(straight.out), end_of(stopped.out)
    assert expected == found


def test_another_run_is_not_resumed(tmp_path: Path, tiny_finetune: Any, tiny_model: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    recipe = tiny_finetune(tmp_path / "run", *RANK, f"base={base}", "train.steps=2")
    bedplate.finetune(recipe)
    longer = ("train.steps=4",)
    with pytest.raises(InputError, match=r"the run began with adapter\.rank=4"):
        bedplate.finetune(recipe, "adapter.rank=2", *longer, resume=True)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= -1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the base is not the one that the run in .* began with"):
        bedplate.finetune(recipe, *longer, resume=True)


# Bad input, on the command line.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.targets=[q_porj]", "adapter.targets: 'q_porj' is no linear layer of a qwen3 block; did you mean 'q_"),
        ("adapter.rank=33", "adapter.rank=33 is larger than q_proj, a matrix of 32 x 32; give at most 32"),
        ("adapter.rank=-1", "adapter.rank: input should be greater than or equal to 0, got -1"),
        ("adapter.rank=true", "a number is needed, not true or false"),
        ("adapter.rang=8", "unknown key 'adapter.rang'; did you mean 'adapter.rank'?"),
        ("adapter.dropout=1", "adapter.dropout: input should be less than 1"),
        ("adapter.alpha=0", "adapter.alpha: input should be greater than 0"),
        ("adapter.targets=[]", "adapter.targets names no layer"),
        ("adapter.rank=0", "adapter has settings and no rank; give adapter.rank"),
    ],
)
def test_a_wrong_adapter_leaves_nothing(
    tmp_path: Path, tiny_finetune: Any, run_bedplate: Any, override: str, message: str
) -> None:
    write_recipe(tiny_finetune(tmp_path / "run", *RANK, "adapter.alpha=4"), tmp_path / "f.yaml")
    code, out, err = run_bedplate("finetune", tmp_path / "f.yaml", override)
    assert code == 2 and out == "" and message in err.splitlines()[-1], err
    assert not (tmp_path / "run").exists()


def test_the_command_line_takes_an_adapter(
    run_bedplate: Any, adapted: Path, tiny_model: Path, tiny_classified: Path, labelled: Path, tmp_path: Path
) -> None:
    code, out, _ = run_bedplate("predict", tiny_model, TEXTS[0], "--adapter", adapted / "adapter", "--json")
    assert code == 0 and json.loads(out)[0]["label"] == "time"
    code, out, _ = run_bedplate("evaluate", tiny_model, "--adapter", adapted, "--data", labelled, "--json")
    assert code == 0 and json.loads(out)["metrics"]["accuracy"]["value"] == 1
    code, _, err = run_bedplate("generate", tiny_model, "the cat", "--adapter", adapted)
    assert code == 2 and "this model is a classifier (of place, time)" in err
    code, out, err = run_bedplate("predict", tiny_classified / "model", TEXTS[0], "--adapter", adapted, "--json")
    assert code == 2 and out == "" and "is of another base" in err.splitlines()[-1]


def test_the_command_line_makes_one_and_says_so(
    run_bedplate: Any, tmp_path: Path, tiny_finetune: Any, chat: Any, tiny_model: Path
) -> None:
    write_recipe(chat(tmp_path / "run"), tmp_path / "f.yaml")
    code, out, err = run_bedplate("finetune", tmp_path / "f.yaml", "adapter.rank=2", "train.steps=1")
    assert code == 0 and f"Adapter: {tmp_path / 'run/adapter'}" in out
    assert "weights are trained" in err and "an adapter of rank 2 on q_proj, k_proj" in err
    options = ("--temperature", 0, "--max-new-tokens", 4, "--json")
    code, out, _ = run_bedplate("generate", tiny_model, "the cat", "--adapter", tmp_path / "run", *options)
    merged = run_bedplate("generate", tmp_path / "run/model", "the cat", *options)
    assert code == 0 and json.loads(out) == json.loads(merged[1])


@pytest.fixture
def run_bedplate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`run_bedplate(*arguments)`: (exit code, stdout, stderr) of the command line, in this process."""
    from bedplate.cli import main as cli

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["bedplate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run
