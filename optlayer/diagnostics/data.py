"""What is known of a sample, as plain numbers and the user's names."""

from dataclasses import dataclass, field
from math import inf, isfinite, nan

from optlayer.solution import Status

Index = int | tuple[int, ...]

AGREEMENT = 1e-4  # relative: derivatives by differences and by the layer that are the same
CORNER = 1e-2  # relative: differences to both sides that no curve explains
NOTHING = 1e-12  # relative: a gradient that is 0


@dataclass(frozen=True)
class Constraint:
    """One inequality or cone constraint at the solution, rows by their number in C order."""

    name: str  # as errors call it: "inequality 0 'lower'"
    rows: int
    active: tuple[int, ...]  # g = 0 with a multiplier: they hold x
    weak: tuple[int, ...]  # g = 0 and the multiplier is 0 too: a kink


@dataclass(frozen=True)
class Slopes:
    """d/dt ⟨w, y(θ + tδ)⟩ at t = 0, five ways; w and δ as in `check`, δ of the size of θ.

    By differences with steps of 1e-4 or 1e-6, whichever is smoother there; by forward and by reverse mode.
    """

    forward: float  # (y(θ + tδ) - y(θ)) / t
    backward: float  # (y(θ) - y(θ - tδ)) / t
    jvp: float
    vjp: float
    noise: float  # what rounding makes of a difference

    @property
    def central(self) -> float:
        """The mean of the two."""
        return 0.5 * (self.forward + self.backward)

    @property
    def known(self) -> bool:
        """Whether both neighbours have a solution."""
        return isfinite(self.central)

    @property
    def one_sided(self) -> bool:
        """Whether the two sides differ: a kink, not a curve."""
        return abs(self.forward - self.backward) > CORNER * self.size + self.noise

    @property
    def error(self) -> float:
        """The largest difference between the layer's derivatives and the central one, relative."""
        worst = max(abs(own - self.central) for own in (self.jvp, self.vjp))
        return 0.0 if worst <= self.noise else worst / self.size

    @property
    def agree(self) -> bool:
        """Whether the layer's derivatives are those of its values."""
        return self.error <= AGREEMENT

    @property
    def size(self) -> float:
        """The largest of them."""
        return max(map(abs, (self.forward, self.backward, self.jvp, self.vjp)))


@dataclass(frozen=True)
class Sample:
    """One problem of the batch; what could not be computed is None or NaN."""

    index: Index  # () where the call is unbatched
    status: Status
    message: str  # how it went; of a failure, why
    residuals: dict[str, float]  # relative KKT residuals, in the order of `Residuals`
    constraints: tuple[Constraint, ...] = ()
    condition: float | None = None  # of K in the problem's units, |K| |K⁻¹| in the 2-norm
    scaled: float | None = None  # of K with rows and columns scaled to one size
    kink: bool = False
    degenerate: bool = False
    nonunique: bool = False
    vertex: bool = False  # active constraints alone determine x
    margin: float = inf  # the least λ or slack, relative to its size: how near the next kink is
    nearest: str = ""  # whose that is
    gradient: float = nan  # |∂⟨w, y⟩/∂θ|, over all parameters
    gain: float = nan  # the same, relative: |∂⟨w, y⟩/∂θ| |θ| / (|w| |y|)
    slopes: Slopes | None = None

    @property
    def solved(self) -> bool:
        """Whether it has a certified answer."""
        return self.status == Status.SOLVED

    @property
    def active(self) -> dict[str, tuple[int, ...]]:
        """The rows that hold x, by the constraint's name."""
        return {c.name: c.active for c in self.constraints if c.active}

    @property
    def weakly_active(self) -> dict[str, tuple[int, ...]]:
        """The rows that are on a kink, by the constraint's name."""
        return {c.name: c.weak for c in self.constraints if c.weak}

    @property
    def flat(self) -> bool:
        """Whether the gradient is 0."""
        return self.gain <= NOTHING

    @property
    def one_sided(self) -> bool:
        """Whether the outputs change at different rates to both sides."""
        return self.slopes is not None and self.slopes.one_sided

    @property
    def regular(self) -> bool:
        """Whether there is one derivative, as far as K and the multipliers tell."""
        return self.solved and not (self.kink or self.degenerate or self.nonunique)


@dataclass(frozen=True)
class Branch:
    """A callable that speaks both cvxpy and torch."""

    name: str
    gap: float  # largest relative difference, of values and derivatives at the solutions


@dataclass(frozen=True)
class Finding:
    """Something to know, and what to do about it."""

    kind: str  # one word to test for
    text: str
    advice: str
    samples: tuple[Index, ...] = field(default=())  # () where it concerns all
