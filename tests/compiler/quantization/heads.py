"""Small networks that differ in how they end: what a quantised model may look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


class Net:
    """Nodes, weights and outputs of one model behind the stem `image` -> `features`.

    `image` is (1, 3, 8, 8), `features` (1, 16, 8, 8).
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("image", FLOAT, [1, 3, 8, 8])]
        self.outputs: dict[str, int] = {}
        self._generator = np.random.default_rng(0)
        self.conv("image", "stem", 3, 16, 3)
        self.node("Relu", ["stem"], ["stem_relu"])
        self.conv("stem_relu", "body", 16, 16, 3)
        self.node("Relu", ["body"], ["features"])

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **more: object) -> str:
        """Add a node; the name of its first output."""
        self.nodes.append(helper.make_node(kind, inputs, outputs, **more))
        return outputs[0]

    def constant(self, name: str, array: object) -> str:
        """A weight of that name."""
        if name not in {tensor.name for tensor in self.weights}:
            self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def conv(self, data: str, name: str, inputs: int, outputs: int, size: int = 1) -> str:
        """A convolution that keeps the extent, with bias."""
        shape = (outputs, inputs, size, size)
        weights = self._generator.standard_normal(shape) / np.sqrt(inputs * size * size)
        self.constant(f"{name}_w", weights.astype(np.float32))
        self.constant(f"{name}_b", self._generator.standard_normal(outputs).astype(np.float32))
        return self.node("Conv", [data, f"{name}_w", f"{name}_b"], [name], pads=[size // 2] * 4)

    def dense(self, data: str, name: str, inputs: int, outputs: int) -> str:
        """`data` (N, inputs) times constant weights."""
        weights = self._generator.standard_normal((inputs, outputs)) / np.sqrt(inputs)
        self.constant(f"{name}_w", weights.astype(np.float32))
        return self.node("MatMul", [data, f"{name}_w"], [name])

    def pooled(self) -> str:
        """`features` averaged, (1, 16)."""
        if "pooled" not in {node.output[0] for node in self.nodes}:
            self.node("GlobalAveragePool", ["features"], ["averaged"])
            self.node("Flatten", ["averaged"], ["pooled"])
        return "pooled"

    def scores(self, name: str = "scores", classes: int = 5) -> str:
        """Class scores of the pooled features, (1, classes)."""
        return self.dense(self.pooled(), name, 16, classes)

    def returns(self, *names: str, element: int = FLOAT) -> None:
        """Make these values outputs."""
        self.outputs |= dict.fromkeys(names, element)

    def model(self) -> onnx.ModelProto:
        outputs = [
            helper.make_tensor_value_info(name, kind, None) for name, kind in self.outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "heads", self.inputs, outputs, self.weights)
        imports = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


def two_maps(net: Net) -> None:
    """Two convolutions on the same features, both returned."""
    net.returns(net.conv("features", "map1", 16, 8, 3), net.conv("features", "map2", 16, 4))


def split_end(net: Net) -> None:
    """A detection head whose last node is a Split."""
    net.conv("features", "predictions", 16, 12)
    net.constant("parts", np.array([4, 4, 4]))
    net.node("Split", ["predictions", "parts"], ["part0", "part1", "part2"], axis=1)
    net.returns("part0", "part1", "part2")


def split_unequal(net: Net) -> None:
    """One part of a Split returned as it is, one behind a sigmoid."""
    net.conv("features", "mixed", 16, 9)
    net.constant("unequal", np.array([4, 5]))
    net.node("Split", ["mixed", "unequal"], ["boxes_raw", "classes_raw"], axis=1)
    net.node("Sigmoid", ["classes_raw"], ["classes_probability"])
    net.returns("boxes_raw", "classes_probability")


def scales_joined(net: Net) -> None:
    """Two scales, reshaped and concatenated."""
    net.constant("flat", np.array([1, 6, -1]))
    net.conv("features", "large", 16, 6)
    net.node("Reshape", ["large", "flat"], ["large_flat"])
    net.node("MaxPool", ["features"], ["half"], kernel_shape=[2, 2], strides=[2, 2])
    net.conv("half", "small", 16, 6)
    net.node("Reshape", ["small", "flat"], ["small_flat"])
    net.node("Concat", ["large_flat", "small_flat"], ["joined"], axis=2)
    net.returns("joined")


def distribution_focal(net: Net) -> None:
    """YOLOv8: a softmax over bins, its mean by a convolution, boxes and scores concatenated."""
    net.conv("features", "dfl", 16, 4 * 4 + 3)
    net.constant("dfl_shape", np.array([1, 19, 64]))
    net.node("Reshape", ["dfl", "dfl_shape"], ["dfl_flat"])
    net.constant("dfl_parts", np.array([16, 3]))
    net.node("Split", ["dfl_flat", "dfl_parts"], ["dfl_boxes", "dfl_classes"], axis=1)
    net.constant("bins_shape", np.array([1, 4, 4, 64]))
    net.node("Reshape", ["dfl_boxes", "bins_shape"], ["bins"])
    net.node("Transpose", ["bins"], ["bins_first"], perm=[0, 2, 1, 3])
    net.node("Softmax", ["bins_first"], ["bins_probability"], axis=1)
    net.constant("bin_values", np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1))
    net.node("Conv", ["bins_probability", "bin_values"], ["distances"])
    net.constant("distances_shape", np.array([1, 4, 64]))
    net.node("Reshape", ["distances", "distances_shape"], ["distances_flat"])
    net.node("Sigmoid", ["dfl_classes"], ["dfl_scores"])
    net.node("Concat", ["distances_flat", "dfl_scores"], ["yolo"], axis=1)
    net.returns("yolo")


def anchors(net: Net) -> None:
    """Boxes around constant anchors: exponentials and products."""
    net.conv("features", "offsets", 16, 4)
    net.constant("rows", np.array([1, 4, 64]))
    net.node("Reshape", ["offsets", "rows"], ["offsets_flat"])
    net.node("Transpose", ["offsets_flat"], ["offsets_rows"], perm=[0, 2, 1])
    net.constant("two_two", np.array([2, 2]))
    net.node("Split", ["offsets_rows", "two_two"], ["shift", "stretch"], axis=2)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(1, 64, 2)
    net.constant("centres", grid.astype(np.float32))
    net.node("Add", ["shift", "centres"], ["middle"])
    net.node("Exp", ["stretch"], ["extent"])
    net.node("Concat", ["middle", "extent"], ["anchored"], axis=2)
    net.returns("anchored")


def single_shot(net: Net) -> None:
    """SSD: boxes, and scores behind a softmax."""
    net.constant("ssd_rows", np.array([1, -1, 4]))
    for name, kind in (("ssd_boxes", None), ("ssd_scores", "Softmax")):
        net.conv("features", f"{name}_map", 16, 8, 3)
        net.node("Transpose", [f"{name}_map"], [f"{name}_last"], perm=[0, 2, 3, 1])
        net.node("Reshape", [f"{name}_last", "ssd_rows"], [name if kind is None else f"{name}_raw"])
        if kind is not None:
            net.node(kind, [f"{name}_raw"], [name], axis=2)
        net.returns(name)


def best_boxes(net: Net) -> None:
    """TopK of the scores, and what stands at its indices: integers beside floats."""
    net.conv("features", "objectness", 16, 1)
    net.constant("one_row", np.array([1, 64]))
    net.node("Reshape", ["objectness", "one_row"], ["objectness_row"])
    net.constant("best", np.array([5]))
    net.node("TopK", ["objectness_row", "best"], ["best_scores", "best_places"], axis=1)
    net.returns("best_scores")
    net.returns("best_places", element=INT64)


def two_towers(net: Net) -> None:
    """A second input with a tower of its own; the product of both embeddings."""
    net.inputs.append(helper.make_tensor_value_info("query", FLOAT, [1, 12]))
    net.dense("query", "query_hidden", 12, 16)
    net.node("Relu", ["query_hidden"], ["query_relu"])
    net.dense("query_relu", "query_embedding", 16, 8)
    net.dense(net.pooled(), "image_embedding", 16, 8)
    net.node("Transpose", ["image_embedding"], ["image_column"])
    net.node("MatMul", ["query_embedding", "image_column"], ["similarity"])
    net.returns("similarity", "query_embedding")


def inner_tensor(net: Net) -> None:
    """The features are returned, and read by a convolution and by the scores."""
    net.conv("features", "refined", 16, 8)
    net.scores("inner_scores")
    net.returns("inner_scores", "features", "refined")


def same_twice(net: Net) -> None:
    """One tensor under two names of outputs."""
    net.conv("features", "once", 16, 4)
    net.node("Identity", ["once"], ["twice"])
    net.returns("once", "twice")


def passed_through(net: Net) -> None:
    """An output that is an input, beside the scores."""
    net.node("Identity", ["image"], ["image_again"])
    net.scores("passed_scores")
    net.returns("passed_scores", "image_again")


def segments_and_classes(net: Net) -> None:
    """A map of the picture's extent and a row of scores behind it."""
    net.conv("features", "segments", 16, 3)
    net.scores("whole_scores")
    net.returns("segments", "whole_scores")


def recurrent(net: Net) -> None:
    """An LSTM over the columns of the features."""
    net.node("ReduceMean", ["features"], ["columns"], axes=[2], keepdims=0)
    net.node("Transpose", ["columns"], ["steps"], perm=[2, 0, 1])
    generator = np.random.default_rng(1)
    for name, shape in (("lstm_w", (1, 24, 16)), ("lstm_r", (1, 24, 6)), ("lstm_b", (1, 48))):
        net.constant(name, (generator.standard_normal(shape) / 4).astype(np.float32))
    net.node("LSTM", ["steps", "lstm_w", "lstm_r", "lstm_b"], ["", "last_state"], hidden_size=6)
    net.constant("one_six", np.array([1, 6]))
    net.node("Reshape", ["last_state", "one_six"], ["state_row"])
    net.returns(net.dense("state_row", "spoken", 6, 5))


def attention(net: Net) -> None:
    """Products of computed operands and a softmax between them."""
    net.constant("tokens_shape", np.array([1, 16, 64]))
    net.node("Reshape", ["features", "tokens_shape"], ["tokens_last"])
    net.node("Transpose", ["tokens_last"], ["tokens"], perm=[0, 2, 1])
    for name in ("query_rows", "key_rows", "value_rows"):
        net.dense("tokens", name, 16, 16)
    net.node("Transpose", ["key_rows"], ["key_columns"], perm=[0, 2, 1])
    net.node("MatMul", ["query_rows", "key_columns"], ["logits"])
    net.node("Softmax", ["logits"], ["weights"], axis=2)
    net.node("MatMul", ["weights", "value_rows"], ["attended"])
    net.returns("attended")


def chosen_class(net: Net) -> None:
    """An integer class beside the scores that it comes from, integers first."""
    net.scores("argued_scores")
    net.node("ArgMax", ["argued_scores"], ["chosen"], axis=1, keepdims=0)
    net.returns("chosen", element=INT64)
    net.returns("argued_scores")


def only_integers(net: Net) -> None:
    """A class and nothing else."""
    net.scores("hidden_scores")
    net.node("ArgMax", ["hidden_scores"], ["only_class"], axis=1, keepdims=0)
    net.returns("only_class", element=INT64)


def constant_beside(net: Net) -> None:
    """A constant output, a weight that is one, and the scores."""
    net.constant("anchor_table", np.arange(8, dtype=np.float32).reshape(2, 4))
    net.node("Mul", ["anchor_table", "anchor_table"], ["anchor_squares"])
    net.scores("beside_scores")
    net.returns("anchor_squares", "anchor_table", "beside_scores")


def flags(net: Net) -> None:
    """Booleans beside floats: which scores are positive."""
    net.scores("flag_scores")
    net.constant("nothing", np.float32(0))
    net.node("Greater", ["flag_scores", "nothing"], ["positive"])
    net.returns("positive", element=BOOL)
    net.returns("flag_scores")


HEADS: dict[str, Callable[[Net], None]] = {
    head.__name__: head
    for head in (
        two_maps, split_end, split_unequal, scales_joined, distribution_focal, anchors, single_shot,
        best_boxes, two_towers, inner_tensor, same_twice, passed_through, segments_and_classes,
        recurrent, attention, chosen_class, only_integers, constant_beside, flags,
    )
}  # fmt: skip


def network(*heads: str) -> onnx.ModelProto:
    """One model with the stem and these heads behind it, in that order."""
    net = Net()
    for head in heads:
        HEADS[head](net)
    return net.model()
