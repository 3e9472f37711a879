"""How many units each group keeps: one rule, one file; numpy only, but for counting costs."""
