"""The commands of ``fairseq-star``: each module has ``add_arguments(parser)`` and ``run(arguments)``."""
