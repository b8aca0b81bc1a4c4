"""`python -m halftone`: the command line. Knows nothing else."""

from halftone.cli import app

app()
