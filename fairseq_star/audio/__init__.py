"""Audio files: what they are, how long they are, and what their utterances are called."""
