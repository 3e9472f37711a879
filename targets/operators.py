"""Operators that no operator of the graph stands for: front ends put them there as kernels.

A time loop and a walk through trees are loops from the start; whoever imports a model with them
calls what is here and names no family. They are loops for CPUs, and every family finishes them
with its own instructions (`tinsmith.targets.cpu.schedules.recurrent` and `.forest`).
"""

from tinsmith.targets.cpu.operators.forest import LANES, ForestWorkload, forest_kernel
from tinsmith.targets.cpu.operators.forest_tables import (
    ABSENT,
    FEATURE_BITS,
    OUTCOMES,
    Forest,
    tables_of,
)
from tinsmith.targets.cpu.operators.recurrent import RecurrentWorkload, recurrent_kernel
from tinsmith.targets.cpu.operators.recurrent_cells import (
    Activation,
    gru_update,
    lstm_step,
    read_activations,
)
from tinsmith.targets.cpu.operators.recurrent_quantized import QuantizedLstm, pack_recurrent

__all__ = [
    "ABSENT",
    "FEATURE_BITS",
    "LANES",
    "OUTCOMES",
    "Activation",
    "Forest",
    "ForestWorkload",
    "QuantizedLstm",
    "RecurrentWorkload",
    "forest_kernel",
    "gru_update",
    "lstm_step",
    "pack_recurrent",
    "read_activations",
    "recurrent_kernel",
    "tables_of",
]
