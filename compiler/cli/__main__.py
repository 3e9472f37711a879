"""`python -m compiler.cli` is the same as `tinsmith`."""

from compiler.cli import main

main()
