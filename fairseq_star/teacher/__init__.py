"""The frozen teacher of a run: ``provider`` gives its hidden states, computed or from the ``cache`` on disk."""
