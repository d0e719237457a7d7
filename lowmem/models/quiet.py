"""transformers and the hub client without their own bars and warnings: the terminal belongs to `lowmem.cli`."""

from __future__ import annotations

import logging as standard_logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers and the hub client print errors only; afterwards they print what they did before."""
    from transformers.utils import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub = standard_logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(standard_logging.ERROR)  # it tells of every retry of an unreachable hub; our error says it once
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
