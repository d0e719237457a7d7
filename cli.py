"""A door to the command line from a checkout: `python cli.py train run.yaml` is `lowmem train run.yaml`."""

from lowmem.cli import main

if __name__ == "__main__":
    main()
