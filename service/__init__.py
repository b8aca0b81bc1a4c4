"""The gateway: HTTP in, jobs out. Knows the queue and the models' cards, never a model itself: torch stays unloaded."""
