"""The embedded model: its profiles, simulated cells, recipe, calibration and guard."""
