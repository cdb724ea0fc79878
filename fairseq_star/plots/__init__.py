"""Figures of temporal Gram matrices, for TensorBoard and the report, and the style that all figures share."""
