"""Diffusers pipelines: load, run one per job, encode media. The only room that knows diffusers; knows no queue."""
