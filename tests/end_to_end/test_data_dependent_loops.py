"""Loops whose states change their rank, are sequences or stay as they are, in the VM form."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

import tinsmith
from tinsmith.compiler.evaluate.oracle import EVALUATOR, open_runner
from tinsmith.compiler.frontends.onnx.model import import_onnx

_HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'

# One model: compiling takes longer than running.
_LOOPS = (
    _HEADER
    + """g (float[3] x, int64 n, int64 m, bool p, float[3,3] w)
 => (float[q] risen, float[3] last, float[3] unread, float[3] kept, float[3,3] kept_w,
     float[a,b,3] nested, float[c] joined, float[d] either, bool flipped)
 <bool yes={1}, float zero={0}, float limit={9}, float[1] one={1}, bool[1] flag={1}>
{
  risen = Loop(n, yes, zero) <body = b1 (int64 i1, bool c1, float a1) => (bool d1, float[3] e1) {
    d1 = Identity(c1)
    e1 = Add(a1, x)
  }>
  last, unread, kept, kept_w = Loop("", yes, x, zero, x, w) <body = b2
      (int64 i2, bool c2, float[3] a2, float u2, float[3] k2, float[3,3] w2)
      => (bool d2, float[3] e2, float[3] v2, float[3] k2, float[3,3] w3) {
    w3 = Identity(w2)
    same = MatMul(k2, w2)
    grown = Exp(a2)
    e2 = Add(grown, same)
    top = ReduceMax<keepdims=0>(e2)
    d2 = Less(top, limit)
    v2 = Neg(e2)
  }>
  unused, nested = Loop(n, "", x) <body = b3
      (int64 i3, bool c3, float[3] a3) => (bool d3, float[3] e3, float[k,3] f3) {
    d3 = Identity(c3)
    e3, f3 = Loop(m, "", a3) <body = b4
        (int64 i4, bool c4, float[3] a4) => (bool d4, float[3] e4, float[3] f4) {
      d4 = Identity(c4)
      e4 = Add(a4, x)
      number = Cast<to=1>(i3)
      f4 = Add(e4, number)
    }>
  }>
  none = SequenceEmpty<dtype=1>()
  parts = Loop(n, "", none) <body = b5
      (int64 i5, bool c5, seq(float[3]) a5) => (bool d5, seq(float[3]) e5) {
    d5 = Identity(c5)
    number5 = Cast<to=1>(i5)
    part = Add(x, number5)
    e5 = SequenceInsert(a5, part)
  }>
  whole = SequenceInsert(parts, x)
  joined = ConcatFromSequence<axis=0>(whole)
  some = If(p) <then_branch = t () => (seq(float[r]) o1) { o1 = SequenceConstruct(x, x) },
                else_branch = f () => (seq(float[s]) o2) { o2 = SequenceConstruct(x, risen, x) }>
  either = ConcatFromSequence<axis=0>(some)
  flipped = Loop(n, "", p) <body = b6 (int64 i6, bool c6, bool a6) => (bool d6, bool e6) {
    d6 = Identity(c6)
    e6 = If(a6) <then_branch = t6 () => (bool o3) { o3 = Not(flag) },
                 else_branch = f6 () => (bool o4) { o4 = Not(a6) }>
  }>
}"""
)


def test_states_of_every_kind() -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = parser.parse_model(_LOOPS)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    reference = runtime.InferenceSession(model.SerializeToString(), options)
    module = tinsmith.compile(model)
    assert module.manifest.form == "vm"
    # The bodies are kernels; what remains is sequences, and values of a rank that data decide.
    note = next(note for note in module.manifest.notes if "evaluated one by one" in note)
    assert not any(name in note for name in ("Loop", "MatMul", "Exp"))
    names = [output.name for output in module.manifest.outputs]
    random = np.random.default_rng(0)
    # Without a turn the rank of `risen`, which is joined to others, is not what they need.
    for turns, inner, choice in ((1, 2, True), (3, 0, False), (2, 1, True)):
        inputs = {
            "x": random.random(3).astype("float32"),
            "n": np.array(turns),
            "m": np.array(inner),
            "p": np.array(choice),
            "w": np.eye(3, dtype="float32"),
        }
        results = module(inputs)
        for name, expected in zip(names, reference.run(names, inputs), strict=True):
            assert (results[name].shape, results[name].dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(results[name], expected, rtol=1e-5, err_msg=name)


def test_what_is_the_same_in_every_turn_is_computed_once() -> None:
    imported = import_onnx(
        parser.parse_model(
            _HEADER
            + """g (float[3] x, int64 n, float[3,3] w) => (float[3] y) {
              y = Loop(n, "", x) <body = b (int64 i, bool c, float[3] a) => (bool d, float[3] e) {
                d = Identity(c)
                same = MatMul(x, w)
                e = Add(a, same)
              }>
            }"""
        )
    )
    functions = {name.name_hint: str(f) for name, f in imported.module.functions.items()}
    assert "matmul" in functions.pop("main")
    assert not any("matmul" in text for text in functions.values())


@pytest.mark.parametrize("trips", ['""', "many"])
def test_a_loop_that_nothing_ends_is_refused(trips: str) -> None:
    text = (
        _HEADER
        + """g (float[2] x) => (float[2] y) <int64 many={9223372036854775807}> {
          y = Loop(TRIPS, "", x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e) {
            d = Identity(c)
            e = Add(a, a)
          }>
        }"""
    )
    with pytest.raises(tinsmith.ModelError, match="nothing ends this loop"):
        import_onnx(parser.parse_model(text.replace("TRIPS", trips)))


def test_the_evaluator_runs_loops_as_the_standard_says() -> None:
    """Without a condition, without types, with scan outputs of scalars, without a turn."""
    model = parser.parse_model(
        _HEADER
        + """g (int64 n, float z) => (float y, float[t] h) {
          y, h = Loop(n, "", z) <body = b (i, c, float a) => (bool d, float e, float f) {
            d = Identity(c)
            number = Cast<to=1>(i)
            e = Add(a, number)
            f = Neg(e)
          }>
        }"""
    )
    run = open_runner(EVALUATOR, model.SerializeToString(), 1)
    results = run({"n": np.array(3), "z": np.array(1, "float32")})
    assert results["y"] == 4
    np.testing.assert_array_equal(results["h"], [-1, -2, -4])
    results = run({"n": np.array(0), "z": np.array(1, "float32")})
    assert results["y"] == 1
    assert (results["h"].shape, results["h"].dtype) == ((0,), np.float32)
