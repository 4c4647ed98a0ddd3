"""A single-node Kubernetes cluster on a bare Debian machine, for this project's demo and tests."""
