"""The terms of ``criterion=star_tgm``: what a student is trained to match, each a weighted mean over its own frames.

``relations`` (temporal Gram matrices, attention maps), ``frames`` (the teacher's states through linear heads) and
``units`` (the teacher's discrete targets) hold a :class:`fairseq_star.losses.term.Term` each; ``selection`` says over
which frames a term is taken. A new term is a class of that kind, its options in ``options`` and its entry in the table
of ``terms``.
"""
