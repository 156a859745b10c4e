"""lm-evaluation-harness with a model of ours, against its own `hf` model on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer

pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")

import lm_eval  # noqa: E402  # after the check that it is there
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from bedplate.api.evaluate import evaluate  # noqa: E402
from bedplate.cli.main import app  # noqa: E402
from bedplate.data.tokenizer import save_tokenizer  # noqa: E402
from bedplate.errors import InputError  # noqa: E402
from bedplate.hub.model import Model, load  # noqa: E402
from bedplate.measure.harness import BedplateLM, run_harness  # noqa: E402

CONTEXT = 48
WORDS = ("the", "cat", "sees", "a dog", "in", "garden", "her", "sister", "likes", "house", "who", "finds", "tonight")


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Data sets are cached in a folder of the test, and nothing is asked of the Hub."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A Qwen3 that `transformers` made and wrote, with a tokenizer of ours."""
    path = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.4,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(path)
    save_tokenizer(tokenizer, path, CONTEXT)
    return path


@pytest.fixture(scope="module")
def ours(directory: Path) -> Model:
    return load(directory)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> HFLM:
    return HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One task of each kind of request: choices, a continuation, rolling perplexity, generation."""
    folder, draw = tmp_path_factory.mktemp("tasks"), torch.Generator().manual_seed(0)

    def text(words: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (words,), generator=draw).tolist())

    rows = {
        "choices": [
            {"question": text(5), "choices": [text(1 + i % 3), text(2), text(3)], "answer": i % 3} for i in range(12)
        ],
        "last": [{"question": text(4 + 3 * i), "answer": text(2)} for i in range(12)],
        "rolling": [{"text": text(12 * (1 + i))} for i in range(6)],
        "written": [{"question": text(3 + i), "answer": text(1)} for i in range(8)],
    }
    metric = {"aggregation": "mean", "higher_is_better": True}
    question = {"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    kinds: dict[str, dict[str, Any]] = {
        "choices": question
        | {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": name} | metric for name in ("acc", "acc_norm", "acc_bytes")],
        },
        "last": question
        | {
            "output_type": "loglikelihood",
            "metric_list": [{"metric": "acc"} | metric, {"metric": "perplexity", "aggregation": "perplexity"}],
        },
        "rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
        },
        "written": question
        | {
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["h", "\n"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match"} | metric],
        },
    }
    for name, kind in kinds.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), "utf-8")
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | where | kind), "utf-8")
    return folder


def test_all_kinds_of_tasks_give_what_the_hf_model_gives(
    ours: Model, theirs: HFLM, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # its bootstrap forks, and a fork of a process with threads may hang
    names = ["choices", "last", "rolling", "written"]

    def run(model: Any) -> Any:
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        return lm_eval.simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=100)

    mine, reference = run(BedplateLM(ours, batch_size=3)), run(theirs)
    for name in names:
        got, wanted = mine["results"][name], reference["results"][name]
        assert got.keys() == wanted.keys()
        for key, value in wanted.items():
            assert got[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), (name, key)
        for one, other in zip(mine["samples"][name], reference["samples"][name], strict=True):
            assert one["arguments"] == other["arguments"]
            assert_close(one["resps"], other["resps"])
    assert {len(sample["resps"][0][0]) for sample in mine["samples"]["written"]} != {0}, "nothing was written"


def assert_close(one: Any, other: Any) -> None:
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_close(a, b)
    else:
        assert one == (pytest.approx(other, rel=1e-4, abs=1e-4) if isinstance(other, float) else other)


PAIRS = [
    ("", "the cat sees"),
    ("", "<|endoftext|>the cat"),
    ("the cat ", "sees a dog"),
    ("the cat\n", " sees"),
    ("<|endoftext|>the", " dog"),
    ("her sister " * 40, "likes the old house"),
]


def requests(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, args, 0, ("task", number, 1)) for number, args in enumerate(arguments)]


def test_log_likelihoods_of_unusual_pairs(ours: Model, theirs: HFLM) -> None:
    asked = requests("loglikelihood", PAIRS)
    assert_close(BedplateLM(ours).loglikelihood(asked), theirs.loglikelihood(asked))


def test_texts_about_as_long_as_the_context(ours: Model, theirs: HFLM, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" ".join(WORDS * 8)).ids
    texts = [tokenizer.decode(ids[:n]) for n in (1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 2 * CONTEXT + 1)]
    asked = requests("loglikelihood_rolling", [(text,) for text in texts])
    assert_close(BedplateLM(ours).loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked))


def test_prompts_that_are_cut_and_texts_that_stop(ours: Model, theirs: HFLM) -> None:
    prompts = ["the cat", "her sister " * 30, "who"]
    for options in ({"until": ["h"], "max_gen_toks": 20}, {"until": [], "max_gen_toks": 5}, {"until": "ll"}):
        if "max_gen_toks" not in options:
            options["max_gen_toks"] = CONTEXT // 2
        asked = requests("generate_until", [(prompt, options) for prompt in prompts])
        assert BedplateLM(ours).generate_until(asked) == theirs.generate_until(asked)


def test_settings_of_generation_that_we_do_not_have(ours: Model) -> None:
    for options, message in (({"num_beams": 4}, "has num_beams"), ({"max_gen_toks": CONTEXT}, "leave no room")):
        with pytest.raises(InputError, match=message):
            BedplateLM(ours).generate_until(requests("generate_until", [("the", {"max_gen_toks": 4} | options)]))


def test_evaluate_runs_a_folder_of_tasks(directory: Path, tasks: Path) -> None:
    command = ["evaluate", str(directory), "--harness", str(tasks), "--limit", "5", "--tasks"]
    printed = CliRunner().invoke(app, [*command, "choices,rolling", "--json"])
    assert printed.exit_code == 0, printed.stderr
    result = json.loads(printed.stdout)
    assert result["n"] == 10 and result["limit"] == 5
    choices = result["tasks"]["choices"]
    assert (choices["n"], choices["kind"], len(choices["hash"])) == (5, "multiple_choice", 32)
    assert set(choices["metrics"]) == {"acc", "acc_norm", "acc_bytes"}
    accuracy = choices["metrics"]["acc"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"] or accuracy["value"] in (0.0, 1.0)
    assert result["metrics"]["accuracy"] == pytest.approx(accuracy)
    bits = result["tasks"]["rolling"]["metrics"]["bits_per_byte"]
    assert bits["value"] > 0
    table = CliRunner().invoke(app, [*command, "choices"])
    assert table.exit_code == 0 and "choices" in table.stdout and "acc_norm" in table.stdout


def test_the_hash_follows_the_documents(ours: Model, tasks: Path) -> None:
    first, same, fewer = (run_harness(ours, tasks, ["last"], limit=n)["tasks"]["last"]["hash"] for n in (6, 6, 5))
    assert first == same != fewer


def test_a_suite_scores_choices_as_the_harness_does(ours: Model, tasks: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tasks / "choices.jsonl").read_text("utf-8").splitlines()]
    lines = [{"query": row["question"], "choices": row["choices"], "gold": row["answer"]} for row in rows]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    suite = evaluate(ours, suite=tmp_path)["tasks"]["choices"]["metrics"]
    harness = run_harness(ours, tasks, ["choices"])["tasks"]["choices"]["metrics"]
    assert suite["accuracy"]["value"] == pytest.approx(harness["acc"]["value"])
    assert suite["acc_norm"]["value"] == pytest.approx(harness["acc_bytes"]["value"])


def test_what_cannot_be_run_is_named(ours: Model, tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no task 'chioces'; it defines choices, last, rolling, written"):
        evaluate(ours, harness=tasks, tasks=["chioces"])
    with pytest.raises(InputError, match=r"name the tasks to run; .* defines choices, last"):
        evaluate(ours, harness=tasks)
    with pytest.raises(InputError, match="no such folder"):
        evaluate(ours, harness=tmp_path / "none", tasks=["choices"])
    with pytest.raises(InputError, match="scoring is for a suite"):
        evaluate(ours, harness=tasks, tasks=["choices"], scoring="masked")
    with pytest.raises(InputError, match="limit=0 must be 1 or more rows"):
        evaluate(ours, harness=tasks, tasks=["choices"], limit=0)


def test_a_mean_of_what_has_no_interval_has_none(ours: Model, tasks: Path) -> None:
    one = evaluate(ours, harness=tasks, tasks=["choices"], limit=1)  # a single row has no standard error
    assert one["tasks"]["choices"]["metrics"]["acc"]["low"] is None
    assert one["metrics"]["accuracy"]["low"] is one["metrics"]["accuracy"]["high"] is None
