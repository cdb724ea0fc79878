"""Findings on a run that is not well, from what it left behind; ``fairseq-star doctor``."""
