"""Ways to damage a model: bytes of its file, or what the file says, one to four times a mutant.

Half of the mutants are still valid protobuf with one plausible lie: a dimension of 2^31, a
number as a string, an input left out, a cycle, a name with a line break. Whatever is drawn comes
from the generator handed in, so that a seed and a number give the same mutant again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from tests.fuzz.models import Sample

_INTEGERS = (
    0, 1, -1, 2, 3, 5, 7, 8, 16, 64, 127, 128, 255, 256, 1000, 4096, 65536, 2**20, 2**24, 2**28,
    2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -2, -3, -128, -1000, -(2**31), -(2**63),
)  # fmt: skip
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, -1e30, float("nan"), float("inf"), 1e10)
_TEXTS = (
    "", "x", "y", "main", "linear", "NOTSET", "SAME_UPPER", "VALID", "bidirectional", "ij,jk->ik",
    "i,j,k,l,m->ijklm", "i->iiii", "\0", "a\nb", "\x1b[31mred", "*/", "**//", "\u202eabc",
    "[red]x[/red]", "a" * 5000, "..", "/etc/passwd", "/dev/zero", "../up", "\u00e9\u4e2d", "'\"",
)  # fmt: skip
_KINDS = ("tensor_type", "sequence_type", "optional_type", "map_type", "sparse_tensor_type")


def mutant(sample: Sample, others: list[Sample], generator: random.Random) -> Sample:
    """A damaged copy of `sample`; `others` give parts to transplant."""
    if generator.random() < 0.2:
        if sample.beside and generator.random() < 0.5:
            name = generator.choice(sorted(sample.beside))
            damaged = _damage_bytes(sample.beside[name], generator)
            return Sample(sample.model, {**sample.beside, name: damaged})
        return Sample(_damage_bytes(sample.model, generator), sample.beside)
    model = ModelProto.FromString(sample.model)
    for _ in range(generator.choice((1, 1, 1, 2, 3, 4))):
        mutation = generator.choices(_MUTATIONS, _WEIGHTS)[0]
        try:
            mutation(model, others, generator)
        except (IndexError, ValueError, TypeError):
            continue  # nothing of that kind in the model, or a value out of the field's range
    return Sample(model.SerializeToString(), sample.beside)


def _damage_bytes(content: bytes, generator: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        kind, at = generator.randrange(6), generator.randrange(len(data) + 1)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + generator.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = generator.randbytes(generator.randrange(1, 9))
        elif at < len(data):
            data[at] = generator.choice((data[at] ^ (1 << generator.randrange(8)), 0, 255, 127))
    return bytes(data)


def _messages(message: Message) -> Iterator[Message]:
    """`message` and all messages inside it."""
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for part in [value] if isinstance(value, Message) else value:
            yield from _messages(part)


def _all(model: ModelProto, kind: type) -> list[Any]:
    return [message for message in _messages(model) if isinstance(message, kind)]


def _some_field(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    """Any field of any message gets another value of its type."""
    messages = [message for message in _messages(model) if message.ListFields()]
    message = generator.choice(messages)
    descriptor, value = generator.choice(message.ListFields())
    if descriptor.message_type is not None:
        if isinstance(value, Message):
            message.ClearField(descriptor.name)
        elif generator.random() < 0.5:
            del value[generator.randrange(len(value))]
        else:
            value.add().CopyFrom(generator.choice(list(value)))
        return
    many = not isinstance(value, (str, bytes, int, float))
    old = generator.choice(list(value)) if many else value
    new = _another(old, generator)
    if not many:
        setattr(message, descriptor.name, new)
    elif generator.random() < 0.3:
        value.extend([new] * generator.choice((1, 1, 2, 50)))
    elif generator.random() < 0.2:
        del value[generator.randrange(len(value))]
    else:
        value[generator.randrange(len(value))] = new


def _another(old: Any, generator: random.Random) -> Any:
    if isinstance(old, bytes):
        return generator.choice((_damage_bytes(old, generator), *(t.encode() for t in _TEXTS)))
    if isinstance(old, str):
        return generator.choice(_TEXTS)
    if isinstance(old, float):
        return generator.choice(_FLOATS)
    return generator.choice((*_INTEGERS, old + 1, old - 1, old * 2))


def _dimension(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    values = [v for v in (*model.graph.input, *model.graph.output) if v.type.tensor_type.shape.dim]
    dims = generator.choice(values).type.tensor_type.shape.dim
    choice = generator.randrange(5)
    if choice == 0:
        dims.add().dim_value = generator.choice(_INTEGERS)
    elif choice == 1:
        del dims[generator.randrange(len(dims))]
    elif choice == 2:
        generator.choice(dims).dim_param = generator.choice(_TEXTS)
    else:
        generator.choice(dims).dim_value = generator.choice(_INTEGERS)


def _attribute(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    attributes = [attribute for node in _all(model, NodeProto) for attribute in node.attribute]
    attribute = generator.choice(attributes)
    choice = generator.randrange(6)
    if choice == 0:
        attribute.name = generator.choice((*_TEXTS, "axis", "group", "pads", "kernel_shape"))
    elif choice == 1:
        kind = generator.choice(
            (1, "text", 2.5, [1, 2], [0.5], ["a"], helper.make_tensor("t", 1, [1], [1.0]))
        )
        attribute.CopyFrom(helper.make_attribute(attribute.name, kind))
    elif choice == 2 and attribute.ints:
        attribute.ints[generator.randrange(len(attribute.ints))] = generator.choice(_INTEGERS)
    elif choice == 3 and attribute.ints:
        attribute.ints.extend([generator.choice(_INTEGERS)] * generator.choice((1, 2, 40)))
    elif attribute.type == AttributeProto.INT:
        attribute.i = generator.choice(_INTEGERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = generator.choice(_FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = generator.choice(_TEXTS).encode()
    elif attribute.ints:
        attribute.ints[generator.randrange(len(attribute.ints))] = generator.choice(_INTEGERS)


def _drop_attribute(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    node = generator.choice([node for node in _all(model, NodeProto) if node.attribute])
    del node.attribute[generator.randrange(len(node.attribute))]


def _add_attribute(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    donors = _all(ModelProto.FromString(generator.choice(others).model), AttributeProto)
    generator.choice(_all(model, NodeProto)).attribute.add().CopyFrom(generator.choice(donors))


def _edge(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    nodes = _all(model, NodeProto)
    node = generator.choice([node for node in nodes if node.input])
    known = [name for other in nodes for name in (*other.input, *other.output) if name]
    choice, at = generator.randrange(6), generator.randrange(len(node.input))
    if choice == 0:
        node.input[at] = ""
    elif choice == 1:
        del node.input[at]
    elif choice == 2:
        node.input.insert(at, generator.choice(known))
    elif choice == 3:
        node.input[:] = generator.sample(list(node.input), len(node.input))
    else:
        node.input[at] = generator.choice(known)


def _outputs(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    node = generator.choice([node for node in _all(model, NodeProto) if node.output])
    choice, at = generator.randrange(4), generator.randrange(len(node.output))
    if choice == 0:
        node.output[at] = ""
    elif choice == 1:
        del node.output[at]
    elif choice == 2:
        node.output.append("extra")
    else:
        model.graph.output.add().CopyFrom(model.graph.output[0])
        model.graph.output[-1].name = generator.choice((node.output[at], "x", ""))


def _rename(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    """One value under another name, everywhere."""
    nodes = _all(model, NodeProto)
    old = generator.choice([name for node in nodes for name in (*node.input, *node.output) if name])
    new = generator.choice(_TEXTS)
    for node in nodes:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name == old:
                    names[at] = new
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        if value.name == old:
            value.name = new


def _operator(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    donors = _all(ModelProto.FromString(generator.choice(others).model), NodeProto)
    node, donor = generator.choice(_all(model, NodeProto)), generator.choice(donors)
    node.op_type, node.domain = donor.op_type, donor.domain
    if generator.random() < 0.5:
        del node.attribute[:]
        node.attribute.extend(donor.attribute)


def _order(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    graph = generator.choice([graph for graph in _all(model, GraphProto) if graph.node])
    nodes = list(graph.node)
    choice = generator.randrange(4)
    if choice == 0:
        generator.shuffle(nodes)
    elif choice == 1:
        del nodes[generator.randrange(len(nodes))]
    elif choice == 2:
        nodes.append(generator.choice(nodes))
    else:
        donors = _all(ModelProto.FromString(generator.choice(others).model), NodeProto)
        nodes.insert(generator.randrange(len(nodes) + 1), generator.choice(donors))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _stored(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    """Values, shape or dtype of a tensor, kept consistent half of the time."""
    tensor = generator.choice(_all(model, TensorProto))
    choice = generator.randrange(5)
    if choice == 0 and tensor.dims:
        tensor.dims[generator.randrange(len(tensor.dims))] = generator.choice(_INTEGERS)
    elif choice == 1:
        tensor.data_type = generator.choice((*range(24), 999))
    elif choice == 2 and tensor.data_type == TensorProto.INT64 and tensor.raw_data:
        at = 8 * generator.randrange(len(tensor.raw_data) // 8)
        value = generator.choice(_INTEGERS).to_bytes(8, "little", signed=True)
        tensor.raw_data = tensor.raw_data[:at] + value + tensor.raw_data[at + 8 :]
    elif choice == 3:
        tensor.dims.extend([1] * generator.choice((1, 2, 60, 500)))
    else:
        tensor.raw_data = tensor.raw_data * 2
        tensor.dims[0] *= 2


def _type(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    value = generator.choice([*model.graph.input, *model.graph.output])
    if generator.random() < 0.7:
        value.type.tensor_type.elem_type = generator.choice((*range(24), 999))
        return
    kind = generator.choice(_KINDS)
    inner = helper.make_tensor_type_proto(generator.choice((1, 7, 9)), [2, 3])
    value.type.Clear()
    if kind == "sequence_type":
        value.type.sequence_type.elem_type.CopyFrom(inner)
    elif kind == "optional_type":
        value.type.optional_type.elem_type.CopyFrom(inner)
    elif kind == "map_type":
        value.type.map_type.key_type = 7
    else:
        value.type.sparse_tensor_type.elem_type = 1


def _version(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    versions = (*range(1, 28), 0, -1, 1000, 2**40)
    if generator.random() < 0.3:
        model.ir_version = generator.choice(versions)
    elif generator.random() < 0.5:
        model.opset_import.add(domain=generator.choice(("", "ai.onnx", "my")), version=13)
    else:
        generator.choice(model.opset_import).version = generator.choice(versions)


def _function(model: ModelProto, others: list[Sample], generator: random.Random) -> None:
    """Calls of functions in functions: cycles, wrong names, wrong counts."""
    function = generator.choice(model.functions)
    choice = generator.randrange(4)
    if choice == 0:
        function.node.add().CopyFrom(
            helper.make_node(function.name, function.input, ["again"], domain=function.domain)
        )
    elif choice == 1:
        function.input.append(generator.choice(_TEXTS))
    elif choice == 2:
        function.attribute.append("alpha")
    else:
        model.functions.add().CopyFrom(function)


_CHOICES: tuple[tuple[Callable[[ModelProto, list[Sample], random.Random], None], int], ...] = (
    (_some_field, 6),
    (_dimension, 3),
    (_attribute, 4),
    (_drop_attribute, 1),
    (_add_attribute, 1),
    (_edge, 4),
    (_outputs, 1),
    (_rename, 1),
    (_operator, 2),
    (_order, 2),
    (_stored, 3),
    (_type, 1),
    (_version, 1),
    (_function, 1),
)
_MUTATIONS = [mutation for mutation, _ in _CHOICES]
_WEIGHTS = [weight for _, weight in _CHOICES]
