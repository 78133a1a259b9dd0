"""Helpers that are not part of the interface."""
