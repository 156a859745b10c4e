"""Masks of a MAE that follow from the pictures: those of a run do not depend on how many ranks draw them then."""

from torch import Tensor

from bedplate.models.mae import MAE, Masks
from bedplate.nn.embed import patchify

masks = MAE.masks


def masks_of_pixels(self: MAE, pixels: Tensor, noise: Tensor | None = None) -> Masks:
    """Those of the noise that is given, else the darkest patches are read."""
    return masks(self, pixels, patchify(pixels, self.config.encoder.patch_size).sum(2) if noise is None else noise)
