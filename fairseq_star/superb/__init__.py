"""SUPERB through s3prl's own, unedited ``run_downstream.py``: settings, corpora, a resumable sweep, one table.

``recipes.yaml``, ``settings`` and ``tasks`` define experiments, ``corpora`` and ``preparing`` their data, ``toolkit``
and ``programs`` run s3prl; ``sweep`` runs all experiments, ``parsing`` and ``scorers`` read their numbers, ``scores``
and ``table`` compare them with published ones.
"""
