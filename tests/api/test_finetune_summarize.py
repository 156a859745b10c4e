"""`finetune` with task=summarize: summaries are learnt, scored beside first sentences, and written by `predict`."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import bedplate
from bedplate.data.summaries import CUE, SummaryEncoder, SummaryForm
from bedplate.errors import InputError, Interrupted
from bedplate.recipe import FinetuneRecipe
from bedplate.tasks.language import Language
from bedplate.tasks.summarize import Summarizer
from bedplate.train.checkpoint import Checkpoints
from bedplate.train.log import read_rows
from bedplate.train.loop import Trainer

pytest.importorskip("rouge_score")
SUMMARIES = {"a": "today", "b": "at night", "c": "near the sea", "d": "again"}
TIMING = {"tokens_per_second", "mfu", "waiting", "seconds"}


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)


def write(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def many(count: int) -> list[dict[str, str]]:
    return [{"document": f"{letter}{i}", "summary": s} for i in range(count) for letter, s in SUMMARIES.items()]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 rows, in which each of four letters has its own summary."""
    rows = [{"document": document, "summary": summary} for document, summary in SUMMARIES.items()] * 16
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def summarize(tiny_finetune: Any, pairs: Path) -> Any:
    """`summarize(out, *overrides)`: a recipe of `pairs`, of which none is held out."""
    options = ("task=summarize", f"data.path={pairs}", "data.val_fraction=0", "train.batch_size=8", "model.dropout=0")

    def make(out: Path, *overrides: str) -> FinetuneRecipe:
        recipe: FinetuneRecipe = tiny_finetune(out, *options, "evaluate.sample_tokens=2", *overrides)
        return recipe

    return make


@pytest.fixture(scope="module")
def learnt(summarize: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learnt") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        bedplate.finetune(summarize(out, "train.epochs=20", "optimizer.learning_rate=0.01"))
    return out


def test_summaries_are_learnt(learnt: Path, pairs: Path) -> None:
    model = bedplate.load(learnt)
    assert model.predict(list(SUMMARIES)) == [{"text": text} for text in SUMMARIES.values()]
    assert model.predict("b", num_beams=1) == [{"text": "at night"}]
    assert bedplate.predict(learnt, "c", max_new_tokens=1, num_beams=2) != [{"text": "near the sea"}]
    result = bedplate.evaluate(learnt, pairs)
    assert result["n"] == 64 and result["metrics"]["rougeL"]["value"] == 1
    assert result["baselines"]["lead"]["rougeL"]["value"] == 0, "a letter is no summary"
    assert result["data"] == {"document": "document", "summary": "summary", "windowed": 0}
    card = (learnt / "model" / "README.md").read_text("utf-8")
    assert "model.predict(" in card and "pipeline_tag: summarization" in card and str(learnt) not in card


def test_transformers_loads_it_and_writes_the_same(learnt: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(learnt / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(learnt / "model").eval()
    batch = tokenizer("c" + tokenizer.init_kwargs["summarize"]["cue"], return_tensors="pt")
    written = model.generate(**batch, max_new_tokens=14, num_beams=4, do_sample=False)
    text = tokenizer.decode(written[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text.strip() == "near the sea"


def test_only_summaries_and_their_end_count(
    tmp_path: Path, summarize: Any, learnt: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    counted, loss = list[float](), Language.loss

    def spied(self: Language, batch: Any) -> Any:
        result = loss(self, batch)
        counted.append(float(result["loss"][1]))
        return result

    monkeypatch.setattr(Language, "loss", spied)
    # A batch of as many rows as the epoch has: each example once.
    bedplate.finetune(summarize(tmp_path / "run", "train.steps=1", "train.batch_size=32"))
    tokenizer = bedplate.load(learnt).need_tokenizer()
    expected = 16 * sum(len(tokenizer.encode(" " + summary).ids) + 1 for summary in SUMMARIES.values())
    said = capsys.readouterr().err
    assert f"64 to train on, with {expected:,} tokens of summaries." in said
    assert counted == [expected]


def test_what_is_held_out_is_scored_once_and_kept_apart(tmp_path: Path, summarize: Any, capsys: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [*many(6), {"document": "A0!", "summary": "today"}])
    val = write(tmp_path / "val.jsonl", many(1))
    test = write(tmp_path / "test.jsonl", [{"document": "a1", "summary": ["x", "today"]}])
    overrides = (f"data.path={path}", f"data.val_path={val}", f"data.test_path={test}", "train.epochs=1")
    result = bedplate.finetune(summarize(tmp_path / "run", *overrides))
    said = capsys.readouterr().err
    assert "19 to train on" in said and "4 held out to choose the best step; 1 to score once, at the end" in said
    assert "6 near-duplicates of documents that are scored were removed." in said
    assert {"rouge1", "rouge2", "rougeL", "first sentence rougeL"} <= set(result["test"])
    assert set(result["metrics"]) == {"bits_per_byte", "loss"}
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "first sentence" in page and "reference: x" in page and "ROUGE-L" in page
    lines = (tmp_path / "run" / "summaries.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["summary"] for line in lines] == [["x", "today"]]

    result = bedplate.finetune(summarize(tmp_path / "share", f"data.path={path}", "data.val_fraction=0.2"))
    assert {"rougeL", "first sentence rougeL", "bits_per_byte"} <= set(result["metrics"])


def test_long_documents_are_cut_and_said(tmp_path: Path, summarize: Any, capsys: Any) -> None:
    path = write(tmp_path / "long.jsonl", [{"text": "a " * 40, "title": "today"}, {"text": "b", "title": "again"}])
    bedplate.finetune(summarize(tmp_path / "run", f"data.path={path}", "train.steps=1"))
    said = capsys.readouterr().err
    assert "1 documents are longer than a row of 32 tokens and were cut at their end." in said
    assert "Documents from column 'text', summaries from 'title'" in said


def test_each_reference_is_trained_on(tmp_path: Path, summarize: Any, capsys: Any) -> None:
    path = write(tmp_path / "two.jsonl", [{"document": "a", "summary": ["today", "today"]}])
    bedplate.finetune(summarize(tmp_path / "two", f"data.path={path}", "train.steps=1"))
    both = capsys.readouterr().err
    path = write(tmp_path / "one.jsonl", [{"document": "a", "summary": "today"}])
    bedplate.finetune(summarize(tmp_path / "one", f"data.path={path}", "train.steps=1"))
    one, two = (int(said.split(" tokens of summaries")[0].split()[-1]) for said in (capsys.readouterr().err, both))
    assert two == 2 * one


def test_documents_longer_than_a_window(learnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bedplate.load(learnt)
    form = SummaryForm.of(model.tokenizer_config)
    assert form is not None and form.cue == CUE and form.sequence_length == 32
    document = "a. b. c. d. a. b. c. d. a. b."
    (first,) = model.predict(document, long="first")
    (joined,) = model.predict(document, long="join")
    lines = joined["text"].split("\n")
    assert len(lines) >= 2 and lines[0] == first["text"]
    assert model.predict(document) == [joined]
    (reduced,) = model.predict(document, long="reduce")
    assert reduced["text"] in (joined["text"], *(p["text"] for p in model.predict(joined["text"], long="reduce")))
    asked: list[int] = []
    write_all = Summarizer._write
    monkeypatch.setattr(
        Summarizer, "_write", lambda self, prompts, o: (asked.append(len(prompts)), write_all(self, prompts, o))[1]
    )
    assert model.predict(["b", document])[0] == {"text": "at night"}, "a document does not depend on those beside it"
    assert asked[0] == 1 + len(lines)


def test_nothing_is_not_summarised_again(learnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that finds nothing to say in the second round would be asked to invent something in the third."""
    said = iter(["a. b. c. d. a. b. c. d. a. b. c.", "", "invented"])
    monkeypatch.setattr(Summarizer, "_joined", lambda self, windows, options: [next(said)])
    windows = iter([6, 4, 2])
    monkeypatch.setattr(SummaryEncoder, "windows", lambda self, document, room: [[1]] * next(windows))
    assert bedplate.load(learnt).predict("a. b.", long="reduce") == [{"text": ""}]


def end_of(run: Path) -> dict[str, Any]:
    last = Checkpoints(run / "checkpoints", 1).load()
    bits = {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in last.tensors().items()}
    names = ("model/model.safetensors", "samples.jsonl", "summaries.jsonl", "scored.json")
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(run / "metrics.jsonl")]
    return {"checkpoint": bits, "state": last.state(), "rows": rows} | {n: (run / n).read_bytes() for n in names}


def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path, summarize: Any) -> None:
    path = write(tmp_path / "rows.jsonl", many(12))
    common = (f"data.path={path}", "data.val_fraction=0.2", "model.dropout=0.1", "evaluate.every=4", "train.steps=14")
    common = (*common, "train.epochs=90", "evaluate.patience=null")
    bedplate.finetune(summarize(tmp_path / "straight", *common))
    train_step = Trainer._train_step

    def stopping(self: Trainer, batch: Any) -> None:
        train_step(self, batch)
        if self.step + 1 == 9:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="Stopped after step 9 of 14"):
        patch.setattr(Trainer, "_train_step", stopping)
        bedplate.finetune(summarize(tmp_path / "stopped", *common))
    bedplate.finetune(summarize(tmp_path / "stopped", *common), resume=True)
    assert end_of(tmp_path / "straight") == end_of(tmp_path / "stopped")


def test_a_summariser_that_learns_to_chat_is_none_any_more(tmp_path: Path, summarize: Any, learnt: Path) -> None:
    path = write(tmp_path / "chats.jsonl", [{"prompt": "a", "response": "b"}])
    options = ("task=chat", f"base={learnt}", f"data.path={path}", "train.steps=1")
    bedplate.finetune(summarize(tmp_path / "run", *options))
    assert bedplate.load(tmp_path / "run").summarizer() is None


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ([{"document": "a", "summary": "z " * 40}], (), r"rows\.jsonl:1: the summary has .* leaves no room"),
        ([{"document": "a", "summary": "b"}], ("data.val_fraction=0.1",), "1 documents are too few to hold out"),
        ([{"document": "a", "summary": "b"}], ("data.val_path={path}",), "data.path: all its documents are near-dup"),
        ([{"document": "a", "summary": "b"}], ("evaluate.metric=rougeL",), "choose one of bits_per_byte, loss"),
        ([{"document": "a", "summary": "b"}], ("data.column=x",), "data.column is not for task: summarize"),
        ([{"document": "a", "summary": "b"}], ("task=chat", "data.summary=x"), "are for task: summarize, not for chat"),
        ([{"document": "a", "summary": "b"}], ("summary.max_new_tokens=30",), "summary.max_new_tokens=30 leaves less"),
        ([{"document": "a", "summary": "b"}], ("summary.min_new_tokens=9",), "summary.min_new_tokens=9 is more than"),
        ([{"document": "a", "summary": "b"}], ("summary.num_beams=0",), "summary.num_beams"),
    ],
)
def test_wrong_settings(
    tmp_path: Path, summarize: Any, rows: list[dict[str, str]], overrides: tuple[str, ...], message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=message):
        filled = [override.format(path=path) for override in overrides]
        bedplate.finetune(summarize(tmp_path / "run", f"data.path={path}", *filled))
    assert not (tmp_path / "run").exists()


def test_without_the_library_nothing_is_trained(
    tmp_path: Path, summarize: Any, learnt: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rouge_score", None)
    with pytest.raises(InputError, match=r"pip install 'bedplate\[eval\]'"):
        bedplate.finetune(summarize(tmp_path / "run"))
    with pytest.raises(InputError, match=r"pip install 'bedplate\[eval\]'"):
        bedplate.evaluate(learnt, pairs)
    assert bedplate.predict(learnt, "a") == [{"text": "today"}], "which needs no library"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long": "cut"}, "long='cut' is not known; choose one of join, reduce, first"),
        ({"max_new_tokens": 30}, "max_new_tokens=30 leaves less than a quarter of the 32 tokens"),
        ({"num_beams": 0}, "num_beams=0 must be 1"),
        ({"temperature": 0.5}, "temperature is of sampling"),
        ({"num_beams": 1, "length_penalty": 2.0}, "length_penalty and early_stopping are of beam search"),
    ],
)
def test_wrong_options_of_predict(learnt: Path, tiny_model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bedplate.predict(learnt, "a", **options)
    with pytest.raises(InputError, match="long is for summarisers"):
        bedplate.predict(tiny_model, "a", long="join")


def test_an_adapter_alone_is_trained(tmp_path: Path, summarize: Any, learnt: Path) -> None:
    result = bedplate.finetune(summarize(tmp_path / "run", "train.steps=2", "adapter.rank=2", f"base={learnt}"))
    assert 0 < result["trained"] < result["parameters"] / 2
    base, adapted = bedplate.load(learnt), bedplate.load(result["adapter"])
    assert torch.equal(base.module.embed.weight, adapted.module.embed.weight)
    assert Path(result["model"], "model.safetensors").is_file()


def test_a_base_without_an_end_learns_one_and_keeps_it(tmp_path: Path, summarize: Any, tiny_model: Path) -> None:
    bare = tmp_path / "bare"
    bedplate.load(tiny_model).save(bare)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((bare / name).read_text("utf-8")) | {"eos_token_id": None}
        (bare / name).write_text(json.dumps(values))
    assert not bedplate.load(bare).special.eos
    result = bedplate.finetune(summarize(tmp_path / "run", f"base={bare}", "train.epochs=1"))
    model = bedplate.load(result["model"])
    assert model.special.eos == bedplate.load(tiny_model).special.eos


def test_windows_of_a_long_document_hold_all_of_it(learnt: Path) -> None:
    model = bedplate.load(learnt)
    encoder = SummaryEncoder(model.need_tokenizer(), CUE, model.special.eos[0])
    document = " ".join(f"{letter} and {number}." for number in range(700) for letter in "abcd")
    windows = encoder.windows(document, 24)
    text = " ".join(model.need_tokenizer().decode(ids).replace(CUE, "").strip() for ids in windows)
    assert text == document and max(map(len, windows)) <= 24
