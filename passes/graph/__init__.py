"""Passes on the graph: canonical form, folding, layout, lowering to kernels, fusion."""

from passes.graph.absorb_input_transposes import AbsorbInputTransposes
from passes.graph.cancel_transposes import CancelTransposes
from passes.graph.canonicalize import Canonicalize
from passes.graph.clamp_indices import ClampIndices
from passes.graph.combine_constants import CombineConstants
from passes.graph.convert_layout import ConvertLayout
from passes.graph.decompose_convolutions import DecomposeConvolutions
from passes.graph.fold_batch_norm import FoldBatchNorm
from passes.graph.fold_constants import FoldConstants
from passes.graph.fuse import Fuse
from passes.graph.legalize import Legalize
from passes.graph.raise_primitives import RaisePrimitives
from passes.graph.recognize_composites import RecognizeComposites
from passes.graph.sink_reshapes import SinkReshapes

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
