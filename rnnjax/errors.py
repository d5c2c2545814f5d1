"""The errors that rnnjax raises on purpose. Each says what was expected, what came, what to do."""


class RnnjaxError(Exception):
    """Base of every error that rnnjax raises on purpose."""


class InvalidInputError(RnnjaxError, ValueError):
    """A value, shape or option that the called function cannot use."""


class CorpusError(RnnjaxError):
    """A text that could not be found, downloaded, verified or decoded."""


class CheckpointError(RnnjaxError):
    """A checkpoint that is missing, damaged, or belongs to another model."""


class NonFiniteError(RnnjaxError, ArithmeticError):
    """Training met a loss or a gradient that is NaN or infinite."""


class InteropError(RnnjaxError):
    """A model of another framework, or its file, that cannot be read, converted or written."""
