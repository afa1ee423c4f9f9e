"""What a solver says of a batch, sample by sample, and the loop over it that no sample can break."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from optlayer.engines import Answer, Array, ConeProgram
from optlayer.engines.pool import Pool
from optlayer.solution import Status

SAID = {Status.INFEASIBLE: "infeasible", Status.UNBOUNDED: "unbounded"}  # cvxpy's words for them


class Sheet:
    """Rows of an `Answer`, filled in any order and by any thread."""

    def __init__(self, name: str, program: ConeProgram) -> None:
        (B, n), m = program.q.shape, program.b.shape[1]
        self._name = name
        self._x, self._y = np.full((B, n), np.nan), np.full((B, m), np.nan)
        self._rays = np.full((B, n), np.nan), np.full((B, m), np.nan)
        self._iterations = np.zeros(B, dtype=np.int64)
        self._claims = [Status.FAILED] * B
        self._words = [f"{name} was not asked"] * B

    def write(self, i: int, claim: Status, word: str, x: Array, y: Array, iterations: int) -> None:
        """What the solver claims of sample i: on a point, or where there is said to be none on a ray."""
        self._claims[i], self._words[i] = claim, f"{self._name}: {SAID.get(claim, word)}"
        self._iterations[i] = iterations
        if claim in SAID:
            self._rays[0][i], self._rays[1][i] = x, y
        else:
            self._x[i], self._y[i] = x, y

    def silent(self, i: int, claim: Status, word: str, iterations: int) -> None:
        """A claim without a point or a ray."""
        self._claims[i], self._words[i] = claim, f"{self._name}: {word}"
        self._iterations[i] = iterations

    def fail(self, i: int, error: BaseException) -> None:
        """The solver threw."""
        self._claims[i] = Status.FAILED
        self._words[i] = f"{self._name} raised {type(error).__name__}: {error}"

    def answer(self) -> Answer:
        """All of it; a point that is not one is a failure."""
        finite = np.isfinite(self._x).all(1) & np.isfinite(self._y).all(1)
        for i in np.flatnonzero(~finite).tolist():
            self._x[i], self._y[i] = np.nan, np.nan
            if self._claims[i] in (Status.SOLVED, Status.INACCURATE):
                self._claims[i], self._words[i] = Status.FAILED, f"{self._words[i]}, but not a finite point"
        claims, words = tuple(self._claims), tuple(self._words)
        return Answer(self._x, self._y, claims, words, self._iterations, self._rays)


class Workspace(Protocol):
    """A solver's object, used for one sample after the other.

    An answer may depend on nothing that an earlier sample has left in it.
    """

    def solve(self, i: int, sheet: Sheet) -> bool:
        """Solve sample i and write down what it says; whether the object is as good as new after that."""
        ...


def fill(
    sheet: Sheet, size: int, workspace: Callable[[], Workspace], pool: Pool, alone: bool = False
) -> Answer:
    """Every sample by a workspace of its stretch; one that throws is replaced."""

    def stretch(rows: range) -> None:
        work: Workspace | None = None
        for i in rows:
            try:
                work = work or workspace()
                work = work if work.solve(i, sheet) else None
            except BaseException as error:  # a panic in an extension does not derive from Exception
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                sheet.fail(i, error)
                work = None

    pool.run(stretch, size, alone)
    return sheet.answer()
