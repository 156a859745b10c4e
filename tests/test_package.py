"""The package itself: light to import, its verbs are functions whatever was imported before."""

import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

import bedplate


def test_import_is_light() -> None:
    heavy = {"torch", "transformers", "numpy", "pydantic", "typer"}
    code = f"import sys, bedplate; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", bedplate._VERBS)
def test_verb_is_the_function_even_beside_its_module(verb: str) -> None:
    importlib.import_module(f"bedplate.api.{verb}")
    function = getattr(bedplate, verb)
    assert callable(function) and function is getattr(bedplate, verb)
    assert function.__name__ == verb and function.__doc__


def test_no_room_has_the_name_of_a_verb() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(bedplate.__path__)}
    assert not rooms & set(bedplate._VERBS)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        _ = bedplate.pretrian


def test_verbs_are_listed() -> None:
    assert {"load", "pretrain", "InputError"} <= set(dir(bedplate))
    assert set(bedplate.__all__) <= set(dir(bedplate))


def test_version_follows_semantic_versioning() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", bedplate.__version__)
