"""A report as a person reads it."""

from collections.abc import Iterator, Sequence

from optlayer.diagnostics.data import Branch, Constraint, Finding, Index, Sample, Slopes

SHOWN = 4  # samples spelled out
LISTED = 6  # rows or samples in a list


def render(
    title: str, samples: Sequence[Sample], branches: Sequence[Branch], findings: Sequence[Finding]
) -> str:
    """The samples, those with findings first; then the findings and what to do."""
    concerned = {index for finding in findings for index in finding.samples}
    order = sorted(samples, key=lambda s: s.index not in concerned)
    lines = [title]
    for sample in order[:SHOWN]:
        lines += ["", *_sample(sample)]
    if len(samples) > SHOWN:
        lines += ["", f"and {len(samples) - SHOWN} more samples, in .samples"]
    lines += [_line("branches", f"of {b.name}: {_small(b.gap)} apart") for b in branches]
    return "\n".join([*lines, "", *_findings(findings)])


def _sample(sample: Sample) -> Iterator[str]:
    yield (f"sample {sample.index}: " if sample.index != () else "") + sample.message
    if not sample.solved:
        return
    yield _line("residuals", ", ".join(f"{name} {_small(r)}" for name, r in sample.residuals.items()))
    yield _line("active", _held([(c, c.active) for c in sample.constraints]))
    yield _line("weakly active", _held([(c, c.weak) for c in sample.constraints]))
    yield _line("condition of K", _condition(sample))
    yield _line("flags", ", ".join(f for f in ("kink", "degenerate", "nonunique") if getattr(sample, f)))
    if sample.nearest:
        yield _line("nearest kink", f"{sample.nearest}, at {sample.margin:.1e} of its size")
    yield _line("gradient", _gradient(sample))


def _line(label: str, text: str) -> str:
    return f"  {label:<15} {text or 'none'}"


def _held(pairs: Sequence[tuple[Constraint, tuple[int, ...]]]) -> str:
    """The names, with the rows where they are not all."""
    return "; ".join(
        c.name if len(rows) == c.rows else f"{c.name} [{_listed(rows)}] of {c.rows}"
        for c, rows in pairs
        if rows
    )


def _condition(sample: Sample) -> str:
    if sample.condition is None or sample.scaled is None:
        return "not computed, K is large"
    return f"{sample.condition:.1e}, in its best units {sample.scaled:.1e}"


def _gradient(sample: Sample) -> str:
    if sample.slopes is None:
        return "not computed, there are no parameters"
    size = "0" if sample.flat else f"{sample.gradient:.2e}"
    return f"{size}; {_checked(sample.slopes)}"


def _checked(slopes: Slopes) -> str:
    if not slopes.known:
        return "not checked, a neighbour has no solution"
    numbers = (0.0 if abs(s) <= slopes.noise else s for s in (slopes.jvp, slopes.vjp, slopes.central))
    said = "agree" if slopes.agree else "differ"
    return "along a random direction jvp {:.4g}, vjp {:.4g}, differences {:.4g} ".format(*numbers) + said


def _small(number: float) -> str:
    return f"{number:.0e}" if number else "0"


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    yield "findings" if findings else "nothing to remark"
    for finding in findings:
        yield f"  [{finding.kind}] {_samples(finding.samples)}{finding.text}"
        yield f"      -> {finding.advice}"


def _samples(indices: Sequence[Index]) -> str:
    return f"{'sample' if len(indices) == 1 else 'samples'} {_listed(indices)}: " if indices else ""


def _listed(numbers: Sequence[Index]) -> str:
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return ", ".join(map(str, numbers[:LISTED])) + more
