"""Where the loops of hand-written kernels end for a smaller batch."""

from __future__ import annotations

import pytest
from tvm import tirx
from tvm.script import tirx as T  # noqa: N812

from tinsmith.compiler.dimensions.accesses import UnknownAccessError
from tinsmith.compiler.dimensions.images import Images
from tinsmith.compiler.dimensions.tasks import ENDS_ATTRIBUTE, TaskCut, cut_tasks

ROWS = Images(1, 4, 6)  # 4 images of 6 elements


def ends(cut: TaskCut) -> list[str | None]:
    """Where each top-level loop ends, None for those that run whole."""
    body = cut.function.body
    statements = body.seq if isinstance(body, tirx.SeqStmt) else [body]
    loops = [s for s in statements if isinstance(s, tirx.For)]
    return [
        str(loop.annotations[ENDS_ATTRIBUTE].value) if ENDS_ATTRIBUTE in loop.annotations else None
        for loop in loops
    ]


def test_tasks_of_an_image_are_its_share() -> None:
    @T.prim_func(s_tir=True)
    def lines(x: T.Buffer((4, 2, 3), "float32"), y: T.Buffer((4, 2, 3), "float32")):
        for p in T.parallel(8):
            for i in range(3):
                y[p // 2, p % 2, i] = x[p // 2, p % 2, i]

    cut = cut_tasks(lines, [ROWS], [ROWS], 4)
    assert ends(cut) == ["2,4,6,8"]
    assert cut.strict and not cut.overrun and cut.whole == 0


def test_tiles_across_images_run_over() -> None:
    @T.prim_func(s_tir=True)
    def tiles(x: T.Buffer((24,), "float32"), y: T.Buffer((24,), "float32")):
        for p in T.parallel(3):
            for i in range(10):
                y[T.min(p * 10, 14) + i] = x[T.min(p * 10, 14) + i]

    cut = cut_tasks(tiles, [ROWS], [ROWS], 4)
    assert ends(cut) == ["1,2,3,3"]
    assert cut.overrun == {0, 1} and not cut.strict


def test_columns_before_rows_run_whole() -> None:
    @T.prim_func(s_tir=True)
    def columns(x: T.Buffer((4, 6), "float32"), y: T.Buffer((4, 6), "float32")):
        for p in T.parallel(24):
            y[p % 4, p // 4] = x[p % 4, p // 4]

    cut = cut_tasks(columns, [ROWS], [ROWS], 4)
    assert ends(cut) == ["23,23,23,24"]
    assert cut.overrun == {0, 1} and cut.whole == 1


def test_orders_that_end_with_the_first_image_run_whole() -> None:
    @T.prim_func(s_tir=True)
    def backwards(x: T.Buffer((4, 6), "float32"), y: T.Buffer((4, 6), "float32")):
        for p in T.parallel(4):
            for i in range(6):
                y[3 - p, i] = x[3 - p, i]

    cut = cut_tasks(backwards, [ROWS], [ROWS], 4)
    assert ends(cut) == [None] and cut.whole == 1


def test_time_before_batch() -> None:
    images = Images(2, 4, 3)

    @T.prim_func(s_tir=True)
    def entries(x: T.Buffer((2, 4, 3), "float32"), y: T.Buffer((2, 4, 3), "float32")):
        for p in T.parallel(4):
            for t, i in T.grid(2, 3):
                y[t, p, i] = x[t, p, i]

    cut = cut_tasks(entries, [images], [images], 4)
    assert ends(cut) == ["1,2,3,4"] and cut.strict


def test_what_is_read_of_later_images_is_computed() -> None:
    @T.prim_func(s_tir=True)
    def neighbours(x: T.Buffer((4, 6), "float32"), y: T.Buffer((4, 6), "float32")):
        between = T.alloc_buffer((4, 6), "float32")
        for p in T.parallel(4):
            for i in range(6):
                between[p, i] = x[p, i] * T.float32(2)
        for p in T.parallel(4):
            for i in range(6):
                y[p, i] = between[p, i] + between[T.min(p + 1, 3), i]

    # As the graph would never have it: image p is computed from image p + 1.
    cut = cut_tasks(neighbours, [ROWS], [ROWS], 4)
    assert ends(cut) == [None, "1,2,3,4"]
    assert not cut.strict


def test_positions_of_later_images_are_not_followed() -> None:
    @T.prim_func(s_tir=True)
    def gather(
        x: T.Buffer((4,), "int32"), table: T.Buffer((9,), "float32"), y: T.Buffer((4,), "float32")
    ):
        for p in T.parallel(2):
            for i in range(3):
                y[T.min(p * 3, 1) + i] = table[x[T.min(p * 3, 1) + i]]

    images = Images(1, 4, 1)
    with pytest.raises(UnknownAccessError, match="positions"):
        cut_tasks(gather, [images, None], [images], 4)


def test_clamped_positions_are() -> None:
    @T.prim_func(s_tir=True)
    def gather(
        x: T.Buffer((4,), "int32"), table: T.Buffer((9,), "float32"), y: T.Buffer((4,), "float32")
    ):
        for p in T.parallel(2):
            for i in range(3):
                y[T.min(p * 3, 1) + i] = table[T.max(T.min(x[T.min(p * 3, 1) + i], 8), 0)]

    images = Images(1, 4, 1)
    assert cut_tasks(gather, [images, None], [images], 4).overrun == {0, 2}


def test_what_is_fetched_ahead_is_not_written() -> None:
    kind, zero = "int32", tirx.const(0, "int32")
    x, w, y = (tirx.decl_buffer((4, 6), "float32", name) for name in "xwy")
    scratch = tirx.decl_buffer((4, 6), "float32", "scratch")

    def rows(target: tirx.Var, source: tirx.Var, ahead: tirx.Var) -> tirx.Stmt:
        p, i = tirx.Var("p", kind), tirx.Var("i", kind)
        address = tirx.address_of(tirx.BufferLoad(ahead, [p, zero]))
        hint = [tirx.const(number, kind) for number in (0, 2, 1)]
        prefetch = tirx.call_llvm_intrin("void", "llvm.prefetch", address, *hint)
        store = tirx.BufferStore(target, tirx.BufferLoad(source, [p, i]), [p, i])
        inner = tirx.For(i, zero, tirx.const(6, kind), tirx.ForKind.SERIAL, store)
        body = tirx.SeqStmt([tirx.Evaluate(prefetch), inner])
        return tirx.For(p, zero, tirx.const(4, kind), tirx.ForKind.PARALLEL, body)

    body = tirx.SeqStmt([tirx.AllocBuffer(scratch), rows(scratch, x, w), rows(y, x, scratch)])
    cut = cut_tasks(tirx.PrimFunc([x, w, y], body), [ROWS, None], [ROWS], 4)
    # Of the scratch anything may be read, and so all of it is written.
    assert ends(cut) == [None, "1,2,3,4"]
    assert cut.overrun == {0}
