"""`finetune` with task=chat: only responses are learnt, and the directory answers here and in `transformers`."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import bedplate
from bedplate.errors import InputError, Interrupted
from bedplate.recipe import FinetuneRecipe
from bedplate.tasks.language import Language
from bedplate.train.checkpoint import Checkpoints
from bedplate.train.log import read_rows
from bedplate.train.loop import Trainer

ANSWERS = {"a": "today", "b": "at night", "c": "near the sea", "d": "again"}
TIMING = {"tokens_per_second", "mfu", "waiting", "seconds"}


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 rows, in which each of four letters has its own answer."""
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    rows = [{"prompt": prompt, "response": response} for prompt, response in ANSWERS.items()] * 16
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def chat(tiny_finetune: Any, answers: Path) -> Any:
    """`chat(out, *overrides)`: a recipe of `answers`, of which none is held out."""
    options = ("task=chat", f"data.path={answers}", "data.val_fraction=0", "train.batch_size=8", "model.dropout=0")

    def make(out: Path, *overrides: str) -> FinetuneRecipe:
        recipe: FinetuneRecipe = tiny_finetune(out, *options, *overrides)
        return recipe

    return make


@pytest.fixture(scope="module")
def learnt(chat: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learnt") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        bedplate.finetune(chat(out, "train.epochs=20", "optimizer.learning_rate=0.01"))
    return out


def test_a_mapping_is_learnt(learnt: Path) -> None:
    model = bedplate.load(learnt)
    for prompt, answer in ANSWERS.items():
        said = model.chat([{"role": "user", "content": prompt}], temperature=0, max_new_tokens=13)
        assert said == {"role": "assistant", "content": answer}
    card = (learnt / "model" / "README.md").read_text("utf-8")
    assert "model.chat(" in card and str(learnt) not in card


def test_transformers_makes_the_same_prompt_and_the_same_answer(learnt: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from bedplate.hub.chat import chat_encoder

    messages = [{"role": "user", "content": "b"}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(learnt / "model")
    batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert batch["input_ids"][0].tolist() == chat_encoder(bedplate.load(learnt)).prompt(messages)
    model = transformers.AutoModelForCausalLM.from_pretrained(learnt / "model").eval()
    written = model.generate(**batch, max_new_tokens=13, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True) == "at night"
    assert len(written) < 13, "it ends where the answer ends"


def test_only_responses_and_their_end_count(
    tmp_path: Path, chat: Any, learnt: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    counted, loss = list[float](), Language.loss

    def spied(self: Language, batch: Any) -> Any:
        result = loss(self, batch)
        counted.append(float(result["loss"][1]))
        return result

    monkeypatch.setattr(Language, "loss", spied)
    # A batch of as many rows as the epoch has: each example once.
    bedplate.finetune(chat(tmp_path / "run", "train.steps=1", "train.batch_size=64"))
    tokenizer = bedplate.load(learnt).need_tokenizer()
    expected = 16 * sum(len(tokenizer.encode(answer).ids) + 1 for answer in ANSWERS.values())
    assert counted == [expected]
    assert (
        f"64 conversations to train on, with {expected:,} tokens of responses; 0 held out." in capsys.readouterr().err
    )


def test_held_out_conversations(tmp_path: Path, chat: Any, capsys: Any) -> None:
    path = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"{letter}{i}", "response": answer} for i in range(10) for letter, answer in ANSWERS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), "utf-8")
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]), "utf-8")
    options = (f"data.path={path}", f"data.val_path={tmp_path}/val.jsonl", "train.epochs=2", "evaluate.sample_tokens=8")
    result = bedplate.finetune(chat(tmp_path / "run", *options))
    assert set(result["metrics"]) == {"bits_per_byte", "loss"}
    said = capsys.readouterr().err
    assert "37 conversations to train on" in said and "3 held out" in said
    assert "4 conversations were removed from the training because they are held out as well." in said
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text("utf-8").splitlines()]
    assert samples and "a0" in json.dumps(samples)

    bedplate.finetune(chat(tmp_path / "share", f"data.path={path}", "data.val_fraction=0.25", "train.steps=1"))
    assert "10 held out" in capsys.readouterr().err


def test_long_conversations_are_cut_and_said(tmp_path: Path, chat: Any, capsys: Any) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "a " * 40, "response": "today"}, {"prompt": "b", "response": "at night"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    bedplate.finetune(chat(tmp_path / "run", f"data.path={path}", "train.steps=1"))
    assert "1 conversations are longer than 32 tokens and were cut." in capsys.readouterr().err


def end_of(run: Path) -> dict[str, Any]:
    last = Checkpoints(run / "checkpoints", 1).load()
    bits = {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in last.tensors().items()}
    files = {name: (run / name).read_bytes() for name in ("model/model.safetensors", "samples.jsonl")}
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(run / "metrics.jsonl")]
    return {"checkpoint": bits, "state": last.state(), "metrics.jsonl": rows} | files


def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path, chat: Any) -> None:
    path = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"{letter}{i}", "response": answer} for i in range(12) for letter, answer in ANSWERS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    common = (f"data.path={path}", "data.val_fraction=0.2", "model.dropout=0.1", "evaluate.every=4", "train.steps=14")
    common = (*common, "evaluate.sample_tokens=2", "train.epochs=9")
    bedplate.finetune(chat(tmp_path / "straight", *common))
    train_step = Trainer._train_step

    def stopping(self: Trainer, batch: Any) -> None:
        train_step(self, batch)
        if self.step + 1 == 9:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="Stopped after step 9 of 14"):
        patch.setattr(Trainer, "_train_step", stopping)
        bedplate.finetune(chat(tmp_path / "stopped", *common))
    bedplate.finetune(chat(tmp_path / "stopped", *common), resume=True)
    assert end_of(tmp_path / "straight") == end_of(tmp_path / "stopped")


def test_a_chat_model_is_finetuned_further_with_its_own_template(tmp_path: Path, chat: Any, learnt: Path) -> None:
    bedplate.finetune(chat(tmp_path / "run", f"base={learnt}", "train.steps=1"))
    before, after = bedplate.load(learnt), bedplate.load(tmp_path / "run")
    assert before.tokenizer_config == after.tokenizer_config and before.special == after.special
    assert not torch.equal(before.module.embed.weight, after.module.embed.weight)


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ([{"prompt": "a", "response": ""}], (), r"chats.jsonl:1"),
        ([{"text": "a", "label": "b"}], (), r"chats.jsonl:1: no conversation in the columns"),
        ([], (), "no rows; give conversations"),
        ([{"prompt": "a", "response": "b"}], ("data.val_fraction=0.1",), "1 conversations are too few to hold out"),
        ([{"prompt": "a", "response": "b"}], ("evaluate.metric=accuracy",), "choose one of bits_per_byte, loss"),
        ([{"prompt": "a", "response": "b"}], ("evaluate.metric=masked_loss",), "choose one of bits_per_byte, loss"),
        ([{"prompt": "a", "response": "b"}], ("data.val_path={path}",), "every conversation to train on is held out"),
        ([{"prompt": "a", "response": "b"}], ('evaluate.prompts=["{long}"]',), r"evaluate.prompts: .* do not fit"),
        ([{"prompt": "a", "response": "b"}], ("train.sequence_length=64",), "longer than the context"),
    ],
)
def test_wrong_conversations(
    tmp_path: Path, chat: Any, rows: list[dict[str, str]], overrides: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    filled = [override.format(path=path, long="a " * 40) for override in overrides]
    with pytest.raises(InputError, match=message):
        bedplate.finetune(chat(tmp_path / "run", f"data.path={path}", *filled))
    assert not (tmp_path / "run").exists()


def test_columns_of_other_names(tmp_path: Path, chat: Any) -> None:
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps({"q": p, "a": r}) + "\n" for p, r in ANSWERS.items()), "utf-8")
    options = (f"data.path={path}", "train.steps=1")
    with pytest.raises(InputError, match=r"faq\.jsonl:1"):
        bedplate.finetune(chat(tmp_path / "guessed", *options))
    result = bedplate.finetune(chat(tmp_path / "named", *options, "data.prompt=q", "data.response=a"))
    assert result["steps"] == 1
