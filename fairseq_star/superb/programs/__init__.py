"""Programs that a sweep runs by path in s3prl's environment, which need not have this package or fairseq."""
