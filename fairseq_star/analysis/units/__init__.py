"""Units of a teacher: k-means centroids of one layer's states, for ``criterion.units`` and for labels in general."""
