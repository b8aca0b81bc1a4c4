"""Classifier-free guidance with less arithmetic: plans of what each step leaves out. Knows no pipeline."""
