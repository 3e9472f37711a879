"""Models with shapes or loops that data decide: the VM form, through the whole pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser
from typer.testing import CliRunner

import tinsmith
from tinsmith.compiler.cli import app
from tinsmith.compiler.module.base import Module

_HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'

# Every operator of these kinds in one graph: compiling takes longer than running.
_OPERATORS = (
    _HEADER
    + """g (float[3,4] x, bool[4] keep, int64[2] sizes, float[1,12,4] boxes, float[1,2,12] scores)
 => (float[2,p] non_zero, float[3,a] compressed, float[b] values, int64[c] first, int64[d] inverse,
     int64[e] counts, float[f,4] rows, int64[h,3] kept, float[i] counted, float[j,k] filled,
     float[3,l] best, float[m,4] product, float[n,o] tiled, float[q] found)
 <float two={2}, float zero={0}, int64 null={0}, int64 one={1}, int64[1] axis={0},
  int64 most={3}, float overlap={0.4}, float least={-0.5},
  float[4,4] matrix={1,2,3,4,0,1,0,0,2,0,1,0,1,0,0,1}>
{
  relu = Relu(x)
  at = NonZero(relu)
  float_at = Cast<to=1>(at)
  non_zero = Mul(float_at, two)
  compressed = Compress<axis=1>(x, keep)
  whole = Floor(x)
  values, first, inverse, counts = Unique<sorted=0>(whole)
  rows = Unique<axis=0>(whole)
  kept = NonMaxSuppression(boxes, scores, most, overlap, least)
  size = Gather(sizes, null)
  range = Range(null, size, one)
  counted = Cast<to=1>(range)
  filled = Expand(two, sizes)
  k = Slice(sizes, axis, one_more, axis)
  one_more = Constant<value_ints=[1]>()
  best, best_at = TopK(x, k)
  mean = ReduceMean<axes=[1], keepdims=0>(x)
  above = Greater(mean, zero)
  above_at = NonZero(above)
  which = Squeeze(above_at, axis)
  chosen = Gather(x, which)
  product = MatMul(chosen, matrix)
  tiled = Tile(x, sizes)
  places = Transpose(at)
  picked = GatherND(relu, places)
  found = Sqrt(picked)
}"""
)


def _parsed(text: str) -> onnx.ModelProto:
    model = parser.parse_model(text)
    # The parser keeps the order of the text, and ONNX wants producers first.
    nodes = sorted(model.graph.node, key=lambda node: node.op_type != "Constant")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _inputs(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((3, 4)).astype("float32"),
        "keep": random.integers(0, 2, 4).astype(bool),
        "sizes": random.integers(1, 4, 2),
        "boxes": random.random((1, 12, 4)).astype("float32"),
        "scores": random.standard_normal((1, 2, 12)).astype("float32"),
    }


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("operators")
    onnx.save(_parsed(_OPERATORS), folder / "model.onnx")
    tinsmith.compile_to(folder / "model.onnx", folder / "out")
    return folder


@pytest.fixture(scope="module")
def module(operators: Path) -> Iterator[Module]:
    with tinsmith.load(operators / "out") as loaded:
        yield loaded


def test_every_operator_gives_the_shape_of_its_data(module: Module) -> None:
    # The onnx evaluator's Unique of unsorted values fails.
    runtime = pytest.importorskip("onnxruntime")
    reference = runtime.InferenceSession(_parsed(_OPERATORS).SerializeToString())
    assert module.manifest.form == "vm"
    assert module.manifest.vm_reason == "a shape depends on data"
    sizes = set()
    for seed in range(5):
        inputs = _inputs(seed)
        names = [output.name for output in module.manifest.outputs]
        expected = dict(zip(names, reference.run(names, inputs), strict=True))
        actual = module(inputs)
        for name, value in expected.items():
            assert actual[name].shape == value.shape, name
            assert actual[name].dtype == value.dtype, name
            np.testing.assert_allclose(actual[name], value, rtol=1e-6, err_msg=name)
        sizes.add(actual["non_zero"].shape)
    assert len(sizes) > 1


def test_nothing_at_all_is_a_result_too(module: Module) -> None:
    inputs = _inputs(0) | {
        "x": np.full((3, 4), -1, "float32"),
        "keep": np.zeros(4, bool),
        "scores": np.full((1, 2, 12), -1, "float32"),
    }
    results = module(inputs)
    assert results["non_zero"].shape == (2, 0)
    assert results["compressed"].shape == (3, 0)
    assert results["kept"].shape == (0, 3)
    assert results["product"].shape == (0, 4)
    np.testing.assert_array_equal(results["values"], [-1])


def test_the_module_proves_itself(operators: Path, module: Module) -> None:
    golden = module.golden()
    assert golden is not None
    for actual, expected in zip(module.run(golden.inputs), golden.outputs, strict=True):
        assert actual.shape == expected.shape
    run = CliRunner().invoke
    folder, model = str(operators / "out"), str(operators / "model.onnx")
    verified = run(app, ["verify", folder, "--model", model, "--json"])
    assert verified.exit_code == 0, verified.output
    assert json.loads(verified.stdout)["agrees"]


def test_commands_take_the_vm_form(operators: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    folder = str(operators / "out")
    inspected = run(app, ["inspect", folder, "--json"])
    assert inspected.exit_code == 0, inspected.output
    rows = {row["name"]: row["template"] for row in json.loads(inspected.stdout)["kernels"]}
    assert rows["relu"] not in ("none", "unscheduled")
    assert "NonMaxSuppression" in rows
    for name, array in _inputs(3).items():
        np.save(tmp_path / f"{name}.npy", array)
    given = [f"--input={name}={tmp_path / name}.npy" for name in _inputs(3)]
    ran = run(app, ["run", folder, *given, "-o", str(tmp_path / "out.npz")])
    assert ran.exit_code == 0, ran.output
    with np.load(tmp_path / "out.npz") as results:
        assert results["compressed"].shape[1] == _inputs(3)["keep"].sum()
    packed = run(app, ["pack", folder, "-o", str(tmp_path / "m.tar.zst")])
    assert packed.exit_code == 0, packed.output
    with tinsmith.load(tmp_path / "m.tar.zst") as loaded:
        loaded(_inputs(4))


_CONTROL = (
    _HEADER
    + """g (float[2] x, int64 n, bool c, float[4,2] w)
 => (float[2] until, float[2] last, float[t,2] history, float[u] grown, float[v] either,
     float[2] sum, float[s,2] sums)
 <bool yes={1}, float limit={9}, float[2] ones={1,1}, float zero={0}, float[2] zeros={0,0},
  int64[1] axis={0}>
{
  start = Abs(x)
  until = Loop("", yes, start) <body = b1
      (int64 i1, bool c1, float[2] a1)
      => (bool d1, float[2] e1) {
    e1 = Add(a1, ones)
    total = ReduceSum<keepdims=0>(e1)
    d1 = Less(total, limit)
  }>
  last, history = Loop(n, yes, x) <body = b2
      (int64 i2, bool c2, float[2] a2)
      => (bool d2, float[2] e2, float[2] f2) {
    d2 = Identity(c2)
    e2 = Add(a2, start)
    f2 = Neg(e2)
  }>
  grown = Loop(n, yes, x) <body = b3
      (int64 i3, bool c3, float[k] a3)
      => (bool d3, float[l] e3) {
    d3 = Identity(c3)
    e3 = Concat<axis=0>(a3, start)
  }>
  either = If(c) <then_branch = t () => (float[2] o1) { o1 = Mul(start, start) },
                  else_branch = f () => (float[4] o2) { o2 = Concat<axis=0>(start, x) }>
  mean = ReduceMean<axes=[1], keepdims=0>(w)
  above = Greater(mean, zero)
  at = NonZero(above)
  which = Squeeze(at, axis)
  rows = Gather(w, which)
  sum, sums = Scan<num_scan_inputs=1, body = b4
      (float[2] s4, float[2] r4)
      => (float[2] t4, float[2] u4) {
    t4 = Add(s4, r4)
    u4 = Identity(t4)
  }>(zeros, rows)
}"""
)


def test_loops_and_branches_that_data_decide() -> None:
    model = _parsed(_CONTROL)
    # The onnx evaluator fails at loops without a turn.
    runtime = pytest.importorskip("onnxruntime")
    reference = runtime.InferenceSession(model.SerializeToString())
    module = tinsmith.compile(model)
    assert module.manifest.form == "vm"
    # The bodies are kernels, not nodes that are evaluated.
    evaluated = next(note for note in module.manifest.notes if "evaluated one by one" in note)
    assert not any(name in evaluated for name in ("Loop", "Scan", "If"))
    for turns in (1, 0, 3):
        random = np.random.default_rng(turns)
        inputs = {
            "x": random.standard_normal(2).astype("float32"),
            "n": np.array(turns),
            "c": np.array(turns > 0),
            "w": random.standard_normal((4, 2)).astype("float32"),
        }
        names = [output.name for output in module.manifest.outputs]
        results = module(inputs)
        for name, value in zip(names, reference.run(names, inputs), strict=True):
            assert results[name].shape == value.shape, name
            np.testing.assert_allclose(results[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_loop_of_few_turns_stays_self_contained() -> None:
    module = tinsmith.compile(
        _parsed(
            _HEADER
            + """g (float[2] x) => (float[2] y) <bool yes={1}, int64 most={5}, float limit={3}>
            {
              y = Loop(most, yes, x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e) {
                e = Add(a, a)
                top = ReduceMax<keepdims=0>(e)
                d = Less(top, limit)
              }>
            }"""  # noqa: E501
        )
    )
    assert module.manifest.form == "self-contained"
    for first in (0.01, 0.5, 2.0):
        expected = first * 2
        while expected < 3 and expected < first * 32:
            expected *= 2
        np.testing.assert_allclose(module(np.array([first, -1], "float32"))["y"][0], expected)


def test_what_cannot_be_compiled_is_named() -> None:
    model = _parsed(_HEADER + "g (float[3] x) => (float[a] y) { n = NonZero(x) y = my.Own(n) }")
    model.opset_import.add(domain="my", version=1)
    with pytest.raises(tinsmith.TinsmithError, match="Own"):
        tinsmith.compile(model)


def test_quantising_what_cannot_be_compared_is_refused() -> None:
    model = _parsed(_HEADER + "g (float[3] x) => (int64[1,a] y) { y = NonZero(x) }")
    options = tinsmith.QuantizationConfig(calibration="random")
    with pytest.raises(tinsmith.ModelError, match="output 'y' depends on data"):
        tinsmith.compile(model, quantization=options)
