"""The decoder against the module itself: the same tokens and logits, for every shape, layout and precision."""

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bedplate.models import decoder as decoding
from bedplate.models import products
from bedplate.models.decoder import Decoder, _Rows, decodable
from bedplate.models.gpt import GPT
from bedplate.models.products import Product, by_tiles
from bedplate.models.sampling import generate
from bedplate.nn.rotary import RopeConfig

RAGGED = [[5, 6, 7, 8, 9, 10], [3], [11, 12, 13]]
ROPES = {
    "linear": RopeConfig("linear", factor=4.0),
    "llama3": RopeConfig("llama3", factor=8.0, original_max_position_embeddings=8),
    "yarn": RopeConfig("yarn", factor=4.0, original_max_position_embeddings=8),
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def plainly(module: GPT, *args: Any, **options: Any) -> list[list[int]]:
    """`generate` by the module's own forward pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.models.sampling.decodable", lambda _: False)
        return generate(module, *args, **options)


@torch.inference_mode()
def logits(module: GPT, rows: Tensor, prompt: int, **options: bool) -> Tensor:
    """Logits `(B, N - prompt, V)` of `rows (B, N)` by a decoder that was started behind the first `prompt` tokens."""
    cache = module.trunk.make_cache(len(rows), prompt)
    module.hidden(rows[:, :prompt], cache=cache)
    decoder = Decoder(module, *rows.shape, **options)
    decoder.start(cache, None)
    return torch.stack([decoder.step(token).clone() for token in rows[:, prompt:].split(1, 1)], 1)


def some_rows(batch: int, length: int = 14) -> Tensor:
    return torch.randint(0, 29, (batch, length), generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("batch", [1, 2, 4, 5])
@pytest.mark.parametrize("options", [{}, {"static": True}, {"pack": True}])
def test_logits_are_the_modules(gpt: GPT, batch: int, options: dict[str, bool]) -> None:
    rows = some_rows(batch)
    found = logits(copy.deepcopy(gpt), rows, 3, **options)
    torch.testing.assert_close(found, gpt(rows)[:, 3:], rtol=0, atol=5e-5)


@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_type(make_gpt: Callable[..., GPT], rope: str) -> None:
    gpt, rows = make_gpt("qwen3-gqa", rope=ROPES[rope]), some_rows(2)
    torch.testing.assert_close(logits(gpt, rows, 5), gpt(rows)[:, 5:], rtol=0, atol=5e-5)


MIXTURES: dict[str, dict[str, Any]] = {
    "learned positions, normed heads": {"variant": "qwen3-gqa", "rope": None},
    "rotary, layer norm": {"variant": "qwen3", "norm": "layer", "mlp_bias": True},
    "a window, normed heads": {"variant": "qwen3-gqa", "windows": (None, 4)},
    "learned positions, RMS norm": {"variant": "llama", "rope": None, "gated": False, "activation": "gelu"},
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("static", [False, True])
def test_what_no_family_combines(make_gpt: Callable[..., GPT], name: str, dtype: torch.dtype, static: bool) -> None:
    gpt, rows = make_gpt(**MIXTURES[name]).to(dtype), some_rows(2)
    exact = copy.deepcopy(gpt).float()(rows)[:, 3:]
    error = (logits(gpt, rows, 3, static=static).float() - exact).norm() / exact.norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_of_two_kernels(scale: float, dtype: torch.dtype) -> None:
    generator, eps = torch.Generator().manual_seed(0), 1e-6
    x, gain = (
        scale * torch.randn(3, 40, generator=generator, dtype=dtype),
        torch.randn(40, generator=generator).to(dtype),
    )
    rows = _Rows(x, 3, 40, eps, padded=True)
    rows.rows.copy_(x)
    out = torch.empty_like(rows.padded)
    rows.normed(F.pad(gain, (0, 1)), out=out)
    torch.testing.assert_close(out[:, :40], F.rms_norm(x, (40,), gain, eps))


@pytest.mark.parametrize("variant, most, tiled", [("gpt2", 15, 29), ("llama", 18, 28), ("qwen3-gqa", 20, 30)])
def test_a_layer_is_few_calls(make_gpt: Callable[..., GPT], variant: str, most: int, tiled: int) -> None:
    """Each costs as much as a small product: a view or a cast more in every layer is to be seen here.

    Where a CPU multiplies tiles, one row and the blocks of a matrix are views more.
    """

    def calls(layers: int) -> int:
        counter, gpt = Calls(), make_gpt(variant, num_hidden_layers=layers).bfloat16()
        with torch.inference_mode():
            cache = gpt.trunk.make_cache(1, 3)
            gpt.hidden(some_rows(1, 3), cache=cache)
            decoder = Decoder(gpt, 1, 8)
            decoder.start(cache, None)
            with counter:
                decoder.step(some_rows(1, 1))
        return counter.number

    assert calls(3) - calls(2) <= (tiled if by_tiles(torch.bfloat16) else most)


class Calls(TorchFunctionMode):
    """Counts what Python asks of PyTorch, but for attributes."""

    number = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += getattr(func, "__name__", "") not in ("__get__", "__len__")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("prompts", [RAGGED, [[1, 2, 3], [4, 5, 6]], [[7] * 20], [[3, 4], [5], [6, 7, 8], [9]]])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 5, "repetition_penalty": 1.3, "seed": 3}])
def test_generates_what_the_module_would(gpt: GPT, prompts: list[list[int]], options: dict[str, Any]) -> None:
    options |= {"max_new_tokens": 40, "stop_ids": {2}}
    assert generate(gpt, prompts, **options) == plainly(gpt, prompts, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_rows_for_longer_pack_the_matrices_and_write_the_same(
    make_gpt: Callable[..., GPT], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt, packed = make_gpt("qwen3-gqa", max_position_embeddings=80).to(dtype), Mock(wraps=products.packed)
    monkeypatch.setattr(products, "packed", packed)
    prompts = [*RAGGED, [4, 4]]
    for rows, new in ((2, 50), (4, 20), (4, 50)):
        assert packed.call_count == 0  # neither for few rows nor for few tokens
        found = generate(gpt, prompts[:rows], max_new_tokens=new, temperature=0)
        assert found == plainly(gpt, prompts[:rows], max_new_tokens=new, temperature=0)
    assert bool(packed.call_count) == (dtype == torch.float32 and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize("ahead", [1, 3, 7, 100])
def test_tokens_decoded_ahead_are_the_same(gpt: GPT, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: static steps, fused weights, tokens that nobody looks at on the way."""
    module = copy.deepcopy(gpt)
    monkeypatch.setattr("bedplate.models.decoder.Decoder", lambda *args, **_: Decoder(*args, static=True))
    columns = decoding_columns(module, RAGGED, 9, ahead)
    monkeypatch.undo()
    assert columns == plainly(gpt, RAGGED, max_new_tokens=9, temperature=0)


def decoding_columns(module: GPT, prompts: list[list[int]], steps: int, ahead: int) -> list[list[int]]:
    from bedplate.models.sampling import Sampler, _columns

    choose = Sampler(prompts, temperature=0, top_k=None, top_p=None, seed=None)
    with torch.inference_mode():
        return [list(row) for row in zip(*_columns(module, prompts, steps, choose, ahead), strict=True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_16_bits_are_as_near_to_fp32_as_the_modules_own(gpt: GPT, dtype: torch.dtype, batch: int) -> None:
    rows, low = some_rows(batch), copy.deepcopy(gpt).to(dtype)
    exact = copy.deepcopy(low).float()(rows)[:, 3:]
    error = (logits(low, rows, 3, pack=products.packing_pays(low, batch, 99)).float() - exact).norm()
    assert error < 1.2 * (low(rows)[:, 3:].float() - exact).norm()
    assert error < 0.02 * exact.norm()


def test_weights_outside_fp16_are_no_trouble(make_gpt: Callable[..., GPT]) -> None:
    gpt, rows = make_gpt("llama").bfloat16(), some_rows(1)
    gpt.trunk.blocks[0].attn.v_proj.weight.data.mul_(1e6)
    gpt.trunk.blocks[0].attn.o_proj.weight.data.mul_(1e-6)
    exact = copy.deepcopy(gpt).float()(rows)[:, 3:]
    assert (logits(gpt, rows, 3).float() - exact).norm() < 0.03 * exact.norm()


def test_weights_changed_between_calls_are_seen(gpt: GPT) -> None:
    module = copy.deepcopy(gpt)
    before = generate(module, RAGGED, max_new_tokens=8, temperature=0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(-0.7)
    after = generate(module, RAGGED, max_new_tokens=8, temperature=0)
    assert after == plainly(module, RAGGED, max_new_tokens=8, temperature=0) != before


def test_parameters_that_share_memory_stay_what_they_were(gpt: GPT) -> None:
    """A static decoder lays weights side by side: same values, same objects, trainable, saved and copied as before."""
    module = copy.deepcopy(gpt)
    parameters = dict(module.named_parameters())
    logits(module, some_rows(1), 3, static=True)
    for name, value in gpt.named_parameters():
        assert torch.equal(parameters[name], value) and module.get_parameter(name) is parameters[name]
    total, _ = module.loss(*some_rows(1).repeat(2, 1, 1))
    total.backward()
    with torch.no_grad():
        module.trunk.blocks[0].attn.q_proj.weight.zero_()
    changed = {name for name, value in gpt.named_parameters() if not torch.equal(parameters[name], value)}
    assert changed == {"trunk.blocks.0.attn.q_proj.weight"}


@pytest.mark.parametrize("out", [2, 7, 64, 101])
@pytest.mark.parametrize("rows", [1, 2, 4, 5])
@pytest.mark.parametrize("biased", [False, True])
def test_products_of_few_rows(out: int, rows: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((rows, 48), (out, 48), (out,)))
    linear = nn.Linear(48, out, bias=biased)
    linear.weight.data = weight
    if biased:
        linear.bias.data = bias
    padded = F.pad(x, (0, 1))[:, :48]  # as a norm leaves them
    with torch.no_grad():
        found = Product.of(linear).into(torch.empty(rows, out), padded)
        torch.testing.assert_close(found, linear(x), rtol=1e-5, atol=1e-5)


def test_a_decoder_serves_the_module_it_was_made_of(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt("qwen3-gqa")
    decoder = Decoder(gpt, 2, 8)
    assert decoder.serves(gpt, 2, 8) and not decoder.serves(gpt, 2, 9)
    gpt.double()  # other memory
    assert not decoder.serves(gpt, 2, 8)


def hooked(gpt: GPT) -> GPT:
    gpt.trunk.blocks[0].register_forward_hook(lambda module, args, out: out * 1.5)
    return gpt


def adapted(gpt: GPT) -> GPT:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 1.5

    proj = gpt.trunk.blocks[0].attn.v_proj
    gpt.trunk.blocks[0].attn.v_proj = Scaled(proj.in_features, proj.out_features, bias=False)
    return gpt


def of_two_dtypes(gpt: GPT) -> GPT:
    gpt.trunk.norm.double()
    return gpt


@pytest.mark.parametrize("change", [hooked, adapted, of_two_dtypes])
def test_a_module_that_does_more_decodes_by_itself(make_gpt: Callable[..., GPT], change: Callable[[GPT], GPT]) -> None:
    assert decodable(make_gpt("llama")) and not decodable(change(make_gpt("llama")))


def test_hooks_act_on_every_token(make_gpt: Callable[..., GPT]) -> None:
    gpt = hooked(make_gpt("llama"))
    found = generate(gpt, [[5, 6]], max_new_tokens=8, temperature=0)[0]
    ids = torch.tensor([[5, 6, *found]])
    assert gpt(ids)[0, 1:-1].argmax(-1).tolist() == found


def test_under_autocast_the_module_decodes(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt("qwen3")
    with torch.autocast("cpu", torch.bfloat16):
        assert not decodable(gpt)
        assert generate(gpt, RAGGED, max_new_tokens=5, temperature=0)


def test_onednn_is_back_after_each_token(make_gpt: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, seen = make_gpt("llama").bfloat16(), []
    generate(gpt, [[5]], max_new_tokens=3, on_token=lambda *_: seen.append(torch._C._get_mkldnn_enabled()) or False)
    assert seen == [True] * 3
    monkeypatch.setattr(Decoder, "_run", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        generate(gpt, [[5]], max_new_tokens=3)
    assert torch._C._get_mkldnn_enabled()


def test_threads_generate_at_once(make_gpt: Callable[..., GPT]) -> None:
    gpt, prompts = make_gpt("qwen3").bfloat16(), [[token] for token in range(3, 9)]
    found: dict[int, list[int]] = {}

    def run(token: int) -> None:
        found[token] = generate(gpt, [[token]], max_new_tokens=20, temperature=0)[0]

    threads = [threading.Thread(target=run, args=prompt) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {t: generate(gpt, [[t]], max_new_tokens=20, temperature=0)[0] for (t,) in prompts}
    assert torch._C._get_mkldnn_enabled()


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows by one with every graph that is captured."""
    made: list[int] = []
    capture = Decoder.capture
    monkeypatch.setattr(Decoder, "capture", lambda self: (made.append(1), capture(self))[1])
    decoding._captured.clear()
    yield made


@needs_cuda
@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 5, "repetition_penalty": 1.3, "seed": 3}])
def test_cuda_generates_what_the_module_would(gpt: GPT, options: dict[str, Any]) -> None:
    module = copy.deepcopy(gpt).cuda()
    options |= {"max_new_tokens": 34, "stop_ids": {2}}  # one is left behind two rounds of 16
    for prompts in (RAGGED, [[1, 2, 3], [4, 5, 6]], [[7] * 20], RAGGED):
        expected = plainly(module, prompts, **options)
        assert generate(module, prompts, **options) == expected
        told: list[list[int]] = [[] for _ in prompts]
        on_token = lambda row, token, told=told: told[row].append(token)  # noqa: E731
        assert generate(module, prompts, on_token=on_token, **options) == told == expected


@needs_cuda
def test_cuda_16_bits(gpt: GPT) -> None:
    rows, low = some_rows(2).cuda(), copy.deepcopy(gpt).to("cuda", torch.bfloat16)
    exact = copy.deepcopy(low).float()(rows)[:, 3:]
    error = (logits(low, rows, 3, static=True).float() - exact).norm()
    assert error < 1.3 * (low(rows)[:, 3:].float() - exact).norm() + 0.005 * exact.norm()


@needs_cuda
def test_cuda_graphs_are_captured_once_and_see_new_weights(gpt: GPT, captures: list[int]) -> None:
    module = copy.deepcopy(gpt).cuda()
    for scale in (1.0, -0.7):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(scale)
        for prompt in ([5], [6, 7]):
            found = generate(module, [prompt], max_new_tokens=8, temperature=0)
            assert found == plainly(module, [prompt], max_new_tokens=8, temperature=0)
    assert len(captures) == 1
    module.double()  # other memory: the graph would read what is no longer there
    found = generate(module, [[5]], max_new_tokens=8, temperature=0)
    assert found == plainly(module, [[5]], max_new_tokens=8, temperature=0) and len(captures) == 2


@needs_cuda
def test_cuda_decoders_are_not_shared_while_in_use(gpt: GPT, captures: list[int]) -> None:
    module = copy.deepcopy(gpt).cuda()
    alone = generate(module, [[6, 7]], max_new_tokens=8, temperature=0)

    def again(row: int, token: int) -> None:
        assert generate(module, [[6, 7]], max_new_tokens=8, temperature=0) == alone

    expected = plainly(module, [[5]], max_new_tokens=4, temperature=0)
    assert generate(module, [[5]], max_new_tokens=4, temperature=0, on_token=again) == expected
