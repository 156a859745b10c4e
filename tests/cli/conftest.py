from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bedplate.cli import main as cli


@dataclass
class Result:
    code: object
    out: str
    err: str


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`run_cli(*arguments)`: the command line in this process, which spares starting Python and torch each time."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr("sys.argv", ["bedplate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return Result(caught.value.code, captured.out, captured.err)

    return run
