"""What can go wrong, and whose turn it is.

    KunlunError(1)                                   exit code in brackets
    ├── UserError(2)   something to change in the input; one clear line, no traceback
    │   ├── ConfigError      a key or value of a configuration or command line
    │   ├── SchemaError      a schema file that contradicts itself or the data's columns
    │   ├── DataError        a file, column or row of data
    │   ├── RunError         a run directory or checkpoint
    │   ├── ShapeError       a tensor handed to an operator
    │   └── BackendError     a backend, device or extra that is not available here
    └── NumericsError(1) NonFiniteError(step, module, batch file)

A message says what came, what was expected, and what to do.
"""

from __future__ import annotations

from pathlib import Path


class KunlunError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UserError(KunlunError):
    """The caller can mend it; the message is one line."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown key, a wrong type or an impossible combination in a configuration."""


class SchemaError(UserError):
    """A schema that contradicts itself or the columns it names."""


class DataError(UserError):
    """Data that breaks the schema; names file, column and row as far as they are known."""

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        column: str | None = None,
        row: int | None = None,
    ) -> None:
        where = [str(file)] if file is not None else []
        where += [f"column '{column}'"] if column is not None else []
        where += [f"row {row}"] if row is not None else []
        super().__init__(f"{', '.join(where)}: {message}" if where else message)
        self.file, self.column, self.row = file, column, row


class RunError(UserError):
    """A run directory, checkpoint or saved model that is missing, torn or does not fit."""


class ShapeError(UserError, ValueError):
    """A tensor whose shape, dtype or offsets an operator cannot take; names the argument."""


class BackendError(UserError):
    """A backend, device or optional extra that cannot be used here, with the reason."""


class NumericsError(KunlunError):
    """Arithmetic went wrong."""


class NonFiniteError(NumericsError):
    """A loss or gradient became NaN or infinite.

    Attributes: step (optimizer step, from 1), module (first offending parameter or "loss"),
    batch_file (path of the saved batch, or None).
    """

    def __init__(self, *, step: int, module: str, batch_file: str | Path | None) -> None:
        saved = f"; the batch was saved to {batch_file}" if batch_file is not None else ""
        super().__init__(
            f"step {step}: {module} is not finite{saved}. "
            "Lower train.lr or look at that batch's numeric columns."
        )
        self.step, self.module, self.batch_file = step, module, batch_file
