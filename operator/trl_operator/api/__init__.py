"""The custom resources: pydantic models, the rules between their fields, and the CRDs generated from both."""
