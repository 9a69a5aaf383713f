"""``python -m gradmimic``, which is ``gradmimic``; torchrun starts it so."""

from gradmimic.cli import main

if __name__ == "__main__":
    main()
