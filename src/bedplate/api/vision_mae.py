"""Learning from pictures without labels: masked autoencoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from bedplate.api.vision_report import write_mae_report
from bedplate.api.vision_unlabelled import UnlabelledRun
from bedplate.data.augment import ImageAugment
from bedplate.errors import InputError
from bedplate.models.mae import MAE, MAEConfig
from bedplate.tasks.reconstruct import Reconstruct
from bedplate.train.log import RunLog

SHOWN = 8  # reconstructions in the report


class MAERun(UnlabelledRun):
    """A masked autoencoder."""

    module: MAE
    task: Reconstruct
    shown: Mapping[str, torch.Tensor] = MappingProxyType({})  # reconstructions, which `measure` draws

    def prepare(self, log: RunLog) -> None:
        recipe, decoder = self.recipe, self.recipe.decoder
        encoder = self.make_encoder(log)
        if encoder.config.image_size != self.processor.size:
            encoder = encoder.with_image_size(self.processor.size)
        vision = replace(encoder.config, trunk=replace(encoder.config.trunk, dropout=recipe.model.dropout))
        inner = replace(  # all but its sizes is the encoder's, as the config file has it
            vision.trunk,
            hidden_size=decoder.hidden_size,
            num_hidden_layers=decoder.num_hidden_layers,
            num_attention_heads=decoder.num_attention_heads,
            num_key_value_heads=decoder.num_attention_heads,
            head_dim=decoder.hidden_size // decoder.num_attention_heads,
            intermediate_size=4 * decoder.hidden_size,
        )
        try:
            config = MAEConfig(vision, inner, recipe.objective.mask_ratio, recipe.objective.norm_pix_loss)
        except InputError as error:
            raise InputError(f"objective: {error}") from None
        self.timed("data", lambda: self.ranks.main_first(lambda: self.read(log)))
        module = MAE(config)
        module.init_weights(recipe.seed)
        if recipe.base is not None:
            module.encoder.load_state_dict(
                {name: value for name, value in encoder.state_dict().items() if not name.startswith("score.")}
            )
        self.module = self.placed(module)
        augment = self.augment()
        seen = None if augment is None else partial(augment, size=self.processor.size)
        self.task = Reconstruct(self.module, self.processor.mean, self.processor.std, seen, self.ranks.interleave)
        log.say(f"{self.parameters():,} parameters, of which the decoder is left behind afterwards.")

    def measure(self) -> None:
        """Held-out pictures (or those of training, where none are held out): as they are, hidden, and drawn."""
        store = self.stores["train" if self.val is None else "val"]
        pixels = torch.from_numpy(store.pixels(store.usable[:SHOWN]))
        resized = ImageAugment()(pixels, self.processor.size)  # those of training may be kept larger
        self.shown = self.task.reconstructions(resized, self.recipe.seed)

    def write_report(self, record: dict[str, Any]) -> None:
        write_mae_report(self.out, record, self.timings, self.shown)
