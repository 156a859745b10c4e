"""From what a person names (a folder, `zoo:name`, `hf:org/name`) to a model directory."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

from bedplate.errors import InputError

ZOO = "bedplate_zoo"
HUB = re.compile(r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>.+))?")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "README.md"]


def locate(source: str | Path) -> Path:
    """The model directory that `source` names; of a run directory, its `model/`.

    Raises:
        InputError: there is none, or it cannot be fetched.
    """
    if isinstance(source, str) and source.startswith("hf:"):
        return _from_hub(source)
    if isinstance(source, str) and source.startswith("zoo:"):
        return _from_zoo(source)
    directory = Path(source).expanduser()
    if not os.path.exists(directory):  # a text that is too long for a name is none
        raise InputError(f"{source}: no such folder; give a model directory, zoo:NAME or hf:ORG/NAME")
    if not directory.is_dir():
        raise InputError(f"{source}: is a file; give the folder that holds config.json and model.safetensors")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise InputError(f"{source}: cannot be read; check the folder's permissions")
    if not (directory / "config.json").exists() and (directory / "model" / "config.json").exists():
        return directory / "model"
    return directory


def _from_hub(source: str) -> Path:
    match = HUB.fullmatch(source)
    if match is None:
        raise InputError(f"{source}: not a model id; write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RevisionResolutionError
    except ImportError as error:
        raise InputError(f'{source}: needs the huggingface_hub library: pip install "bedplate[hub]"') from error
    try:
        # From subfolders only small files, such as 1_Pooling/config.json: repositories keep the same weights there in
        # other formats.
        return Path(
            snapshot_download(
                match["name"],
                revision=match["revision"],
                allow_patterns=HUB_FILES,
                ignore_patterns=["*/*.safetensors", "*/*.txt"],
            )
        )
    except (OSError, ValueError, RevisionResolutionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{source}: cannot be fetched from the Hugging Face Hub ({reason}); check the id, the revision "
            "and the network, or give the path of a downloaded folder"
        ) from error


def _from_zoo(source: str) -> Path:
    name = source.removeprefix("zoo:")
    try:
        root = Path(str(files(ZOO)))
    except ModuleNotFoundError as error:
        raise InputError(
            f"{source}: the zoo of shipped models is not installed; in bedplate's source folder: pip install ./zoo"
        ) from error
    names = sorted(path.parent.name for path in root.glob("*/config.json"))
    if name not in names:
        raise InputError(f"{source}: the installed zoo has no such model; it has {', '.join(names) or 'none'}")
    return root / name
