"""`python -m tinsmith_runtime`: the command `tinsmith-runtime`."""

from tinsmith_runtime import main

main()
