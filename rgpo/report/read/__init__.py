"""Runs from disk, reduced and grouped."""
