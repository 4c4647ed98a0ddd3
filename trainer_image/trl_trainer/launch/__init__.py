"""How an attempt starts and ends: records, signals, the watchdog."""
