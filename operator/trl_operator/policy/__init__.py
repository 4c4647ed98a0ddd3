"""One file per policy: pure, each with its twin test."""
