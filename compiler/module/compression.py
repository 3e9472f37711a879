"""How strongly archives are compressed; known without Zstandard."""

# The weakest level that is taken, and the strongest.
LEVELS = (1, 19)
DEFAULT_LEVEL = 12
