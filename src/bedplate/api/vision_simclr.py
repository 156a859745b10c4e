"""Learning from pictures without labels: telling views of one picture from those of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bedplate.api.vision_report import write_encoder_report
from bedplate.api.vision_unlabelled import UnlabelledRun
from bedplate.data.augment import ImageAugment
from bedplate.errors import InputError
from bedplate.hub.vision_directory import save_vision_directory
from bedplate.models.simclr import SimCLR, SimCLRConfig
from bedplate.tasks.tell_views import TellViews
from bedplate.train.log import RunLog


class SimCLRRun(UnlabelledRun):
    """SimCLR; its model directory holds the encoder."""

    scales = False  # a process would compare its own pictures only
    module: SimCLR

    def prepare(self, log: RunLog) -> None:
        recipe = self.recipe
        encoder = self.make_encoder(log)
        if encoder.config.image_size != self.processor.size:
            encoder = encoder.with_image_size(self.processor.size)
        vision = replace(encoder.config, trunk=replace(encoder.config.trunk, dropout=recipe.model.dropout))
        shape = replace(vision, pooling=recipe.model.pooling or vision.pooling)
        views = self.augment()
        if views is None or views == ImageAugment(flip=True):
            raise InputError(
                "task: simclr tells views of a picture apart, and `augment` makes none: give augment.crop_scale and "
                "augment.colour, for example"
            )
        self.timed("data", lambda: self.read(log))
        if self.found.get("val", 2) < 2:
            raise InputError(
                f"task: simclr tells held-out pictures from each other, and {self.found['val']} can be decoded: raise "
                "data.val_fraction, give more as data.val_path, or hold none out by data.val_fraction=0"
            )
        config = SimCLRConfig(shape, recipe.objective.projection_dim, recipe.objective.temperature)
        module = SimCLR(config)
        module.init_weights(recipe.seed)
        if recipe.base is not None:
            module.encoder.load_state_dict(
                {name: value for name, value in encoder.state_dict().items() if not name.startswith("score.")}
            )
        self.module = self.placed(module)
        self.task = TellViews(self.module, self.processor.mean, self.processor.std, views)
        log.say(f"{self.parameters():,} parameters, of which the projector is left behind afterwards.")

    def write_model(self, card: str) -> None:
        save_vision_directory(self.out / "model", self.module.encoder, self.processor, card, overwrite=True)

    def write_report(self, record: dict[str, Any]) -> None:
        write_encoder_report(self.out, record, self.timings)
