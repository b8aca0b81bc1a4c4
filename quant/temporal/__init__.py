"""Temporal features: found by dependency, reconstructed, cached, chosen between. Must not know any model by name."""
