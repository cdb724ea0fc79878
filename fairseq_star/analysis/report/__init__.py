"""A run as an HTML page: losses, relation maps, similarity of layers, cost; ``fairseq-star report``."""
