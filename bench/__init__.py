"""Speed, memory, fidelity and load: one command each, a table for people and JSON for scripts."""
