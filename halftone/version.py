"""The product's version, readable without imports. A test holds it equal to pyproject.toml and the changelog."""

__version__ = "0.1.0"
