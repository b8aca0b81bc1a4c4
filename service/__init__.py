"""The gateway: HTTP in, jobs out. Knows the queue and the catalogue of models, never a model itself; torch stays unloaded."""
