"""Initial weights of a student, sliced from its teacher (``docs/slicing.md``). Needs no trainer."""
