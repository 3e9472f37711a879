"""What a model file may not do: ask for too much, leave out what is needed, name things oddly."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zstandard
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.compiler.frontends.small_models import original
from tinsmith.compiler.errors import ModelError, ShapeError, UnsafeModelError
from tinsmith.compiler.frontends.forked import ToolError, forked
from tinsmith.compiler.frontends.onnx import external
from tinsmith.compiler.frontends.onnx.guard import in_child
from tinsmith.compiler.frontends.registry import import_model


def model(
    *nodes: onnx.NodeProto,
    shape: tuple[int, ...] = (2, 3),
    dtype: int = TensorProto.FLOAT,
    stored: dict[str, Any] | None = None,
    output: str = "y",
    functions: tuple[onnx.FunctionProto, ...] = (),
    opset: int = 18,
) -> ModelProto:
    """x -> nodes -> y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(value), name) for name, value in (stored or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1),
               helper.make_opsetid("com.microsoft", 1)]  # fmt: skip
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions)


node = helper.make_node
RELU = node("Relu", ["x"], ["y"])


@pytest.mark.parametrize(
    "name",
    ["x\0hidden", "a\nb", "\x1b[31mred", "a\u202eb", "a\u2028b", "a\rb", "\u200b", "n" * 5000],
    ids=ascii,
)
def test_names_that_are_no_plain_text(name: str) -> None:
    renamed = model(node("Relu", ["x"], [name]), output=name)
    with pytest.raises(ModelError) as caught:
        import_model(renamed)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_an_output_declared_as_half_that_is_none() -> None:
    wrong = model(node("Shape", ["x"], ["y"]))
    wrong.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(ModelError, match="'y' is declared as float16, and Shape gives integer"):
        import_model(wrong)


def test_names_of_other_scripts_are_text() -> None:
    assert import_model(
        model(node("Relu", ["x"], ["\u51fa\u529b \u00e9"]), output="\u51fa\u529b \u00e9")
    )


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (model(node("Concat", ["", "x"], ["y"], axis=0)), "input number 0, which is required"),
        (model(node("Concat", ["x"], ["y"])), "attribute 'axis' is missing"),
        (model(node("Softmax", [""], ["y"])), "input number 0, which is required"),
        (model(node("Add", ["x"], ["y"])), "input number 1, which is required"),
        (model(node("Relu", ["x", "x"], ["y"])), "has 2 inputs; it takes 1"),
        (model(node("Relu", ["x"], ["y", "z"])), "has 2 outputs"),
        (model(node("Relu", ["x"], ["y"], alpha=1.0)), "has the attribute 'alpha', which Relu"),
        (model(node("Softmax", ["x"], ["y"], axis="1")), "is of the type STRING, not INT"),
        (model(node("Softmax", ["x"], ["y"], axis=2**40)), "must lie in -16 to 16"),
        (
            model(node("RoiAlign", ["x", "x", "i"], ["y"], sampling_ratio=2**31 - 1),
                  stored={"i": [0]}),
            "must lie in 0 to 64",
        ),
        (model(node("Cast", ["x"], ["y"], to=99)), "unknown dtype 99"),
        (model(node("Erf", ["x"], ["y"]), dtype=TensorProto.BOOL), "is of type bool"),
        (model(node("Add", ["x", "b"], ["y"]), stored={"b": np.zeros(3)}), "one dtype"),
        (
            model(node("Add", ["x", "b"], ["y"]), stored={"b": np.zeros(7, np.float32)}),
            r"cannot be converted: add: .* shape at dim \d is \d+ and .* not broadcastable",
        ),
        (
            model(node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=2),
                  stored={"w": np.zeros((1, 8, 3), np.float32),
                          "r": np.zeros((1, 8, 2), np.float32)}, shape=[4, 3]),
            r"number of dimensions that it does not take: \[4, 3\], \[1, 8, 3\], \[1, 8, 2\]",
        ),
        (model(node("SequenceConstruct", ["x"], ["s"]), node("Relu", ["s"], ["y"])), "sequence"),
        (model(node("BiasGelu", ["x", ""], ["y"], domain="com.microsoft")), "input number 1"),
        (
            model(node("Attention", ["x", "x"], ["y"], domain="com.microsoft")),
            "attribute 'num_heads' is missing",
        ),
        (
            model(node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[0, 1])),
            "attribute 'strides' is 0",
        ),
        (model(node("DepthToSpace", ["x"], ["y"], blocksize=2, mode="dcr")), "one of CRD, DCR"),
        (
            model(node("MaxPool", ["x"], ["y"], kernel_shape=[1, 1], auto_pad="*/")),
            r"attribute 'auto_pad' is '\*/'; it must be one of NOTSET",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_nodes_that_are_not_what_their_operator_says(broken: ModelProto, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        import_model(broken)


def test_a_file_asks_for_sizes_that_models_have() -> None:
    for shape in ((2**31,), (2**20, 2**20), (2**62,)):
        with pytest.raises(ShapeError, match="more than 2147483647 elements"):
            import_model(model(RELU, shape=shape))
    with pytest.raises(ShapeError, match=r"say so with --shape x=8,4096,4096$"):
        import_model(model(RELU, shape=(8, 4096, 4096)))
    # The user may.
    assert import_model(model(RELU, shape=(8, 4096, 4096)), {"x": (8, 4096, 4096)})
    with pytest.raises(ModelError, match="17 axes"):
        import_model(model(RELU, shape=(1,) * 17))
    with pytest.raises(ModelError, match="60 axes"):
        import_model(model(node("Add", ["x", "b"], ["y"]), stored={"b": np.zeros((1,) * 60)}))


@pytest.mark.parametrize(
    "large",
    [
        model(node("Tile", ["x", "r"], ["y"]), stored={"r": [2**20, 2**20]}),
        model(node("Expand", ["x", "r"], ["y"]), stored={"r": [2**20, 2**12, 2, 3]}),
        model(node("Pad", ["x", "r"], ["y"]), stored={"r": [2**28, 0, 0, 0]}),
        model(node("MatMul", ["a", "b"], ["c"]), node("Mul", ["c", "h"], ["y"]),
              stored={"a": np.zeros((40_000, 1), np.float32), "h": np.float32(1),
                      "b": np.zeros((1, 40_000), np.float32)}),
        model(node("ConstantOfShape", ["r"], ["y"]), stored={"r": [2**33]}),
        model(node("ConstantOfShape", ["r"], ["y"]), stored={"r": [1] * 60}),
        model(node("Range", ["r", "s", "t"], ["y"]),
              stored={"r": 0, "s": 2**40, "t": 1}),
        model(node("Resize", ["i", "", "r"], ["y"]),
              stored={"i": np.zeros((1, 1, 2, 2), np.float32),
                      "r": np.array([1, 1, 1e5, 1e5], np.float32)}),
        model(node("OneHot", ["i", "d", "v"], ["y"]),
              stored={"i": np.zeros(1000, np.int64), "d": 2**30, "v": np.float32([0, 1])}),
        model(node("Einsum", ["f", "f", "f"], ["y"], equation="i,j,k->ijk"),
              stored={"f": np.zeros(1000, np.float32)}),
        *(model(node(operator, ["a", "b"], ["y"]),
                stored={"a": np.zeros((30_000, 1), np.float32),
                        "b": np.zeros((1, 30_000), np.float32)})
          for operator in ("Mul", "Sub", "PRelu", "Equal", "Max")),
        model(node("Concat", ["a"] * 200, ["y"], axis=0),
              stored={"a": np.zeros(100_000, np.float32)}),
    ],
    ids=lambda large: large.graph.node[0].op_type,
)  # fmt: skip
def test_constants_and_results_stay_small(large: ModelProto) -> None:
    with pytest.raises(ModelError):
        import_model(large)


def test_what_a_call_leaves_out_is_missing_in_the_body() -> None:
    body = [node("Add", ["a", "b"], ["c"])]
    own = helper.make_function("my", "F", ["a", "b"], ["c"], body, [helper.make_opsetid("", 18)])
    for given in (["x"], ["x", ""], ["", "x"]):
        call = node("F", given, ["y"], domain="my")
        with pytest.raises(ModelError, match=r"is left out|cannot be inlined"):
            import_model(model(call, functions=(own,)))
    # The standard defines this one by others, that read the decay unless the rule is another.
    attention = node("LinearAttention", ["x", "x", "x"], ["y", "s"], q_num_heads=1, kv_num_heads=1)
    with pytest.raises(ModelError, match="is left out"):
        import_model(model(attention, shape=(1, 2, 4), opset=27))


@pytest.mark.parametrize(
    ("equation", "told"),
    [
        ("ij->k", "no operand has the axis 'k'"),
        ("ij->...", r"no operand has the axis '\.'"),
        ("ij->ii", "an axis twice"),
        ("ijk->i", "has 2 axes"),
        ("i->i", "has 2 axes"),
        ("ij,jk->ik", "2 operands, the node 1"),
        ("ij->\u00e9", "consist of letters"),
        ("......->", "consist of letters"),
        ("", "has 2 axes"),
    ],
    ids=ascii,
)
def test_equations_that_do_not_fit(equation: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        import_model(model(node("Einsum", ["x"], ["y"], equation=equation)))


def test_functions_that_unfold_without_end() -> None:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]

    def function(name: str, *called: str) -> onnx.FunctionProto:
        nodes = [node(other, ["a"], [f"o{i}"], domain="my") for i, other in enumerate(called)]
        return helper.make_function(
            "my", name, ["a"], ["o"], [*nodes, node("Relu", ["a"], ["o"])], opsets
        )

    call = node("F0", ["x"], ["y"], domain="my")
    with pytest.raises(ModelError, match="'F0' calls itself"):
        import_model(model(call, functions=(function("F0", "F1"), function("F1", "F0"))))
    chain = [function(f"F{i}", *[f"F{i + 1}"] * 10) for i in range(9)]
    with pytest.raises(ModelError, match="unfold into more than"):
        import_model(model(call, functions=(*chain, function("F9"))))


def _slow(model: ModelProto) -> ModelProto:
    while True:
        pass


def _greedy(model: ModelProto) -> ModelProto:
    return ModelProto(producer_name="x" * len(np.ones(2**30)))


def _crashing(model: ModelProto) -> ModelProto:
    os.kill(os.getpid(), signal.SIGSEGV)
    return model


def test_tools_that_hang_crash_or_eat_memory_cost_themselves_only() -> None:
    with pytest.raises(ToolError, match="takes longer than"):
        forked(lambda: _slow(ModelProto()).SerializeToString(), 0.2, 0)
    with pytest.raises(ToolError, match="memory"):
        in_child(_greedy, model(RELU))
    with pytest.raises(ToolError, match="SIGSEGV"):
        in_child(_crashing, model(RELU))
    with pytest.raises(ToolError, match="ValueError: no"):
        in_child(lambda given: (_ for _ in ()).throw(ValueError("no\nmore")), model(RELU))


def test_a_tool_changes_some_of_the_tensors() -> None:
    weights = {"a": np.arange(5000.0), "b": np.arange(5000.0)}
    given = model(node("Sum", ["x", "a", "b"], ["y"]), stored=weights)

    def tool(given: ModelProto) -> ModelProto:
        result = ModelProto.FromString(given.SerializeToString())
        result.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(5000), "b"))
        return result

    result = in_child(tool, given)
    first, second = map(numpy_helper.to_array, result.graph.initializer)
    np.testing.assert_array_equal(first, weights["a"])
    np.testing.assert_array_equal(second, np.ones(5000))
    np.testing.assert_array_equal(numpy_helper.to_array(given.graph.initializer[1]), weights["b"])


def test_sparse_initializers() -> None:
    def sparse(indices: Any, dims: list[int]) -> ModelProto:
        given = model(node("Add", ["x", "s"], ["y"]))
        stored = given.graph.sparse_initializer.add()
        stored.values.CopyFrom(numpy_helper.from_array(np.array([1, 2], np.float32), "s"))
        stored.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64), "i"))
        stored.dims.extend(dims)
        return given

    dense = [[0, 1, 0], [0, 0, 2]]
    for indices in ([1, 5], [[0, 1], [1, 2]]):
        bound = original(import_model(sparse(indices, [2, 3])))
        np.testing.assert_array_equal(numpy_helper.to_array(bound.graph.initializer[0]), dense)
    for indices, dims in (([1, 6], [2, 3]), ([-1, 2], [2, 3]), ([1, 2], [2**40, 3]),
                          ([[1, 1, 1], [1, 1, 1]], [2, 3])):  # fmt: skip
        with pytest.raises(ModelError, match="sparse tensor 's'"):
            import_model(sparse(indices, dims))


def _external(folder: Path, location: str, tensors: int, elements: int) -> Path:
    given = model(node("Sum", ["x", *(f"w{i}" for i in range(tensors))], ["y"]))
    for number in range(tensors):
        tensor = given.graph.initializer.add(name=f"w{number}", dims=[elements], data_type=1)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    path = folder / "model.onnx"
    path.write_bytes(given.SerializeToString())
    return path


def test_external_data_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "holes.bin", "wb") as stream:
        stream.truncate(2**28)
    with pytest.raises(UnsafeModelError, match="ask for 17179869184 bytes"):
        import_model(_external(tmp_path, "holes.bin", 64, 2**26))
    with pytest.raises(UnsafeModelError, match="sparse files"):
        import_model(_external(tmp_path, "holes.bin", 2, 2**26))
    monkeypatch.setattr(external, "_UNQUESTIONED", 0)
    (tmp_path / "tied.bin").write_bytes(bytes(12 * 4096))
    # Tied weights, which share what the file holds, are allowed.
    shared = _external(tmp_path, "tied.bin", 2, 3)
    assert import_model(shared)


def test_external_locations_that_cannot_be(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for location in ("a" * 5000, "d/" * 600 + "a", "pipe", "n" * 300):
        with pytest.raises(ModelError) as caught:
            import_model(_external(tmp_path, location, 1, 3))
        assert len(str(caught.value)) < 1000


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    for name in ("pipe.onnx", "pipe.tinsmith"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ModelError, match="regular file"):
            import_model(tmp_path / name)
    (tmp_path / "zero.tinsmith").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="regular file"):
        import_model(tmp_path / "zero.tinsmith")


def test_checkpoints_that_unpack_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinsmith.compiler.frontends.checkpoint._LARGEST", 2**20)
    path = tmp_path / "bomb.tinsmith"
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(2**24)))
    with pytest.raises(ModelError, match="unpacks to more than"):
        import_model(path)
    path.write_bytes(zstandard.ZstdCompressor().compress(b"[" * 2**19))
    with pytest.raises(ModelError, match="not a checkpoint"):
        import_model(path)
    import tvm

    for graph in ("{}", '{"root_index":0,"nodes":[{"type":"ir.IRModule"}]}', "[[", 7, None):
        content = {"format": 1, "tvm": tvm.__version__, "graph": graph, "inputs": [],
                   "outputs": [], "bounds": {}, "pruning": None}  # fmt: skip
        path.write_bytes(zstandard.ZstdCompressor().compress(json.dumps(content).encode()))
        with pytest.raises(ModelError, match="damaged"):
            import_model(path)
