"""The teacher cache: hidden states on disk, as they are or compressed, and the accuracy of the compression.

Shape legend of all its files: S states stored, n frames of an utterance, B x T those of a padded batch, D the teacher's
width, d the stored width. Nothing here depends on audio files or on fairseq.
"""
