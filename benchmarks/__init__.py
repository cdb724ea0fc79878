"""What is measured, each a program: ``python -m benchmarks.NAME`` from the clone's root."""
