"""Metrics that several benchmarks share. Each is a function of one answer and the true ones."""
