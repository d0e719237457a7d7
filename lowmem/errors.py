"""Domain errors. The library raises these; only `lowmem.cli` turns them into text and exit codes.

A message says what was asked, why it cannot be, and what would work.
"""

from __future__ import annotations


class LowmemError(Exception):
    """Base of every error that a user can cause or mend. Anything else is a bug and keeps its traceback."""

    exit_code = 1


class ConfigError(LowmemError):
    """The config, the command line or the data it names cannot be used as written."""

    exit_code = 2


class DataError(ConfigError):
    """A dataset cannot be read or used; the message names the file and the sample."""


class BudgetError(LowmemError):
    """Nothing that was allowed fits the memory budget."""

    exit_code = 3


class OutOfMemoryError(LowmemError):
    """Memory ran out after every allowed concession."""

    exit_code = 4


class QualityGateError(LowmemError):
    """A quantized model failed its quality gate."""

    exit_code = 5


class CheckpointError(LowmemError):
    """A checkpoint is truncated, tampered with, or belongs to another run."""


class FormatError(LowmemError):
    """A model or file format is not supported, or is damaged."""


class KernelUnavailable(LowmemError):
    """A kernel was asked for by name and cannot run here."""


class NonFiniteError(LowmemError):
    """The loss or the gradient stayed NaN or infinite."""


class DivergenceError(LowmemError):
    """The processes of one run no longer hold the same weights."""


class Interrupted(LowmemError):
    """The run was asked to stop; a full checkpoint has been written."""

    exit_code = 130
