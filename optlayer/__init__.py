"""optlayer: write a convex problem once; get a torch module whose output is its argmin."""

from optlayer import diagnostics as diagnostics
from optlayer import layers as layers
from optlayer.compat import CvxpyLayer as CvxpyLayer
from optlayer.equations import implicit as implicit
from optlayer.errors import DeclarationError as DeclarationError
from optlayer.errors import InaccurateError as InaccurateError
from optlayer.errors import InfeasibleError as InfeasibleError
from optlayer.errors import InputError as InputError
from optlayer.errors import OptLayerError as OptLayerError
from optlayer.errors import SolveError as SolveError
from optlayer.errors import SolverFailedError as SolverFailedError
from optlayer.errors import UnboundedError as UnboundedError
from optlayer.layer import OptLayer as OptLayer
from optlayer.solution import Solution as Solution
from optlayer.solution import Status as Status

__version__ = "0.1.0"
