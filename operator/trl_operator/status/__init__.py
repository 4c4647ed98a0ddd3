"""Pure: what was observed becomes the status."""
