"""The controller: custom resources in, PyTorchJobs out, progress and verdicts back into status."""
