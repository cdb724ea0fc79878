"""Memory, threads, signals and versions of the process: what every floor may use."""
