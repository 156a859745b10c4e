"""The task of drawing: hidden texts, and measures that count each image once."""

from __future__ import annotations

import pytest
import torch

from bedplate.hub.draw_model import draw_trunk
from bedplate.models.dalle import Dalle, DalleConfig
from bedplate.tasks.draw import Draw


@pytest.fixture
def module() -> Dalle:
    module = Dalle(DalleConfig(9, 4, 0, (2, 2), 7, draw_trunk(8, 1, 1)))
    module.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.startswith(("embed", "head")) or name.endswith("o_proj.weight"):
            torch.nn.init.normal_(parameter, generator=generator)
    return module


def _batch(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(1, 9, (count, 4), generator=generator)
    return {
        "codes": torch.randint(0, 7, (count, 4), generator=generator),
        "ids": ids,
        "index": torch.arange(count),
    }


def test_a_hidden_text_is_none_at_all(module: Dalle) -> None:
    batch = _batch(6)
    ids, codes = batch["ids"], batch["codes"]
    shown, count = Draw(module, text_drop=0.0).loss(batch)["loss"]
    torch.testing.assert_close(shown, module.loss(ids, codes)[0])
    assert int(count) == 24
    torch.manual_seed(0)
    some = Draw(module, text_drop=0.5).loss(batch)["loss"][0]
    torch.manual_seed(0)
    hidden = torch.rand(6, 1) < 0.5
    expected = torch.where(hidden[:, 0], module.nats(torch.zeros_like(ids), codes), module.nats(ids, codes)).sum()
    assert 0 < int(hidden.sum()) < 6
    torch.testing.assert_close(some, expected)


def test_evaluation_counts_each_image_once(module: Dalle) -> None:
    batch, task = _batch(5), Draw(module)
    whole = task.evaluate([batch])
    parts = task.evaluate([{key: value[part] for key, value in batch.items()} for part in (slice(0, 3), slice(2, 5))])
    assert whole.keys() == task.metrics.keys()
    for name, metric in whole.items():
        assert parts[name]["value"] == pytest.approx(metric["value"], rel=1e-5) and metric["n"] == 5
    assert whole["loss"]["value"] == pytest.approx(
        module.nats(batch["ids"], batch["codes"]).sum().item() / 20, rel=1e-5
    )
    assert whole["loss"]["value"] != pytest.approx(whole["loss_without_text"]["value"], rel=1e-3)
