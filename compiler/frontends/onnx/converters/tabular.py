"""The operators of `ai.onnx.ml` on rows of numbers: linear models, scaling, codes of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

from tinsmith.compiler.frontends.onnx.converters.constants import constant, dtype_of, static_shape
from tinsmith.compiler.frontends.onnx.converters.trees import (
    integer_labels,
    transformed,
    with_the_other,
)


def _as_floats(bb: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    return x if dtype_of(x) == "float32" else bb.emit(relax.op.astype(x, "float32"))


def _linear(bb: relax.BlockBuilder, x: relax.Expr, attr: Any, rows: int) -> relax.Expr:
    """x (B, F) times the coefficients (rows, F), plus the intercepts."""
    x = _as_floats(bb, x)
    features = static_shape(x)[-1]
    coefficients = np.array(attr["coefficients"], np.float32)
    if coefficients.size != rows * features:
        raise ValueError(f"{coefficients.size} coefficients for {rows} times {features} are wrong")
    weights = constant(np.ascontiguousarray(coefficients.reshape(rows, features).T))
    scores = bb.emit(relax.op.matmul(x, weights))
    intercepts = np.array(attr.get("intercepts") or (), np.float32)
    if not intercepts.size:
        return scores
    return bb.emit(relax.op.add(scores, constant(intercepts.reshape(1, -1))))


class LinearRegressor(OnnxOpConverter):
    """Coefficients times features plus intercepts."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        scores = _linear(bb, inputs[0], attr, attr.get("targets", 1))
        return transformed(bb, scores, attr.get("post_transform", b"NONE").decode())


class LinearClassifier(OnnxOpConverter):
    """Labels and scores; of two classes one score is enough."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        labels = integer_labels(attr)
        features = static_shape(inputs[0])[-1]
        rows = len(attr["coefficients"]) // max(features, 1)
        scores = _linear(bb, inputs[0], attr, rows)
        name = attr.get("post_transform", b"NONE").decode()
        batch = static_shape(scores)[0]
        if rows == 1 and len(labels) == 2:
            positive = relax.op.greater(scores, relax.const(0.0, "float32"))
            chosen = relax.op.reshape(bb.emit(relax.op.astype(positive, "int64")), (batch,))
            chosen = bb.emit(chosen)
            final = with_the_other(bb, scores, name, probabilities=True)
        elif rows == len(labels):
            chosen = bb.emit(relax.op.argmax(scores, axis=1))
            final = transformed(bb, scores, name)
        else:
            raise ValueError(f"{rows} rows of coefficients for {len(labels)} classes")
        result = bb.emit(relax.op.take(constant(labels), chosen, axis=0, mode="clip"))
        return relax.Tuple([result, final])


class Scaler(OnnxOpConverter):
    """(x - offset) * scale, for each feature or all of them."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = _as_floats(bb, inputs[0])
        offset, scale = (
            constant(np.array(attr.get(name) or (neutral,), np.float32))
            for name, neutral in (("offset", 0.0), ("scale", 1.0))
        )
        return relax.op.multiply(bb.emit(relax.op.subtract(x, offset)), scale)


class Normalizer(OnnxOpConverter):
    """Rows divided by their largest, their sum of sizes, or their length."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = _as_floats(bb, inputs[0])
        norm = attr.get("norm", b"MAX").decode()
        if norm == "MAX":
            size = relax.op.max(x, [-1], keepdims=True)
        elif norm == "L1":
            size = relax.op.sum(relax.op.abs(x), [-1], keepdims=True)
        elif norm == "L2":
            size = relax.op.sqrt(relax.op.sum(relax.op.multiply(x, x), [-1], keepdims=True))
        else:
            raise ValueError(f"there is no norm {norm!r}")
        size = bb.emit(size)
        nothing = relax.op.equal(size, relax.const(0.0, "float32"))
        return relax.op.divide(x, relax.op.where(nothing, relax.const(1.0, "float32"), size))


class Binarizer(OnnxOpConverter):
    """One where x is above the threshold, zero elsewhere."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        above = relax.op.greater(x, relax.const(attr.get("threshold", 0.0), dtype_of(x)))
        return relax.op.astype(above, dtype_of(x))


class ArrayFeatureExtractor(OnnxOpConverter):
    """The columns of x that the second input names."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x, columns = inputs[0], inputs[1]
        count = int(np.prod(static_shape(columns)))
        columns = bb.emit(relax.op.reshape(columns, (count,)))
        shape = static_shape(x)
        if len(shape) == 1:
            x = bb.emit(relax.op.reshape(x, (1, *shape)))
        return relax.op.take(x, columns, axis=-1 % len(static_shape(x)), mode="clip")


class Imputer(OnnxOpConverter):
    """x with one value, often NaN, replaced by a number, the same or one for each feature."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        kind = "float" if dtype_of(x).startswith("float") else "int64"
        given = attr.get(f"imputed_value_{kind}s")
        if not given:
            raise ValueError(f"there are no imputed_value_{kind}s")
        replaced = attr.get(f"replaced_value_{kind}", 0)
        if np.isnan(replaced):
            hit = relax.op.isnan(x)
        else:
            hit = relax.op.equal(x, relax.const(replaced, dtype_of(x)))
        return relax.op.where(hit, constant(np.array(given, dtype_of(x))), x)


class OneHotEncoder(OnnxOpConverter):
    """A new last axis with an entry for each category: one where x is that, zero elsewhere."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        categories = attr.get("cats_int64s")
        if not categories:
            raise ValueError("categories that are texts are not supported")
        if not attr.get("zeros", 1):
            raise ValueError("zeros=0, an error for what is no category, is not supported")
        whole = bb.emit(relax.op.expand_dims(relax.op.astype(x, "int64"), -1))
        same = relax.op.equal(whole, constant(np.array(categories, np.int64)))
        return relax.op.astype(same, "float32")


class FeatureVectorizer(OnnxOpConverter):
    """Columns of several tensors side by side, as many of each as is said."""

    @classmethod
    def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        parts = [_as_floats(bb, x) for x in inputs]
        widths = attr.get("inputdimensions") or [static_shape(x)[-1] for x in parts]
        parts = [
            bb.emit(relax.op.strided_slice(x, [1], [0], [width]))
            for x, width in zip(parts, widths, strict=True)
        ]
        return relax.op.concat(parts, axis=1)


class LabelEncoder(OnnxOpConverter):
    """Numbers in place of numbers, and a default for those that no key names."""

    @classmethod
    def _impl_v2(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> relax.Expr:
        x = inputs[0]
        kinds = {"int64s": np.int64, "floats": np.float32}
        keys, values, default = None, None, None
        for kind, dtype in kinds.items():
            if attr.get(f"keys_{kind}"):
                keys = np.array(attr[f"keys_{kind}"], dtype)
            if attr.get(f"values_{kind}"):
                values = np.array(attr[f"values_{kind}"], dtype)
                neutral = -1 if kind == "int64s" else -0.0
                default = dtype(attr.get(f"default_{kind[:-1]}", neutral))
        if keys is None or values is None or len(keys) != len(values):
            raise ValueError("labels that are texts or tensors are not supported")
        flat = bb.emit(relax.op.expand_dims(x, -1))
        same = bb.emit(relax.op.equal(flat, constant(keys.astype(dtype_of(x)))))
        position = bb.emit(relax.op.argmax(bb.emit(relax.op.astype(same, "int32")), axis=-1))
        found = bb.emit(relax.op.max(bb.emit(relax.op.astype(same, "int32")), axis=-1))
        translated = bb.emit(relax.op.take(constant(values), position, axis=0, mode="clip"))
        known = bb.emit(relax.op.greater(found, relax.const(0, "int32")))
        return relax.op.where(known, translated, constant(np.asarray(default)))
