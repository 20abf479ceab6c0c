"""AnnData and text in, tensors out, and back."""
