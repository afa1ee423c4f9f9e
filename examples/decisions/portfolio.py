r"""
Predicting returns, or deciding well
====================================

A portfolio is chosen from predicted returns :math:`\hat r`, at a price :math:`\gamma` on risk:

.. math::

    z^\star(\hat r) = \operatorname*{argmax}_{z \ge 0,\ 1^\top z = 1}\ \hat r^\top z - \tfrac\gamma2 |Lz|^2,
    \qquad L^\top L = \Sigma .

The predictor is linear in a signal, the truth is not. Fitted by least squares it spends its few weights on
errors that change no decision. Trained through the layer it minimises what the decisions cost: the regret
:math:`u(z^\star(r)) - u(z^\star(\hat r))`, with :math:`u` the utility at the returns that came.

A. N. Elmachtoub, P. Grigas, *Smart "predict, then optimize"*, Management Science 68(1), 2022, DOI
10.1287/mnsc.2020.3922; P. L. Donti, B. Amos, J. Z. Kolter, *Task-based end-to-end model learning in
stochastic optimization*, NeurIPS 2017, arXiv:1703.04529.
"""

# %%
# The layer
# ---------
# Five assets, the first of them nearly without risk. The returns are the parameter of the layer.

import cvxpy as cp
import matplotlib.pyplot as plt
import torch

from optlayer import OptLayer

torch.set_default_dtype(torch.float64)
n, γ = 5, 2.0
volatility = torch.tensor([0.05, 0.3, 0.4, 0.5, 0.4])
correlation = 0.3 + 0.7 * torch.eye(n)
Σ = volatility[:, None] * correlation * volatility
L = torch.linalg.cholesky(Σ).T.numpy()

portfolio = OptLayer(
    variables=[cp.Variable(n)],
    parameters=[cp.Parameter(n)],
    objective=lambda z, r: γ / 2 * cp.sum_squares(L @ z) - r @ z,
    inequalities=[lambda z, r: -z],
    equalities=[lambda z, r: cp.sum(z) - 1],
)


def utility(z, r):
    return (r * z).sum(-1) - γ / 2 * (z @ Σ * z).sum(-1)


# %%
# Signal and returns
# ------------------
# What is to be expected of each asset by the signal :math:`s`; what comes has noise of covariance
# :math:`\Sigma` on top, as large as what is to be learned.

names = ("bond", "trend", "boom", "crisis", "calm")


def expected(s):
    crisis = 0.9 * torch.exp(-8 * (s + 0.6) ** 2) - 0.2
    return torch.stack(
        [0.02 + 0 * s, 0.15 * torch.tanh(4 * s), 0.9 * torch.relu(s - 0.3), crisis, 0.2 * torch.cos(3 * s)],
        -1,
    )


def draw(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    s = 2 * torch.rand(samples, generator=generator) - 1
    return s, expected(s) + torch.randn(samples, n, generator=generator) @ torch.tensor(L)


def predict(s, W):
    return W[0] + s[:, None] * W[1]


s, r = draw(400, 0)
held_s, held_r = draw(4000, 1)

# %%
# Two ways to fit ten weights
# ---------------------------
# Least squares, once; and from there Adam on the utility of the decisions. The regret differs from it by a
# constant.

W_squares = torch.linalg.lstsq(torch.stack([torch.ones_like(s), s], 1), r).solution
W = W_squares.clone().requires_grad_()
optimizer = torch.optim.Adam([W], 0.03)
for _ in range(100):
    optimizer.zero_grad()
    loss = -utility(portfolio(predict(s, W)), r).mean()
    loss.backward()
    optimizer.step()
W_decision = W.detach()

predictions = {
    "truth known": expected,
    "least squares": lambda s: predict(s, W_squares),
    "decision loss": lambda s: predict(s, W_decision),
}
earned = {name: utility(portfolio(f(held_s)), held_r) for name, f in predictions.items()}
print("on 4000 held-out samples   utility   squared error")
for name, f in predictions.items():
    print(f"{name:24} {earned[name].mean():9.4f} {(f(held_s) - held_r).square().mean():15.4f}")

# %%
# What they hold
# --------------
# Least squares sees a slope in "boom" and buys it from the middle on, much too early. Trained on
# decisions, the predictor is a worse forecast and knows better when to change. "Calm", best in the middle,
# neither can express.

line = torch.linspace(-1, 1, 161)
fig, (left, *rest) = plt.subplots(1, 4, figsize=(11, 3.3), width_ratios=[1.15, 1, 1, 1])
for name, curve in zip(names, expected(line).T):
    left.plot(line, curve, label=name)
left.set(title="expected returns", xlabel="signal", ylim=(-0.25, 1.1), yticks=[0, 0.5])
left.legend(ncols=2, loc="upper center", fontsize=8)
for axis, (name, f) in zip(rest, predictions.items()):
    axis.stackplot(line, *portfolio(f(line)).T, labels=names)
    axis.set(title=f"{name}: {earned[name].mean():.3f}", xlabel="signal", xlim=(-1, 1), ylim=(0, 1))
    axis.set_yticks([])
rest[0].set_ylabel("share of the portfolio")

# %%
# Checked
# -------
# The gain on held-out samples, sample by sample, in standard errors; how much it is of what least squares
# loses against the known truth; and the gradient of the decision loss against differences.

gain = earned["decision loss"] - earned["least squares"]
certainty = gain.mean() / (gain.std() / len(gain) ** 0.5)
closed = gain.mean() / (earned["truth known"] - earned["least squares"]).mean()


def decision_loss(W):
    return -utility(portfolio(predict(s, W)), r).mean()


slope = torch.func.grad(decision_loss)(W_squares)
shifts = 1e-6 * torch.eye(2 * n).reshape(-1, 2, n)
differences = (
    torch.stack([decision_loss(W_squares + h) - decision_loss(W_squares - h) for h in shifts]) / 2e-6
)
wrong = (slope.flatten() - differences).abs().max()

print(
    f"gain         {gain.mean():.4f}, {certainty:.0f} standard errors; {100 * closed:.0f} % of what is lost"
)
print(f"gradient     {wrong:.0e} from differences")
assert certainty > 5
assert closed > 0.4
assert wrong < 1e-6
