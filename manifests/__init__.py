"""Scripts that write manifests of users' audio, and labels beside them; ``manifests/demo/`` makes audio of its own."""
