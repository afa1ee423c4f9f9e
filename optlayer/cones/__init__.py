r"""Closed convex cones, one file each: the projection Π and its derivative, batched, in float64.

    Π(v) = argmin_p { ½|p - v|² : p ∈ K },     v = Π_K(v) - Π_{K*}(-v)   (Moreau, the two orthogonal)

Π is positively homogeneous and nonexpansive; where it is differentiable, DΠ(v) is a symmetric matrix
with eigenvalues in [0, 1], and Π(v) = DΠ(v) v (Euler).

**How a projection is differentiated.** Eigenvectors and roots are found on v₀ = v.detach(), as numbers;
what is returned is the expansion of Π at v₀ in e = v - v₀, which is zero in value and v in every
derivative. With D(v) any function that equals DΠ to first order at v₀,

    Π(v) = Π(v₀) + ½ (D(v₀) + D(v)) e + O(e³)                                               (1)

so reverse mode, forward mode and every nesting of torch.func are right through second order, without a
rule of our own and without differentiating an eigendecomposition.

**Kinks.** Where Π is not differentiable, the derivative is the least element, the one that follows from
"the derivative of max(·, 0) at 0 is 0": on the boundary of K the normal direction gets 0 and the others
1; on the boundary of the polar cone, and at 0, DΠ = 0. Every cone follows it, dual cones too: D_{K*}(v)
is I - D_K(-v) with the *largest* element of K. On the boundary means up to rounding, a few units in the
last place of |v|: a point that `snap` has put there is found there.
"""

from optlayer.cones.cone import ConvexCone as ConvexCone
from optlayer.cones.cone import Spectrum as Spectrum
from optlayer.cones.exponential import DualExponential as DualExponential
from optlayer.cones.exponential import Exponential as Exponential
from optlayer.cones.nonnegative import Nonnegative as Nonnegative
from optlayer.cones.power import DualGeneralizedPower as DualGeneralizedPower
from optlayer.cones.power import DualPower as DualPower
from optlayer.cones.power import GeneralizedPower as GeneralizedPower
from optlayer.cones.power import Power as Power
from optlayer.cones.product import Product as Product
from optlayer.cones.second_order import SecondOrder as SecondOrder
from optlayer.cones.semidefinite import Semidefinite as Semidefinite
from optlayer.cones.zero import Free as Free
from optlayer.cones.zero import Zero as Zero
