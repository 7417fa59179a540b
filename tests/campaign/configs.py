"""Random configurations, composed and checked as for plan=true: a sentence of refusal, or a configuration that makes sense."""

from __future__ import annotations

from .outcomes import HELD, REFUSED, TRACEBACK, WRONG, Case, Kind, Result


def composed(case: Case) -> Result:
    """One command line of tests/odd_configs.py."""
    import odd_configs

    (words,) = odd_configs.cases(case.rng.randrange(2**32), 1)
    judgment = odd_configs.judge(words)
    if judgment in ("accepted", "refused"):
        return Result(HELD if judgment == "accepted" else REFUSED, repr(words))
    return Result(TRACEBACK if "instead of a sentence" in judgment else WRONG, f"{words}: {judgment}"[:1000])


KINDS = [Kind("random configuration", composed, full=2000, share=60, timeout_s=60)]
