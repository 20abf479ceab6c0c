"""`python -m scmmgpt` is the `scmmgpt` command."""

from .cli import main

if __name__ == "__main__":
    main()
