"""What became of the rows, in numbers and in words."""

from typing import Literal

from trl_contract.base import Model

ColumnType = Literal["text", "integer", "number", "boolean", "messages", "json"]
"""messages: lists of {role, content}; json: anything else that JSON can say, and columns of mixed types (there,
integers beyond 64 bits become text)."""


class WrittenFile(Model):
    """A file of rows that was written down."""

    digest: str
    """sha256:<hex>"""
    bytes: int


class SourceReport(Model):
    """What became of the rows of one source of a mixture."""

    name: str
    """File or repository."""
    weight: float
    rows: int = 0
    """Usable ones that were read."""
    bad: int = 0
    long_prompts: int = 0
    train: int = 0
    """Rows of an epoch; one that is trained on twice counts twice."""
    eval: int = 0
    """Rows that are held out."""


class DataReport(Model):
    """What became of the rows; all counts are of rows."""

    form: str
    """Columns and whether they are conversations, for example `prompt, chosen, rejected (conversations)`."""
    columns: dict[str, ColumnType]
    """All columns of the rows that TRL gets."""
    train: int
    eval: int
    bad: int = 0
    """Rows dropped because they are malformed, at most dataset.maxBadRows."""
    first_bad: str | None = None
    """The first of them: file, row number and why."""
    long_prompts: int = 0
    """Rows dropped because the prompt has more than dataset.maxPromptLength tokens."""
    duplicates: int = 0
    """Training rows equal to an earlier one, but for those that a mixture repeats; they are kept."""
    shared: int = 0
    """Held-out rows that are also training rows; they are kept."""
    empty_answers: int = 0
    """Rows with an answer without a visible character; they are kept."""
    formats: dict[str, int] = {}
    """What the rows were taken for, as dataset.format names it, and how many of them."""
    sources: list[SourceReport] = []
    """Of a mixture, in its order."""
    unread: dict[str, int] = {}
    """Columns that nothing reads, by name, and in how many rows they have a value; 20 at most."""
    train_file: WrittenFile
    """The training rows as they are trained on."""
    eval_file: WrittenFile
    """The held-out rows."""
    changed: bool = False
    """The training rows differ from those of an earlier attempt of this job."""
    fingerprint: str
    """sha256:<hex> of all that the rows depend on; the same fingerprint means that they need not be read again."""

    @property
    def conversational(self) -> bool:
        return "conversations" in self.form

    def warnings(self) -> list[str]:
        """Return a sentence for each thing that is worth a look."""
        total = self.train + self.eval
        lines = [
            (self.bad, f"{self.bad} bad rows were dropped; the first: {self.first_bad}"),
            (self.long_prompts, f"{self.long_prompts} rows were dropped: prompt longer than dataset.maxPromptLength"),
            (self.duplicates, f"{self.duplicates} of {self.train} training rows are duplicates"),
            (self.shared, f"{self.shared} of {self.eval} held-out rows are also training rows"),
            (self.empty_answers, f"{self.empty_answers} of {total} rows have an empty answer"),
            (len(self.unread), f"columns that are not read: {_counted(self.unread)}"),
            (self.changed, "the training data differ from those of the attempt before: the runs are not comparable"),
        ]
        return [text for count, text in lines if count]


def _counted(rows: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count} {'row' if count == 1 else 'rows'})" for name, count in rows.items())
