"""Students as programs that run without this package, live streams, and the table of export targets."""
