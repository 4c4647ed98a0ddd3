"""Pure decisions: what an attempt is, how it ended, what comes next."""
