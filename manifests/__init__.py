"""Scripts that write manifests of users' audio, and labels next to them; ``manifests/demo/`` synthesizes audio."""
