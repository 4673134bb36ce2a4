"""Which stacked parameters are whose: groups for clipping, and one agent's policy as a view of the team's."""

from copy import copy
from typing import Any, TypeVar

import torch as th
from torch import nn

from otbaselines.common.networks.layers import StackedLinear
from otbaselines.common.vec_env.layout import TeamLayout

Policy = TypeVar("Policy", bound=nn.Module)

# Module lists with one entry per parameter set; in these lie the only parameters that are not stacked.
_AGENT_WISE = ("pi_extractors", "vf_extractors")
# The policy's own tensors with one leading entry per parameter set or agent.
_STACKED = ("log_std", "action_mask", "agent_ids")


def parameter_groups(policy: Any) -> tuple[list[nn.Parameter], list[list[nn.Parameter]]]:
    """
    The parameters of a stacked policy by the set that they belong to; those of a critic that all sets share belong to none.

    :param policy: a :class:`~otbaselines.common.multi_agent.policies.MultiAgentActorCriticPolicy`
    :return: tensors with one leading entry per parameter set, and lists of one tensor per set, for the extractors
    :raises ValueError: if a parameter belongs to no set, or to several
    """
    if policy.n_sets == 1:
        return list(policy.parameters()), []
    common = policy.common_parameters()
    shared = set(map(id, common))
    stacked = [policy.log_std] if hasattr(policy, "log_std") else []
    stacked += [
        p
        for m in policy.modules()
        if isinstance(m, StackedLinear) and m.n_sets == policy.n_sets
        for p in m.parameters()
        if id(p) not in shared
    ]
    apart = []
    for name in _AGENT_WISE if not common and policy.pi_extractors is not policy.vf_extractors else _AGENT_WISE[:1]:
        columns = (extractor.parameters() for extractor in getattr(policy, name))
        apart += [list(column) for column in zip(*columns, strict=True)]
    known = [id(parameter) for group in (stacked, *apart, common) for parameter in group]
    strays = [name for name, parameter in policy.named_parameters() if known.count(id(parameter)) != 1]
    if strays:
        raise ValueError(
            f"`{type(policy).__name__}` has parameters that are not stacked by agent, or shared between agents: "
            f"{', '.join(strays)}; keep one copy per agent in `pi_extractors`, or use `share_parameters=True`"
        )
    return stacked, apart


def agent_view(policy: Policy, index: int) -> Policy:
    """
    One agent of a stacked policy as a policy for a team of one, on the same memory.

    :param policy: a :class:`~otbaselines.common.multi_agent.policies.MultiAgentActorCriticPolicy`
    :param index: the agent's number
    :return: the view
    :raises IndexError: if there is no such agent
    """
    team: Any = policy
    if not 0 <= index < team.n_agents:
        raise IndexError(f"`index` must be from 0 to {team.n_agents - 1}, got {index}")
    parameter_groups(team)
    # A critic that all agents share stays whole, however it is stacked.
    whole = team._critic_modules() if team.n_critics < team.n_sets else []
    view = _view(team, index, n_sets=team.n_sets, whole={id(module) for module in whole})
    for name in _STACKED:
        if getattr(team, name, None) is not None:
            setattr(view, name, _entry(getattr(team, name), index))
    agent = team.layout.possible_agents[index]
    view.layout = TeamLayout(
        (agent,),
        team.layout.n_copies,
        {agent: team.layout.agent_observation_spaces[agent]},
        {agent: team.layout.agent_action_spaces[agent]},
    )
    view.n_agents = view.n_sets = view.n_critics = 1
    view._groups = None
    vars(view)["features_extractor"] = view.pi_extractors[0]
    if team.use_sde:
        view.exploration = team.exploration.agent(index)
    # It would step the whole team.
    del view.optimizer
    return view  # type: ignore[no-any-return]


def _view(module: Any, index: int, *, n_sets: int, whole: set[int]) -> Any:
    """A copy whose stacked layers hold one set; everything without parameters of several agents stays what it is."""
    if (n_sets == 1 and not hasattr(module, "layout")) or id(module) in whole:
        return module
    view = copy(module)
    view._parameters, view._buffers = dict(module._parameters), dict(module._buffers)
    copied: dict[int, nn.Module] = {}
    for name, child in module._modules.items():
        if name in _AGENT_WISE and n_sets > 1:
            copied.setdefault(id(child), nn.ModuleList([child[index if len(child) > 1 else 0]]))
        else:
            copied.setdefault(id(child), _view(child, index, n_sets=n_sets, whole=whole))
    view._modules = {name: copied[id(child)] for name, child in module._modules.items()}
    if isinstance(module, StackedLinear):
        view.n_sets = 1
        for name, parameter in module.named_parameters():
            setattr(view, name, _entry(parameter, index))
    return view


def _entry(tensor: th.Tensor, index: int) -> th.Tensor:
    """One entry of a stack, on its memory; a parameter becomes a parameter. A stack of one belongs to everybody."""
    if len(tensor) == 1:
        return tensor
    entry = tensor.detach()[index : index + 1]
    return nn.Parameter(entry, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else entry


@th.no_grad()
def set_flat_parameters(parameters: list[nn.Parameter], vector: th.Tensor) -> None:
    """
    The inverse of ``torch.nn.utils.parameters_to_vector``, in place, as views of a team need it.

    torch's own ``vector_to_parameters`` gives every parameter new memory, which would cut a view from its team.

    :param parameters: what to write to
    :param vector: as many numbers as they have, shape ``(n,)``
    :raises ValueError: if it has another size
    """
    size = sum(parameter.numel() for parameter in parameters)
    if vector.shape != (size,):
        raise ValueError(f"`vector` must have the shape ({size},) of the parameters, got {tuple(vector.shape)}")
    for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))
