"""Pure: a job and an attempt become manifests."""
