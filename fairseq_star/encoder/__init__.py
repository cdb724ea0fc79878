"""The speech encoder that a student is and that a teacher holds frozen: shape, frames, modules, forward pass."""
