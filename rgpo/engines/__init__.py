"""Our gates in the trainers of other frameworks: ``rgpo.engines.trl``, ``sb3`` and ``verl``; see docs/engines.md."""
