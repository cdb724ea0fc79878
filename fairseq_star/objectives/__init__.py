"""What the student is asked for: the terms of ``criterion=star_tgm``, each a weighted mean over an utterance's frames.

``relations`` (temporal Gram matrices, attention maps), ``units`` (the teacher's discrete targets) and ``frames`` (its
states through linear heads); ``selection`` says which frames a term is taken over. A term of weight 0 is not computed.
"""
