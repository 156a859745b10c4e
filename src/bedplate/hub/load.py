"""`load`: a model of whatever kind from wherever it is."""

from __future__ import annotations

from pathlib import Path

import torch

from bedplate.errors import InputError
from bedplate.hub import model
from bedplate.hub.directory import read_config_values
from bedplate.hub.image_model import ImageModel, is_image_model, load_image_model
from bedplate.hub.locate import locate
from bedplate.hub.model import Model
from bedplate.hub.multimodal import KINDS, MultimodalModel, load_multimodal


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    adapter: str | Path | None = None,
) -> Model | ImageModel | MultimodalModel:
    """A model from a model directory, a run directory, an adapter directory, `zoo:NAME` or `hf:ORG/NAME[@REVISION]`.

    Args:
        device: where the weights go, the CPU by default.
        dtype: fp32, bf16 or fp16; by default as the checkpoint has it, the zoo (stored in bf16, to be small) in fp32.
        adapter: a LoRA adapter to put on a language model, see `Model.load_adapter`. An adapter directory in place of a
            model brings the base that it names.

    Returns:
        A `Model` of text, an `ImageModel`, or a `MultimodalModel` of both.

    Raises:
        InputError: nothing is there, or what is there is not a model that bedplate has.
    """
    directory = locate(path)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # which of them, the device decides
        reason = str(error).partition("\n")[0]
        raise InputError(f"device={device}: not available to PyTorch here ({reason}); give cpu, cuda or mps") from error
    kind = str(read_config_values(directory)[0].get("model_type")) if (directory / "config.json").is_file() else ""
    if kind not in KINDS and not is_image_model(directory):
        return model.load(path, device, dtype, adapter)
    if adapter is not None:
        raise InputError(f"{path}: adapters are for language models, and this model reads pictures")
    if dtype is None and str(path).startswith("zoo:"):
        dtype = "fp32"  # many CPUs multiply no bf16
    if kind in KINDS:
        return load_multimodal(directory, kind, device, dtype)
    return load_image_model(directory, device, dtype)
