"""Metrics that benchmarks are scored by."""
