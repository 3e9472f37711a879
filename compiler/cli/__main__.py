"""`python -m tinsmith.compiler.cli` is the same as `tinsmith`."""

from tinsmith.compiler.cli import main

main()
