"""Checkpoints that are whole or do not count: when they are written, how, and what is resumed from."""
