"""The terms of ``criterion=star_tgm``, each a weighted mean over an utterance's frames.

``relations`` (temporal Gram matrices, attention maps), ``frames`` (the teacher's states through linear heads) and
``units`` (the teacher's discrete targets) hold a :class:`fairseq_star.losses.term.Term` each; ``selection`` selects the
frames of a term. A new term is a class of that kind, its options in ``options`` and its entry in the table
of ``terms``.
"""
