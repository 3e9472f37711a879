"""What an ONNX model ought to compute, from somebody else's implementation.

ONNX Runtime where it is installed, else the reference evaluator of the onnx package (plain
numpy: slow, and without the operators of `com.microsoft`). Where one of them fails or a module
disagrees with it, the others are asked: ONNX Runtime without optimisation, and the evaluator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tinsmith.compiler.errors import ModelError, TinsmithError
from tinsmith.compiler.evaluate.compare import (
    OTHER_CODES_TOLERANCE,
    Difference,
    compare,
    compare_all,
)
from tinsmith.compiler.evaluate.opinions import Opinions, label_of, opinions
from tinsmith.compiler.evaluate.oracle import Answer
from tinsmith.compiler.evaluate.reference import Arrays, Reference, Settlement

_ROUNDING = frozenset(
    {
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "QGemm",
        "QuantizeLinear",
    }
)

_SECONDS = 600.0
# A second opinion is not worth waiting for as long.
_SECOND_SECONDS = 60.0

# How often the model is run with its numbers moved by one unit in their last place, and how
# many times the largest movement of an output a module may be away from it: another order of
# summation rounds each partial sum, of which there are more than numbers.
_PERTURBATIONS = 2
_ROUNDINGS = 4
# Letters of another runtime's message that are shown.
_REASON = 160
# So large a share of indices or classes may be others where rounding changes some.
_CHOICES = 0.01
# Floats that are moved, and of how many numbers a constant is taken for weights.
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_FEW = 8
# What rounding moves further than this, relative to its range, cannot be told from a fault.
_LARGEST_TOLERANCE = 0.05


class OnnxReference(Reference):
    """Independent implementations of `model`, whose input shapes are fixed.

    `content` is the model serialised. All of it happens in another process, which may die of it;
    `notes` tell who could not compute, and why.
    """

    def __init__(self, model: onnx.ModelProto, content: bytes, threads: int = 1) -> None:
        self.model, self.content = model, content
        self._rounds = _rounds_to_codes(model)
        self._tolerance = self.tolerance(*_output_dtypes(model))
        self._notes: list[str] = []
        self._threads = threads
        self._opinions = Opinions(content, threads)
        self._able = list(opinions())
        self._outputs = [output.name for output in model.graph.output]

    @property
    def label(self) -> str:
        return label_of(self._able[0]) if self._able else "nobody"

    @property
    def notes(self) -> list[str]:
        return list(self._notes)

    def tolerance(self, *dtypes: str) -> float:
        """Wide where values are rounded to codes on the way, whatever the dtypes."""
        return OTHER_CODES_TOLERANCE if self._rounds else super().tolerance(*dtypes)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The model's outputs by name, in the model's order, by the first that can compute them.

        Raises ModelError if none can.
        """
        reasons: dict[str, None] = {}
        unable: list[str] = []
        while self._able:
            answer = self._ask(self._able[0], inputs, _SECONDS)
            if not isinstance(answer, str):
                if unable:
                    told = f"{' and '.join(unable)} cannot run the model ({'; '.join(reasons)})"
                    self._notes.append(f"{told}: {self.label} was asked")
                return answer
            unable.append(self.label)
            reasons[_shortened(answer)] = None
            del self._able[0]
        raise ModelError(f"{', '.join(unable)} cannot run the model: {'; '.join(reasons)}")

    def settle(self, inputs: Arrays, actual: Arrays, expected: Arrays) -> Settlement:
        """Whether `actual` agrees with `expected`, this reference's outputs, or with another one.

        Where it does not agree, the others are asked; if one of them agrees, the note says who
        differs. Tolerances are widened to what rounding alone does to these outputs.
        """
        first = Settlement(
            self.label, expected, self._tolerance, compare_all(actual, expected, self._tolerance)
        )
        if first.agrees:
            return first
        appeals = self._appeals(inputs, actual, first)
        return next((s for s in appeals if s is not None and s.agrees), first)

    def _appeals(
        self, inputs: Arrays, actual: Arrays, first: Settlement
    ) -> Iterator[Settlement | None]:
        """Further judgements, each made when it is asked for; what takes long comes last."""
        for who in self._able[1:2]:
            yield self._second(who, inputs, actual, first)
        yield self._widened(inputs, actual, first)
        for who in self._able[2:]:
            yield self._second(who, inputs, actual, first)

    def _second(
        self, who: str, inputs: Arrays, actual: Arrays, first: Settlement
    ) -> Settlement | None:
        """What another one says about outputs that disagree with the first."""
        answer = self._ask(who, inputs, _SECOND_SECONDS)
        if isinstance(answer, str):
            return None
        found = compare_all(actual, answer, self._tolerance)
        wrong = next(d for d in first.differences if not d.agrees)
        note = (
            f"{first.label} differs from {label_of(who)} in output {wrong.name} "
            f"({wrong.told}); the module agrees with the latter"
        )
        return Settlement(label_of(who), answer, self._tolerance, found, note)

    def _widened(self, inputs: Arrays, actual: Arrays, first: Settlement) -> Settlement | None:
        """The first reference's outputs again, where rounding explains all that disagrees."""
        shaken = self._shaken_outputs(inputs)
        expected, found, notes = dict(first.expected), [], []
        for difference in first.differences:
            name = difference.name
            if difference.agrees:
                found.append(difference)
                continue
            if not shaken or name not in actual:
                return None
            explain = _explained_choices if _are_choices(expected[name]) else _explained_floats
            explained = explain(difference, actual[name], expected[name], [s[name] for s in shaken])
            if explained is None:
                return None
            found.append(explained[0])
            notes.append(explained[1])
            if _are_choices(expected[name]):
                expected[name] = actual[name]
        widest = max(difference.tolerance for difference in found)
        return Settlement(first.label, expected, widest, tuple(found), "; ".join(notes))

    def _shaken_outputs(self, inputs: Arrays) -> list[dict[str, np.ndarray]]:
        """The outputs after all floats of the model and its inputs moved by one unit in their
        last place, up or down at random; empty if the model does not stand that.
        """
        found = []
        for seed in range(_PERTURBATIONS):
            generator = np.random.default_rng(seed)
            content = _perturbed(self.model, generator)
            moved = {name: _shaken(array, generator) for name, array in inputs.items()}
            answer = Opinions(content, self._threads).ask(self._able[0], moved, _SECOND_SECONDS)
            if isinstance(answer, str) or any(name not in answer for name in self._outputs):
                return []
            found.append(answer)
        return found

    def tensors(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every tensor of the model; none where one of them is a sequence."""
        exposed = onnx.ModelProto()
        exposed.CopyFrom(self.model)
        existing = {output.name for output in exposed.graph.output}
        for node in exposed.graph.node:
            for name in node.output:
                if name and name not in existing:
                    exposed.graph.output.append(onnx.ValueInfoProto(name=name))
        try:
            return OnnxReference(exposed, exposed.SerializeToString()).run(inputs)
        except TinsmithError:  # the outputs then have to do
            return {}

    def _ask(self, who: str, inputs: Arrays, seconds: float) -> Answer:
        answer = self._opinions.ask(who, inputs, seconds)
        if isinstance(answer, str):
            return answer
        missing = [name for name in self._outputs if name not in answer]
        if missing:
            return f"it has no output {missing[0]}"
        return {name: answer[name] for name in self._outputs}


def _are_choices(array: np.ndarray) -> bool:
    """Whether elements are indices, classes or flags, and not numbers or codes of them."""
    return array.dtype.kind in "biu" and array.dtype.name not in ("int8", "uint8")


def _explained_floats(
    wrong: Difference, actual: np.ndarray, expected: np.ndarray, shaken: Sequence[np.ndarray]
) -> tuple[Difference, str] | None:
    """The difference with a tolerance of what rounding does, if it agrees then, and a note."""
    moves = [compare(wrong.name, other, expected, np.inf) for other in shaken]
    if wrong.detail or any(move.detail for move in moves):
        return None
    moved = max(move.relative for move in moves)
    tolerance = min(max(wrong.tolerance, _ROUNDINGS * moved), _LARGEST_TOLERANCE)
    found = compare(wrong.name, actual, expected, tolerance)
    note = (
        f"output {wrong.name} is off by {wrong.relative:.1e} of its range, which is only "
        f"{np.ptp(expected):.1e}: rounding alone moves it by {moved:.1e}"
    )
    return (found, note) if found.agrees else None


def _explained_choices(
    wrong: Difference, actual: np.ndarray, expected: np.ndarray, shaken: Sequence[np.ndarray]
) -> tuple[Difference, str] | None:
    """The same of integers and booleans: as few of them differ as rounding changes."""
    if any(array.shape != expected.shape for array in (actual, *shaken)):
        return None
    if actual.dtype != expected.dtype:
        return None
    changed = max(int((other != expected).sum()) for other in shaken)
    differing = int((actual != expected).sum())
    if differing > min(_ROUNDINGS * changed, _CHOICES * expected.size):
        return None
    note = (
        f"output {wrong.name} differs in {differing} of {expected.size} values, where rounding "
        f"alone changes {changed}: the module's own are its golden ones"
    )
    return Difference(wrong.name, 0.0, 0.0, wrong.tolerance), note


def _perturbed(model: onnx.ModelProto, generator: np.random.Generator) -> bytes:
    """The model serialised, its weights moved by one unit in their last place.

    A few numbers may be scales of a Resize, from which shapes follow.
    """
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    tensors: list[TensorProto] = list(moved.graph.initializer)
    for node in moved.graph.node:
        tensors += [a.t for a in node.attribute if node.op_type == "Constant" and a.HasField("t")]
    for tensor in tensors:
        if tensor.data_type in _FLOATS and np.prod(tensor.dims) > _FEW:
            array = _shaken(numpy_helper.to_array(tensor), generator)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return moved.SerializeToString()


def _shaken(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    signs = generator.integers(0, 2, array.shape, np.int8) * 2 - 1
    step = np.asarray(np.finfo(array.dtype).eps, array.dtype)
    return np.asarray(array * (1 + step * signs.astype(array.dtype))).astype(array.dtype)


def _shortened(reason: str) -> str:
    """The beginning and the end of a foreign message, without its prefixes and source paths."""
    words = [word for word in reason.split() if "/" not in word]
    text = " ".join(words).split("FAIL : ")[-1]
    return text if len(text) <= _REASON else f"{text[: _REASON // 2]} ... {text[-_REASON // 2 :]}"


def _output_dtypes(model: onnx.ModelProto) -> list[str]:
    """As ONNX spells them, in lower case."""
    elements = (output.type.tensor_type.elem_type for output in model.graph.output)
    return [onnx.TensorProto.DataType.Name(element).lower() for element in elements]


def _rounds_to_codes(model: onnx.ModelProto) -> bool:
    """Whether values are quantised while the model runs; constant codes round nothing."""
    names = {node.op_type for node in model.graph.node}
    return any(name in _ROUNDING or name.startswith("QLinear") for name in names)
