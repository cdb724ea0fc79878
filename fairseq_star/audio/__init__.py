"""Audio files: opening them, their lengths, and the names of their utterances."""
