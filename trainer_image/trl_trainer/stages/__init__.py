"""The four stages: each builds TRL's own trainer from the job, and reads top to bottom."""
