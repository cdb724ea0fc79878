"""The commands of ``fairseq-star``: each module has ``add_arguments(parser)`` and ``run(arguments)``.

They import torch and fairseq in ``run`` alone, so that help is told at once.
"""
