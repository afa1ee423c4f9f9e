"""The layer: enter, solve, attach, leave. No mathematics."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import cvxpy as cp
import torch
from torch import Tensor

from optlayer.batch import Batch, Slot, bind, enter
from optlayer.declare.admissible import admissible
from optlayer.declare.callables import UserCallable
from optlayer.declare.declaration import Declaration
from optlayer.declare.declared import Declared
from optlayer.declare.opaque import Learned, read
from optlayer.declare.problem import ProblemDeclaration
from optlayer.declare.routes import Method, compile_declaration
from optlayer.engines.phase_one import PhaseOne
from optlayer.engines.proof import Proof, ProofByCvxpy
from optlayer.engines.table import engines_for
from optlayer.errors import DeclarationError, InputError
from optlayer.forms import Point
from optlayer.forms.conic import ConicForm
from optlayer.forms.kkt import KKTForm, Root
from optlayer.implicit import attach
from optlayer.modes import undisturbed
from optlayer.plan import Call, Outcome, Plan
from optlayer.smoothing import SmoothedRoot, check_smooth
from optlayer.solution import Flags, Residuals, Solution, Status
from optlayer.solve import solve

OnFailure = Literal["raise", "nan"] | Callable[[Exception, Solution], None]


class OptLayer(torch.nn.Module):
    r"""The argmin of a convex problem as a torch module, with exact derivatives.

        x*(θ) = argmin_x { f(x, θ) : g(x, θ) <= 0,  h(x, θ) = 0 }

    Args:
        variables: What is solved for; cvxpy variables of any shape. nonneg, nonpos, pos, neg, bounds,
            symmetric, diag, PSD, NSD and sparsity become constraints.
        parameters: θ, what the layer is called with, in this order.
        objective: f, a callable `(*variables, *parameters)`, written in cvxpy atoms, plain arithmetic or
            torch; one element, convex in the variables. An `nn.Module` becomes a submodule, and its weights
            are differentiated like any other parameter.
        inequalities: Callables g, each elementwise <= 0 and convex.
        equalities: Callables h, each elementwise = 0 and affine.
        solver: A solver cvxpy has installed, by name; None takes the best for the problem class and
            tries others where it fails.
        method: "smooth" differentiates f, g, h as they are, and admits norms that stay away from their
            apex; "cone" goes through cvxpy's canonical cone programme; "auto" takes the smooth route where
            every atom is smooth, else the cone route.
        on_failure: "raise"; or "nan", which keeps the other samples and gives NaN rows with zero gradient;
            or a callable `(error, solution) -> None`, called after such a solve, that may raise.
        nonunique: What to do where the minimizer is not unique and the derivative is the minimum-norm
            one: "warn" (once per layer), "raise", "ignore".
        smoothing: μ, in units of the objective: derivatives are those of the minimizer of f + μ · barrier
            instead of the argmin's, which for a linear programme is 0 almost everywhere; values stay exact.
            For zero, nonnegative, second-order and semidefinite cones.
        tolerance: Relative KKT residual above which an answer is not accepted (dimensionless).
        solver_options: Handed to the solver by name.

    Raises:
        DeclarationError: where the problem cannot be honoured as declared.

    Example:
        >>> import cvxpy as cp, torch
        >>> z, x = cp.Variable(3), cp.Parameter(3)
        >>> relu = OptLayer([z], [x], lambda z, x: cp.sum_squares(z - x), [lambda z, x: -z])
        >>> relu(torch.tensor([-1.0, 0.5, 2.0]))
        tensor([0.0000, 0.5000, 2.0000])
    """

    def __init__(
        self,
        variables: Sequence[cp.Variable],
        parameters: Sequence[cp.Parameter],
        objective: UserCallable,
        inequalities: Sequence[UserCallable] = (),
        equalities: Sequence[UserCallable] = (),
        *,
        solver: str | None = None,
        method: Method = "auto",
        on_failure: OnFailure = "raise",
        nonunique: Literal["warn", "raise", "ignore"] = "warn",
        smoothing: float | None = None,
        tolerance: float = 1e-8,
        **solver_options: Any,
    ) -> None:
        super().__init__()
        _check_options(method, on_failure, nonunique, smoothing, tolerance)
        _check_sequences(
            variables=variables, parameters=parameters, inequalities=inequalities, equalities=equalities
        )
        f, g, h = self._registered(objective, inequalities, equalities)
        self._declaration: Declared = Declaration(tuple(variables), tuple(parameters), f, g, h)
        self._set_up(solver, method, on_failure, nonunique, smoothing, tolerance, solver_options)

    @classmethod
    def from_problem(
        cls,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter] | None = None,
        variables: Sequence[cp.Expression] | None = None,
        *,
        solver: str | None = None,
        method: Method = "auto",
        on_failure: OnFailure = "raise",
        nonunique: Literal["warn", "raise", "ignore"] = "warn",
        smoothing: float | None = None,
        tolerance: float = 1e-8,
        gp: bool = False,
        **solver_options: Any,
    ) -> "OptLayer":
        r"""The argmin of a cp.Problem as a torch module; the problem itself is left as it is.

        Args:
            problem: Any disciplined convex problem (Minimize or Maximize), with or without parameters.
            parameters: What the layer is called with, in this order; None for all, in the order of
                `problem.parameters()`. One that is left out is a constant: its value as it is now.
            variables: What the layer returns: variables, dual variables (`constraint.dual_variables[0]`)
                and affine expressions of variables; None for all variables, in the order of
                `problem.variables()`.
            gp: Read the problem as a geometric programme; its multipliers are those of the
                logarithmic problem, as cvxpy's are.
            solver, method, on_failure, nonunique, smoothing, tolerance, solver_options: As in the class.

        Raises:
            DeclarationError: where the problem cannot be honoured, naming the constraint and the term.

        Example:
            >>> import cvxpy as cp, torch
            >>> z, x = cp.Variable(3), cp.Parameter(3)
            >>> problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(z - x) + cp.norm1(z)))
            >>> shrink = OptLayer.from_problem(problem)
            >>> shrink(torch.tensor([-3.0, 0.5, 2.0]))
            tensor([-2., 0., 1.])
        """
        _check_options(method, on_failure, nonunique, smoothing, tolerance)
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer._weight_names = ()
        layer._declaration = ProblemDeclaration.of(problem, parameters, variables, gp)
        layer._set_up(solver, method, on_failure, nonunique, smoothing, tolerance, solver_options)
        return layer

    def _registered(
        self, objective: Any, inequalities: Sequence[Any], equalities: Sequence[Any]
    ) -> tuple[UserCallable, tuple[UserCallable, ...], tuple[UserCallable, ...]]:
        """The callables, modules among them as submodules of this one, each once."""
        roles = {"objective": objective}
        roles |= {f"inequality_{i}": c for i, c in enumerate(inequalities)}
        roles |= {f"equality_{i}": c for i, c in enumerate(equalities)}
        known: dict[int, Learned] = {}
        self._weight_names: tuple[str, ...] = ()
        for role, f in roles.items():
            if isinstance(f, torch.nn.Module) and id(f) not in known:
                known[id(f)] = Learned(f)
                self._weight_names += tuple(f"{role}.{name}" for name in known[id(f)].names)
                self.add_module(role, f)
        f, *rest = (known.get(id(f), f) for f in roles.values())
        k = len(inequalities)
        return f, tuple(rest[:k]), tuple(rest[k:])

    @property
    def _weights(self) -> tuple[Tensor, ...]:
        """Of the modules among the callables, in the order the declaration has them."""
        return tuple(read(self, name) for name in self._weight_names)

    def _set_up(
        self,
        solver: str | None,
        method: Method,
        on_failure: OnFailure,
        nonunique: Literal["warn", "raise", "ignore"],
        smoothing: float | None,
        tolerance: float,
        solver_options: dict[str, Any],
    ) -> None:
        self._method, self._on_failure, self._nonunique = method, on_failure, nonunique
        self._solver, self._solver_options, self._tolerance = solver, solver_options, tolerance
        self._smoothing = None if smoothing is None else float(smoothing)
        self._compile()

    def _compile(self) -> None:
        """Everything that can be derived from the declaration; a pickle does without it."""
        self._compiled = undisturbed(partial(compile_declaration, self._declaration, self._method))
        form = self._compiled.form
        if self._smoothing is not None:
            check_smooth(form.dual)
        self._plan = Plan(
            form=form,
            lift=self._compiled.lift,
            cold=self._solver is None and form.m == 0,
            engines=engines_for(form, self._solver, self._solver_options),
            proof=_proof(form),
            admissible=tuple(admissible(p) for p in (*self.inputs, *self._leaves_of_weights)),
            tolerance=self._tolerance,
            raises=self._on_failure == "raise",
            nonunique=self._nonunique,
            smoothing=self._smoothing,
        )
        self._slots = tuple(Slot(p.name(), p.shape) for p in self.inputs)
        for slot in self._slots:
            if slot.name in ("self", "warm_start"):
                raise DeclarationError(f"a parameter may not be named {slot.name!r}; choose another name")

    @property
    def _leaves_of_weights(self) -> list[cp.Parameter]:
        """What the weights are called in errors."""
        named = zip(self._weight_names, self._weights, strict=True)
        return [cp.Parameter(tuple(weight.shape), name=name) for name, weight in named]

    @property
    def variables(self) -> tuple[cp.Variable, ...]:
        """The declared variables."""
        return self._declaration.variables

    @property
    def inputs(self) -> tuple[cp.Parameter, ...]:
        """The declared parameters, in the order of the call; `parameters()` stays torch's."""
        return self._declaration.parameters

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        """The minimizer at the parameter values given, by position or by the parameters' names.

        Args:
            args, kwargs: For each parameter a tensor (*batch, *shape); arrays and numbers pass as data.
                Leading dimensions broadcast.

        Returns:
            One tensor (*batch, *shape) for one variable, a tuple for several; dtype and device are
            those of the tensors handed in. Solved in float64.

        Raises:
            InputError: for values of wrong count, shape, batch, device or dtype, or not admissible.
            SolveError: naming the samples without a certified answer.
        """
        primal = self._answer(args, kwargs, primal_only=True).primal
        return primal[0] if len(primal) == 1 else primal

    @torch.compiler.disable
    def solve(self, *args: Any, warm_start: Solution | None = None, **kwargs: Any) -> Solution:
        """The whole solution: primal and dual values, optimal value, status, residuals, flags.

        Takes and raises what a call of the layer does.

        Args:
            args, kwargs: The parameter values, as in a call.
            warm_start: A previous solution of the same batch shape. Newton starts from it; samples that
                it does not lead to a certified answer go to the engine as usual.
        """
        return self._answer(args, kwargs, primal_only=False, warm_start=warm_start)

    # ------------------------------------------------------------------------------------- the steps

    def _answer(
        self,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        primal_only: bool,
        warm_start: Solution | None = None,
    ) -> Solution:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            batch = self._prepared(enter(self._slots, bind(self._slots, args, kwargs))).beside(self._weights)
            theta, form = batch.theta, self._plan.form
            call = Call(batch.shape, batch.eps, _start(form, batch, warm_start))
            if batch.size == 0:
                u, outcome = _empty(form, theta)
                point = form.recover(u, outcome.tau)
                return self._leave(batch, point, outcome, theta, theta, primal_only)
            outcome = solve(self._plan, call, theta)
            theta = tuple(a.read(t) for a, t in zip(self._plan.admissible, theta, strict=True))
            if not self._plan.raises:
                theta = tuple(_keep(outcome.status, t, 0.0) for t in theta)
            lifted = self._plan.lift(theta)
            point = self._attached(call, outcome, lifted)
            solution = self._leave(batch, point, outcome, theta, lifted, primal_only and not call.errors)
        if callable(self._on_failure):
            for error in call.errors:
                self._on_failure(error, solution)
        return solution

    def _prepared(self, batch: Batch) -> Batch:
        """The values as the problem takes them; for subclasses."""
        return batch

    def _attached(self, call: Call, outcome: Outcome, theta: tuple[Tensor, ...]) -> Point:
        """x, λ, ν with their derivatives; with smoothing exact in value, and as the smoothed root moves."""
        form, mu = self._plan.form, self._plan.smoothing
        if mu is None:
            root = Root(form, next(iter(call.factored), None))
            return form.recover(attach(root, outcome.u, (*theta, outcome.tau)), outcome.tau)
        soft, tau = SmoothedRoot(form, mu), outcome.smoothed_tau
        moving = soft.recover(attach(soft, outcome.smoothed, (*theta, tau)), tau)
        exact = form.recover(outcome.u, outcome.tau)
        return Point(*(there + (part - part.detach()) for there, part in zip(exact, moving, strict=True)))

    def _leave(
        self,
        batch: Batch,
        point: Point,
        outcome: Outcome,
        theta: tuple[Tensor, ...],
        lifted: tuple[Tensor, ...],
        primal_only: bool,
    ) -> Solution:
        """From u to what the user asked for, failed rows NaN."""
        compiled, form = self._compiled, self._plan.form
        reading = compiled.readout.read(point, theta)

        def leave(value: Tensor) -> Tensor:
            return batch.leave(_keep(outcome.status, value, torch.nan), tuple(value.shape[1:]))

        duals = () if primal_only else tuple(tuple(map(leave, parts)) for parts in reading.duals)
        value = point.x[:, 0] if primal_only else compiled.readout.value(form, point.x, lifted)
        return Solution(
            primal=tuple(map(leave, reading.outputs)),
            inequality_duals=() if primal_only else tuple(duals[i][0] for i in compiled.inequalities),
            equality_duals=() if primal_only else tuple(duals[i][0] for i in compiled.equalities),
            value=leave(value),
            status=batch.place(outcome.status),
            iterations=batch.place(outcome.iterations),
            residuals=Residuals(*(batch.place(r) for r in outcome.residuals.unbind(1))),
            flags=Flags(*(batch.place(f) for f in outcome.flags.unbind(1))),
            duals=dict(zip(self._declaration.constraint_ids, duals)),
            root=None if primal_only else torch.cat(form.recover(outcome.u, outcome.tau), 1),
        )

    # --------------------------------------------------------------------------------- as a good module

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_plan", "_compiled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compile()

    def __deepcopy__(self, memo: dict[int, Any]) -> "OptLayer":
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        shared = {"_declaration", "_compiled", "_plan", "_on_failure"}  # immutable, or the user's own
        twin.__dict__.update(
            {k: v if k in shared else copy.deepcopy(v, memo) for k, v in self.__dict__.items()}
        )
        return twin

    def extra_repr(self) -> str:
        """The problem, the route, the engines."""
        problem = self._compiled.problem
        lines = [
            f"variables: {_leaves(self.variables)}",
            f"parameters: {_leaves(self.inputs)}",
            f"minimize {problem.objective.expr}",
            *(f"subject to {constraint}" for constraint in problem.constraints),
            f"route: {self._compiled.route}, "
            f"engine: {', then '.join(dict.fromkeys(e.name for e in self._plan.engines))}",
        ]
        return "\n".join(lines)


def _proof(form: KKTForm) -> Proof | None:
    """How failures are proven: a cone programme has certificates of its own."""
    if isinstance(form, ConicForm):
        return None
    return PhaseOne() if form.reference is None else ProofByCvxpy(form.reference)


def _start(form: KKTForm, batch: Batch, previous: Solution | None) -> Point | None:
    """A previous solution's root, if it is one of this problem and this batch."""
    if previous is None:
        return None
    if not isinstance(previous, Solution):
        raise InputError(f"warm_start is a {type(previous).__name__}, expected a Solution of this layer")
    root = previous.root
    if root is None or root.shape != (batch.size, form.size):
        came = None if root is None else tuple(root.shape)
        raise InputError(
            f"warm_start holds a root of shape {came}, expected {(batch.size, form.size)}: "
            "pass a solution of this layer with the same batch shape"
        )
    return Point(*form.split(root))


def _keep(status: Tensor, rows: Tensor, otherwise: float) -> Tensor:
    """Rows of solved samples; what `where` leaves out, its derivative leaves out too."""
    solved = (status == Status.SOLVED).reshape(-1, *[1] * (rows.ndim - 1))
    return torch.where(solved, rows, otherwise)


def _empty(form: KKTForm, theta: tuple[Tensor, ...]) -> tuple[Tensor, Outcome]:
    """No samples, no solve; still a function of θ, so that backward gives zeros."""
    nothing = Outcome.of_nothing(form, 0)
    return sum((t.sum() for t in theta), start=nothing.u), nothing


def _check_sequences(**arguments: Any) -> None:
    for name, given in arguments.items():
        if not isinstance(given, list | tuple):
            raise DeclarationError(f"{name} is a {type(given).__name__}, expected a list or tuple")


def _check_options(method: Any, on_failure: Any, nonunique: Any, smoothing: Any, tolerance: Any) -> None:
    if method not in ("auto", "smooth", "cone"):
        raise DeclarationError(f'method={method!r}, expected "auto", "smooth" or "cone"')
    if on_failure not in ("raise", "nan") and not callable(on_failure):
        raise DeclarationError(f'on_failure={on_failure!r}, expected "raise", "nan" or a callable')
    if nonunique not in ("warn", "raise", "ignore"):
        raise DeclarationError(f'nonunique={nonunique!r}, expected "warn", "raise" or "ignore"')
    if smoothing is not None and not (isinstance(smoothing, int | float) and 0 < smoothing < math.inf):
        raise DeclarationError(f"smoothing={smoothing!r}, expected None or a positive number")
    if not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise DeclarationError(f"tolerance={tolerance!r}, expected a number between 0 and 1")


def _leaves(leaves: Sequence[Any]) -> str:
    return ", ".join(f"{leaf.name()} {leaf.shape}" for leaf in leaves) or "none"
