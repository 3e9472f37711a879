"""Passes on the graph: canonical form, folding, layout, lowering to kernels, fusion."""

from tinsmith.passes.graph.absorb_input_transposes import AbsorbInputTransposes
from tinsmith.passes.graph.cancel_transposes import CancelTransposes
from tinsmith.passes.graph.canonicalize import Canonicalize
from tinsmith.passes.graph.clamp_indices import ClampIndices
from tinsmith.passes.graph.combine_constants import CombineConstants
from tinsmith.passes.graph.convert_layout import ConvertLayout
from tinsmith.passes.graph.decompose_convolutions import DecomposeConvolutions
from tinsmith.passes.graph.fold_batch_norm import FoldBatchNorm
from tinsmith.passes.graph.fold_constants import FoldConstants
from tinsmith.passes.graph.fuse import Fuse
from tinsmith.passes.graph.legalize import Legalize
from tinsmith.passes.graph.raise_primitives import RaisePrimitives
from tinsmith.passes.graph.recognize_composites import RecognizeComposites
from tinsmith.passes.graph.sink_reshapes import SinkReshapes

__all__ = [
    "AbsorbInputTransposes",
    "CancelTransposes",
    "Canonicalize",
    "ClampIndices",
    "CombineConstants",
    "ConvertLayout",
    "DecomposeConvolutions",
    "FoldBatchNorm",
    "FoldConstants",
    "Fuse",
    "Legalize",
    "RaisePrimitives",
    "RecognizeComposites",
    "SinkReshapes",
]
