"""Every verb is one call, whose second time in a process is as good as its first."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import bedplate
from bedplate.errors import InputError


def twice(verb: str, *arguments: Any, **options: Any) -> Any:
    """Call `bedplate.VERB` twice; the results must be equal."""
    first, second = (getattr(bedplate, verb)(*arguments, **options) for _ in range(2))
    assert first == second
    return first


def test_tokenizer(tmp_path: Path, corpus: Path) -> None:
    for name in "ab":
        made = bedplate.tokenizer(corpus, tmp_path / name, vocab_size=300)
        assert made == {"out": str(tmp_path / name), "vocab_size": 300}
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    with pytest.raises(InputError, match="already exists"):
        bedplate.tokenizer(corpus, tmp_path / "a")


def test_prepare_finds_its_shards_again(tmp_path: Path, corpus: Path, tiny_run: Path) -> None:
    meta = twice("prepare", corpus, tiny_run / "tokenizer", val_fraction=0.1, cache=tmp_path)
    assert meta["train"]["documents"] + meta["val"]["documents"] == 400
    assert len([path for path in (tmp_path / "text").iterdir() if path.is_dir()]) == 1


def test_prepare_makes_what_pretrain_reads(corpus: Path, tiny_run: Path) -> None:
    meta = bedplate.prepare([corpus], tiny_run / "tokenizer", val_fraction=0.1)
    facts = json.loads((tiny_run / "environment.json").read_text("utf-8"))
    assert facts["data"][0]["fingerprint"] == meta["fingerprint"]


def test_pretrain(tmp_path: Path, tiny_recipe: Any) -> None:
    results = [bedplate.pretrain(tiny_recipe(tmp_path / name), "train.steps=2") for name in "ab"]
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["steps"] == 2
    assert {"bits_per_byte", "loss"} == set(results[0]["metrics"])
    with pytest.raises(InputError, match="already exists; give another `out`, or go on with it by --resume"):
        bedplate.pretrain(tiny_recipe(tmp_path / "a"))


def test_evaluate_agrees_with_the_training_log(tiny_run: Path, corpus: Path) -> None:
    result = twice("evaluate", tiny_run, corpus, sequence_length=32)
    assert result["n"] == -(-(result["tokens"] - 1) // 32) and result["sequence_length"] == 32
    bits = result["metrics"]["bits_per_byte"]
    assert bits["low"] <= bits["value"] <= bits["high"] < 4.4  # the untrained network's is 4.5
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert bits["value"] == pytest.approx(rows[-1]["val_bits_per_byte"], rel=0.1)


@pytest.mark.parametrize("options", [{"sequence_length": 33}, {"sequence_length": 0}, {"batch_size": 0}])
def test_evaluate_refuses_sizes_that_cannot_be(tiny_model: Path, corpus: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(options))}={next(iter(options.values()))}"):
        bedplate.evaluate(tiny_model, corpus, **options)  # type: ignore[arg-type]


def test_generate(tiny_model: Path) -> None:
    result = twice("generate", tiny_model, ["The cat", "Her"], max_new_tokens=8, seed=1)
    assert [row["prompt"] for row in result] == ["The cat", "Her"] and all(row["text"] for row in result)
    (alone,) = bedplate.generate(bedplate.load(tiny_model), "The cat", max_new_tokens=8, temperature=0)
    assert alone["prompt"] == "The cat"


def test_info_and_load(tiny_run: Path) -> None:
    facts = twice("info", tiny_run)
    assert facts["family"] == "qwen3" and facts["context"] == 32 and facts["tokenizer"] and facts["card"]
    first, second = bedplate.load(tiny_run), bedplate.load(tiny_run)
    assert first.module is not second.module
    assert facts["parameters"] == sum(p.numel() for p in first.module.parameters())


def test_doctor() -> None:
    names = [[check["name"] for check in bedplate.doctor()["checks"]] for _ in range(2)]
    assert names[0] == names[1]


def test_quickstart(tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    """On its own recipe made tiny, and on our sentences in place of the package's reviews."""
    reviews = tmp_path / "reviews.csv"
    with reviews.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "source"])
        for line in corpus.read_text("utf-8").splitlines():
            rows.writerow([json.loads(line)["text"] + "<br /><br />The end.", "1", "imdb"])
        for number in range(60):
            rows.writerow([f"sentence {number} is {'good' if number % 2 else 'bad'}", number % 2, "rotten_tomatoes"])
    monkeypatch.setattr("bedplate.api.quickstart._package_reviews", lambda: reviews)
    monkeypatch.setattr("bedplate.api.quickstart.BASE", str(tiny_run))
    monkeypatch.setattr("bedplate.api.quickstart.LABELS", (8, 16))
    monkeypatch.setattr("bedplate.api.quickstart.SEEDS", 1)
    tiny = ["train.steps=2", "model.hidden_size=32", "tokenizer.vocab_size=300", "data.workers=1"]
    tiny += ["train.sequence_length=32", "evaluate.sample_tokens=2", "train.precision=fp32", "train.threads=1"]
    for name in "ab":
        result = bedplate.quickstart(tmp_path / name, *tiny)
        assert Path(result["model"], "model.safetensors").is_file()
        assert {row["labels"] for row in result["transfer"]["rows"]} == {8, 16}
        page = (tmp_path / name / "report.html").read_text("utf-8")
        assert "TF-IDF" in page and "negative" in page  # the comparison is in the run's own page
        assert bedplate.predict(tmp_path / name / "sentiment", "sentence 61 is good")[0]["label"] in (
            "negative",
            "positive",
        )
