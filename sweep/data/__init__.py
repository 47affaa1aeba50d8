"""Corpus to batches. Knows no spec."""
