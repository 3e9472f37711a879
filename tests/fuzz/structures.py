"""Branches, loops, functions, sequences, optional and sparse values."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, helper

from tests.fuzz.building import BOOL, FLOAT, INT64, array, model, node, random, value


def branches() -> ModelProto:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        return helper.make_graph([node(operator, ["x"], [name])], name, [], [value(name, [2, 3])])

    nodes = [
        node("If", ["c"], ["a"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg")),
        node("If", ["yes"], ["b"], then_branch=branch("u", "Exp"), else_branch=branch("v", "Abs")),
        node("Add", ["a", "b"], ["y"]),
    ]  # fmt: skip
    inputs = [value("x", [2, 3]), value("c", [], BOOL)]
    return model(nodes, inputs, [value("y", [2, 3])], [array("yes", True, bool)])


def loop() -> ModelProto:
    body = helper.make_graph(
        [
            node("Identity", ["cond"], ["cond_out"]),
            node("Cast", ["i"], ["f"], to=FLOAT),
            node("Add", ["state", "f"], ["state_out"]),
            node("Mul", ["state_out", "x"], ["scan_out"]),
        ],
        "body",
        [value("i", [], INT64), value("cond", [], BOOL), value("state", [2, 3])],
        [value("cond_out", [], BOOL), value("state_out", [2, 3]), value("scan_out", [2, 3])],
    )
    nodes = [node("Loop", ["trips", "yes", "x"], ["last", "all"], body=body)]
    stored = [array("trips", 3), array("yes", True, bool)]
    return model(nodes, [value("x", [2, 3])], [value("last", None), value("all", None)], stored)


def scan() -> ModelProto:
    body = helper.make_graph(
        [node("Add", ["s", "e"], ["s_out"]), node("Identity", ["s_out"], ["o"])],
        "body",
        [value("s", [3]), value("e", [3])],
        [value("s_out", [3]), value("o", [3])],
    )
    nodes = [
        node("Scan", ["init", "x"], ["last", "all"], body=body, num_scan_inputs=1,
              scan_input_axes=[0], scan_output_axes=[1], scan_input_directions=[1]),
    ]  # fmt: skip
    outputs = [value("last", None), value("all", None)]
    return model(nodes, [value("x", [4, 3])], outputs, [random("init", 3)])


def functions() -> ModelProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    inner = helper.make_function(
        "my", "F", ["a", "b"], ["o"],
        [node("Mul", ["a", "b"], ["m"]), node("Add", ["m", "a"], ["o"])], opsets[:1],
    )  # fmt: skip
    outer = helper.make_function(
        "my", "G", ["a"], ["o"],
        [node("F", ["a", "a"], ["t"], domain="my"), node("Celu", ["t"], ["o"], alpha=0.5)],
        opsets,
    )  # fmt: skip
    nodes = [
        node("G", ["x"], ["g"], domain="my"),
        node("F", ["g", "x"], ["h"], domain="my"),
        node("LpNormalization", ["h"], ["y"], axis=-1, p=2),
    ]
    return model(nodes, [value("x", [2, 3])], [value("y", [2, 3])], domains=["my"],
                  functions=[inner, outer])  # fmt: skip


def sequences() -> ModelProto:
    nodes = [
        node("SequenceConstruct", ["x", "x"], ["s"]),
        node("SequenceInsert", ["s", "x", "one"], ["t"]),
        node("SequenceAt", ["t", "one"], ["a"]),
        node("ConcatFromSequence", ["t"], ["c"], axis=0, new_axis=0),
        node("SplitToSequence", ["c", "two"], ["p"], axis=0),
        node("SequenceErase", ["p", "one"], ["q"]),
        node("SequenceAt", ["q", "zero"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    stored = [array("zero", 0), array("one", 1), array("two", 2)]
    return model(nodes, [value("x", [2, 3])], [value("y", None)], stored)


def optional() -> ModelProto:
    nodes = [
        node("Optional", ["x"], ["o"]),
        node("OptionalHasElement", ["o"], ["h"]),
        node("OptionalGetElement", ["o"], ["g"]),
        node("Cast", ["h"], ["f"], to=FLOAT),
        node("Mul", ["g", "f"], ["y"]),
    ]
    return model(nodes, [value("x", [2, 3])], [value("y", None)])


def sparse() -> ModelProto:
    result = model([node("Add", ["x", "s"], ["y"])], [value("x", [3, 3])], [value("y", None)])
    stored = result.graph.sparse_initializer.add()
    stored.values.CopyFrom(array("s", [1.0, 2.0], np.float32))
    stored.indices.CopyFrom(array("s_indices", [1, 5]))
    stored.dims.extend([3, 3])
    return result
