"""What the tests start with torchrun: `under_torchrun.py FOLDER NAME...` runs `FOLDER/NAME.json`, one after the other.

Each file holds {"recipe": {...}, "overrides": [...], "resume": bool, "stop_at": step or null, "hang_at": step or null}.
Masks of a MAE follow from its pictures here.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pixel_masks import masks_of_pixels

import bedplate
from bedplate.errors import Interrupted
from bedplate.models.mae import MAE
from bedplate.train.loop import Trainer

train_step = Trainer._train_step
MAE.masks = masks_of_pixels  # type: ignore[method-assign]


def main(folder: Path, names: list[str]) -> None:
    for name in names:
        job = json.loads((folder / f"{name}.json").read_text("utf-8"))

        def step(self: Trainer, batch: Any, job: dict[str, Any] = job) -> None:
            if self.step + 1 == job["hang_at"] and os.environ["RANK"] == "1":
                time.sleep(1000)
            train_step(self, batch)
            if self.step + 1 == job["stop_at"] and os.environ["RANK"] == "1":
                signal.raise_signal(signal.SIGTERM)  # to one rank alone: all have to stop after the same step

        Trainer._train_step = step  # type: ignore[method-assign]
        try:
            bedplate.pretrain(job["recipe"], *job["overrides"], resume=job["resume"])
        except Interrupted:
            assert job["stop_at"]


main(Path(sys.argv[1]), sys.argv[2:])
