"""One run: spec and batches in, result out."""
