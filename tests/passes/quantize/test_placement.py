"""Which tensors are stored in integers."""

from __future__ import annotations

from dataclasses import replace

from quantize_checks import Graph, array, attention, two_convolutions
from tvm import relax

from tinsmith.passes.quantize.placement import StoredTensor, observed_tensors, place
from tinsmith.targets.arm.backend import FORMATS as ARM
from tinsmith.targets.x86.backend import FORMATS as X86


def test_between_two_convolutions_one_tensor_is_stored() -> None:
    module, *_ = two_convolutions()
    placement = place(module, X86)
    assert placement.observed == ("x", "hidden")
    assert placement.integer_operators == ("a", "out")
    assert placement.float_operators == ()
    assert observed_tensors(module, ARM) == ("x", "hidden")


def test_an_operator_kept_in_float_takes_its_operand_along() -> None:
    module, *_ = two_convolutions()
    placement = place(module, X86, keep_float={"a"})
    assert placement.observed == ("hidden",)
    assert [(f.name, f.reason) for f in placement.float_operators] == [
        ("a", "kept in float on request")
    ]


def test_of_two_added_convolutions_the_later_is_stored() -> None:
    graph = Graph(1, 6, 6, 4)
    first = graph.conv("first", graph.input, array(1, 1, 4, 4))
    second = graph.conv("second", graph.input, array(1, 1, 4, 4))
    added = graph.bind("added", relax.op.add(first, second))
    module = graph.module(graph.conv("last", added, array(1, 1, 4, 4)))
    assert place(module, X86).observed == ("x", "second", "added")


def test_moved_elements_share_a_scale() -> None:
    graph = Graph(1, 8, 8, 4)
    a = graph.conv("a", graph.input, array(1, 1, 4, 4))
    pooled = graph.bind("pooled", relax.op.nn.max_pool2d(a, (2, 2), (2, 2), layout="NHWC"))
    module = graph.module(graph.conv("last", pooled, array(1, 1, 4, 4)))
    placement = place(module, X86)
    assert placement.stored["pooled"] == StoredTensor("pooled", "a")
    assert placement.observed == ("x", "a")


def test_what_is_only_concatenated_is_stored_with_the_scale_of_the_whole() -> None:
    graph = Graph(1, 8, 8, 4)
    a = graph.conv("a", graph.input, array(1, 1, 4, 4))
    both = graph.bind("both", relax.op.concat([a, graph.input], 3))
    module = graph.module(graph.conv("last", both, array(1, 1, 8, 4)))
    placement = place(module, X86)
    assert placement.stored["a"].source == "both"
    # The input is read by a convolution too, and keeps its own.
    assert placement.stored["x"].source == "x"


def test_what_only_float_operators_read_stays_float() -> None:
    graph = Graph(4, 8)
    a = graph.bind("a", relax.op.matmul(graph.input, relax.const(array(8, 8))))
    normal = graph.bind("normal", relax.op.nn.softmax(a))
    module = graph.module(graph.bind("b", relax.op.exp(normal)))
    placement = place(module, X86)
    assert placement.observed == ("x",)
    assert [f.name for f in placement.float_operators] == ["normal"]


def test_the_right_operand_of_a_computed_product_is_stored_symmetric() -> None:
    module = attention()
    placement = place(module, X86)
    assert placement.integer_operators == ("q", "k", "scores", "v", "out")
    assert [f.operator for f in placement.float_operators] == ["nn.softmax"]
    symmetric = {name for name, tensor in placement.stored.items() if tensor.symmetric}
    assert symmetric == {"k", "heads_k", "turned_k", "v"}
    assert placement.stored["turned_k"].source == "k"
    assert set(placement.observed) == {"x", "q", "k", "v", "weights"}
    kept = place(module, X86, keep_float={"scores"})
    assert kept.integer_operators == ("q", "k", "v", "out")
    assert "k" not in kept.stored


def test_packing_a_right_operand_for_few_rows_is_no_gain() -> None:
    form = replace(X86.integer_operators["relax.matmul"], least_rows=7)
    table = replace(X86, integer_operators={"relax.matmul": form})
    placement = place(attention(), table)
    # The keys are transposed, and packed by the way; the values are not.
    assert placement.integer_operators == ("q", "k", "scores", "v")
    assert [(f.name, f.reason) for f in placement.float_operators] == [
        ("weights", "no integer kernel"),
        ("out", "integers are no gain for 6 rows: its right operand has to be packed"),
    ]


def test_a_product_with_itself_and_long_sums_stay_float() -> None:
    graph = Graph(8, 8)
    a = graph.bind("a", relax.op.matmul(graph.input, graph.input))
    module = graph.module(graph.bind("b", relax.op.nn.relu(a)))
    placement = place(module, X86)
    assert placement.stored == {}
    assert placement.float_operators[0].reason == "its right operand is read as a left one, too"

    graph = Graph(1, 70000)
    wide = relax.op.matmul(graph.input, relax.const(array(70000, 1)))
    module = graph.module(graph.bind("wide", wide))
    assert "does not fit int32" in place(module, X86).float_operators[0].reason
