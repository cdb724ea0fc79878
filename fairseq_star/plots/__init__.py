"""Relation maps: temporal Gram matrices of one utterance, drawn; for TensorBoard in training and for the report."""
