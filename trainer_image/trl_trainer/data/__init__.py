"""The job's rows: read from any source, checked, shaped for TRL, written down and tokenized once for all ranks."""

from trl_trainer.data.arrow import Data, Tokenize, build, load
from trl_trainer.data.preparation import Tell, together
from trl_trainer.data.report import DataReport
from trl_trainer.data.write import Written, write

__all__ = ["Data", "DataReport", "Tell", "Tokenize", "Written", "build", "load", "together", "write"]
