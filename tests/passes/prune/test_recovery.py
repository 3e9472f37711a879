"""Recovery in closed form: against numpy's least squares and convolutions written out."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import relax

from tinsmith.passes.graph.dataflow import Dataflow
from tinsmith.passes.graph.tensors import constant, constant_array
from tinsmith.passes.graph.windows import Windows
from tinsmith.passes.prune import find_groups
from tinsmith.passes.prune.recovery.batch_norm import ChannelStatistics, find_batch_norms
from tinsmith.passes.prune.recovery.layers import Layer, find_layers
from tinsmith.passes.prune.recovery.least_squares import (
    Moments,
    choose_solution,
    error_of,
    solve_layer,
)
from tinsmith.passes.prune.recovery.positions import composed, positions_left
from tinsmith.passes.prune.recovery.replace_operands import ReplaceOperands


def rows(groups: int, count: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((groups, count, inputs)) + 1
    y = generator.standard_normal((groups, count, outputs)) + x[:, :, :1]
    return x.astype(np.float32), y.astype(np.float32)


def moments_of(x: np.ndarray, y: np.ndarray, parts: int = 3) -> Moments:
    moments = Moments()
    for inputs, targets in zip(
        np.array_split(x, parts, 1), np.array_split(y, parts, 1), strict=True
    ):
        moments.update(inputs, targets)
    return moments


@pytest.mark.parametrize("groups", [1, 3])
def test_the_solution_is_that_of_least_squares(groups: int) -> None:
    x, y = rows(groups, 5000, 7, 4)
    old = np.zeros((groups, 7, 4))
    moments = moments_of(x, y)
    weights, intercept = solve_layer(moments, old, ridge=1e-9)
    assert intercept is not None
    for g in range(groups):
        design = np.concatenate([x[g], np.ones((len(x[g]), 1))], axis=1)
        expected, residual, *_ = np.linalg.lstsq(design, y[g].astype(np.float64), rcond=None)
        np.testing.assert_allclose(weights[g], expected[:-1], atol=1e-4)
        np.testing.assert_allclose(intercept[g], expected[-1], atol=1e-4)
    assert error_of(moments, old, moments.means()[1]) == pytest.approx(1.0)
    found = error_of(moments, weights, intercept)
    assert found < 0.9
    if groups == 1:
        square = np.square(y[0] - y[0].mean(0)).sum()
        assert found == pytest.approx(residual.sum() / square, rel=1e-4)
        # With another intercept, each row is off by as much more.
        off = len(x[0]) * y.shape[-1] * 0.5**2 / square
        assert error_of(moments, weights, intercept + 0.5) == pytest.approx(found + off, rel=1e-4)


def test_without_intercept_nothing_is_centred() -> None:
    x, y = rows(1, 3000, 5, 2)
    zeros = np.zeros((1, 5, 2))
    weights, intercept = solve_layer(moments_of(x, y), zeros, ridge=1e-9, intercept=False)
    expected = np.linalg.lstsq(x[0].astype(np.float64), y[0], rcond=None)[0]
    assert intercept is None
    np.testing.assert_allclose(weights[0], expected, atol=1e-4)


def test_what_the_data_do_not_determine_stays() -> None:
    """Fewer rows than inputs, and an input that never varies."""
    x, y = rows(1, 4, 6, 3)
    x[..., 5] = 2.0
    old = np.random.default_rng(1).standard_normal((1, 6, 3))
    moments = moments_of(x, y, 1)
    weights, intercept = solve_layer(moments, old, ridge=1e-3)
    np.testing.assert_allclose(weights[0, 5], old[0, 5], rtol=0.01)
    assert error_of(moments, weights, intercept) < 0.05
    constant_inputs = moments_of(np.ones((1, 10, 6), np.float32), y[:, [0] * 10])
    np.testing.assert_allclose(solve_layer(constant_inputs, old)[0], old, rtol=1e-3)


def test_exact_weights_are_found_again() -> None:
    x, _ = rows(1, 400, 6, 1)
    weights = np.random.default_rng(1).standard_normal((1, 6, 2))
    moments = moments_of(x, (x @ weights + 3).astype(np.float32))
    found, intercept = solve_layer(moments, weights)
    np.testing.assert_allclose(found, weights, atol=1e-4)
    np.testing.assert_allclose(intercept, 3, atol=1e-3)
    assert error_of(moments, weights, np.full((1, 2), 3.0)) < 1e-9


def noisy(count: int, inputs: int, noise: float, seed: int) -> Moments:
    """Rows of a layer whose weights are all 1, observed with noise."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((1, count, inputs)).astype(np.float32)
    y = x.sum(2, keepdims=True) + noise * generator.standard_normal((1, count, 1))
    return moments_of(x, y.astype(np.float32), 1)


def test_the_ridge_is_chosen_on_other_rows() -> None:
    near = np.full((1, 20, 1), 0.9)
    bias = np.zeros((1, 1))
    clean = choose_solution(noisy(500, 20, 0.01, 0), noisy(200, 20, 0.01, 1), near, bias)
    loud = choose_solution(noisy(30, 20, 10.0, 0), noisy(2000, 20, 10.0, 1), near, bias)
    assert clean.ridge is not None and clean.ridge <= 1e-2
    assert loud.ridge is None or loud.ridge >= 1
    # What is told of it is told of rows that it was not solved for.
    many = noisy(5000, 20, 0.01, 2)
    assert clean.after == pytest.approx(error_of(many, clean.weights, clean.intercept), rel=0.5)
    assert clean.after < clean.before


def test_weights_stay_where_solving_does_not_help() -> None:
    right = np.ones((1, 20, 1))
    few, check = noisy(21, 20, 5.0, 0), noisy(3000, 20, 5.0, 1)
    kept = choose_solution(few, check, right, np.zeros((1, 1)), ridges=(1e-3, 1e-2))
    assert kept.ridge is None and kept.after == kept.before
    np.testing.assert_array_equal(kept.weights, right)
    # The intercept alone may be worth learning.
    shifted = choose_solution(few, check, right, np.full((1, 1), 9.0), ridges=(1e-3, 1e-2))
    assert shifted.ridge == np.inf
    np.testing.assert_array_equal(shifted.weights, right)


def test_without_rows_to_check_by_the_middle_ridge_serves() -> None:
    solution = choose_solution(noisy(50, 5, 0.1, 0), Moments(), np.zeros((1, 5, 1)), None)
    assert solution.ridge == 0.3 and solution.intercept is None
    assert solution.after < solution.before == pytest.approx(1.0)


def test_sums_refuse_what_does_not_fit() -> None:
    moments = Moments()
    with pytest.raises(ValueError, match="no sample"):
        moments.means()
    with pytest.raises(ValueError, match="inputs of"):
        moments.update(np.ones((1, 3, 2)), np.ones((1, 4, 2)))
    moments.update(np.ones((1, 3, 2)), np.ones((1, 3, 2)))
    with pytest.raises(ValueError, match="do not fit"):
        solve_layer(moments, np.ones((1, 3, 2)))


def convolved(data: np.ndarray, weights: np.ndarray, windows: Windows, groups: int) -> np.ndarray:
    """A convolution of NCHW data and OIHW weights, written out."""
    top, left, bottom, right = windows.padding
    padded = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (kh, kw), (sh, sw), (dh, dw) = windows.kernel, windows.strides, windows.dilation
    oh = (padded.shape[2] - (kh - 1) * dh - 1) // sh + 1
    ow = (padded.shape[3] - (kw - 1) * dw - 1) // sw + 1
    out = np.zeros((data.shape[0], weights.shape[0], oh, ow))
    inputs, outputs = weights.shape[1], weights.shape[0] // groups
    for g, y, x in itertools.product(range(groups), range(oh), range(ow)):
        window = padded[
            :,
            g * inputs : (g + 1) * inputs,
            y * sh : y * sh + (kh - 1) * dh + 1 : dh,
            x * sw : x * sw + (kw - 1) * dw + 1 : dw,
        ]
        own = weights[g * outputs : (g + 1) * outputs]
        out[:, g * outputs : (g + 1) * outputs, y, x] = np.einsum("nihw,oihw->no", window, own)
    return out


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("windows", "groups"),
    [
        (Windows((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), 1),
        (Windows((3, 2), (2, 1), (0, 1, 2, 0), (1, 2)), 1),
        (Windows((1, 1), (2, 2), (0, 0, 0, 0), (1, 1)), 2),
        (Windows((3, 3), (1, 2), (1, 1, 1, 1), (1, 1)), 6),
    ],
)
def test_rows_times_matrix_is_the_convolution(windows: Windows, groups: int, layout: str) -> None:
    generator = np.random.default_rng(0)
    data = generator.standard_normal((2, 6, 7, 9))
    weights = generator.standard_normal((12, 6 // groups, *windows.kernel))
    result = convolved(data, weights, windows, groups)
    kernel_layout = "OIHW"
    if layout == "NHWC":
        data, result = data.transpose(0, 2, 3, 1), result.transpose(0, 2, 3, 1)
        weights, kernel_layout = weights.transpose(2, 3, 1, 0), "HWIO"
    layer = Layer(
        "y", "x", weights, "y", windows=windows, groups=groups,
        layout=layout, out_layout=layout, kernel_layout=kernel_layout,
    )  # fmt: skip
    places = layer.places(data)
    assert len(places) == result.size / 12
    chosen = places[generator.permutation(len(places))[:5]]
    matrix = layer.matrix(weights)
    np.testing.assert_allclose(layer.rows(data, chosen) @ matrix, layer.values(result, chosen))
    np.testing.assert_allclose(layer.unflattened(matrix), weights, rtol=1e-6)


def residual_block() -> tuple[tvm.IRModule, dict[str, np.ndarray]]:
    """x -> conv a, bias, relu, conv b, bias -> + projection of x -> relu -> mean -> matmul."""
    generator = np.random.default_rng(0)
    shapes = {
        "a": (4, 3, 3, 3), "ba": (1, 4, 1, 1), "b": (5, 4, 3, 3), "bb": (5, 1, 1),
        "p": (5, 3, 1, 1), "f": (5, 2),
    }  # fmt: skip
    values = {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 6, 6), "float32"))
    with builder.function("main", [x]):

        def emit(value: relax.Expr, name: str) -> relax.Var:
            return builder.emit(value, name)

        def conv(data: relax.Expr, name: str, pad: int) -> relax.Var:
            return emit(relax.op.nn.conv2d(data, constant(values[name]), padding=pad), name)

        with builder.dataflow():
            first = emit(relax.op.add(conv(x, "a", 1), constant(values["ba"])), "a_sum")
            active = emit(relax.op.nn.relu(first), "active")
            projected = conv(x, "p", 0)
            second = emit(relax.op.add(constant(values["bb"]), conv(active, "b", 1)), "b_sum")
            joined = emit(relax.op.add(second, projected), "joined")
            pooled = emit(relax.op.mean(emit(relax.op.nn.relu(joined), "out"), [2, 3]), "pooled")
            scores = relax.op.matmul(pooled, constant(values["f"]))
            output = builder.emit_output(scores, "scores")
        builder.emit_func_output(output)
    return builder.get(), values


def test_layers_and_what_they_reproduce() -> None:
    module, _ = residual_block()
    layers = {layer.name: layer for layer in find_layers(module)}
    assert list(layers) == ["a", "p", "b", "scores"]
    assert (layers["a"].target, layers["a"].bias, layers["a"].addend) == ("a_sum", "a_sum", "")
    # The larger of the two layers that are added makes up for the other one.
    assert (layers["b"].target, layers["b"].bias, layers["b"].addend) == ("joined", "b_sum", "p")
    assert (layers["p"].target, layers["p"].bias, layers["p"].addend) == ("p", "", "")
    assert layers["scores"].data == "pooled" and layers["scores"].windows is None
    # What reads the sums cuts off what is below 0.
    assert layers["a"].bounds == layers["b"].bounds == (0.0, np.inf)
    assert not layers["p"].is_bounded and not layers["scores"].is_bounded


@pytest.mark.parametrize(
    ("read", "bounds"),
    [
        (lambda y: [relax.op.clip(y, 0, 6)], (0.0, 6.0)),
        (lambda y: [relax.op.nn.relu6(y)], (0.0, 6.0)),
        (lambda y: [relax.op.nn.silu(y)], (-np.inf, np.inf)),
        (lambda y: [relax.op.nn.relu(y), relax.op.tanh(y)], (-np.inf, np.inf)),
    ],
)
def test_bounds_are_those_of_the_only_reader(
    read: Callable[[relax.Expr], list[relax.Expr]], bounds: tuple[float, float]
) -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.matmul(x, constant(np.ones((3, 4), np.float32))), "y")
            outputs = [builder.emit_output(builder.emit(value)) for value in read(y)]
        builder.emit_func_output(relax.Tuple(outputs))
    (layer,) = find_layers(builder.get())
    assert layer.bounds == bounds


def test_operands_are_replaced_where_asked() -> None:
    module, values = residual_block()
    after = ReplaceOperands({("b", 1): 2 * values["b"], ("b_sum", 0): 3 * values["bb"]})(module)
    graph = Dataflow(after)
    np.testing.assert_array_equal(constant_array(graph.named("b").value.args[1]), 2 * values["b"])
    np.testing.assert_array_equal(
        constant_array(graph.named("b_sum").value.args[0]), 3 * values["bb"]
    )
    for name, value in (("a", "a"), ("p", "p"), ("scores", "f")):
        array = constant_array(graph.named(name).value.args[1])
        np.testing.assert_array_equal(array, values[value])
    tvm.ir.assert_structural_equal(ReplaceOperands({})(module), module)


@pytest.mark.parametrize(
    ("place", "array", "message"),
    [
        (("nowhere", 1), np.zeros(3, np.float32), "no operator computes"),
        (("b", 0), np.zeros(3, np.float32), "is no constant"),
        (("b", 1), np.zeros((5, 4, 3, 3)), "is float32"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    place: tuple[str, int], array: np.ndarray, message: str
) -> None:
    module, _ = residual_block()
    with pytest.raises(ValueError, match=message):
        ReplaceOperands({place: array})(module)


def test_statistics_of_a_stream_are_those_of_all_arrays() -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal((n, 4, 5, 5)) + 1000 for n in (1, 3, 2)]
    statistics = ChannelStatistics(axis=1)
    for array in arrays:
        statistics.update(array.astype(np.float32))
    whole = np.concatenate(arrays)
    [norm] = find_batch_norms(normalised())
    found = statistics.operands(norm)
    np.testing.assert_allclose(found[norm.name, 3], whole.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found[norm.name, 4], whole.var((0, 2, 3)), rtol=1e-3)
    with pytest.raises(ValueError, match="no sample"):
        ChannelStatistics(axis=1).operands(norm)


def normalised() -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 5, 5), "float32"))
    ones = constant(np.ones(4, np.float32))
    with builder.function("main", [x]):
        with builder.dataflow():
            norm = builder.emit(relax.op.nn.batch_norm(x, ones, ones, ones, ones, axis=1), "norm")
            output = builder.emit_output(norm[0], "y")
        builder.emit_func_output(output)
    return builder.get()


def test_batch_norms_are_found_and_get_new_statistics() -> None:
    module = normalised()
    [norm] = find_batch_norms(module)
    assert (norm.data, norm.axis) == ("x", 1)
    statistics = ChannelStatistics(norm.axis)
    statistics.update(np.full((2, 4, 5, 5), 3.0, np.float32))
    after = Dataflow(ReplaceOperands(statistics.operands(norm))(module))
    operands = after.named(norm.name).value.args
    np.testing.assert_array_equal(constant_array(operands[3]), np.full(4, 3.0))
    np.testing.assert_array_equal(constant_array(operands[4]), np.zeros(4))


def test_positions_that_are_left_after_two_steps() -> None:
    module, _ = residual_block()
    groups = find_groups(module)
    by_name = {group.name: group for group in groups}
    inner, stream = by_name["a"], by_name["p"]
    first = positions_left(module, groups, {inner.index: np.array([0, 2, 3])})
    assert {name for name, _ in first} == {"a", "a_sum", "active"}
    np.testing.assert_array_equal(first["active", 1], [0, 2, 3])
    both = positions_left(
        module, groups, {inner.index: np.array([1]), stream.index: np.array([4, 0])}
    )
    np.testing.assert_array_equal(both["pooled", 1], [0, 4])
    then = {("active", 1): np.array([0, 2]), ("out", 1): np.array([1])}
    np.testing.assert_array_equal(composed(first, then)["active", 1], [0, 3])
    np.testing.assert_array_equal(composed(first, then)["out", 1], [1])


def test_inputs_that_hardly_vary_are_solved_for() -> None:
    # Their covariance is smaller than what the rounding of float32 sums makes of it.
    generator = np.random.default_rng(0)
    inputs = 30 + 1e-3 * generator.standard_normal((1, 3000, 48)).astype(np.float32)
    moments, weights = Moments(), generator.standard_normal((1, 48, 2))
    moments.update(inputs, inputs @ weights.astype(np.float32))
    new, intercept = solve_layer(moments, weights, ridge=1e-3)
    assert intercept is not None
    assert np.isfinite(new).all() and np.abs(new - weights).max() < 0.5
