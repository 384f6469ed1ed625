"""Random small networks, and relevance by definition to compare with. ``python -m tests.random_graphs --help``."""
