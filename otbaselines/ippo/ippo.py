"""Independent and parameter-sharing PPO."""

from otbaselines.common.multi_agent.ppo import MultiAgentPPO


class IPPO(MultiAgentPPO):
    """
    Independent PPO (de Witt et al. 2020): each agent learns from its own observations and rewards.

    With ``share_parameters=True`` one network serves every agent (Gupta et al. 2017; Terry et al. 2020). On a plain
    Gymnasium environment, a team of one, it is PPO.
    """
