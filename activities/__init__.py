"""The thin edge between Temporal and the domain: one module per kind of task queue."""
