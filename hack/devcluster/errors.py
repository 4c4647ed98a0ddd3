"""What the command line shows to its user instead of a traceback."""


class DevClusterError(Exception):
    """Something that the user can understand and act on: the message says what is wrong and names the remedy."""
