"""Mutated model files against the front end and the compiler: `python -m tests.fuzz --help`."""
