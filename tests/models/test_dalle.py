"""Drawing by codes: what is learnt is what is drawn from; cache and batch change nothing, guidance what it should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bedplate.errors import InputError
from bedplate.hub.draw_model import draw_trunk
from bedplate.models.dalle import Dalle, DalleConfig, Painter
from bedplate.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig

END = 2
CONFIG = DalleConfig(11, 5, END, (2, 3), 12, draw_trunk(16, 2, 2))


@pytest.fixture
def module() -> Dalle:
    """A network whose blocks say something, and whose likeliest code is not always one."""
    module = Dalle(CONFIG)
    module.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 2:
                scale = 1.0 if "head" in name or "embed" in name else 0.3
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


def _texts(count: int) -> Tensor:
    ids = torch.randint(3, 11, (count, 4), generator=torch.Generator().manual_seed(3))
    return torch.cat([ids, torch.full((count, 1), END)], 1)


def test_a_code_is_foretold_from_text_and_codes_before_it_alone(module: Dalle) -> None:
    ids, codes = _texts(2), torch.randint(0, 12, (2, 6), generator=torch.Generator().manual_seed(0))
    logits = module(ids, codes)
    assert logits.shape == (2, 6, 12)
    other = codes.clone()
    other[:, 3] = (other[:, 3] + 1) % 12
    changed = (module(ids, other) - logits).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False] * 4 + [True] * 2
    assert ((module(ids.roll(1, 0), codes) - logits).abs() > 1e-6).any(-1).all()


def test_loss_is_the_cross_entropy_of_the_logits(module: Dalle) -> None:
    ids, codes = _texts(3), torch.randint(0, 12, (3, 6))
    total, count = module.loss(ids, codes)
    logits = module(ids, codes)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum")
    torch.testing.assert_close(total, expected)
    assert int(count) == 18
    torch.testing.assert_close(module.nats(ids, codes).sum(), expected)


def test_a_text_may_be_filled_up_or_not(module: Dalle) -> None:
    short, codes = torch.tensor([[4, END]]), torch.randint(0, 12, (1, 6))
    filled = torch.tensor([[4, END, END, END]])
    torch.testing.assert_close(module(short, codes), module(filled, codes))


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("prefix", [None, 1, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_cache_changes_nothing(module: Dalle, guidance: float, prefix: int | None, temperature: float) -> None:
    ids, seeds = _texts(3), [5, 6, 5]
    given = None if prefix is None else torch.arange(prefix)
    options = {"guidance": guidance, "temperature": temperature, "prefix": given}
    cached = module.draw(ids, seeds, **options)  # type: ignore[arg-type]
    assert cached.shape == (3, 2, 3)
    assert torch.equal(cached, module.draw(ids, seeds, cache=False, **options))  # type: ignore[arg-type]
    if prefix is not None:
        assert cached.flatten(1)[:, :prefix].tolist() == [list(range(prefix))] * 3


@torch.inference_mode()
def test_the_likeliest_codes_are_those_of_the_logits(module: Dalle) -> None:
    ids = _texts(2)
    drawn = module.draw(ids, [0, 1], temperature=0.0)
    assert torch.equal(module(ids, drawn.flatten(1)).argmax(-1).view_as(drawn), drawn)
    assert torch.equal(module.draw(ids, [2, 3], temperature=1.0, top_k=1), drawn)


@torch.inference_mode()
def test_guidance_is_between_and_beyond_both(module: Dalle) -> None:
    ids, seeds = _texts(2), [0, 1]
    nothing = module.draw(module.without_text(ids), seeds)
    assert torch.equal(module.draw(ids, seeds, guidance=0.0), nothing)
    far = module.draw(ids, seeds, guidance=1.5, temperature=0.0).flatten(1)
    given, free = module(ids, far), module(module.without_text(ids), far)
    assert torch.equal((free + 1.5 * (given - free)).argmax(-1), far)


def test_an_image_depends_on_its_text_and_seed_alone(module: Dalle) -> None:
    ids, seeds = _texts(4), [0, 1, 2, 3]
    together = module.draw(ids, seeds, guidance=2.0)
    for row in range(4):
        alone = module.draw(ids[row : row + 1], seeds[row : row + 1], guidance=2.0)
        assert torch.equal(alone[0], together[row])
    same = module.draw(ids[:1].expand(8, -1), list(range(8)))
    assert len(same.flatten(1).unique(dim=0)) > 1


def test_what_is_drawn_is_as_frequent_as_foretold(module: Dalle) -> None:
    ids = _texts(1)
    count = 2000
    first = module.draw(ids.expand(count, -1), list(range(count)))[:, 0, 0]
    foretold = module(ids, torch.zeros(1, 6, dtype=torch.long))[0, 0].softmax(0)
    found = first.bincount(minlength=12) / count
    assert (found - foretold).abs().max() < 4 * (0.25 / count) ** 0.5


def test_a_whole_prefix_is_the_image(module: Dalle) -> None:
    assert module.draw(_texts(1), [0], prefix=torch.arange(6))[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert module.draw(_texts(0), []).shape == (0, 2, 3)


def test_flops_are_those_that_are_counted(module: Dalle) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(_texts(1), torch.zeros(1, 6, dtype=torch.long))
    length = CONFIG.text_length + CONFIG.codes  # attention is fused, and not counted
    attention = 12 * length * length * 16 * 2
    assert module.flops_per_image() - attention == 3 * counter.get_total_flops()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"guidance": -1.0}, "guidance"), ({"temperature": -0.1}, "temperature"), ({"top_k": 0}, "top_k")],
)
def test_settings_out_of_range_are_refused(module: Dalle, options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        module.draw(_texts(1), [0], **options)  # type: ignore[arg-type]


def test_networks_of_different_codes_do_not_go_together(module: Dalle) -> None:
    tokens = ImageTokenizer(ImageTokenizerConfig((8, 12), patch=4, levels=(4, 4), width=16))
    with pytest.raises(InputError, match="of different models"):
        Painter(module, tokens)
