"""Speed and memory, each rate beside that of a plain implementation measured in the same run."""
