"""What the paper (arXiv 2604.14895) reports, so that it can stand beside what was measured; see experiments/README.md.

[P] the abstract says so, [Q] a reader of the full text says so. Its step counts, seeds, KL constants and reward model are
not known.
"""

from __future__ import annotations

from rgpo.report.read.groups import Group

RLHF = "Qwen2.5-1.5B, n = 3"
CHANGES = {  # (task, algorithm, baseline, measure) -> what the paper says
    ("walker2d", "rgpo", "ppo", "return"): "+81 % [Q]",
    ("ant", "rgpo", "ppo", "return"): "+47 % [Q]",
    ("halfcheetah", "rgpo", "ppo", "return"): "on par [Q]",
    ("hopper", "rgpo", "ppo", "return"): "on par [Q]",
    ("qwen_rlhf", "rgpo", "ppo", "reward, proxy"): f"+14.8 % [P] ({RLHF})",
    ("qwen_rlhf", "rgpo", "ppo", "KL to reference"): f"-16.0 % [P] ({RLHF})",
    ("qwen_rlhf", "rgpo", "grpo", "KL to reference"): f"-53.1 % [P] ({RLHF})",
}


def says(group: Group, baseline: Group, measure: str) -> str:
    """The paper's relative change of the same comparison, or nothing."""
    return CHANGES.get((group.task.split(" ")[0], group.algo, baseline.algo, measure), "")
