"""`doctor`: every check has its shape, and a remedy stands beside each thing that is wrong."""

from pathlib import Path

import pytest
import torch

import bedplate
import bedplate.api.doctor as room


def check(name: str) -> dict:
    return next(check for check in bedplate.doctor()["checks"] if check["name"] == name)


def test_shape() -> None:
    report = bedplate.doctor()
    assert {"python", "torch", "device", "precision", "threads", "memory", "disk here", "compiler"} <= {
        check["name"] for check in report["checks"]
    }
    for each in report["checks"]:
        assert set(each) == {"name", "value", "ok", "remedy"} and each["value"]
        assert each["ok"] or each["remedy"], each
    assert report["ok"] == all(each["ok"] for each in report["checks"])


@pytest.mark.parametrize(
    ("version", "bounds", "satisfied"),
    [
        ("2.13.0+cpu", ">=2.11,<2.14", True),
        ("2.11", ">=2.11,<2.14", True),
        ("2.9.1", ">=2.11,<2.14", False),
        ("2.14.0", ">=2.11,<2.14", False),
        ("1.0", "", True),
    ],
)
def test_version_bounds(version: str, bounds: str, satisfied: bool) -> None:
    assert room._satisfies(version, bounds) is satisfied


def test_requirements_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch<2.14,>=2.11", "ray[data]; extra == 'ray'", 'lm-eval>=0.4 ; extra == "eval"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    assert room._requirements() == [("", "torch", "<2.14,>=2.11"), ("ray", "ray", ""), ("eval", "lm-eval", ">=0.4")]


def test_a_missing_core_package_is_a_fault_and_a_missing_extra_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = [("", "no-such-core", ">=1.0"), ("", "torch", ">=99.0"), ("more", "no-such-extra", "")]
    monkeypatch.setattr(room, "_requirements", lambda: declared)
    monkeypatch.setattr("importlib.metadata.version", _version_of({"bedplate": "0.1.0", "torch": "2.13.0+cpu"}))
    checks = {each["name"]: each for each in bedplate.doctor()["checks"]}
    assert not checks["no-such-core"]["ok"] and checks["no-such-core"]["remedy"] == 'pip install "no-such-core>=1.0"'
    assert not checks["torch"]["ok"] and "but >=99.0 is needed" in checks["torch"]["value"]
    assert checks["extra more"]["ok"] and checks["extra more"]["remedy"] == 'pip install "bedplate[more]"'


def _version_of(versions: dict[str, str]):
    def version(name: str) -> str:
        if name not in versions:
            raise room.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    return version


def test_more_threads_than_cores_is_a_fault() -> None:
    assert room._threads(2, 2) == {
        "name": "threads",
        "value": "torch uses 2, 2 cores available",
        "ok": True,
        "remedy": "",
    }
    assert "OMP_NUM_THREADS=2" in room._threads(8, 2)["remedy"] and not room._threads(8, 2)["ok"]


@pytest.mark.parametrize(
    ("memory", "ok"), [((8e9, 1e9), False), ((8e9, 6e9), True), ((8e9, None), True), ((None, None), True)]
)
def test_memory(monkeypatch: pytest.MonkeyPatch, memory: tuple, ok: bool) -> None:
    monkeypatch.setattr(room, "_memory_bytes", lambda: memory)
    assert room._memory()["ok"] is ok


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert str(tmp_path / "a" / "b") in room._disk("disk", tmp_path / "a" / "b")["value"]
    assert not (tmp_path / "a").exists()


def test_a_folder_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    found = room._disk("disk", tmp_path)
    assert not found["ok"] and "Permission denied" in found["value"] and str(tmp_path) in found["remedy"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    assert not room._disk("disk", tmp_path)["ok"]


def test_a_gpu_that_this_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    found = room._device(torch.device("cpu"))
    assert not found["ok"] and "CUDA build" in found["remedy"]


def test_no_compiler_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = room._compiler()
    assert found["ok"] and "torch.compile" in found["remedy"]
