"""Layers that many people write, each declared in a few lines and built from its size.

Each is an `OptLayer`: `solve` gives duals, value and flags, and the options are the same. Some have a closed
form or an algorithm of their own, which a call takes with `fast=True`.
"""

from optlayer.layers.activations import LML as LML
from optlayer.layers.activations import ConstrainedSoftmax as ConstrainedSoftmax
from optlayer.layers.activations import ConstrainedSparsemax as ConstrainedSparsemax
from optlayer.layers.activations import ReLU as ReLU
from optlayer.layers.activations import Sigmoid as Sigmoid
from optlayer.layers.activations import Softmax as Softmax
from optlayer.layers.activations import Sparsemax as Sparsemax
from optlayer.layers.pooling import RobustPooling as RobustPooling
from optlayer.layers.programmes import QP as QP
from optlayer.layers.programmes import Lasso as Lasso
from optlayer.layers.programmes import LeastSquares as LeastSquares
from optlayer.layers.projections import Ellipsoid as Ellipsoid
from optlayer.layers.projections import Polytope as Polytope
from optlayer.layers.total_variation import TotalVariation as TotalVariation
from optlayer.layers.transport import OptimalTransport as OptimalTransport
