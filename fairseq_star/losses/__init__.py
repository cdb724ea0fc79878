"""What the student is asked for: the terms of ``criterion=star_tgm``, each a weighted mean over an utterance's frames.

``relations`` (temporal Gram matrices, attention maps), ``units`` (the teacher's discrete targets) and ``frames`` (its
states through linear heads); ``selection`` says which frames a term is taken over. Each is a class made of the options
(``of`` gives None where its weights are 0), with the ``names`` it logs, the ``teacher_states`` it reads and, where it
has any, the ``heads`` trained along; called with a batch it gives the sum over utterances of its weighted loss.
"""
