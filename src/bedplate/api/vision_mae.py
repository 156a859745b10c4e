"""Learning from pictures without labels: masked autoencoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from bedplate.api.vision_classify import said, without_same
from bedplate.api.vision_report import write_mae_report
from bedplate.api.vision_run import VisionRun
from bedplate.data.augment import ImageAugment
from bedplate.data.image_files import fingerprint, read_images, split_images
from bedplate.data.image_loader import ImageLoader
from bedplate.models.mae import MAE, MAEConfig
from bedplate.tasks.reconstruct import Reconstruct
from bedplate.train.log import RunLog
from bedplate.train.loop import Trainer

SHOWN = 8  # reconstructions in the report


class MAERun(VisionRun):
    """A masked autoencoder."""

    module: MAE
    task: Reconstruct
    shown: Mapping[str, torch.Tensor] = MappingProxyType({})  # reconstructions, which `measure` draws

    def prepare(self, log: RunLog) -> None:
        recipe, decoder = self.recipe, self.recipe.decoder
        encoder = self.make_encoder(log)
        if encoder.config.image_size != self.processor.size:
            encoder = encoder.with_image_size(self.processor.size)
        self.timed("data", lambda: self.ranks.main_first(lambda: self._read(log)))
        inner = replace(  # all but its sizes is the encoder's, as the config file has it
            encoder.config.trunk,
            hidden_size=decoder.hidden_size,
            num_hidden_layers=decoder.num_hidden_layers,
            num_attention_heads=decoder.num_attention_heads,
            num_key_value_heads=decoder.num_attention_heads,
            head_dim=decoder.hidden_size // decoder.num_attention_heads,
            intermediate_size=4 * decoder.hidden_size,
        )
        config = MAEConfig(encoder.config, inner, recipe.objective.mask_ratio, recipe.objective.norm_pix_loss)
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

    def _read(self, log: RunLog) -> None:
        data = self.recipe.data
        whole = train = read_images(data.path, data.image, label="")
        val = read_images(data.val_path, data.image, label="") if data.val_path else None
        same = 0
        if val is not None:
            train, same = without_same(train, val)
        elif data.val_fraction:
            train, val = split_images(train, data.val_fraction, self.recipe.seed)
        self.parts = {"train": train} | ({} if val is None else {"val": val})
        rows, seed = self.recipe.train.batch_size, self.recipe.seed
        self.loader = ImageLoader(train, rows, seed, self.store("train", train, self.store_size), *self.shares)
        self.val = None if val is None else self.eval_loader("val", val)
        self.found = {
            **{name: len(part) for name, part in self.parts.items()},
            "dropped": dict(whole.dropped),
            "equal_pictures": same,
            "broken": self.broken(),
        }
        for line in said(self.found):
            log.say(line)

    def trainer(self, log: RunLog) -> Trainer:
        return self.make_trainer(self.loader_data(self.loader, self.val), self.loader.steps_per_epoch, log)

    def facts(self) -> list[dict[str, Any]]:
        marks = [f"{name}:{fingerprint(part, self.cache)}" for name, part in self.parts.items()]
        return [{"fingerprint": " ".join(marks), **self.found}]

    def measure(self) -> None:
        """Held-out pictures (or those of training, where none are held out): as they are, hidden, and drawn."""
        store = self.stores["train" if self.val is None else "val"]
        pixels = torch.from_numpy(store.pixels(store.usable[:SHOWN]))
        resized = ImageAugment()(pixels, self.processor.size)  # those of training may be kept larger
        self.shown = self.task.reconstructions(resized, self.recipe.seed)

    def write_report(self, record: dict[str, Any]) -> None:
        write_mae_report(self.out, record, self.timings, self.shown)
