"""Few narrow elements side by side, written as the words that they make up.

    out[.., w, 0..3] = f(in[c, w]) in bytes or bfloat16   (an image made channels-last, padded to 4)

Lanes run along `w`: each vector operation computes one element of many words, and
shifts put the elements together. Stores are full vectors, and nothing is shuffled.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Call, Expr
from tvm.tirx import ForKind, Stmt, Var

from tinsmith.targets.buffers import buffer_dtype, element_bytes
from tinsmith.targets.cpu import loops
from tinsmith.targets.cpu.domain import Box
from tinsmith.targets.cpu.expressions import (
    CONDITIONAL,
    Simplifier,
    children,
    constant_value,
    int32,
    linear_form,
    loads,
    substitute,
)
from tinsmith.targets.cpu.program import Axis
from tinsmith.targets.spec import TargetSpec

# Elements of a dtype that make up words of 32 or 64 bits.
_WORDS = {"uint8": {4: "int32"}, "int8": {4: "int32"}, "bfloat16": {2: "int32", 4: "int64"}}


@dataclass(frozen=True)
class WordPlan:
    """The elements along `inner` are one `word`; vectors of `lanes` words run along `outer`."""

    outer: Axis
    inner: Axis
    lanes: int
    word: str
    offset: Expr
    elements: tuple[Expr, ...]


def plan_words(box: Box, spec: TargetSpec) -> WordPlan | None:
    """How to write the one assignment of `box` in words, or None if it has no such form."""
    if len(box.assignments) != 1 or len(box.axes) < 2:
        return None
    (assignment,) = box.assignments
    if buffer_dtype(assignment.buffer) == "bfloat16" and not spec.bfloat16:
        # TVM's BF16ComputeLegalize takes the bits of the unrounded value.
        return None
    lanes = spec.float_lanes
    stored = linear_form(assignment.offset)
    inner = next((a for a in box.axes if stored.stride(a.var) == 1), None)
    if inner is None or stored.rest:
        return None
    word = _WORDS.get(buffer_dtype(assignment.buffer), {}).get(inner.extent)
    if word is None:
        return None
    outer = next((a for a in box.axes if stored.stride(a.var) == inner.extent), None)
    if outer is None or outer.extent < lanes:
        return None
    others = [a for a in box.axes if a is not inner]
    simplifier = Simplifier((a.var, a.extent) for a in (*others, *box.context))
    elements = tuple(
        simplifier.value(substitute(assignment.value, {inner.var: int32(e)}))
        for e in range(inner.extent)
    )
    for element in elements:
        if _branches(element):
            return None
        forms = [linear_form(read.indices[0]) for read in loads(element)]
        if any(form.stride(outer.var) not in (0, 1) or form.rest for form in forms):
            return None
    offset = substitute(assignment.offset, {inner.var: int32(0)})
    return WordPlan(outer, inner, lanes, word, offset, elements)


def word_blocks(box: Box, plan: WordPlan) -> tuple[list[Axis], Stmt]:
    """The loops (outermost first, all may run in parallel) and the body of one vector."""
    blocks = Axis(Var("blocks", "int32"), -(-plan.outer.extent // plan.lanes))
    start: Expr = blocks.var * int32(plan.lanes)
    if plan.outer.extent % plan.lanes:
        start = tirx.min(start, int32(plan.outer.extent - plan.lanes))
    others = [a for a in box.axes if a is not plan.outer and a is not plan.inner]
    words = loops.local_buffer("words", (plan.lanes,), plan.word)
    lane = Var("lane", "int32")
    mapping = {plan.outer.var: start + lane}
    (assignment,) = box.assignments
    bits = 8 * element_bytes(assignment.buffer)
    unsigned = f"uint{bits}"
    word: Expr | None = None
    for place, element in enumerate(plan.elements):
        if constant_value(element) == 0:
            continue
        code = tirx.reinterpret(unsigned, substitute(element, mapping)).astype(plan.word)
        shifted = code if place == 0 else code << tirx.const(bits * place, plan.word)
        word = shifted if word is None else word | shifted
    store = tirx.BufferStore(words, tirx.const(0, plan.word) if word is None else word, [lane])
    dtype = f"{buffer_dtype(assignment.buffer)}x{plan.lanes * plan.inner.extent}"
    first = substitute(plan.offset, {plan.outer.var: start})
    whole = tirx.reinterpret(dtype, tirx.BufferLoad(words, [loops.ramp(0, plan.lanes)]))
    return [*others, blocks], loops.sequence(
        [
            loops.allocate_on_stack(words),
            tirx.For(lane, int32(0), int32(plan.lanes), ForKind.VECTORIZED, store),
            tirx.BufferStore(
                assignment.buffer, whole, [loops.ramp(first, plan.lanes * plan.inner.extent)]
            ),
        ]
    )


def _branches(node: Expr) -> bool:
    """Whether a condition is left anywhere in `node`."""
    if isinstance(node, Call) and getattr(node.op, "name", None) == CONDITIONAL:
        return True
    return any(_branches(child) for child in children(node))
