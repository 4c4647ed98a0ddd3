"""What training was worth, and the model that comes out of it."""
