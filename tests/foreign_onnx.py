"""Small ONNX networks as other tools write them: their versions, precisions, operators and inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

RNG = np.random.default_rng(0)
Consts = dict[str, np.ndarray]
WEIGHTS: Consts = {
    "w1": RNG.standard_normal((16, 3, 3, 3)).astype("f") / 5,
    "b1": RNG.standard_normal(16).astype("f") / 10,
    "w2": (RNG.standard_normal((16, 16, 1, 1)) * (RNG.random((2, 16, 1, 1)) < 0.3).repeat(8, 0)).astype("f"),
    "w3": RNG.standard_normal((10, 16)).astype("f"),
    "b3": RNG.standard_normal(10).astype("f") / 10,
}
IMAGE = (3, 8, 8)
node = helper.make_node


def body(x: str = "x", y: str = "y") -> list[onnx.NodeProto]:
    """Two convolutions, a pooling, a layer."""
    return [
        node("Conv", [x, "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], kernel_shape=[1, 1]),
        node("Relu", ["c2"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w3", "b3"], [y], transB=1),
    ]


def model(
    nodes: Sequence[onnx.NodeProto],
    consts: Consts,
    inputs: Sequence[tuple[str, int, Sequence[int | str] | None]] = (("x", T.FLOAT, ("b", *IMAGE)),),
    outputs: Sequence[tuple[str, int, Sequence[int | str]]] = (("y", T.FLOAT, ("b", 10)),),
    *,
    opset: int = 13,
    ir: int = 8,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A file of these nodes; IR version 3 lists its constants among the inputs."""
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    if ir < 4:
        values += [helper.make_tensor_value_info(name, T.FLOAT, array.shape) for name, array in consts.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        values,
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in consts.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(graph, opset_imports=opsets)
    made.ir_version = ir
    return made


def old() -> onnx.ModelProto:
    """IR version 3, opset 7, with a batch norm and a dropout."""
    more = {"s": np.full(16, 0.9), "o": np.zeros(16), "m": np.full(16, 0.1), "v": np.ones(16)}
    nodes = body()
    nodes[2].output[0], nodes[-1].input[0] = "n", "d"
    nodes.insert(3, node("BatchNormalization", ["n", "s", "o", "m", "v"], ["c2"]))
    nodes.insert(-1, node("Dropout", ["f"], ["d"], ratio=0.5))
    return model(nodes, {**WEIGHTS, **{k: v.astype("f") for k, v in more.items()}}, opset=7, ir=3)


def channels_last() -> onnx.ModelProto:
    """TensorFlow's order of axes, bytes for pixels."""
    nodes = [node("Cast", ["image"], ["i"], to=T.FLOAT), node("Transpose", ["i"], ["x"], perm=[0, 3, 1, 2])]
    scaled = {**WEIGHTS, "w1": WEIGHTS["w1"] / 100}
    return model([*nodes, *body()], scaled, (("image", T.UINT8, ("b", 8, 8, 3)),))


def half() -> onnx.ModelProto:
    """Everything in float16."""
    stored = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    return model(body(), stored, (("x", T.FLOAT16, ("b", *IMAGE)),), (("y", T.FLOAT16, ("b", 10)),))


def half_inside() -> onnx.ModelProto:
    """float16 between two casts."""
    stored = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    first, last = node("Cast", ["x"], ["h"], to=T.FLOAT16), node("Cast", ["z"], ["y"], to=T.FLOAT)
    return model([first, *body("h", "z"), last], stored)


def loop() -> onnx.ModelProto:
    """A loop before the network, which reads a constant of the graph around it."""
    inside = helper.make_graph(
        [node("Mul", ["v"], ["w"]), node("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", T.INT64, []),
            helper.make_tensor_value_info("c", T.BOOL, []),
            helper.make_tensor_value_info("v", T.FLOAT, ["b", *IMAGE]),
        ],
        [
            helper.make_tensor_value_info("d", T.BOOL, []),
            helper.make_tensor_value_info("w", T.FLOAT, ["b", *IMAGE]),
        ],
    )
    inside.node[0].input.append("half")
    consts = {**WEIGHTS, "half": np.float32(0.5), "three": np.int64(3), "true": np.bool_(True)}
    consts = {name: np.asarray(array) for name, array in consts.items()}
    return model([node("Loop", ["three", "true", "x"], ["l"], body=inside), *body("l")], consts)


def branch(*, around: bool) -> onnx.ModelProto:
    """An If before the network, or the network inside of one."""
    inner = (lambda name: body("x", name)) if around else (lambda name: [node("Mul", ["x", "two"], [name])])
    shape = ["b", 10] if around else ["b", *IMAGE]
    graphs = {}
    for key in ("then_branch", "else_branch"):
        nodes = inner(f"o_{key}")
        for each in nodes[:-1]:
            each.output[0] = f"{key}_{each.output[0]}"
        for each in nodes[1:]:
            each.input[0] = f"{key}_{each.input[0]}"
        graphs[key] = helper.make_graph(nodes, key, [], [helper.make_tensor_value_info(f"o_{key}", T.FLOAT, shape)])
    first = [
        node("ReduceMean", ["x"], ["m"], keepdims=0),
        node("Greater", ["m", "zero"], ["g"]),
        node("If", ["g"], ["y" if around else "i"], **graphs),
    ]
    consts = {**WEIGHTS, "zero": np.asarray(np.float32(0)), "two": np.asarray(np.float32(2))}
    return model([*first, *([] if around else body("i"))], consts)


def biased(shape: tuple[int, ...]) -> onnx.ModelProto:
    """A bias of the last layer in any shape that broadcasts, of four samples where it differs between rows."""
    count = 4 if shape[:1] == (4,) else "b"
    nodes = body()
    nodes[-1].attribute.append(helper.make_attribute("beta", 2.0))
    bias = np.random.default_rng(1).standard_normal(shape).astype("f")
    sizes = (("x", T.FLOAT, (count, *IMAGE)),), (("y", T.FLOAT, (count, 10)),)
    return model(nodes, {**WEIGHTS, "b3": np.asarray(bias)}, *sizes)


def several() -> onnx.ModelProto:
    """Inputs of three types."""
    consts = {**WEIGHTS, "e": RNG.standard_normal((50, 10)).astype("f")}
    nodes = [
        node("Gather", ["e", "ids"], ["g"]),
        node("ReduceMean", ["g"], ["m"], axes=[1], keepdims=0),
        *body("x", "z"),
        node("Cast", ["flag"], ["k"], to=T.FLOAT),
        node("Mul", ["m", "k"], ["n"]),
        node("Add", ["z", "n"], ["y"]),
    ]
    inputs = (("x", T.FLOAT, ("b", *IMAGE)), ("ids", T.INT64, ("b", 7)), ("flag", T.BOOL, ("b", 1)))
    return model(nodes, consts, inputs)


def scaled_by_a_scalar() -> onnx.ModelProto:
    """An input without axes."""
    inputs = (("x0", T.FLOAT, ("b", *IMAGE)), ("k", T.FLOAT, ()))
    return model([node("Mul", ["x0", "k"], ["x"]), *body()], WEIGHTS, inputs)


def handed_through() -> onnx.ModelProto:
    """An input that is an output as well."""
    return model(body(), WEIGHTS, outputs=(("y", T.FLOAT, ("b", 10)), ("x", T.FLOAT, ("b", *IMAGE))))


def nothing_joined() -> onnx.ModelProto:
    """A concatenation with no channels."""
    consts = {**WEIGHTS, "nothing": np.zeros((1, 0, 8, 8), "f")}
    sizes = (("x", T.FLOAT, (1, *IMAGE)),), (("y", T.FLOAT, (1, 10)),)
    return model([node("Concat", ["x", "nothing"], ["j"], axis=1), *body("j")], consts, *sizes)


def with_tail(tail: onnx.NodeProto, kind: onnx.ValueInfoProto) -> onnx.ModelProto:
    """Operations of ai.onnx.ml behind the network."""
    made = model([*body(y="z"), node("Softmax", ["z"], ["s"], axis=1), tail], WEIGHTS, domains=["ai.onnx.ml"])
    made.graph.output[0].CopyFrom(kind)
    return made


def zip_map() -> onnx.ModelProto:
    """A list of dicts for its output, as classifiers of scikit-learn have."""
    dicts = helper.make_map_type_proto(T.STRING, helper.make_tensor_type_proto(T.FLOAT, []))
    names = [f"c{i}" for i in range(10)]
    tail = node("ZipMap", ["s"], ["probabilities"], domain="ai.onnx.ml", classlabels_strings=names)
    return with_tail(tail, helper.make_value_info("probabilities", helper.make_sequence_type_proto(dicts)))


def classifier() -> onnx.ModelProto:
    """A linear classifier behind the network, which OpenVINO lacks."""
    tail = node(
        "LinearClassifier",
        ["s"],
        ["y", "scores"],
        domain="ai.onnx.ml",
        classlabels_ints=[0, 1],
        coefficients=[0.5] * 20,
        intercepts=[0.0, 1.0],
    )
    return with_tail(tail, helper.make_tensor_value_info("y", T.INT64, ["b"]))


def with_function() -> onnx.ModelProto:
    """A function of the file's own, as exporters of modules write them."""
    made = model([node("Twice", ["x"], ["t"], domain="own"), *body("t")], WEIGHTS, domains=["own"])
    add = node("Add", ["a", "a"], ["b"])
    made.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], [add], [helper.make_opsetid("", 13)]))
    return made


def one_name() -> onnx.ModelProto:
    """Every node is called the same, which ONNX Runtime refuses."""
    nodes = body()
    for each in nodes:
        each.name = "same"
    return model(nodes, WEIGHTS)


# What becomes int8, and has to answer as before.
QUANTIZED: dict[str, Callable[[], onnx.ModelProto]] = {
    "old": old,
    "channels_last": channels_last,
    "half": half,
    "half_inside": half_inside,
    "loop": loop,
    "branch": lambda: branch(around=False),
    "bias_scalar": lambda: biased(()),
    "bias_row": lambda: biased((1, 10)),
    "bias_column": lambda: biased((4, 1)),
    "bias_matrix": lambda: biased((4, 10)),
    "several": several,
    "scalar": scaled_by_a_scalar,
    "handed_through": handed_through,
    "nothing_joined": nothing_joined,
}
