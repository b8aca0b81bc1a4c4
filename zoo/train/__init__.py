"""Training recipes of the built-in models: each stage checkpoints, resumes, and starts with one command."""
