"""`python -m trainer.cli` is the command `trainer`."""

from trainer.cli import main

if __name__ == "__main__":
    main()
