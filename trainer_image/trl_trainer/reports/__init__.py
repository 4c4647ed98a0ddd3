"""What the trainer says while it works."""
