"""What generation does to be sooner done on CPUs: PyTorch's own results, nothing kept, nothing left behind."""

import copy
import platform
import threading
from typing import Any, cast

import pytest
import torch
from tiny_models import audio, tiny_model
from torch import nn
from torch._dynamo.testing import CompileCounter

from speechgraft.modeling import quick_inference as module
from speechgraft.modeling.quick_inference import OneDnnLinear, is_quick, onednn_product, quick_inference

needs_onednn = pytest.mark.skipif(onednn_product() is None, reason="needs an x86 CPU and PyTorch's oneDNN operator")


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of what went through oneDNN."""
    shapes, product = [], onednn_product()

    def counting(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        shapes.append(tuple(states.shape))
        return cast(Any, product)(states, weight, bias)

    monkeypatch.setattr(module, "onednn_product", lambda: counting)
    return shapes


@needs_onednn
@pytest.mark.parametrize("shape", [(96,), (1, 96), (5, 96), (2, 3, 96), (2, 0, 96), (499, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_float64(shape, bias, products):
    torch.manual_seed(0)
    layer, states = nn.Linear(96, 200, bias=bias), torch.randn(shape)
    exact = copy.deepcopy(layer).double()(states.double())
    with torch.no_grad(), quick_inference(layer):
        found = layer(states)
    assert found.shape == exact.shape and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert products == ([] if 0 in shape else [shape])
    strided = torch.randn(96, 7).T  # not contiguous
    with torch.no_grad(), quick_inference(layer):
        torch.testing.assert_close(layer(strided), nn.functional.linear(strided, layer.weight, layer.bias))


@needs_onednn
def test_changed_weights_count_at_once():
    layer, states = nn.Linear(8, 8), torch.randn(2, 8)
    for change in (
        lambda: layer.weight.data.mul_(2),
        lambda: setattr(layer, "weight", nn.Parameter(torch.ones(8, 8))),
    ):
        with torch.no_grad(), quick_inference(layer):
            layer(states)
            change()
            torch.testing.assert_close(layer(states), nn.functional.linear(states, layer.weight, layer.bias))


@needs_onednn
def test_what_needs_gradients_or_is_no_plain_float32_stays_as_it_was(products):
    layer, states = nn.Linear(8, 8), torch.randn(2, 8)
    with quick_inference(layer):  # a gradient is wanted
        layer(states).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), quick_inference(layer):
        with torch.enable_grad():
            layer(states).sum().backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(states).dtype == torch.bfloat16
        with torch.backends.mkldnn.flags(enabled=False):
            layer(states)
        with pytest.raises(RuntimeError, match="dtype"):
            layer(states.double())
    for dtype in (torch.bfloat16, torch.float64):
        with torch.no_grad(), quick_inference(layer.to(dtype)):
            assert layer(states.to(dtype)).dtype == dtype
    with torch.no_grad(), quick_inference(nn.Linear(8, 8, device="meta")) as nothing:
        assert nothing is None
    assert products == []


@needs_onednn
def test_layers_are_left_as_they_were_found(products):
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    calls = []
    cast(Any, layers[1]).forward = lambda states: calls.append(states) or states  # as hooks of accelerate do
    try:
        with torch.no_grad(), quick_inference(layers):
            with quick_inference(layers):
                copied = copy.deepcopy(layers[0])
                layers(torch.randn(1, 8))
            layers(torch.randn(1, 8))
            raise KeyError
    except KeyError:
        pass
    assert [type(layer) for layer in layers] == [nn.Linear] * 2 and len(calls) == len(products) == 2
    nn.init.zeros_(copied.weight)
    nn.init.zeros_(cast(torch.Tensor, copied.bias))
    assert not copied(torch.ones(1, 8)).any()  # its own weights, not those of the layer that it was copied from


@needs_onednn
def test_generation_uses_it_and_says_the_same(products, monkeypatch):
    model, inputs = tiny_model(scale=3.0), audio("wav2vec2", 9600, 16000)
    found = [model.generate(**inputs, num_beams=beams, max_length=9) for beams in (1, 3)]
    assert any(shape[0] == 6 for shape in products)  # beams of the decoder
    assert not any(isinstance(layer, OneDnnLinear) for layer in model.modules())
    count = len(products)
    monkeypatch.setattr(module, "onednn_product", lambda: None)  # as on other machines
    for beams, tokens in zip((1, 3), found, strict=True):
        assert torch.equal(model.generate(**inputs, num_beams=beams, max_length=9), tokens)
    assert len(products) == count


@needs_onednn
def test_threads_may_share_a_model():
    model, wrong = tiny_model(scale=3.0), []
    clips = [audio("wav2vec2", size, seed=size) for size in (6400, 9600, 12800, 16000)]
    expected = [model.generate(**clip, max_length=9) for clip in clips]

    def work(index: int) -> None:
        for _ in range(4):
            if not torch.equal(model.generate(**clips[index], max_length=9), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and not any(isinstance(layer, OneDnnLinear) for layer in model.modules())


def test_other_machines_go_without(monkeypatch):
    onednn_product.cache_clear()
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    try:
        assert onednn_product() is None
        layer, states = nn.Linear(4, 4), torch.randn(1, 4)
        with torch.no_grad(), quick_inference(layer):
            assert torch.equal(layer(states), nn.functional.linear(states, layer.weight, layer.bias))
    finally:
        onednn_product.cache_clear()


@needs_onednn
def test_compiled_layers_are_compiled_once(products):
    layer, counter = nn.Sequential(nn.Linear(8, 8)), CompileCounter()
    torch.compiler.reset()
    compiled, states = torch.compile(layer, backend=counter, fullgraph=True), torch.randn(2, 8)
    for _ in range(3):
        with torch.no_grad(), quick_inference(layer):
            torch.testing.assert_close(compiled(states), nn.functional.linear(states, layer[0].weight, layer[0].bias))
    torch.compiler.reset()
    assert counter.frame_count == 1 and products == []


def test_what_people_compare_with_the_native_class_is_left_alone(products):
    model, inputs = tiny_model("wav2vec2-layer"), {"input_values": torch.randn(2, 48000)}  # 3 s
    with torch.no_grad():
        encoded = model.encoder(**inputs)
        native = model.encoder.backbone(**inputs).last_hidden_state
        assert torch.equal(encoded.last_hidden_state, model.encoder.projection(native))
        model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([[2, 7], [2, 7]]))
    assert products == [] and not is_quick()
