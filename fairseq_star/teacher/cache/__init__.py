"""A teacher's hidden states in fewer bytes, for its cache: what is kept of a frame, and what that costs in accuracy.

Shape legend of all its files: S states stored, n frames of an utterance, B x T those of a padded batch, D the teacher's
width, d the width of what is kept. Nothing here knows of files of audio or of fairseq.
"""
