"""Suites: each kind is scored by what its rows say, and bad rows are named."""

from __future__ import annotations

import gzip
import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bedplate.api.evaluate import evaluate
from bedplate.errors import InputError
from bedplate.hub.model import Model
from bedplate.measure.likelihood import Scorer
from bedplate.measure.suite import read_suite, run_suite

RandomModel = Callable[..., Model]
Rows = list[dict[str, Any]]
DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
REAL = next((folder for folder in (DATA, DATA.parents[1] / "../shared/data") if (folder / "blimp").is_dir()), None)

PAIRS: Rows = [
    {"sentence_good": f"the cat sees {a} dog", "sentence_bad": f"the cat see {a} dog", "linguistics_term": "agreement"}
    for a in ("a", "the", "her", "no")
]
CHOICES: Rows = [
    {"query": "who sees the cat?", "choices": ["a dog", "her old sister in the house"], "gold": 0},
    {"query": "who likes the bird?", "choices": ["the garden", "a dog", "tonight"], "gold": 2},
    {"query": "", "choices": ["her", "sister"], "gold": 1},
]
SCHEMAS: Rows = [{"context_options": ["the cat sees", "a dog sees"], "continuation": "the bird", "gold": 1}]
LAST: Rows = [{"context": "the cat sees a", "continuation": "dog"}, {"context": "who finds", "continuation": "it?"}]


def write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, lambda data: data)
    path.write_bytes(pack(data))
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    write(folder / "pairs" / "agreement_1.jsonl.xz", PAIRS)
    write(folder / "pairs" / "agreement_2.jsonl.gz", PAIRS[:2])
    write(folder / "choices.jsonl", CHOICES)
    write(folder / "schemas.jsonl", SCHEMAS)
    write(folder / "last.jsonl", LAST)
    (folder / "README.txt").write_text("not a task")
    return folder


def test_every_kind_is_scored_by_the_log_likelihoods_of_its_texts(random_model: RandomModel, suite: Path) -> None:
    model = random_model()
    scorer = Scorer(model)

    def nats(context: str, continuation: str) -> float:
        return scorer.score([[scorer.encode(context, continuation)]])[0][0].log_likelihood

    result = evaluate(model, suite=suite)
    tasks = result["tasks"]
    assert list(tasks) == ["choices", "last", "pairs/agreement_1", "pairs/agreement_2", "schemas"]
    assert result["n"] == sum(task["n"] for task in tasks.values()) == 12 and result["scoring"] == "causal"

    right = [nats("", row["sentence_good"]) > nats("", row["sentence_bad"]) for row in PAIRS]
    assert tasks["pairs/agreement_1"]["metrics"]["accuracy"]["value"] == np.mean(right)

    said, said_norm = [], []
    for row in CHOICES:
        space = " " if row["query"] else ""
        found = np.array([nats(row["query"], space + choice) for choice in row["choices"]])
        said.append(found.argmax() == row["gold"])
        said_norm.append((found / [len(choice) for choice in row["choices"]]).argmax() == row["gold"])
    assert tasks["choices"]["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(said))
    assert tasks["choices"]["metrics"]["acc_norm"]["value"] == pytest.approx(np.mean(said_norm))

    better = nats("a dog sees", " the bird") > nats("the cat sees", " the bird")
    assert tasks["schemas"]["metrics"]["accuracy"]["value"] == better

    found = [nats(row["context"], " " + row["continuation"]) for row in LAST]
    tokens = sum(len(scorer.encode(row["context"], " " + row["continuation"]).target) for row in LAST)
    last = tasks["last"]["metrics"]
    assert last["log_likelihood"]["value"] == pytest.approx(np.mean(found))
    assert last["perplexity"]["value"] == pytest.approx(math.exp(-sum(found) / tokens))
    for task in tasks.values():
        for metric in task["metrics"].values():
            assert metric["low"] <= metric["value"] <= metric["high"]


def test_chance_is_that_of_a_blind_guess(random_model: RandomModel, suite: Path) -> None:
    tasks = run_suite(Scorer(random_model()), suite)["tasks"]
    chance = {name: task["chance"] for name, task in tasks.items()}
    assert chance.pop("choices") == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert chance == {"last": None, "pairs/agreement_1": 0.5, "pairs/agreement_2": 0.5, "schemas": 0.5}


def test_a_continuation_is_right_where_each_token_is_the_likeliest(random_model: RandomModel, tmp_path: Path) -> None:
    model = random_model(tie_word_embeddings=False)
    module = model.need_language_model()
    (always,) = Scorer(model).encode("the cat", " a").target
    module.head = torch.nn.Linear(16, module.config.vocab_size)  # says one token, whatever it reads
    module.head.weight.data.zero_()
    module.head.bias.data.zero_()[always] = 1
    rows = [{"context": "the cat sees", "continuation": text} for text in ("a", "a a", "a b", "dog")]
    write(tmp_path / "last.jsonl", rows)
    assert evaluate(model, suite=tmp_path)["tasks"]["last"]["metrics"]["accuracy"]["value"] == 0.5


def test_means_weigh_tasks_alike_and_groups_follow_keys_and_folders(random_model: RandomModel, suite: Path) -> None:
    result = run_suite(Scorer(random_model()), suite)
    accuracy = {name: task["metrics"]["accuracy"]["value"] for name, task in result["tasks"].items()}
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(list(accuracy.values())))
    mean = np.mean([accuracy["pairs/agreement_1"], accuracy["pairs/agreement_2"]])
    for key, value in (("linguistics_term", "agreement"), ("folder", "pairs")):
        group = result["groups"][key][value]
        assert (group["tasks"], group["n"]) == (2, 6)
        assert group["metrics"]["accuracy"]["value"] == pytest.approx(mean)


def test_the_hash_is_of_the_rows_however_they_are_written(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", PAIRS)
    packed = write(tmp_path / "b.jsonl.xz", [dict(reversed(row.items())) for row in PAIRS])
    other = write(tmp_path / "c.jsonl", [*PAIRS[:-1], PAIRS[-1] | {"sentence_bad": "x"}])
    one, two, three = (read_suite(path)[0].hash for path in (plain, packed, other))
    assert one == two != three
    assert read_suite(plain, limit=2)[0].hash != one


def test_limit_takes_the_first_rows(random_model: RandomModel, suite: Path) -> None:
    result = evaluate(random_model(), suite=suite, limit=2)
    assert [task["n"] for task in result["tasks"].values()] == [2, 2, 2, 2, 1] and result["limit"] == 2
    with pytest.raises(InputError, match="limit=0"):
        evaluate(random_model(), suite=suite, limit=0)


def test_masked_scoring_of_a_suite(random_model: RandomModel, suite: Path) -> None:
    model = random_model()
    results = {scoring: evaluate(model, suite=suite, scoring=scoring) for scoring in ("causal", "masked", "both")}
    nats = {
        scoring: result["tasks"]["last"]["metrics"]["log_likelihood"]["value"] for scoring, result in results.items()
    }
    assert nats["both"] == pytest.approx(nats["causal"] + nats["masked"], rel=1e-5)
    assert nats["causal"] != pytest.approx(nats["masked"], rel=1e-3)


BAD: dict[str, tuple[Rows, str]] = {
    "unknown": (
        [{"text": "a", "label": 1}],
        r"t.jsonl:1: a row with keys text, label is of no known kind; .*minimal_pairs",
    ),
    "mixed": ([PAIRS[0], CHOICES[0]], r"t.jsonl:2: no 'sentence_good', which a row of minimal_pairs has"),
    "gold": ([CHOICES[0] | {"gold": 2}], r"t.jsonl:1: 'gold' is 2; .* 0 to 1"),
    "gold-text": ([CHOICES[0] | {"gold": "a dog"}], r"t.jsonl:1: 'gold' is 'a dog'"),
    "gold-bool": ([CHOICES[0] | {"gold": True}], r"'gold' is True"),
    "one-choice": ([CHOICES[0] | {"choices": ["a"]}], r"t.jsonl:1: 'choices' must be a list of two or more"),
    "number": ([PAIRS[0] | {"sentence_bad": 3}], r"t.jsonl:1: 'sentence_bad' holds int, not a string"),
    "empty-choice": ([CHOICES[0] | {"choices": ["a", " "]}], r"t.jsonl:1: 'choices' holds an empty string"),
    "empty-file": ([], r"t.jsonl: no rows; known kinds"),
    "too-long": ([LAST[0], {"context": "a", "continuation": "dog " * 80}], r"t.jsonl:2: a continuation has \d+ tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_by_file_line_and_key(random_model: RandomModel, tmp_path: Path, case: str) -> None:
    rows, message = BAD[case]
    write(tmp_path / "t.jsonl", rows)
    with pytest.raises(InputError, match=message):
        evaluate(random_model(), suite=tmp_path)


def test_what_does_not_go_together_is_refused(random_model: RandomModel, suite: Path, tmp_path: Path) -> None:
    model = random_model()
    with pytest.raises(InputError, match=r"no \.jsonl file in it"):
        empty = tmp_path / "empty"
        empty.mkdir()
        (empty / "a.txt").write_text("text")
        evaluate(model, suite=empty)
    with pytest.raises(InputError, match="not data and suite"):
        evaluate(model, suite, suite=suite)
    with pytest.raises(InputError, match="not none"):
        evaluate(model)
    with pytest.raises(InputError, match="limit and scoring are for suite"):
        evaluate(model, suite, limit=3)
    with pytest.raises(InputError, match="tasks are names"):
        evaluate(model, suite=suite, tasks=["choices"])
    write(suite / "choices.jsonl.gz", CHOICES)
    with pytest.raises(InputError, match="two tasks choices"):
        evaluate(model, suite=suite)


@pytest.mark.skipif(REAL is None, reason="the real sets are not beside this checkout")
def test_blimp_and_other_real_sets_are_read_as_what_they_are(random_model: RandomModel) -> None:
    assert REAL is not None
    blimp, others = read_suite(REAL / "blimp"), read_suite(REAL / "lmbench")
    assert {task.kind for task in blimp} == {"minimal_pairs"} and len(blimp) == 67
    kinds = {task.name: task.kind for task in others}
    assert kinds["winograd_wsc"] == "schema" and kinds["lambada_openai"] == "continuation"
    assert [kind for kind in kinds.values()].count("multiple_choice") == 6
    result = evaluate(random_model(max_position_embeddings=256), suite=REAL / "blimp", limit=2)
    assert len(result["groups"]["linguistics_term"]) == 13 and result["n"] == 134


def test_further_keys_do_no_harm(random_model: RandomModel, tmp_path: Path) -> None:
    write(tmp_path / "last.jsonl", [row | {"field": ["biology", {"and": "physics"}]} for row in LAST])
    result = evaluate(random_model(), suite=tmp_path)
    assert result["tasks"]["last"]["n"] == 2 and not result.get("groups", {}).get("field")
