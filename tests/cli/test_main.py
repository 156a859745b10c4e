"""The command line: light, one JSON value on stdout, and the exit codes that it promises."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bedplate import __version__
from bedplate.cli import main as cli
from bedplate.errors import InputError, Interrupted


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bedplate", *arguments], capture_output=True, text=True)


def exit_code(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> object:
    """The exit code of a command that raises `error`."""

    def command() -> None:
        raise error

    # The commands registered so far come back after the test: only the list is replaced.
    monkeypatch.setattr(cli.app, "registered_commands", [])
    cli.app.command("fail")(command)
    monkeypatch.setattr(sys, "argv", ["bedplate", "fail"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_help_loads_no_torch() -> None:
    heavy = {"torch", "numpy", "pyarrow", "tokenizers", "pydantic"}
    code = f"import atexit, sys; atexit.register(lambda: print({heavy} & set(sys.modules), file=sys.stderr))"
    code += "; sys.argv = ['bedplate', '--help']; from bedplate.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and "doctor" in result.stdout and result.stderr == "set()\n"


def test_every_command_shows_an_example() -> None:
    for command in cli.app.registered_commands:
        assert command.callback and command.callback.__doc__
        assert f"Example:\n      bedplate {command.name}" in command.callback.__doc__, command.name


def test_version() -> None:
    assert run("--version").stdout == f"bedplate {__version__}\n"


def test_doctor_prints_one_json_value() -> None:
    result = run("doctor", "--json")
    assert result.returncode == 0
    assert {"ok", "checks"} == set(json.loads(result.stdout))


def test_doctor_prints_lines() -> None:
    result = run("doctor")
    assert result.returncode == 0 and "torch" in result.stdout and "memory" in result.stdout


@pytest.mark.parametrize("arguments", [["doctr"], ["doctor", "--jsn"], ["doctor", "surplus"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2 and result.stdout == "" and "Error" in result.stderr


def test_an_argument_that_is_not_utf_8_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bedplate", "ask", "photo.png", os.fsdecode(b"caf\xe9")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    output = capsys.readouterr()
    assert caught.value.code == 2 and output.out == ""
    assert output.err == "Error: argument 3, 'caf\\xe9', is not UTF-8 and names no file; write it in UTF-8\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not UTF-8")
def test_a_file_may_have_a_name_that_is_not_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = os.path.join(tmp_path, os.fsdecode(b"caf\xe9.txt"))
    Path(file).write_text("", "utf-8")
    monkeypatch.setattr(sys, "argv", ["bedplate", "info", file])
    with pytest.raises(SystemExit):
        cli.main()
    assert "is not UTF-8" not in capsys.readouterr().err


def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(monkeypatch, InputError("no file x.txt; give an existing file")) == 2
    output = capsys.readouterr()
    assert output.err == "Error: no file x.txt; give an existing file\n" and output.out == ""


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(monkeypatch, KeyboardInterrupt()) == 130
    assert exit_code(monkeypatch, Interrupted("Stopped after step 3; go on with --resume.")) == 130
    assert capsys.readouterr().err == "Stopped after step 3; go on with --resume.\n"


def test_a_rank_that_is_stopped_leaves_the_word_to_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And ends at once: a scheduler that stops a run kills what is still there after its grace."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"it waits for {seconds} s"))
    assert exit_code(monkeypatch, Interrupted("Stopped after step 3; go on with --resume.")) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_machine_refuses_is_no_defect(
    error: OSError, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, error) == 2
    assert capsys.readouterr().err == f"Error: {told}; check the path, its permissions and the disk\n"


def test_a_defect_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(monkeypatch, ZeroDivisionError("by zero")) == 1
    errors = capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in errors and "defect of bedplate" in errors
    assert exit_code(monkeypatch, FileNotFoundError(errno.ENOENT, "No such file", "x")) == 1, "we ask before we open"
