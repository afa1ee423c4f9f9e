"""The implicit core on systems of its own: no solver, no cone, no convexity."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from optlayer.implicit import attach


class SquareRoot:
    """F(u; a) = u² - a elementwise: the root is √a, and every derivative is known."""

    def residual(self, u, a):
        return u * u - a

    def inverse(self, b, u, a, transposed):
        del a, transposed
        return b / (2 * u)


def square_root(a):
    """√a for a (n,), through `attach`."""
    rows = a[None]
    return attach(SquareRoot(), rows.detach().sqrt(), (rows,))[0]


A = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)


def test_gradcheck_in_both_modes_and_twice():
    a = A.clone().requires_grad_()
    assert gradcheck(square_root, a, check_forward_ad=True)
    assert gradgradcheck(square_root, a)


NESTINGS = {
    "jacrev": (jacrev(square_root), jacrev(torch.sqrt)),
    "jacfwd": (jacfwd(square_root), jacrev(torch.sqrt)),
    "jacrev of jacrev": (jacrev(jacrev(square_root)), jacrev(jacrev(torch.sqrt))),
    "jacfwd of jacrev": (jacfwd(jacrev(square_root)), jacrev(jacrev(torch.sqrt))),
    "jacrev of jacfwd": (jacrev(jacfwd(square_root)), jacrev(jacrev(torch.sqrt))),
    "third order": (jacrev(jacrev(jacrev(square_root))), jacrev(jacrev(jacrev(torch.sqrt)))),
    "hessian": (hessian(lambda a: square_root(a).sum()), hessian(lambda a: a.sqrt().sum())),
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_torch_func_nestings(nesting):
    ours, theirs = NESTINGS[nesting]
    assert torch.allclose(ours(A), theirs(A), rtol=1e-12)
    batch = torch.stack([A, 2 * A])
    assert torch.allclose(vmap(ours)(batch), vmap(theirs)(batch), rtol=1e-12)


class Triangular:
    """F(u; a) = (u₀² - a₀, u₁ - a₁u₀): J and Jᵀ differ."""

    def residual(self, u, a):
        return torch.stack([u[:, 0] ** 2 - a[:, 0], u[:, 1] - a[:, 1] * u[:, 0]], 1)

    def inverse(self, b, u, a, transposed):
        J = torch.diag_embed(torch.stack([2 * u[:, 0], torch.ones_like(u[:, 1])], 1))
        J[:, 1, 0] = -a[:, 1]
        return torch.linalg.solve(J.mT if transposed else J, b)


@pytest.mark.parametrize("outer", [jacrev, jacfwd])
@pytest.mark.parametrize("inner", [jacrev, jacfwd])
def test_a_jacobian_is_not_taken_for_its_transpose(outer, inner):
    def closed_form(a):
        return a[0].sqrt() * torch.stack([torch.ones_like(a[0]), a[1]])

    def ours(a):
        return attach(Triangular(), closed_form(a.detach())[None], (a[None],))[0]

    a = A[1:]
    assert torch.allclose(inner(ours)(a), inner(closed_form)(a), rtol=1e-12)
    if (outer, inner) != (jacfwd, jacfwd):
        assert torch.allclose(outer(inner(ours))(a), outer(inner(closed_form))(a), rtol=1e-12)


def test_forward_over_forward_raises():
    """torch switches forward mode off inside a custom rule: the inner tangent would be lost."""
    with pytest.raises(NotImplementedError, match=r"forward-over-forward.*torch\.func\.hessian"):
        jacfwd(jacfwd(square_root))(A)
    with pytest.raises(NotImplementedError, match="forward-over-forward"):
        jvp(lambda a: jvp(square_root, (a,), (A,))[1], (A,), (A,))


def test_an_unused_output_costs_nothing():
    """A cotangent that is None must not be turned into a linear solve."""

    class Unsolvable(SquareRoot):
        def inverse(self, b, u, a, transposed):
            raise AssertionError("solved for a cotangent that is not there")

    a = A.clone().requires_grad_()
    u = attach(Unsolvable(), a.detach().sqrt()[None], (a[None],))
    other = 2 * a
    torch.autograd.backward([other.sum(), u.detach().sum() + other.sum()])
    assert torch.equal(a.grad, torch.full_like(A, 4.0))


def test_only_what_needs_a_gradient_is_differentiated():
    class Product(SquareRoot):
        def residual(self, u, a, b):
            return u * u - a * b

        def inverse(self, rhs, u, a, b, transposed):
            del a, b, transposed
            return rhs / (2 * u)

    a, b = A.clone().requires_grad_(), 2 * A
    (attach(Product(), (A * b).sqrt()[None], (a[None], b[None]))).sum().backward()
    assert torch.allclose(a.grad, 0.5 * (b / A).sqrt())
    assert b.grad is None


def test_only_what_has_a_tangent_is_differentiated():
    class Closed(torch.autograd.Function):
        """Data of which the residual has no derivative."""

        generate_vmap_rule = True

        @staticmethod
        def forward(b):
            return b.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, b_bar):
            raise AssertionError("differentiated with respect to what stands still")

    class Product(SquareRoot):
        def residual(self, u, a, b):
            return u * u - a * Closed.apply(b)

        def inverse(self, rhs, u, a, b, transposed):
            del a, b, transposed
            return rhs / (2 * u)

    b = 2 * A
    _, tangent = jvp(lambda a: attach(Product(), (A * b).sqrt()[None], (a[None], b[None])), (A,), (A,))
    assert torch.allclose(tangent[0], 0.5 * (A * b).sqrt())


@pytest.mark.parametrize("mode", [jacrev, jacfwd])
def test_autocast_does_not_round_the_derivative(mode):
    """A root found in single precision, of u² = Wa: under autocast the product would be of half precision."""
    W = torch.linalg.vander(torch.tensor([0.3, 0.7, 1.1]))

    class Single(SquareRoot):
        def residual(self, u, a):
            return u * u - (a @ W.T).to(u.dtype)

    def root(a):
        return attach(Single(), (a.detach() @ W.T).double().sqrt()[None], (a[None],))[0]

    a = A.float()
    u = root(a)
    with torch.autocast("cpu", torch.bfloat16):
        jacobian = mode(lambda a: attach(Single(), u[None], (a[None],))[0])(a)
    assert torch.allclose(jacobian.double(), W / (2 * u[:, None]), rtol=1e-6)


def test_nothing_is_kept_without_grad():
    a = A.clone().requires_grad_()
    with torch.no_grad():
        assert square_root(a).grad_fn is None


def test_gradient_through_a_network():
    weights = torch.eye(3, dtype=torch.float64)
    g = grad(lambda w: square_root(w @ A).sum())(weights)
    assert torch.allclose(g, 0.5 / A.sqrt()[:, None] * A[None])
