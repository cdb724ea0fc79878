"""Registered criterions; ``fairseq_star/__init__.py`` imports them, because fairseq does not."""
