"""The execution plan: which kernel runs on which memory, in which order.

`read_graph` turns Relax `main` (calls of scheduled PrimFuncs, views, tuples and
constants only) into steps over tensors; `place_tensors` gives every tensor a
place in the weights, the arena, an input or an output. Intermediate tensors and
kernel scratch share one arena, planned by lifetime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import tvm_ffi
from blake3 import blake3
from tvm import relax, tirx
from tvm.ir import GlobalVar, IRModule, Op
from tvm.ir.transform import Sequential
from tvm.tirx import IntImm

from tinsmith.compiler.dimensions.images import Images
from tinsmith.compiler.dimensions.open_batch import OpenBatch
from tinsmith.compiler.module.write.arena import Lifetime, place_buffers
from tinsmith.compiler.module.write.stages import ALIGNMENT, KernelCode, align_up

# Operators that name the same memory with another shape.
_VIEWS = ("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten")

# Why a graph calls a function that only the VM form provides.
_AT_RUN_TIME = {
    "tinsmith.evaluate": "a shape depends on data",
    "tinsmith.loop": "data decide when a loop ends",
    "tinsmith.scan": "a loop is too long to be unrolled, or data decide how long it is",
    "tinsmith.branch": "data decide between branches of different shapes",
}


class NeedsVirtualMachineError(Exception):
    """The model cannot take the self-contained form; carries the reason."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output.

    `images` tells where the batch lies; then the shape is that of the largest.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    images: Images | None = None

    @property
    def open_axis(self) -> tuple[int, int] | None:
        """The axis of the batch, and its extent for each image; None for a fixed shape."""
        if self.images is None:
            return None
        before = 1
        for axis, extent in enumerate(self.shape):
            if before == self.images.outer and extent % self.images.count == 0:
                return axis, extent // self.images.count
            before *= extent
        return None

    @property
    def nbytes(self) -> int:
        """Size in bytes, without padding."""
        return int(np.prod(self.shape, dtype=np.int64)) * itemsize(self.dtype)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: `kind` is "input", "output", "weight" or "arena"."""

    kind: str
    index: int
    nbytes: int


@dataclass(frozen=True)
class Call:
    """One kernel call: the PrimFunc's name and its arguments, outputs last."""

    kernel: str
    arguments: tuple[Value, ...]


@dataclass
class Graph:
    """What `main` computes, before memory is assigned."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    intermediates: list[int] = field(default_factory=list)
    # Outputs that are not computed in place: (index of the output, where its data is).
    copies: list[tuple[int, Value]] = field(default_factory=list)
    # Inputs that are copied into the arena first: (index of the input, where to).
    entries: list[tuple[int, Value]] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Memory of one argument: `base` is "weights", "arena", "input" or "output"."""

    base: str
    index: int
    offset: int


@dataclass(frozen=True)
class Step:
    """One kernel call; `places` are its arguments followed by its scratch buffers."""

    kernel: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Plan:
    """Everything the generated driver needs. Sizes in bytes; weights are 64-byte aligned."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    steps: tuple[Step, ...]
    copies: tuple[tuple[int, Place, int], ...]  # output, source, bytes
    entries: tuple[tuple[int, Place, int], ...]  # input, destination, bytes
    weight_offsets: tuple[int, ...]
    weights_bytes: int
    arena_bytes: int


def itemsize(dtype: str) -> int:
    """Bytes of one element of a TVM dtype as they lie in memory."""
    kind = tvm_ffi.dtype(dtype)
    return (kind.bits * kind.lanes + 7) // 8


def lower_calls(module: IRModule) -> IRModule:
    """Make memory explicit: every `call_tir` becomes an allocation and a direct call."""
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.AttachGlobalSymbol(),
    ]
    return Sequential(passes)(module)


class _GraphReader:
    def __init__(self, module: IRModule) -> None:
        self.module = module
        self.function = module["main"]
        self.values: dict[relax.Var, object] = {}
        self.known_weights: dict[tuple[bytes, int], int] = {}
        self.graph = Graph([])

    def read(self, input_names: tuple[str, ...], output_names: tuple[str, ...]) -> Graph:
        graph = self.graph
        if len(self.function.params) != len(input_names):
            raise NeedsVirtualMachineError(
                f"main takes {len(self.function.params)} tensors, {len(input_names)} are named"
            )
        for i, parameter in enumerate(self.function.params):
            shape, dtype = _static_tensor(parameter.ty)
            graph.inputs.append(TensorSpec(input_names[i], dtype, shape))
            self.values[parameter] = Value("input", i, graph.inputs[-1].nbytes)
        if not isinstance(self.function.body, relax.SeqExpr):
            raise NeedsVirtualMachineError("main is not a sequence of bindings")
        for block in self.function.body.blocks:
            for binding in block.bindings:
                self._binding(binding)
        self._results(output_names)
        return graph

    def _binding(self, binding: relax.Binding) -> None:
        if not isinstance(binding, relax.VarBinding):
            raise NeedsVirtualMachineError(f"binding {type(binding).__name__}")
        value = binding.value
        if isinstance(value, relax.If):
            raise NeedsVirtualMachineError("control flow (If)")
        if not isinstance(value, relax.Call):
            self.values[binding.var] = self._value(value)
        elif isinstance(value.op, GlobalVar):
            self._kernel_call(value)
        elif isinstance(value.op, Op):
            self._operator(binding, value)
        else:
            symbol = getattr(value.op, "global_symbol", str(value.op)[:80])
            raise NeedsVirtualMachineError(_AT_RUN_TIME.get(symbol, f"call of {symbol}"))

    def _kernel_call(self, call: relax.Call) -> None:
        callee = self.module[call.op]
        if not isinstance(callee, tirx.PrimFunc):
            raise NeedsVirtualMachineError(f"call of the function {call.op.name_hint}")
        arguments: list[Value] = []
        for argument in call.args:
            arguments += _flat(self._value(argument))
        self.graph.calls.append(Call(call.op.name_hint, tuple(arguments)))

    def _operator(self, binding: relax.VarBinding, call: relax.Call) -> None:
        name = call.op.name
        if name == "relax.builtin.alloc_tensor":
            shape, dtype = _static_tensor(binding.var.ty)
            size = TensorSpec("", dtype, shape).nbytes
            self.graph.intermediates.append(size)
            self.values[binding.var] = Value("arena", len(self.graph.intermediates) - 1, size)
        elif name in _VIEWS:
            _static_tensor(binding.var.ty)
            self.values[binding.var] = self._value(call.args[0])
        elif not name.startswith("relax.memory.kill"):
            raise NeedsVirtualMachineError(f"operator {name} has no kernel")

    def _value(self, expression: relax.Expr) -> object:
        if isinstance(expression, relax.Var):
            return self.values[expression]
        if isinstance(expression, relax.Tuple):
            return tuple(self._value(part) for part in expression.fields)
        if isinstance(expression, relax.TupleGetItem):
            whole = self._value(expression.tuple_value)
            assert isinstance(whole, tuple)
            return whole[expression.index]
        if type(expression).__name__ in ("GenericConst", "Constant"):
            return self._weight(expression)
        raise NeedsVirtualMachineError(f"expression {type(expression).__name__}")

    def _weight(self, constant: relax.Constant) -> Value:
        tensor = constant.value if hasattr(constant, "value") else constant.data
        array = np.ascontiguousarray(tensor.numpy())
        key = (blake3(array.reshape(-1).view(np.uint8).data).digest(), array.nbytes)
        if key not in self.known_weights:
            self.known_weights[key] = len(self.graph.weights)
            self.graph.weights.append(array)
        return Value("weight", self.known_weights[key], array.nbytes)

    def _results(self, names: tuple[str, ...]) -> None:
        results = _flat(self._value(self.function.body.body))
        types = self.function.body.body.ty
        fields = list(types.fields) if isinstance(types, relax.TupleType) else [types]
        if not len(results) == len(fields) == len(names):
            raise NeedsVirtualMachineError(
                f"main returns {len(results)} tensors, {len(names)} are named"
            )
        direct: dict[int, int] = {}
        for i, (value, kind, name) in enumerate(zip(results, fields, names, strict=True)):
            shape, dtype = _static_tensor(kind)
            self.graph.outputs.append(TensorSpec(name, dtype, shape))
            if value.kind == "arena" and value.index not in direct:
                direct[value.index] = i
            else:
                self.graph.copies.append((i, value))

        def relocate(value: Value) -> Value:
            if value.kind == "arena" and value.index in direct:
                return Value("output", direct[value.index], value.nbytes)
            return value

        self.graph.calls = [
            Call(call.kernel, tuple(map(relocate, call.arguments))) for call in self.graph.calls
        ]
        self.graph.copies = [(i, relocate(value)) for i, value in self.graph.copies]


def read_graph(
    module: IRModule, input_names: tuple[str, ...], output_names: tuple[str, ...]
) -> Graph:
    """Read `main` after `lower_calls`.

    Raises `NeedsVirtualMachineError` for anything that has no static form.
    """
    return _GraphReader(module).read(input_names, output_names)


def keep_whole_batches(graph: Graph, batch: OpenBatch) -> None:
    """Give memory of the largest batch to tensors of the caller that kernels need as such.

    A kernel may touch images behind those asked for, and time before batch has gaps in memory
    for a smaller batch: such inputs are copied into the arena, and such outputs from there.
    """
    moved: dict[tuple[str, int], Value] = {}

    def move(value: Value) -> None:
        if (value.kind, value.index) in moved or value.kind not in ("input", "output"):
            return
        graph.intermediates.append(value.nbytes)
        memory = Value("arena", len(graph.intermediates) - 1, value.nbytes)
        moved[value.kind, value.index] = memory
        if value.kind == "input":
            graph.entries.append((value.index, memory))
        else:
            graph.copies.append((value.index, memory))

    for kind, tensors, images in (
        ("input", graph.inputs, batch.inputs),
        ("output", graph.outputs, batch.outputs),
    ):
        copied = {i for i, _ in graph.copies} if kind == "output" else set()
        for i, (tensor, lying) in enumerate(zip(tensors, images, strict=True)):
            tensors[i] = replace(tensor, images=lying)
            if lying is not None and lying.outer > 1 and i not in copied:
                move(Value(kind, i, tensor.nbytes))
    for call in graph.calls:
        for position in batch.overrun.get(call.kernel, ()):
            move(call.arguments[position])

    def place(value: Value) -> Value:
        return moved.get((value.kind, value.index), value)

    graph.calls = [Call(call.kernel, tuple(map(place, call.arguments))) for call in graph.calls]
    graph.copies = [(i, place(value)) for i, value in graph.copies]


def aligned_arguments(graph: Graph) -> dict[str, list[bool]]:
    """Per kernel and argument: is it weights or arena (64-byte aligned) in every call?"""
    aligned: dict[str, list[bool]] = {}
    for call in graph.calls:
        flags = [value.kind in ("weight", "arena") for value in call.arguments]
        known = aligned.setdefault(call.kernel, flags)
        aligned[call.kernel] = [a and b for a, b in zip(known, flags, strict=True)]
    return aligned


def place_tensors(graph: Graph, kernels: Mapping[str, KernelCode]) -> Plan:
    """Assign memory to all tensors and to the kernels' scratch buffers."""
    spans: dict[object, tuple[int, int, int]] = {}  # key -> size, first step, last step

    def use(key: object, size: int, step: int) -> None:
        _, first, _ = spans.get(key, (size, step, step))
        spans[key] = (size, first, step)

    for _, value in graph.entries:
        use(value.index, graph.intermediates[value.index], 0)
    for step, call in enumerate(graph.calls):
        for value in call.arguments:
            if value.kind == "arena":
                use(value.index, graph.intermediates[value.index], step)
        for i, size in enumerate(kernels[call.kernel].scratch):
            use((step, i), size, step)
    for _, value in graph.copies:
        if value.kind == "arena":
            use(value.index, graph.intermediates[value.index], len(graph.calls))
    offsets, arena_bytes = place_buffers([Lifetime(*span) for span in spans.values()])
    arena = dict(zip(spans, offsets, strict=True))

    weight_offsets = []
    weights_bytes = 0
    for array in graph.weights:
        weight_offsets.append(weights_bytes)
        weights_bytes = align_up(weights_bytes + max(array.nbytes, 1), ALIGNMENT)

    def place(value: Value) -> Place:
        if value.kind == "weight":
            return Place("weights", 0, weight_offsets[value.index])
        if value.kind == "arena":
            return Place("arena", 0, arena[value.index])
        return Place(value.kind, value.index, 0)

    steps = []
    for number, call in enumerate(graph.calls):
        scratch = range(len(kernels[call.kernel].scratch))
        places = [place(value) for value in call.arguments]
        places += [Place("arena", 0, arena[(number, i)]) for i in scratch]
        steps.append(Step(call.kernel, tuple(places)))
    return Plan(
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
        steps=tuple(steps),
        copies=tuple(
            (i, place(value), graph.outputs[i].nbytes) for i, value in graph.copies
        ),
        entries=tuple((i, place(value), graph.inputs[i].nbytes) for i, value in graph.entries),
        weight_offsets=tuple(weight_offsets),
        weights_bytes=weights_bytes,
        arena_bytes=arena_bytes,
    )  # fmt: skip


def _flat(value: object) -> list[Value]:
    if isinstance(value, tuple):
        return [leaf for part in value for leaf in _flat(part)]
    assert isinstance(value, Value)
    return [value]


def _static_tensor(kind: object) -> tuple[tuple[int, ...], str]:
    if not isinstance(kind, relax.TensorType):
        raise NeedsVirtualMachineError(f"a value is not a tensor but {type(kind).__name__}")
    if not isinstance(kind.shape, relax.ShapeExpr):
        raise NeedsVirtualMachineError("a tensor of unknown shape")
    extents = []
    for extent in kind.shape.values:
        if not isinstance(extent, IntImm):
            raise NeedsVirtualMachineError(f"the dynamic dimension {extent}")
        extents.append(int(extent.value))
    return tuple(extents), str(kind.dtype)
