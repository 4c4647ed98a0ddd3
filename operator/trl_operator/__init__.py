"""The controller: custom resources in, workloads out, progress and verdicts back into status."""
