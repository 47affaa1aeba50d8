"""From any table of runs to a scaling law, a prediction and how far to trust it."""
