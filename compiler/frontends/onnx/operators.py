"""Which ONNX operators can be converted, and by whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto
from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter, _get_convert_map

from tinsmith.compiler.errors import UnsupportedOpError
from tinsmith.compiler.frontends.onnx.converters import OWN_CONVERTERS
from tinsmith.compiler.frontends.onnx.dynamic import DATA_DEPENDENT, WITHOUT_KERNEL
from tinsmith.compiler.frontends.onnx.evaluate import may_evaluate

# Handled by the importer itself: branches are resolved or computed both, loops unrolled.
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})

# Entries of TVM's table that belong to another domain than the standard one.
_MICROSOFT = "com.microsoft"
_MICROSOFT_ONLY = frozenset(
    {
        "Attention",
        "BiasGelu",
        "EmbedLayerNormalization",
        "FastGelu",
        "MatMulInteger16",
        "SkipLayerNormalization",
    }
)
_MICROSOFT_TOO = frozenset({"GatherND", "Gelu", "GridSample", "Pad", "Trilu"})


def domain_of(node: NodeProto) -> str:
    """The domain of `node`, the standard one being the empty string."""
    return "" if node.domain == "ai.onnx" else node.domain


def find_converters() -> dict[tuple[str, str], type[OnnxOpConverter]]:
    """Converters by (domain, operator): TVM's, replaced or completed by our own."""
    converters: dict[tuple[str, str], type[OnnxOpConverter]] = {}
    for name, converter in _get_convert_map().items():
        if name in _MICROSOFT_ONLY:
            converters[_MICROSOFT, name] = converter
            continue
        converters["", name] = converter
    converters.update(OWN_CONVERTERS)
    for name in _MICROSOFT_TOO:
        converters.setdefault((_MICROSOFT, name), converters["", name])
    return converters


def check_operators(
    model: ModelProto, converters: Mapping[tuple[str, str], object], source: str
) -> None:
    """Raise one `UnsupportedOpError` with every operator of `model` that nobody converts.

    Subgraphs count; model-local functions must have been inlined. Nodes that can be computed
    at once because all their inputs are constants need no converter.
    """
    missing: dict[str, list[str]] = {}
    known = {tensor.name for tensor in model.graph.initializer}
    for path, node in _walk(model.graph, "", known):
        domain = domain_of(node)
        ours = not domain and node.op_type in CONTROL_FLOW | DATA_DEPENDENT | WITHOUT_KERNEL
        if ours or (domain, node.op_type) in converters:
            continue
        qualified = f"{domain}.{node.op_type}" if domain else node.op_type
        label = node.name or next(iter(node.output), "unnamed")
        # A name may contain anything, line breaks included; the message is one line.
        missing.setdefault(" ".join(qualified.split()), []).append(" ".join((path + label).split()))
    if missing:
        raise UnsupportedOpError(source, missing)


def _walk(graph: GraphProto, path: str, known: set[str]) -> Iterator[tuple[str, NodeProto]]:
    """Nodes to convert with the path of their subgraph; `known` holds the constants in scope."""
    for node in graph.node:
        if may_evaluate(node) and all(name in known for name in node.input if name):
            known.update(node.output)
            if node.op_type not in ("Constant",) and not node.input:
                yield path, node
            continue
        yield path, node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node:
                    inner = known | {tensor.name for tensor in subgraph.initializer}
                    inner -= {value.name for value in subgraph.input}
                    yield from _walk(subgraph, f"{path}{node.name or node.op_type}/", inner)
