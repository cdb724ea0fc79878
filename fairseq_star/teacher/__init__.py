"""The frozen teacher of a run: its hidden states, computed or from a cache on disk."""
