"""The zoo: relevance measured on every model of the usual libraries, with random weights.

``python -m benchmarks.zoo`` builds each model, runs relevance in float64 and float32, and prints one row a model. See
``docs/coverage.md`` for the table that it writes.
"""
