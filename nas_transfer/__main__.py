"""``python -m nas_transfer``."""

from nas_transfer.cli import main

if __name__ == "__main__":
    main()
