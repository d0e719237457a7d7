"""The command line: one file per verb, `render` for what is drawn. Torch is imported inside the verbs."""

from __future__ import annotations


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        from lowmem.cli.app import app

        app(prog_name="lowmem")
    except KeyboardInterrupt:  # between the verbs' own handling: while modules are imported
        raise SystemExit(130) from None
