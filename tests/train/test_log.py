"""metrics.jsonl and samples.jsonl: what a killed writer left is read, what a resumed run repeats is forgotten."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

import bedplate
from bedplate.errors import InputError
from bedplate.recipe.schema import LogRecipe
from bedplate.train.log import RunLog, read_rows


def log(folder: Path, **options: bool) -> RunLog:
    return RunLog(folder, LogRecipe.model_validate(options), console=Console(file=io.StringIO()))


def test_rows_are_read_back(tmp_path: Path) -> None:
    log(tmp_path).numbers({"step": 1, "loss": 0.1 + 0.2})
    log(tmp_path).numbers({"step": 2, "loss": 1e-12})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-12}]


@pytest.mark.parametrize(("waiting", "shown"), [(0.0, False), (0.1, False), (0.234, True)])
def test_waiting_for_data_is_shown_where_it_matters(tmp_path: Path, waiting: float, shown: bool) -> None:
    run = log(tmp_path)
    run.numbers({"step": 1, "loss": 2.0, "waiting": waiting})
    said = run.console.file.getvalue()  # type: ignore[attr-defined]
    assert "loss 2.000" in said and ("  waiting for data 23%" in said) == ("waiting" in said) == shown


def test_there_may_be_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("cut", [b'{"step": 2, "lo', '{"step": 2, "text": "ü'.encode()[:-1], b'{"step": 2}'])
def test_a_last_line_cut_off_anywhere_is_left_out(tmp_path: Path, cut: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + cut)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_rewinding_forgets_later_rows_and_the_cut_line(tmp_path: Path) -> None:
    run = log(tmp_path)
    for step in (0, 5, 10):
        run.numbers({"step": step, "loss": 1.0})
        run.samples(step, [{"prompt": "Für", "text": " immer"}])
    before = (tmp_path / "samples.jsonl").read_bytes()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "l')
    run.rewind(10)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 5, 10]
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    run.rewind(5)
    run.numbers({"step": 6})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 5, 6]
    assert [row["step"] for row in read_rows(tmp_path / "samples.jsonl")] == [0, 5]


def test_rewinding_never_leaves_a_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path).numbers({"step": 1})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        log(tmp_path).rewind(0)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_tensorboard_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    recipe = {"out": str(tmp_path / "run"), "data": {"path": "no-such-file"}, "train": {"steps": 1}}
    with pytest.raises(InputError, match=r'pip install "bedplate\[track\]"'):
        bedplate.pretrain(recipe, "log.tensorboard=true")
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_numbers_and_makes_no_folder_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((folder, purge_step))

        def add_scalar(self, *values: object) -> None:
            written.append(values)

        def close(self) -> None:
            written.append("closed")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with log(tmp_path, tensorboard=True) as run:
        assert written == []
        run.numbers({"step": 3, "loss": 0.5, "note": "text"})
    assert written == [(str(tmp_path / "tensorboard"), 3), ("loss", 0.5, 3), "closed"]
