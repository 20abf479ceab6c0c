"""Corpora, recipes, metrics and conversion. Run the scripts with `accelerate launch training/<name>.py`."""
