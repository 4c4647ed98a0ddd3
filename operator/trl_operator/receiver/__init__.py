"""The receiver of progress reports: a process of its own, so that nothing it is sent can harm the controller.

HTTPS, wire-compatible with Kubeflow Trainer's TrainJob status protocol. A request is believed nothing before its token
is, and costs the API server nothing before it looks right: app > tokens, reviews > turns; what is taken goes to writer.
"""
