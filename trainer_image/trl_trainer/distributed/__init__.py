"""How the ranks of an attempt work together."""
