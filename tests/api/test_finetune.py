"""`finetune` of classifiers: what is learnt and kept, what is said of the examples, and going on after a stop."""

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import bedplate
from bedplate.api.finetune_classify import ClassifyRun
from bedplate.errors import InputError, Interrupted
from bedplate.models.classifier import Classifier
from bedplate.recipe import read_finetune_recipe
from bedplate.tasks.classify import Classify
from bedplate.train.checkpoint import Checkpoints
from bedplate.train.log import read_rows
from bedplate.train.loop import Trainer

TIMING = {"tokens_per_second", "mfu", "waiting", "seconds"}
SHORT = ("train.epochs=1",)


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def halves(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """120 of the labelled texts, and the 40 others."""
    rows, folder = read(labelled), tmp_path_factory.mktemp("halves")
    return write(folder / "train.csv", rows[:120]), write(folder / "test.csv", rows[120:])


def test_a_separable_task_is_learnt(tiny_classified: Path, labelled: Path) -> None:
    assert {path.name for path in tiny_classified.iterdir()} == {
        *("recipe.yaml", "environment.json", "metrics.jsonl", "scored.json", "report.html"),
        *("checkpoints", "model", "tokenizer"),
    }
    result = bedplate.evaluate(tiny_classified, labelled)
    assert result["n"] == 160 and result["metrics"]["accuracy"]["value"] == 1
    assert result["confusion"] == [[80, 0], [0, 80]] and result["labels"] == ["place", "time"]
    card = (tiny_classified / "model" / "README.md").read_text("utf-8")
    assert "text-classification" in card and "(place, time)" in card and str(tiny_classified) not in card
    assert str(labelled.parent) not in card and "| accuracy | 1 |" in card


@pytest.mark.parametrize(
    ("pooling", "override"),
    [
        ("last", "model.attention=base"),
        ("mean", "model.attention=causal"),
        ("last", "model.attention=bidirectional"),
        ("mean", "model.attention=bidirectional"),
        ("mean", "optimizer.name=muon"),
    ],
)
def test_options_learn_it_too_and_are_in_the_directory(
    tmp_path: Path, tiny_finetune: Any, pooling: str, override: str
) -> None:
    recipe = tiny_finetune(tmp_path / "run", f"model.pooling={pooling}", override, "train.epochs=8")
    result = bedplate.finetune(recipe)
    assert result["metrics"]["accuracy"]["value"] > 0.9  # of 16: machines differ in the last digits
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config.get("is_causal", True) == (override != "model.attention=bidirectional")
    assert config["architectures"] == [
        "Qwen3ForSequenceClassification" if pooling == "last" else "Qwen3ForTokenClassification"
    ]


def test_a_saved_classifier_gives_the_logits_of_the_module(
    tmp_path: Path, tiny_finetune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[ClassifyRun] = []
    monkeypatch.setattr(ClassifyRun, "score", lambda self: runs.append(self))
    bedplate.finetune(tiny_finetune(tmp_path / "run", *SHORT))
    ours, saved = runs[0], bedplate.load(tmp_path / "run")
    text = "the cat sees a dog at night"
    with torch.inference_mode():
        logits = ours.module.eval()(torch.tensor([ours.tokenizer.encode(text).ids]))[0]
    assert list(saved.predict(text)[0]["scores"].values()) == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)


def test_overrides_reach_the_run(tmp_path: Path, tiny_finetune: Any) -> None:
    recipe = tiny_finetune(tmp_path / "run")
    result = bedplate.finetune(recipe, "train.steps=2", "seed=7", "data.val_fraction=0", "train.batch_size=4")
    assert result["steps"] == 2 and result["metrics"] == {} and result["data"]["train"] == 160
    kept = read_finetune_recipe(tmp_path / "run" / "recipe.yaml")
    assert (kept.seed, kept.train.steps, kept.train.batch_size) == (7, 2, 4)


def test_a_finetuned_model_is_a_base_again(tmp_path: Path, tiny_finetune: Any, tiny_classified: Path) -> None:
    result = bedplate.finetune(tiny_finetune(tmp_path / "run", f"base={tiny_classified}", *SHORT))
    assert result["metrics"]["accuracy"]["value"] == 1


def test_steps_or_epochs_whichever_is_first(tmp_path: Path, tiny_finetune: Any) -> None:
    for name, overrides, steps in (
        ("steps", ("train.steps=4", "train.epochs=9"), 4),
        ("epochs", ("train.steps=400", "train.epochs=0.5"), 4),
        ("only-steps", ("train.steps=11", "train.epochs=null"), 11),
    ):
        assert bedplate.finetune(tiny_finetune(tmp_path / name, *overrides))["steps"] == steps


# What is scored, and what is said.


def test_validation_and_test_files(tmp_path: Path, tiny_finetune: Any, halves: tuple[Path, Path], capsys: Any) -> None:
    train, scored = halves[0], read(halves[1])
    val, test = write(tmp_path / "val.csv", scored[:25]), write(tmp_path / "test.csv", scored[20:])
    parts = (f"data.path={train}", f"data.val_path={val}", f"data.test_path={test}")
    result = bedplate.finetune(tiny_finetune(tmp_path / "run", *parts, "train.epochs=2"))
    held_out = result["data"]["val"]
    assert 0 < held_out <= 20  # the five that are in both files are scored at the end and do not choose the epoch
    assert result["data"]["test"] == result["test"]["accuracy"]["n"] == 20
    assert result["test"]["accuracy"]["value"] == 1
    assert result["metrics"]["accuracy"]["n"] == held_out
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "confusion" in page.lower()
    counts = f"{result['data']['train']} to train on, {held_out} held out to choose the best epoch, 20 to score once"
    assert counts in capsys.readouterr().err


def test_what_is_scored_is_not_trained_on(
    tmp_path: Path, tiny_finetune: Any, labelled: Path, halves: tuple[Path, Path], capsys: Any
) -> None:
    test, runs = read(halves[1]), []
    near = [{"text": row["text"].upper() + " !", "label": row["label"]} for row in test[:10]]
    train = write(tmp_path / "train.csv", read(halves[0]) + test[10:15] + near)
    recipe = tiny_finetune(tmp_path / "run", f"data.path={train}", f"data.test_path={halves[1]}", *SHORT)
    original = ClassifyRun._read

    def spied(self: ClassifyRun, log: Any) -> None:
        original(self, log)
        runs.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifyRun, "_read", spied)
        data = bedplate.finetune(recipe)["data"]
    assert data["near_duplicates"] >= 15 and data["train"] + data["val"] + data["near_duplicates"] == 135
    kept = {" ".join(text.lower().strip(" !").split()) for text in runs[0].parts["train"].texts}
    assert not kept & {row["text"] for row in test}
    assert f"{data['near_duplicates']} near-duplicates of texts that are scored were removed" in capsys.readouterr().err


def test_what_is_left_out_is_said(tmp_path: Path, tiny_finetune: Any, labelled: Path, capsys: Any) -> None:
    rows = read(labelled)
    spoilt = [{"text": "  ", "label": "time"}, {"text": "no label", "label": ""}, rows[0], rows[0]]
    path = write(tmp_path / "spoilt.csv", rows + spoilt)
    data = bedplate.finetune(tiny_finetune(tmp_path / "run", f"data.path={path}", "train.steps=1"))["data"]
    assert data["dropped"] == {"empty texts": 1, "missing labels": 1, "repeated texts": 2}
    said = capsys.readouterr().err
    assert "Left out: " in said and "1 empty texts" in said and "2 repeated texts" in said
    assert "Texts from column 'text', labels from 'label' (place, time)" in said


def test_long_texts_are_read_in_windows_and_said(
    tmp_path: Path, tiny_finetune: Any, labelled: Path, capsys: Any
) -> None:
    rows = read(labelled)
    filler = " ".join(row["text"].partition(" in ")[0] for row in rows[:20])
    path = write(tmp_path / "long.csv", [*rows, {"text": filler + " today", "label": "time"}])
    common = (f"data.path={path}", "train.steps=2", "data.val_fraction=0", "train.sequence_length=32")
    assert bedplate.finetune(tiny_finetune(tmp_path / "windows", *common))["data"]["windowed"] == 1
    assert "1 texts are longer than 32 tokens: each is read in windows, whose mean decides." in capsys.readouterr().err
    data = bedplate.finetune(tiny_finetune(tmp_path / "cut", *common, "data.max_tokens=32"))["data"]
    assert (data["windowed"], data["truncated"]) == (0, 1)
    assert "1 texts are cut after data.max_tokens." in capsys.readouterr().err


# Early stopping.


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Let evaluations find these accuracies, whatever the network does; as a function of the step, as real ones are."""
    evaluate = Trainer._evaluate

    def evaluated(self: Trainer) -> None:
        def measure(task: Classify, batches: Any) -> dict[str, dict[str, float]]:
            value = accuracies[self.step // self.evaluate_every]
            return {name: {"value": value, "low": value, "high": value, "n": 9} for name in Classify.metrics}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Classify, "evaluate", measure)
            evaluate(self)

    monkeypatch.setattr(Trainer, "_evaluate", evaluated)


EARLY = ("evaluate.every=2", "evaluate.patience=2", "train.steps=20", "checkpoint.keep=1", "log.every=1")
SCORES = [0.9, 0.5, 0.8, 0.7, 0.8, *[0.1] * 6]  # the best is that of step 4, so step 8 is the last


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(bedplate.load(run).module.named_parameters())


def test_early_stopping_keeps_the_best_weights(
    tmp_path: Path, tiny_finetune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, SCORES)
    result = bedplate.finetune(tiny_finetune(tmp_path / "run", *EARLY))
    assert result["steps"] == 8 and result["metrics"]["accuracy"]["value"] == 0.8
    best, found = Checkpoints(tmp_path / "run" / "checkpoints", 1).load(4).model, weights_of(tmp_path / "run")
    assert best.keys() == found.keys() and all(torch.equal(best[name], found[name]) for name in best)
    assert "train.steps" not in result and bedplate.load(tmp_path / "run").labels == ["place", "time"]
    patient = bedplate.finetune(tiny_finetune(tmp_path / "patient", *EARLY, "evaluate.patience=null"))
    assert patient["steps"] == 20


# Going on after a stop.


def end_of(run: Path) -> dict[str, Any]:
    """The bits of the last checkpoint and of the model, and the rows without timings."""
    last = Checkpoints(run / "checkpoints", 1).load()
    bits = {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in last.tensors().items()}
    files = {name: (run / name).read_bytes() for name in ("model/model.safetensors", "scored.json")}
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(run / "metrics.jsonl")]
    return {"checkpoint": bits, "state": last.state(), "metrics.jsonl": rows} | files


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    train_step = Trainer._train_step

    def stopping(self: Trainer, batch: Any) -> None:
        train_step(self, batch)
        if self.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(Trainer, "_train_step", stopping)


@pytest.mark.parametrize("options", [(), ("train.ema=0.9", "train.micro_batch_size=4")], ids=["plain", "more"])
def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path, tiny_finetune: Any, options: tuple[str, ...]) -> None:
    common = ("train.epochs=2", "log.every=4", "evaluate.every=6", *options)
    bedplate.finetune(tiny_finetune(tmp_path / "straight", *common))
    stopped = tiny_finetune(tmp_path / "stopped", *common)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 11)  # in the second epoch
        with pytest.raises(Interrupted, match=r"Stopped after step 11 of 18; .* Go on with: bedplate finetune"):
            bedplate.finetune(stopped)
    assert not (tmp_path / "stopped/model").exists()
    assert bedplate.finetune(tmp_path / "stopped/recipe.yaml", resume=True)["steps"] == 18
    assert end_of(tmp_path / "straight") == end_of(tmp_path / "stopped")


def test_a_run_that_stopped_early_is_resumed_to_the_same(
    tmp_path: Path, tiny_finetune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, SCORES)
    recipe, stopped = tiny_finetune(tmp_path / "run", *EARLY), tiny_finetune(tmp_path / "stopped", *EARLY)
    first = bedplate.finetune(recipe)
    before = end_of(recipe.out)
    again = bedplate.finetune(recipe, resume=True)
    assert (again["steps"], again["metrics"]) == (first["steps"], first["metrics"]) and end_of(recipe.out) == before
    for step in (5, 7):  # before the evaluation that ends it, twice
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            stop_at(patch, step)
            bedplate.finetune(stopped, resume=step > 5)
    bedplate.finetune(stopped, resume=True)
    assert end_of(stopped.out) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pooling=mean", "the run began with model.pooling="),
        ("seed=3", "the run began with seed=0"),
        ("train.batch_size=8", "the run began with train.batch_size=16"),
        ("data.max_tokens=9", "the run began with data.max_tokens=None"),
        ("data.path={other}", "the run began with other data"),
        ("train.epochs=1", "the run is at step 27, past train.steps=9"),
    ],
)
def test_another_run_is_not_resumed(
    tmp_path: Path, tiny_finetune: Any, tiny_classified: Path, labelled: Path, override: str, message: str
) -> None:
    other = write(tmp_path / "other.csv", read(labelled)[:100])
    before = (tiny_classified / "recipe.yaml").read_bytes()
    with pytest.raises(InputError, match=message):
        bedplate.finetune(tiny_finetune(tiny_classified, override.format(other=other)), resume=True)
    assert (tiny_classified / "recipe.yaml").read_bytes() == before


def test_numbers_are_labels_in_their_order(tmp_path: Path, tiny_finetune: Any, labelled: Path) -> None:
    """Labels that are numbers are classes in the order of the numbers."""
    rows = read(labelled)
    numbered = [{"text": row["text"], "label": {"place": "10", "time": "9"}[row["label"]]} for row in rows]
    path = write(tmp_path / "numbered.csv", numbered)
    bedplate.finetune(tiny_finetune(tmp_path / "run", f"data.path={path}", *SHORT))
    model = bedplate.load(tmp_path / "run")
    assert isinstance(model.module, Classifier) and model.labels == ["9", "10"]
    assert model.predict("the house hears a dog near the sea")[0]["label"] == "10"


def test_a_report_never_shows_the_scores_of_an_earlier_model(tmp_path: Path, tiny_finetune: Any) -> None:
    """A finished run that is resumed for more epochs and stopped has no scores until it is finished again."""
    page = tmp_path / "run/report.html"
    bedplate.finetune(tiny_finetune(tmp_path / "run", "train.epochs=1", "evaluate.patience=null"))
    assert "Confusion matrix" in page.read_text("utf-8")
    longer = tiny_finetune(tmp_path / "run", "train.epochs=3", "evaluate.patience=null")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 12)
        bedplate.finetune(longer, resume=True)
    assert "Confusion matrix" not in page.read_text("utf-8")
    bedplate.finetune(longer, resume=True)
    assert "Confusion matrix" in page.read_text("utf-8")


def test_a_classifier_reads_afterwards_as_it_was_taught(tmp_path: Path, tiny_finetune: Any, halves: Any) -> None:
    train, test = halves
    options = f"data.path={train}", f"data.test_path={test}", "data.max_tokens=9", "train.sequence_length=6", *SHORT
    result = bedplate.finetune(tiny_finetune(tmp_path / "run", *options))
    config = json.loads((tmp_path / "run" / "model" / "tokenizer_config.json").read_text("utf-8"))
    assert config["classify"] == {"sequence_length": 6, "max_tokens": 9, "framed": True}
    measured = bedplate.evaluate(tmp_path / "run", test)
    assert measured["sequence_length"] == 6 and measured["data"]["truncated"] == 40
    assert measured["metrics"]["loss"] == pytest.approx(result["test"]["loss"], abs=1e-6)
    model = bedplate.load(tmp_path / "run")
    text = "the fox sees the bird in the garden and then nothing else is read of it"
    ids = model.need_tokenizer().encode(text, add_special_tokens=False).ids
    cut = model.need_tokenizer().decode(ids[:9])
    assert model.predict(text)[0]["scores"] == pytest.approx(model.predict(cut)[0]["scores"])
    again = bedplate.finetune(tiny_finetune(tmp_path / "again", f"base={tmp_path / 'run'}", *SHORT))
    assert (
        json.loads((Path(again["model"]) / "tokenizer_config.json").read_text("utf-8"))["classify"]["max_tokens"]
        is None
    )
    bare = tmp_path / "bare"
    shutil.copytree(tmp_path / "run" / "model", bare)
    (bare / "tokenizer_config.json").unlink()
    bedplate.finetune(tiny_finetune(tmp_path / "foreign", f"base={bare}", *SHORT))
    written = json.loads((tmp_path / "foreign" / "model" / "tokenizer_config.json").read_text("utf-8"))
    assert {"eos_token", "pad_token", "classify"} <= written.keys()
    config["classify"]["sequence_length"] = 10**6
    (tmp_path / "run" / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="'classify' holds"):
        bedplate.evaluate(tmp_path / "run", test)


def test_options_that_nothing_reads_are_refused(tiny_classified: Path, tiny_model: Path, labelled: Path) -> None:
    for model, options in (
        (tiny_classified, {"sequence_lenght": 8}),
        (tiny_model, {"num_beams": 2}),
        (tiny_model, {"labels": "place,time", "sequence_length": 8}),
    ):
        with pytest.raises(InputError, match="is no option of measuring on"):
            bedplate.evaluate(model, labelled, **options)
    with pytest.raises(InputError, match="batch_size is for language models"):
        bedplate.evaluate(tiny_classified, labelled, batch_size=4)
    for options in ({}, {"labels": "place,time"}):
        with pytest.raises(InputError, match="seed=1 draws examples of labels from a file, and none is given"):
            bedplate.evaluate(tiny_model, labelled, seed=1, **options)
    with pytest.raises(InputError, match="batch_size is no option of measuring on a suite"):
        bedplate.evaluate(tiny_model, suite=labelled.parent, batch_size=4)
    with pytest.raises(InputError, match="column is no option of measuring on a suite"):
        bedplate.evaluate(tiny_model, suite=labelled.parent, column="text")
    with pytest.raises(InputError, match="seed is no option of a classifier"):
        bedplate.predict(tiny_classified, "a text", seed=1)
    written = [bedplate.predict(tiny_model, "the fox", seed=seed, temperature=1.0) for seed in (3, 3)]
    assert written[0] == written[1]
