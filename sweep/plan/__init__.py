"""Config to plan: values only, no disk and no torch."""
