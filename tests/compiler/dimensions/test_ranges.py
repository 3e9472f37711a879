"""Ranges as Python and the command line have them, and which inputs of a model share one."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from tinsmith.compiler.config import CompileConfig, parse_batch_option, parse_shape_option
from tinsmith.compiler.dimensions.ranges import Range
from tinsmith.compiler.errors import ConfigError, ShapeError
from tinsmith.compiler.frontends.onnx.batch import open_axes, reference_at


@pytest.mark.parametrize("low, high", [(0, 3), (3, 3), (4, 2), (1.0, 2), (True, 2)])
def test_an_empty_range_is_refused(low: int, high: int) -> None:
    with pytest.raises(ConfigError, match="the lesser first"):
        Range(low, high)


def test_options_name_ranges() -> None:
    assert parse_shape_option("x=1..8,3,224") == ("x", (Range(1, 8), 3, 224))
    assert parse_batch_option("2..4") == Range(2, 4)
    assert parse_batch_option("4") == 4
    for wrong in ("x=8..1,3", "x=1...8", "x=..8", "x=0..8"):
        with pytest.raises(ConfigError, match="expected NAME=N"):
            parse_shape_option(wrong)
    for wrong in ("a", "0", "1..1"):
        with pytest.raises(ConfigError):
            parse_batch_option(wrong)


def test_a_configuration_survives_as_plain_data() -> None:
    config = CompileConfig(shapes={"x": (Range(1, 8), 3)}, batch=Range(1, 4))
    assert config.to_dict()["shapes"] == {"x": ["1..8", 3]}
    assert CompileConfig.from_dict(config.to_dict()) == config
    assert config.range == Range(1, 4) and Range(1, 8).middle == 3
    assert config.at_bound() == CompileConfig(shapes={"x": (8, 3)}, batch=4)


def two_inputs(*shapes: list[int | str]) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip("xy", shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Add", ["x", "y"], ["z"])]
    return helper.make_model(helper.make_graph(nodes, "two", inputs, [output]))


def test_inputs_of_the_same_symbol_share_the_range() -> None:
    axes = open_axes(two_inputs(["n", 3], [3, "n"]), {"x": (Range(1, 8), 3)}, None, "two")
    assert axes is not None
    assert (axes.name, axes.low, axes.high) == ("n", 1, 8)
    assert axes.axes == {"x": 0, "y": 1}
    assert axes.sizes == (1, 4, 8)


def test_batch_opens_every_batch() -> None:
    axes = open_axes(two_inputs(["N", 3], ["batch", 3]), {}, Range(2, 3), "two")
    assert axes is not None and axes.axes == {"x": 0, "y": 0}
    assert open_axes(two_inputs(["N", 3], ["batch", 3]), {}, 4, "two") is None


@pytest.mark.parametrize(
    "symbol, name",
    [("p2o.Dim.0", "p2o.Dim.0"), ("2*n", "batch"), ("a\nb", "batch"), ("?", "batch")],
)
def test_the_dimension_has_a_plain_name(symbol: str, name: str) -> None:
    axes = open_axes(two_inputs([symbol, 3], [symbol, 3]), {}, Range(1, 3), "two")
    assert axes is not None and axes.name == name


@pytest.mark.parametrize(
    "shapes, batch, reason",
    [
        ({"x": (Range(1, 8), 3), "y": (Range(1, 4), 3)}, None, "1..8 in input 'x' and 1..4 in"),
        ({"x": (Range(1, 8), Range(1, 8))}, None, "two open dimensions"),
    ],
)
def test_contradictions_are_one_line(
    shapes: dict[str, tuple[int | Range, ...]], batch: Range | None, reason: str
) -> None:
    with pytest.raises(ShapeError, match=reason):
        open_axes(two_inputs(["n", "k"], ["m", 3]), shapes, batch, "two")


def test_a_range_may_open_what_the_file_fixes() -> None:
    axes = open_axes(two_inputs([2, 3], [2, 3]), {"x": (Range(1, 4), 3)}, None, "two")
    assert axes is not None and axes.axes == {"x": 0}


def test_batch_without_an_open_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"no input has an open batch.*--shape, as x=1\.\.3,3"):
        open_axes(two_inputs([2, 3], [2, 3]), {}, Range(1, 3), "two")


def test_the_reference_takes_other_sizes() -> None:
    model = two_inputs([8, 3], [3, 8])
    axes = open_axes(two_inputs(["n", 3], [3, "n"]), {}, Range(1, 8), "two")
    assert axes is not None
    other = reference_at(model, axes, 5)
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in other.graph.input]
    assert shapes == [[5, 3], [3, 5]]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 8
