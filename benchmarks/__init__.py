"""Benchmarks: ``python -m benchmarks NAME`` runs the module of that name in this folder."""
