"""What the operator and the trainer agree on: the training part of the spec, the job file, reports and exit records.

pydantic and the standard library only, so that neither side drags the other's dependencies in.
"""
