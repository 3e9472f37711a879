"""The pipeline from an imported graph to scheduled kernels, as a value."""

from tinsmith.compiler.pipeline.order import (
    PRUNED_BEFORE,
    QUANTIZED_BEFORE,
    SCHEDULE,
    configured,
    graph_passes,
    integer_passes,
    kernel_passes,
    lowering,
    quantization_passes,
)
from tinsmith.compiler.pipeline.pipeline import Pipeline, PipelineReport
from tinsmith.compiler.pipeline.runner import PassRunner, PassTiming
from tinsmith.compiler.pipeline.step import Outcome, Step

__all__ = [
    "PRUNED_BEFORE",
    "QUANTIZED_BEFORE",
    "SCHEDULE",
    "Outcome",
    "PassRunner",
    "PassTiming",
    "Pipeline",
    "PipelineReport",
    "Step",
    "configured",
    "graph_passes",
    "integer_passes",
    "kernel_passes",
    "lowering",
    "quantization_passes",
]
