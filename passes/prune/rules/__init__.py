"""How channels run through each kind of operator; an operator without a rule freezes them."""

from tinsmith.passes.prune.rules import elementwise, movement, products, statistics
from tinsmith.passes.prune.tracer import Rule

RULES: dict[str, Rule] = {
    **products.RULES,
    **elementwise.RULES,
    **movement.RULES,
    **statistics.RULES,
}
