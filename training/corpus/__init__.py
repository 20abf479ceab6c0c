"""From atlases to a tokenised, split and audited corpus on disk, and how it is read."""
