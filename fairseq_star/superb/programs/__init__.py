"""Programs that a sweep runs by their path in s3prl's environment, where neither this package nor fairseq need be."""
