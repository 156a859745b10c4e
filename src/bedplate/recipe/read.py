"""Reading recipes: YAML, overrides, and errors that name the key and its nearest known neighbour."""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from bedplate.errors import InputError
from bedplate.recipe.finetune import FinetuneRecipe
from bedplate.recipe.multimodal import RECIPES
from bedplate.recipe.schema import Recipe, RunRecipe
from bedplate.recipe.vision import VisionRecipe

R = TypeVar("R", bound=RunRecipe)


def read_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A checked recipe of pre-training from a YAML file, a mapping or a recipe, with overrides applied.

    Args:
        overrides: `key.path=value` each.

    Raises:
        InputError: missing or malformed file, unknown key, wrong type, or values that contradict each other.
    """
    return read_as(Recipe, recipe, overrides)


def read_finetune_recipe(
    recipe: str | Path | Mapping[str, Any] | FinetuneRecipe, overrides: Sequence[str] = ()
) -> FinetuneRecipe:
    """A checked recipe of fine-tuning; see `read_recipe`."""
    return read_as(FinetuneRecipe, recipe, overrides)


def read_vision_recipe(
    recipe: str | Path | Mapping[str, Any] | VisionRecipe, overrides: Sequence[str] = ()
) -> VisionRecipe:
    """A checked recipe of images; see `read_recipe`."""
    return read_as(VisionRecipe, recipe, overrides)


def task_of(recipe: str | Path | Mapping[str, Any] | RunRecipe, overrides: Sequence[str] = ()) -> str | None:
    """The task that a recipe names, which decides how the rest of it is read; None where it names none."""
    if isinstance(recipe, RunRecipe):
        return str(getattr(recipe, "task", None))
    name, values = _values(recipe, overrides)
    return _known_task(name, values)


PICTURES = typing.get_args(VisionRecipe.model_fields["task"].annotation)
FINETUNED = typing.get_args(FinetuneRecipe.model_fields["task"].annotation)
TASKS = ("language", *FINETUNED, *PICTURES, *RECIPES)


def _known_task(name: str, values: Mapping[str, Any]) -> str | None:
    """The task that values name. Read as another task's recipe, a misspelt one would be told as unknown keys."""
    task = values.get("task")
    if task is None:
        return None
    if str(task) not in TASKS:
        near = difflib.get_close_matches(str(task), TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(TASKS)}"
        raise InputError(f"{name}: task {task!r} is unknown; {hint}")
    return str(task)


def _values(recipe: str | Path | Mapping[str, Any] | RunRecipe, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """(what errors call the recipe, its values with overrides applied)."""
    if isinstance(recipe, RunRecipe):
        name, values = "recipe", recipe.model_dump(mode="json")
    elif isinstance(recipe, Mapping):
        name, values = "recipe", _copy(recipe)
    else:
        name, values = str(recipe), _read_yaml(Path(recipe).expanduser())
    for override in overrides:
        _apply(values, override)
    return name, values


def from_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Sections of a recipe from `key.path=value` each.

    Raises:
        InputError: one that is not of that form.
    """
    return _values({}, overrides)[1]


def read_as(kind: type[R], recipe: str | Path | Mapping[str, Any] | RunRecipe, overrides: Sequence[str] = ()) -> R:
    """A checked recipe of a kind; see `read_recipe`."""
    name, values = _values(recipe, overrides)
    if kind is FinetuneRecipe and "base" not in values and "preset" in (values.get("model") or {}):
        raise InputError(f"{name}: it makes a network (model.preset), so it is for `bedplate pretrain`")
    if _known_task(name, values) in FINETUNED and kind is Recipe:
        raise InputError(f"{name}: it has `task: {values['task']}`, so it is for `bedplate finetune`")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{name}: {_sentence(error, kind)}") from None


def write_recipe(recipe: RunRecipe, path: Path) -> None:
    """Write the resolved recipe as YAML, whole or not at all; `read_recipe` gives the same recipe back."""
    partial = path.with_name(f".{path.name}.partial")
    # Escaped, not allow_unicode: PyYAML writes the line end U+0085 raw then, and reads it back as a space.
    partial.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), "utf-8")
    partial.replace(path)


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):  # a text that is too long for a name is none
        raise InputError(f"{path}: no such recipe; give the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the recipe as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{path}{line}: not valid YAML: {reason}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys such as `out:`, `data:` and `train:`")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r} is not of the form key.path=value, for example train.steps=100")
    value = _override_value(text)
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:  # not there, or a section that is left empty
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise InputError(f"override {override!r}: {parent!r} holds a value, not a section")
    values[last] = value


def _override_value(text: str) -> Any:
    """A number, a boolean, null, `[a list]`, `{a: mapping}` or a "quoted text" of YAML; else the text as it stands.

    YAML would take what is behind " #" for a comment, "notes: mine.txt" for a mapping, and 2024-01-01 for a date, which
    are names of files here.
    """
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # a day that no month has is no error of YAML's
        return text
    if text[:1] in ("[", "{", '"', "'"):
        return value
    return value if isinstance(value, bool | int | float | None) and "#" not in text else text


def _sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first fault as one sentence; unknown keys go first, since a misspelt key also shows as a missing one."""
    found: dict[str, Any] = {}  # by key: of a value that may be of several types, each type's fault has the same one
    for each in sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden"):
        found.setdefault(".".join(_location(each["loc"], kind)), each)
    inner = {key for key in found if any(other.startswith(f"{key}.") for other in found)}
    keys = [key for key in found if key and key not in inner] or list(found)  # an entry says more than its list
    key, more = keys[0], f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    fault, location = found[key], _location(found[key]["loc"], kind)
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_nearest(location, kind)}{more}"
    if fault["type"] == "missing":
        return f"key {key!r} is missing; add it to the recipe or give {key}=VALUE{more}"
    message = fault["msg"].removeprefix("Value error, ")
    if not location or (fault["type"] == "value_error" and key in message):
        return message + more
    if fault["type"] == "value_error":
        return f"{key}: {message}{more}"
    return f"{key}: {message[0].lower()}{message[1:]}, got {fault['input']!r}{more}"


def _location(loc: Sequence[str | int], kind: type[BaseModel]) -> list[str]:
    """Where a fault is as a recipe writes it: without the names that pydantic gives to the types of a union."""
    section: type[BaseModel] | None = kind
    location = []
    for part in loc:
        if section is not None or isinstance(part, int):
            location.append(str(part))
        section = None if section is None else _section(section, str(part))
    return location


def _nearest(location: list[str], kind: type[BaseModel]) -> str:
    """'; did you mean X?' for an unknown key: among its neighbours first, then among all keys."""
    section = kind
    for part in location[:-1]:
        inner = _section(section, part)
        if inner is None:
            return ""
        section = inner
    prefix = "".join(f"{part}." for part in location[:-1])
    here = {name: prefix + name for name in section.model_fields}
    everywhere = {path.rpartition(".")[2]: path for path in _paths(kind)}
    for names, cutoff in ((here, 0.6), (everywhere, 0.8)):
        if match := difflib.get_close_matches(location[-1], names, n=1, cutoff=cutoff):
            return f"; did you mean {names[match[0]]!r}?"
    return f"; known keys are {', '.join(sorted(section.model_fields))}"


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model behind a field, or None where the field holds a plain value."""
    if name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in model.model_fields:
        section = _section(model, name)
        found += _paths(section, f"{prefix}{name}.") if section else [prefix + name]
    return found
