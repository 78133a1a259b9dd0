"""The Lightning layer."""
