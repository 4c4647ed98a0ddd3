"""The same losses without computing padding: docs/performance.md has what it saves.

Two hooks around a model's decoder (hooks.py) turn each padded batch into one row of its tokens (rows.py), in which a
pair's common prompt stands once, and give back the padded batch's hidden states; one attention function
(attention.py) attends within each sequence. TRL's losses, metrics and references stay as they are and know nothing of
it. A model that would compute anything else by this is found by a reduced copy before weights are loaded (guard.py),
and by one small batch before the first step (check.py): then the run is padded, and says so.
"""
