"""The errors a person can act on. Each message says what is wrong, where, and what to do."""


class EditingError(ValueError):
    """Base of every error raised on purpose by the engine."""


class FactError(EditingError):
    """The facts cannot be edited as they are: names the file or the rows."""


class ModelError(EditingError):
    """The language model cannot be found, loaded or edited."""


class CheckpointError(EditingError):
    """A hypernetwork or delta file is damaged or was made for another model."""


class NonFiniteError(EditingError):
    """A loss, statistic or weight shift became NaN or infinite; nothing was edited."""


class MemoryLimitError(EditingError):
    """The device ran out of memory; nothing was edited."""


class Cancelled(Exception):
    """Raised by a progress callback to stop the work; the weights are the original ones again."""
