"""What `check` returns: data, and text for a person."""

from dataclasses import dataclass

from optlayer.diagnostics.data import Branch, Finding, Sample
from optlayer.diagnostics.text import render


@dataclass(frozen=True, repr=False)
class Report:
    """A layer at given parameters; `str` of it is for reading, the attributes for programs."""

    title: str
    samples: tuple[Sample, ...]
    branches: tuple[Branch, ...]  # callables with a torch branch beside the cvxpy one
    findings: tuple[Finding, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """Of the findings, one word each."""
        return frozenset(finding.kind for finding in self.findings)

    def finding(self, kind: str) -> Finding | None:
        """The finding of a kind, if there is one."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def __str__(self) -> str:
        return render(self.title, self.samples, self.branches, self.findings)

    def __repr__(self) -> str:
        return f"Report({len(self.samples)} samples, findings: {', '.join(sorted(self.kinds)) or 'none'})"
