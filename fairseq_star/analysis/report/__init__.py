"""A run as a page to look at: losses, relation maps, likeness of layers, cost; ``fairseq-star report``.

Nothing is imported here: the task draws its maps for TensorBoard with parts of this package, which must not import it.
"""
