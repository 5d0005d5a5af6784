"""Layers that compute nothing are named: weights of zeros, outputs that are the same for every sample."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from deploypruner.build.doubted import doubted_layers
from deploypruner.quantize.idle_layers import IdleLayers, idle_layers
from tests.int8_nets import Net, images


def net_with(values: dict[int, np.ndarray]) -> onnx.ModelProto:
    """Three convolutions with relus, a pool and a linear layer; `values` are put in place of stored tensors."""
    net = Net(["n", 3, 8, 8])
    hidden = net.add("Relu", net.conv("x", 6, 3))
    for inputs, outputs in ((6, 4), (4, 7)):
        hidden = net.add("Relu", net.conv(hidden, outputs, inputs))
    model = net.model(net.gemm(net.add("Flatten", net.add("GlobalAveragePool", hidden)), 5, 7))
    for number, array in values.items():
        tensor = next(t for t in model.graph.initializer if t.name == f"c{number}")
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return model


def found(values: dict[int, np.ndarray], *, samples: int = 12) -> IdleLayers:
    x = images(samples)
    return idle_layers(net_with(values), [[x[:8]], [x[8:]]] if samples > 8 else [[x]])


def test_layers_that_compute_say_nothing() -> None:
    assert found({}) == IdleLayers((), (), 12)
    assert doubted_layers(found({})) == ()


def test_weights_of_zeros_are_named_and_what_follows_from_them_is_not() -> None:
    assert found({2: np.zeros((4, 6, 3, 3))}) == IdleLayers(("c2",), (), 12)
    (said,) = doubted_layers(IdleLayers(("c2",), (), 12))
    assert said.startswith("'c2' has weights of zeros alone: what comes of it does not depend on the inputs")


def test_an_activation_that_is_always_zero_is_named_by_its_layer() -> None:
    assert found({3: np.full(4, -1e4)}) == IdleLayers((), ("c2",), 12)
    (said,) = doubted_layers(IdleLayers((), ("c2", "c4"), 12))
    assert said.startswith("'c2' and 'c4' give the same for all 12 samples, after the activation")


def test_one_sample_cannot_tell_what_is_constant() -> None:
    assert found({3: np.full(4, -1e4)}, samples=1) == IdleLayers((), (), 1)


def test_many_are_counted() -> None:
    (said,) = doubted_layers(IdleLayers(tuple("abcde"), (), 4))
    assert said.startswith("'a', 'b', 'c' and 2 more have weights of zeros alone: what comes of them does not depend")
    assert said.endswith("or prune them")


def test_a_batch_size_that_is_fixed_is_compared_between_batches() -> None:
    x = images(3)
    assert idle_layers(net_with({3: np.full(4, -1e4)}), [[x[i : i + 1]] for i in range(3)]).constant == ("c2",)
