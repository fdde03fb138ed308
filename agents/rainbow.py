"""Rainbow (Hessel et al. 2018): six improvements of DQN together, five of them options of `C51`.

categorical distributions, Double, Dueling, noisy layers, 3-step returns    on by default; agent.NAME=... changes each
prioritised replay                                                          source.prioritized=true in the recipe:
                                                                            which items to draw is the source's choice
y = r_t + gamma r_{t+1} + gamma^2 r_{t+2} + gamma^3 z,   priority = KL(projection of y || p(s, a))

An ablation switches one off: agent.double=false, agent.dueling=false, agent.noisy=false (epsilon-greedy again),
agent.n_step=1, source.prioritized=false, or agent.name=dqn for values instead of distributions.
"""

from __future__ import annotations

from agents.c51 import C51
from agents.configs.value import RainbowConfig


class Rainbow(C51):
    """C51 with the defaults of Rainbow."""

    Config = RainbowConfig
