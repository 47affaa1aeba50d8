"""What is trained: shapes, exact counts, the decoder and its transfer rules. Knows nothing of sweeps."""
