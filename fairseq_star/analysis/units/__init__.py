"""Units of a teacher: k-means centroids of one layer's states, for ``criterion.units`` and for whoever wants labels.

``sample`` takes frames of a manifest to disk, ``kmeans`` fits centroids to them, ``quality`` says what they are worth.
"""
