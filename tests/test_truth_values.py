"""Expressions of TVM have no truth value: asking for one raises, or compares identities.

`bool(expression)` raises ValueError, which a caller may take for something else; `a == b`
is an expression whose truth value says whether both are the same object, not whether they
are equal. Hence `is None`, `same_as` and `structural_equal`, in all our sources.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXPRESSIONS = frozenset({"Expr", "PrimExpr", "Var", "DataflowVar", "TensorLoad", "GenericConst"})
ASKING = frozenset({"bool", "any", "all", "max", "min", "sorted"})
ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def is_expression(annotation: ast.expr | None) -> bool:
    """Whether a value with this annotation is an expression or None.

    Containers of expressions have truth values, and of `Expr | int` the integers are asked.
    """
    if isinstance(annotation, ast.BinOp):
        sides = (annotation.left, annotation.right)
        return any(map(is_expression, sides)) and all(
            is_expression(side) or ast.unparse(side) == "None" for side in sides
        )
    if isinstance(annotation, ast.Attribute):
        return annotation.attr in EXPRESSIONS and ast.unparse(annotation.value) != "ast"
    return isinstance(annotation, ast.Name) and annotation.id in EXPRESSIONS


def returning_expressions(tree: ast.Module) -> frozenset[str]:
    """Names of the functions and methods of a module that return an expression."""
    yes, no = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            (yes if is_expression(node.returns) else no).add(node.name)
    return frozenset(yes - no)


def questions(node: ast.AST) -> Iterator[ast.expr]:
    """What `node` asks for its truth value, directly or by comparing.

    `x < y` is an expression like any other until somebody asks whether it is true.
    """
    for asked in asked_directly(node):
        yield asked
        if isinstance(asked, ast.Compare) and isinstance(asked.ops[0], ORDERED):
            yield from (asked.left, *asked.comparators)
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            if isinstance(operator, ast.Eq | ast.NotEq):
                yield from (left, right)
            elif isinstance(operator, ast.In | ast.NotIn):
                yield from [left] if isinstance(right, ast.List | ast.Tuple) else []


def asked_directly(node: ast.AST) -> Iterator[ast.expr]:
    """The operands of `node` whose truth values decide something."""
    if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
        yield node.test
    elif isinstance(node, ast.BoolOp):
        yield from node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.comprehension):
        yield from node.ifs
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING:
        for argument in node.args:
            yield argument.elt if isinstance(argument, ast.GeneratorExp) else argument


def called(node: ast.expr) -> str | None:
    """The name of a function or of a method of `self` that is called."""
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name):
            return function.id
        if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "self":
            return function.attr
    return None


def within(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions and classes inside it."""
    for node in ast.iter_child_nodes(function):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from within(node)


def expression_names(nodes: list[ast.AST], returning: set[str]) -> set[str]:
    """Variables of one function that hold expressions, by annotation or by assignment."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.arg) and is_expression(node.annotation):
            names.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and is_expression(node.annotation):
            names.add(ast.unparse(node.target))
        elif isinstance(node, ast.Assign) and called(node.value) in returning:
            names.update(t.id for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.NamedExpr) and called(node.value) in returning:
            names.add(node.target.id)
    return names


def offences(tree: ast.Module, elsewhere: dict[str, frozenset[str]]) -> list[str]:
    """Lines of `tree` that ask an expression; `elsewhere` says what other modules return."""
    returning = set(returning_expressions(tree))
    functions = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in elsewhere:
            returning.update({a.name for a in node.names} & elsewhere[node.module])
        elif isinstance(node, ast.FunctionDef):
            functions.append(node)
    lines = {}
    for function in functions:
        nodes = list(within(function))
        names = expression_names(nodes, returning)
        for asked in (asked for node in nodes for asked in questions(node)):
            value = asked.target if isinstance(asked, ast.NamedExpr) else asked
            if (isinstance(value, ast.Name) and value.id in names) or called(value) in returning:
                lines[asked.lineno] = f"line {asked.lineno}: {ast.unparse(asked)}"
    return list(lines.values())


@pytest.mark.parametrize(
    "line",
    [
        "if known or find(x): pass",
        "return known and find(x)",
        "if not x: pass",
        "y = x or 1",
        "y = 1 if (z := find(x)) else 2",
        "y = [1 for _ in range(3) if maybe]",
        "while self.get(x): pass",
        "return any(find(v) for v in many)",
        "return max(x, maybe)",
        "return x == 1",
        "return x in (1, 2)",
        "return 3 if x < 2 else 4",
        "z = find(1)\n    assert z",
        "return other(x) != 2",
    ],
)
def test_the_check_sees_every_form(line: str) -> None:
    tree = ast.parse(
        "from tinsmith.targets.elsewhere import other\n"
        "def find(v) -> relax.Var | None: ...\n"
        "def get(self, v) -> tirx.Expr: ...\n"
        "def test(x: Expr, many: list[Expr], known: bool):\n"
        f"    maybe: Expr | None = None\n    {line}\n"
    )
    assert len(offences(tree, {"tinsmith.targets.elsewhere": frozenset({"other"})})) == 1


def test_the_check_leaves_what_is_right() -> None:
    tree = ast.parse(
        "def find(v) -> relax.Var | None: ...\n"
        "def many(v) -> list[Var]: ...\n"
        "def test(x: Expr, count: Expr | int, table: dict[Var, int], node: ast.Expr):\n"
        "    if find(x) is None and x in table and not many(x) and isinstance(x, Var): pass\n"
        "    return x.same_as(find(x)) or node or count == 0 or table.find(x)\n"
        "    return tirx.Select(x < 2, x, find(x) + 1)\n"
    )
    assert offences(tree, {}) == []


def test_no_truth_value_of_an_expression() -> None:
    trees = {
        path.relative_to(ROOT): ast.parse(path.read_text(), str(path))
        for package in ("targets", "passes", "compiler")
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    elsewhere = {
        ".".join(("tinsmith", *path.with_suffix("").parts)): returning_expressions(tree)
        for path, tree in trees.items()
    }
    found = {str(path): offences(tree, elsewhere) for path, tree in trees.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}
