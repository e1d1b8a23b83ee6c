"""``python -m crnet``: the same as the command ``crnet``."""

from crnet.cli import main

if __name__ == "__main__":
    main()
