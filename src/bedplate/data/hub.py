"""Rows of data sets on the Hugging Face Hub, streamed by the `datasets` library, which is imported only here."""

import re
from typing import Any

from bedplate.data.formats import Columns, Rows, wanted
from bedplate.errors import InputError

HUB = re.compile(r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@]+))?(?:@(?P<split>.+))?")
UNREADABLE = (OSError, ValueError, RuntimeError)  # what `datasets` raises for the network, names and old scripts


def hub_rows(name: str, columns: Columns) -> Rows:
    """Stream the rows of an `hf:` id.

    Raises:
        InputError: No `datasets` library, no such data set, split or column, or no network.
    """
    datasets, dataset, config, split = _hub(name)
    try:
        rows = datasets.load_dataset(dataset, config, split=split, streaming=True)
        for number, row in enumerate(rows.decode(False), 1):  # pictures stay the bytes that they are
            yield number, wanted(row, columns, name, number)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{name}: not readable from the Hub ({error}); check id, split and network") from error


def hub_fingerprint(name: str) -> str:
    """Return what `datasets` knows of the version of an `hf:` id (its builder's hash), or "" where it says nothing."""
    datasets, dataset, config, _ = _hub(name)
    try:
        return str(getattr(datasets.load_dataset_builder(dataset, config), "hash", "") or "")
    except UNREADABLE as error:
        raise InputError(f"{name}: not readable from the Hub ({error}); check id, split and network") from error


def hub_label_names(name: str, column: str) -> list[str]:
    """The names of the classes that the numbers in a column of an `hf:` id stand for; none where it has no names."""
    datasets, dataset, config, _ = _hub(name)
    try:
        features = datasets.load_dataset_builder(dataset, config).info.features or {}
    except UNREADABLE as error:
        raise InputError(f"{name}: not readable from the Hub ({error}); check id, split and network") from error
    return [str(each) for each in getattr(features.get(column), "names", None) or []]


def _hub(name: str) -> tuple[Any, str, str | None, str]:
    """(the `datasets` module, dataset, config, split) of an `hf:` id."""
    match = HUB.fullmatch(name)
    if match is None:
        raise InputError(f"{name}: not a dataset id; write hf:org/name[:config][@split]")
    try:
        import datasets
    except ImportError as error:
        raise InputError(f'{name}: needs the datasets library: pip install "bedplate[hub]"') from error
    return datasets, match["name"], match["config"], match["split"] or "train"
