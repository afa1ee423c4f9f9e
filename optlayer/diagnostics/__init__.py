"""A layer examined at given parameters: what was proven, what to expect of its derivatives, what to do."""

from optlayer.diagnostics.check import check as check
from optlayer.diagnostics.data import Branch as Branch
from optlayer.diagnostics.data import Constraint as Constraint
from optlayer.diagnostics.data import Finding as Finding
from optlayer.diagnostics.data import Sample as Sample
from optlayer.diagnostics.data import Slopes as Slopes
from optlayer.diagnostics.report import Report as Report
