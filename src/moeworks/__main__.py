"""`python -m moeworks` is the command line."""

from moeworks.cli import main

if __name__ == "__main__":
    main()
