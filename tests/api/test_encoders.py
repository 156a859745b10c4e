"""Encoders through the verbs: pre-trained, used, fine-tuned, and read by `transformers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bedplate
from bedplate.api.evaluate import evaluate
from bedplate.api.finetune import finetune
from bedplate.api.info import info
from bedplate.api.plan import plan
from bedplate.api.predict import predict
from bedplate.api.pretrain import pretrain
from bedplate.errors import InputError
from bedplate.hub.model import load
from bedplate.models.bert import MaskedLM
from bedplate.models.classifier import Classifier

PRESETS = ("bert", "modernbert")
MASKED = ("objective.masked_share=1", "evaluate.prompts=['The cat <|mask|> a dog.']", "tokenizer.vocab_size=320")


BERT = ("model.preset=bert", "objective.masked_share=1")


@pytest.fixture(scope="module", params=PRESETS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Any) -> Path:
    """The run directory of a tiny encoder; not to be changed."""
    out = tmp_path_factory.mktemp("encoder") / request.param
    pretrain(tiny_recipe(out, f"model.preset={request.param}", *MASKED, "model.max_position_embeddings=48"))
    return out


def test_what_is_pretrained_fills_blanks_here_and_there(encoder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = load(encoder / "model")
    assert isinstance(model.module, MaskedLM) and info(model)["family"] == encoder.name
    rows = [json.loads(line) for line in (encoder / "metrics.jsonl").read_text().splitlines()]
    assert {"val_loss", "val_masked_accuracy", "val_pseudo_bits_per_byte"} <= {key for row in rows for key in row}
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert "fill-mask" in (encoder / "model/README.md").read_text() and (encoder / "report.html").is_file()
    sample = json.loads((encoder / "samples.jsonl").read_text().splitlines()[-1])
    assert "<|mask|>" not in sample["prompt"] + sample["text"]

    text = "The cat sees the <|mask|> today."
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder / "model")
    assert tokenizer.mask_token == "<|mask|>"
    batch = tokenizer(text, return_tensors="pt")
    assert batch["input_ids"][0].tolist() == model.tokenizer.encode(text).ids
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(encoder / "model").eval()
    with torch.inference_mode():
        expected = theirs(batch["input_ids"]).logits
        assert (model.module(batch["input_ids"]) - expected).abs().max() < 1e-5
    (filled,) = predict(encoder / "model", text)
    assert filled["text"].startswith("The cat sees the") and 0 < filled["score"] <= 1
    assert len(filled["blanks"][0]) == 5
    with pytest.raises(InputError, match="fills blanks"):
        model.generate("The cat")


def test_evaluate_measures_as_the_run_did(encoder: Path, corpus: Path) -> None:
    result = evaluate(encoder / "model", corpus, sequence_length=32)
    assert result["metrics"].keys() == {"loss", "masked_accuracy", "pseudo_bits_per_byte"}
    assert 0 < result["metrics"]["loss"]["value"] < 6


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_finetuned_encoder_is_that_of_transformers(
    pooling: str, encoder: Path, tiny_finetune: Callable[..., Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    more = [] if pooling == "cls" else ["model.pooling=mean"]
    out = tmp_path / "run"
    result = finetune(tiny_finetune(out, f"base={encoder}", "train.epochs=1", "train.sequence_length=24", *more))
    assert result["metrics"]["loss"]["value"] < 3
    model, text = load(out / "model"), "the cat sees a dog near the sea"
    assert isinstance(model.module, Classifier) and model.module.pooling == pooling
    is_sequence = pooling == "cls" or encoder.name == "modernbert"
    kind = "AutoModelForSequenceClassification" if is_sequence else "AutoModelForTokenClassification"
    assert kind in (out / "model/README.md").read_text()
    theirs = getattr(transformers, kind).from_pretrained(out / "model").eval()
    batch = transformers.AutoTokenizer.from_pretrained(out / "model")(
        [text, "a dog"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logits = logits[0] if is_sequence else logits[0][batch["attention_mask"][0].bool()].mean(0)
    (prediction,) = predict(out / "model", text)
    expected = dict(zip(model.module.labels, logits.softmax(-1).tolist(), strict=True))
    assert prediction["scores"] == pytest.approx(expected, abs=1e-5)
    assert theirs.config.id2label == dict(enumerate(model.module.labels))


def test_a_plan_of_an_encoder(tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "x", "model.preset=bert", *MASKED)
    planned = plan(recipe, measure=False)
    assert planned["parameters"] > 0 and planned["memory"]["total"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.preset=bert"], "objective.masked_share=1"),
        (["model.preset=bert", "objective.masked_share=0.5"], "objective.masked_share=1"),
        (
            [*BERT, "objective.document_weight=1"],
            "document_weight is not for",
        ),
        ([*BERT, "evaluate.metric=bits_per_byte"], "is not measured"),
        ([*BERT, "model.num_key_value_heads=1"], "cannot hold a model"),
    ],
)
def test_bad_recipes(overrides: list[str], message: str, tiny_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        pretrain(tiny_recipe(tmp_path / "x", *overrides))


def test_encoders_are_compared_by_transfer(encoder: Path, labelled: Path, tmp_path: Path) -> None:
    settings = {"train": {"epochs": 1, "precision": "fp32", "threads": 1}}
    result = bedplate.transfer(labelled, encoder, labels=[40], seeds=1, out=tmp_path / "out", settings=settings)
    assert {row["arm"] for row in result["rows"]} >= {"pretrained", "scratch"}
    assert load(tmp_path / "out" / "model").predict("a text of the garden")[0]["label"] in ("place", "time")
