"""Models of other formats, and checkpoints, into Relax."""

# How the names of checkpoints end (`tinsmith.compiler.frontends.checkpoint`); known without TVM.
CHECKPOINT_SUFFIX = ".tinsmith"
