"""Policies and critics of stable-baselines3, as their users call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.entry import Entry

OBSERVATION = 8


def _agent(
    algorithm: str, find: Callable[[Any], nn.Module], *widths: int, discrete: bool = False, policy: str = "MlpPolicy"
) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import gymnasium
        import numpy as np
        import stable_baselines3

        class Plant(gymnasium.Env):  # type: ignore[type-arg]
            observation_space = gymnasium.spaces.Box(-1.0, 1.0, (OBSERVATION,), np.float32)
            action_space = (
                gymnasium.spaces.Discrete(4) if discrete else gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
            )

        agent = getattr(stable_baselines3, algorithm)(policy, Plant(), device="cpu")
        inputs = tuple(torch.rand(1, width) for width in widths)
        return find(agent.policy), inputs if len(inputs) > 1 else inputs[0]

    return make


class Policy(nn.Module):
    """PPO's policy without sampling: the mean of the actions, or the logits where they are discrete."""

    def __init__(self, policy: Any):
        super().__init__()
        self.policy = policy

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.policy.action_net(
            self.policy.mlp_extractor.forward_actor(self.policy.extract_features(observation))
        )


class Value(nn.Module):
    """Value of PPO's policy."""

    def __init__(self, policy: Any):
        super().__init__()
        self.policy = policy

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.policy.predict_values(observation)


def _sac_mean_action(policy: Any) -> nn.Module:
    """What SAC's actor does when it is asked to be deterministic."""
    return nn.Sequential(policy.actor.latent_pi, policy.actor.mu, nn.Tanh())


ENTRIES = [
    Entry("stable-baselines3", "PPO: mean action", _agent("PPO", Policy, OBSERVATION), small=True),
    Entry("stable-baselines3", "PPO: value", _agent("PPO", Value, OBSERVATION), small=True),
    Entry(
        "stable-baselines3", "PPO: policy(obs, deterministic)", _agent("PPO", lambda p: p, OBSERVATION), {"output": 1}
    ),
    Entry(
        "stable-baselines3",
        "PPO: logits of a discrete policy",
        _agent("PPO", Policy, OBSERVATION, discrete=True),
        small=True,
    ),
    Entry("stable-baselines3", "SAC: mean action", _agent("SAC", _sac_mean_action, OBSERVATION), small=True),
    Entry(
        "stable-baselines3",
        "SAC: critic, action",
        _agent("SAC", lambda p: p.critic, OBSERVATION, 2),
        {"input": 1, "output": 0},
    ),
    Entry(
        "stable-baselines3",
        "SAC: critic, observation",
        _agent("SAC", lambda p: p.critic, OBSERVATION, 2),
        {"input": "obs", "output": "all"},
    ),
    Entry("stable-baselines3", "TD3: actor", _agent("TD3", lambda p: p.actor, OBSERVATION), small=True),
    Entry(
        "stable-baselines3",
        "TD3: critic, action",
        _agent("TD3", lambda p: p.critic, OBSERVATION, 2),
        {"input": "actions", "output": "all"},
    ),
    Entry("stable-baselines3", "DDPG: actor", _agent("DDPG", lambda p: p.actor, OBSERVATION), small=True),
    Entry("stable-baselines3", "DQN: q_net", _agent("DQN", lambda p: p.q_net, OBSERVATION, discrete=True), small=True),
]
