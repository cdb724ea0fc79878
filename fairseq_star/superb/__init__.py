"""SUPERB through s3prl's own, unedited ``run_downstream.py``: settings, corpora, a sweep that survives, one table.

``recipes`` and ``tasks`` say what is run, ``corpora`` and ``preparing`` on what, ``toolkit`` and ``launch`` by which
s3prl; ``sweep`` runs it, ``parsing`` reads what s3prl printed, ``scores`` and ``table`` tell it beside ``published``
rows.
"""
