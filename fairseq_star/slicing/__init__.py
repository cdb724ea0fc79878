"""First weights of a student, sliced out of its teacher: ``docs/slicing.md``. Needs no trainer."""
