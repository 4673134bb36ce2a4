"""The team policy against SB3's actor-critic, one agent at a time, and its forms of `predict`."""

import numpy as np
import pytest
import torch as th
from core_toys import copy_to_sb3
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from toy_teams import CustomSpacesEnv, vector

from otbaselines.common.multi_agent.policies import (
    MultiAgentActorCriticCnnPolicy,
    MultiAgentActorCriticPolicy,
    MultiAgentMultiInputPolicy,
)
from otbaselines.common.vec_env.layout import TeamLayout, team_layout
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.ippo import IPPO

OBS = spaces.Box(-5, 5, (6,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
MIXED = spaces.Dict(v=OBS, n=spaces.Discrete(3), image=IMAGE)
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_binary": spaces.MultiBinary(3),
}


def _layout(n_agents, obs, action):
    agents = tuple(f"agent_{k}" for k in range(n_agents))
    return TeamLayout(agents, 1, dict.fromkeys(agents, obs), dict.fromkeys(agents, action))


def _policy(n_agents=1, obs=OBS, action=ACTIONS["discrete"], cls=MultiAgentActorCriticPolicy, **kwargs):
    policy = cls(obs, action, lambda _: 3e-4, layout=_layout(n_agents, obs, action), **kwargs)
    with th.no_grad():
        # SB3's gain of 0.01 would leave all policies near uniform, where little can go wrong.
        policy.action_net.weight.mul_(100.0)
        if hasattr(policy, "log_std"):
            policy.log_std.uniform_(-1.0, 0.5)
    return policy


def _rows(space, n):
    if isinstance(space, spaces.Dict):
        return {key: _rows(part, n) for key, part in space.items()}
    return th.as_tensor(np.stack([space.sample() for _ in range(n)]))


def _of_agent(rows, agent, n_agents):
    if isinstance(rows, dict):
        return {key: value[agent::n_agents] for key, value in rows.items()}
    return rows[agent::n_agents]


def _assert_equal_to_sb3(policy, target, rows, agent=0):
    """Actions, values, log-likelihoods and entropies of one agent's rows."""
    n_agents = policy.n_agents
    actions, values, log_prob = policy(rows, deterministic=True)
    own = _of_agent(rows, agent, n_agents)
    wanted = target(own, deterministic=True)
    th.testing.assert_close(actions[agent::n_agents].to(wanted[0]), wanted[0], atol=1e-6, rtol=0)
    th.testing.assert_close(values[agent::n_agents], wanted[1], atol=2e-6, rtol=1e-6)
    th.testing.assert_close(log_prob[agent::n_agents], wanted[2], atol=3e-6, rtol=1e-6)
    sampled = policy(rows)[0]
    ours = policy.evaluate_actions(rows, sampled.reshape(len(sampled), *policy.action_space.shape))
    theirs = target.evaluate_actions(own, sampled[agent::n_agents])
    # Where SB3 has no entropy, its PPO takes the sample's own surprise.
    theirs = [-theirs[1] if part is None else part for part in theirs]
    for mine, reference in zip(ours, theirs, strict=True):
        th.testing.assert_close(mine[agent::n_agents], reference, atol=5e-6, rtol=2e-6)
    th.testing.assert_close(policy.predict_values(rows)[agent::n_agents], wanted[1], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_team_of_one_is_sb3s_policy(kind):
    policy = _policy(action=ACTIONS[kind])
    target = ActorCriticPolicy(OBS, ACTIONS[kind], lambda _: 3e-4)
    copy_to_sb3(policy, target)
    _assert_equal_to_sb3(policy, target, _rows(OBS, 20))


@pytest.mark.parametrize("kind", ACTIONS)
def test_separate_parameters_are_one_sb3_policy_per_agent(kind):
    policy = _policy(3, action=ACTIONS[kind])
    rows = _rows(OBS, 12)
    for agent in range(3):
        target = ActorCriticPolicy(OBS, ACTIONS[kind], lambda _: 3e-4)
        copy_to_sb3(policy, target, agent)
        _assert_equal_to_sb3(policy, target, rows, agent)


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_shared_parameters_are_one_sb3_policy_for_all_agents(kind):
    policy = _policy(3, action=ACTIONS[kind], share_parameters=True)
    target = ActorCriticPolicy(OBS, ACTIONS[kind], lambda _: 3e-4)
    copy_to_sb3(policy, target)
    rows = _rows(OBS, 12)
    for agent in range(3):
        _assert_equal_to_sb3(policy, target, rows, agent)


@pytest.mark.parametrize("use_expln", [False, True], ids=["exp", "expln"])
@pytest.mark.parametrize("share_parameters", [False, True], ids=["own", "shared"])
def test_squashed_actions_are_one_sb3_policy_per_agent(share_parameters, use_expln):
    kwargs = {"use_sde": True, "squash_output": True, "use_expln": use_expln, "net_arch": [8]}
    policy = _policy(3, action=ACTIONS["box"], share_parameters=share_parameters, **kwargs)
    policy.reset_noise(12)
    rows = _rows(OBS, 12)
    sampled, _, sampled_log_prob = policy(rows)
    assert sampled.abs().max() <= 1.0
    for agent in range(3):
        target = ActorCriticPolicy(OBS, ACTIONS["box"], lambda _: 3e-4, **kwargs)
        copy_to_sb3(policy, target, 0 if share_parameters else agent)
        _assert_equal_to_sb3(policy, target, rows, agent)
        target.action_dist.exploration_matrices = policy.exploration._matrices[:, agent]
        wanted, _, log_prob = target(rows[agent::3])
        th.testing.assert_close(sampled[agent::3], wanted, atol=1e-6, rtol=0)
        th.testing.assert_close(sampled_log_prob[agent::3], log_prob, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("net_arch", [{"vf": [8]}, {"vf": [8], "pi": [4]}], ids=str)
def test_the_old_form_of_the_widths_is_that_of_sb3_with_a_warning(net_arch):
    with pytest.warns(UserWarning, match=r"instead of `net_arch=\[dict\(pi=..., vf=...\)\]`"):
        policy = _policy(net_arch=[net_arch])
    with pytest.warns(UserWarning, match="instead of net_arch"):
        target = ActorCriticPolicy(OBS, ACTIONS["discrete"], lambda _: 3e-4, net_arch=[net_arch])
    copy_to_sb3(policy, target)
    _assert_equal_to_sb3(policy, target, _rows(OBS, 4))


@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize(
    ("obs", "ours", "theirs"),
    [
        (IMAGE, MultiAgentActorCriticCnnPolicy, ActorCriticCnnPolicy),
        (MIXED, MultiAgentMultiInputPolicy, MultiInputActorCriticPolicy),
        (spaces.Discrete(5), MultiAgentActorCriticPolicy, ActorCriticPolicy),
        (spaces.MultiDiscrete([3, 4]), MultiAgentActorCriticPolicy, ActorCriticPolicy),
        (spaces.MultiBinary(4), MultiAgentActorCriticPolicy, ActorCriticPolicy),
        (spaces.Box(-1, 1, (2, 3), np.float64), MultiAgentActorCriticPolicy, ActorCriticPolicy),
    ],
    ids=["image", "dict", "discrete", "multi_discrete", "multi_binary", "matrix"],
)
def test_every_observation_space_is_preprocessed_as_sb3_does(obs, ours, theirs, share_features_extractor):
    n_agents = 2 if obs is not MIXED else 1
    policy = _policy(n_agents, obs, cls=ours, share_features_extractor=share_features_extractor)
    rows = _rows(obs, 2 * n_agents)
    for agent in range(n_agents):
        target = theirs(obs, ACTIONS["discrete"], lambda _: 3e-4, share_features_extractor=share_features_extractor)
        copy_to_sb3(policy, target, agent)
        _assert_equal_to_sb3(policy, target, rows, agent)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"net_arch": [8]},
        {"net_arch": {"pi": [5, 6], "vf": [7]}},
        {"net_arch": []},
        {"activation_fn": th.nn.ELU},
    ],
    ids=str,
)
def test_custom_networks_are_those_of_sb3(kwargs):
    policy = _policy(2, **kwargs)
    target = ActorCriticPolicy(OBS, ACTIONS["discrete"], lambda _: 3e-4, **kwargs)
    copy_to_sb3(policy, target, 1)
    _assert_equal_to_sb3(policy, target, _rows(OBS, 8), 1)


def test_initialisation_has_sb3s_gains():
    policy = MultiAgentActorCriticPolicy(OBS, ACTIONS["discrete"], lambda _: 3e-4, layout=_layout(2, OBS, ACTIONS["discrete"]))
    for network, gain in ((policy.action_net, 0.01), (policy.value_net, 1.0), (policy.pi_net.layers[0], 2**0.5)):
        for weight in network.weight.detach():
            singular = th.linalg.svdvals(weight)
            th.testing.assert_close(singular, th.full_like(singular, gain), atol=1e-5, rtol=0)


def test_images_are_initialised_in_the_same_order_in_every_process():
    # Extractors used to be collected in a set, whose order depends on memory addresses.
    kwargs = {"obs": IMAGE, "cls": MultiAgentActorCriticCnnPolicy, "share_features_extractor": False}
    states = []
    for garbage in range(4):
        keep = [object() for _ in range(1000 * garbage)]
        th.manual_seed(0)
        states.append(_policy(3, **kwargs).state_dict())
        del keep
    for state in states[1:]:
        assert all((state[name] == states[0][name]).all() for name in state)


# ---------------------------------------------------------------- cross evaluation
@pytest.mark.parametrize("append_agent_id", [False, True])
@pytest.mark.parametrize("share_parameters", [False, True])
@pytest.mark.parametrize("obs", [OBS, spaces.Discrete(5)], ids=["vector", "discrete"])
def test_policies_at_asks_every_policy_about_the_same_states(obs, share_parameters, append_agent_id):
    policy = _policy(3, obs, append_agent_id=append_agent_id, share_parameters=share_parameters)
    states = _rows(obs, 7)
    asked = policy.policies_at(states).log_probs
    for row, state in enumerate(states):
        shown = state.expand(1, 3, *state.shape)
        th.testing.assert_close(asked[row], policy.team_distribution(shown).log_probs[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("append_agent_id", [False, True])
@pytest.mark.parametrize("share_parameters", [False, True])
def test_common_states_join_the_forward_pass_without_changing_it(share_parameters, append_agent_id):
    policy = _policy(3, append_agent_id=append_agent_id, share_parameters=share_parameters)
    team, actions, states = _rows(OBS, 12).unflatten(0, (4, 3)), th.randint(4, (4, 3)), _rows(OBS, 5)
    joined, alone = policy.evaluate_team_actions(team, actions, states), policy.evaluate_team_actions(team, actions)
    for name in ("values", "log_prob", "entropy"):
        th.testing.assert_close(getattr(joined, name), getattr(alone, name), atol=1e-6, rtol=0)
    th.testing.assert_close(joined.common.log_probs, policy.policies_at(states).log_probs, atol=1e-6, rtol=0)
    assert alone.common is None


def test_agent_identity_lets_a_shared_network_tell_agents_apart():
    row = _rows(OBS, 1).expand(3, -1)
    for append_agent_id in (False, True):
        values = _policy(3, share_parameters=True, append_agent_id=append_agent_id).predict_values(row)
        assert (values.unique().numel() == 3) == append_agent_id


# ---------------------------------------------------------------- gradient clipping
@pytest.mark.parametrize("cls", ["mlp", "cnn"])
@pytest.mark.parametrize("max_norm", [0.05, 1e6])
def test_every_agents_gradient_is_clipped_on_its_own(cls, max_norm):
    obs = OBS if cls == "mlp" else IMAGE
    policy = _policy(3, obs, cls=MultiAgentActorCriticPolicy if cls == "mlp" else MultiAgentActorCriticCnnPolicy)
    team = _rows(obs, 6).unflatten(0, (2, 3))
    result = policy.evaluate_team_actions(team, th.randint(4, (2, 3)))
    scale = th.tensor([1e-3, 1.0, 30.0])
    ((result.log_prob + result.values + result.entropy) * scale).sum().backward()

    def of_agent(agent):
        for name, parameter in policy.named_parameters():
            if "extractors" not in name:
                yield parameter.grad[agent]
            elif f"extractors.{agent}." in name:
                yield parameter.grad

    before = [[grad.clone() for grad in of_agent(agent)] for agent in range(3)]
    policy.clip_gradients(max_norm)
    for agent in range(3):
        norm = th.cat([grad.flatten() for grad in before[agent]]).norm()
        factor = min(1.0, max_norm / (float(norm) + 1e-6))
        for grad, old in zip(of_agent(agent), before[agent], strict=True):
            th.testing.assert_close(grad, old * factor, atol=1e-7, rtol=1e-4)


def test_parameters_that_belong_to_no_agent_are_refused_at_construction():
    class Odd(MultiAgentActorCriticPolicy):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.common = th.nn.Linear(2, 2)

    with pytest.raises(ValueError, match=r"not stacked by agent.*common\.weight, common\.bias"):
        _policy(2, cls=Odd)
    _policy(2, cls=Odd, share_parameters=True)
    _policy(1, cls=Odd)


def test_an_extractor_that_agents_share_is_refused_because_its_gradient_has_no_owner():
    backbone = th.nn.Linear(6, 3)

    class Shared(FlattenExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space)
            self.backbone = backbone

    with pytest.raises(ValueError, match=r"shared between agents: pi_extractors\.0\.backbone\.weight"):
        _policy(2, features_extractor_class=Shared)


def test_activations_with_parameters_are_refused_before_any_rollout():
    with pytest.raises(ValueError, match="`activation_fn` PReLU"):
        IPPO("MlpPolicy", "otbaselines/Navigation-v0", policy_kwargs={"activation_fn": th.nn.PReLU})


# ---------------------------------------------------------------- predict
@pytest.fixture(scope="module")
def mixed_team():
    """Three agents with 2, 3 and 1 observed numbers and 2, 3 and 4 choices."""
    observed = {"a": vector(2), "b": vector(3), "c": vector(1)}
    env = CustomSpacesEnv(observed, {"a": spaces.Discrete(2), "b": spaces.Discrete(3), "c": spaces.Discrete(4)})
    return IPPO("MlpPolicy", env, n_steps=8, batch_size=6, seed=0)


def _dict_of(rows):
    return {"a": rows[..., 0, :2], "b": rows[..., 1, :3], "c": rows[..., 2, :1]}


def _padded(batch):
    rows = np.random.default_rng(0).uniform(-1, 1, (batch, 3, 3)).astype(np.float32)
    rows[:, 0, 2:], rows[:, 2, 1:] = 0, 0
    return rows


@pytest.mark.parametrize("is_batch", [False, True])
@pytest.mark.parametrize("is_padded", [False, True])
def test_a_dict_of_agents_gets_the_actions_of_the_rows(mixed_team, is_batch, is_padded):
    rows = _padded(4 if is_batch else 1)
    expected = mixed_team.predict(rows.reshape(-1, 3), deterministic=True)[0].reshape(-1, 3)
    shown = {k: rows[:, i] for i, k in enumerate("abc")} if is_padded else _dict_of(rows)
    if not is_batch:
        shown, expected = {agent: value[0] for agent, value in shown.items()}, expected[0]
    actions, state = mixed_team.predict(shown, deterministic=True)
    assert state is None
    assert list(actions) == ["a", "b", "c"]
    for i, agent in enumerate("abc"):
        np.testing.assert_array_equal(actions[agent], expected[..., i])
        assert np.shape(actions[agent]) == ((4,) if is_batch else ())


def test_agents_that_have_left_may_be_missing_from_the_dict(mixed_team):
    rows = _padded(1)
    everyone, _ = mixed_team.predict({k: v[0] for k, v in _dict_of(rows).items()}, deterministic=True)
    some, _ = mixed_team.predict({"c": rows[0, 2, :1], "a": rows[0, 0, :2]}, deterministic=True)
    assert some == {"c": everyone["c"], "a": everyone["a"]}


def test_sampled_actions_of_a_dict_are_in_each_agents_own_space(mixed_team):
    shown = _dict_of(_padded(200))
    actions, _ = mixed_team.predict(shown)
    for agent, n in zip("abc", (2, 3, 4), strict=True):
        assert set(np.unique(actions[agent])) == set(range(n))
        assert all(mixed_team.layout.agent_action_spaces[agent].contains(action) for action in actions[agent][:5])


def test_continuous_actions_of_a_dict_have_each_agents_own_size_and_bounds():
    boxes = {"a": spaces.Box(-0.1, 0.1, (1,), np.float32), "b": spaces.Box(0, 2, (3,), np.float32)}
    env = CustomSpacesEnv({"a": vector(2), "b": vector(2)}, boxes)
    model = IPPO("MlpPolicy", env, n_steps=8, batch_size=4, seed=0)
    actions, _ = model.predict({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)})
    assert all(boxes[agent].contains(action) for agent, action in actions.items())


def test_choices_of_a_dict_are_counted_from_each_agents_own_start():
    starts = {"a": spaces.Discrete(3, start=5), "b": spaces.Discrete(2, start=-1)}
    env = CustomSpacesEnv({"a": vector(2), "b": vector(2)}, starts)
    model = IPPO("MlpPolicy", env, n_steps=8, batch_size=4, seed=0)
    shown = {agent: np.zeros((50, 2), np.float32) for agent in starts}
    actions, _ = model.predict(shown)
    assert set(actions["a"]) == {5, 6, 7}
    assert set(actions["b"]) == {-1, 0}


def test_dict_observations_of_a_team_are_predicted_by_agent():
    space = spaces.Dict(v=vector(3), n=spaces.Discrete(4))
    env = CustomSpacesEnv({"a": space, "b": space}, {"a": spaces.Discrete(2), "b": spaces.Discrete(2)})
    model = IPPO("MultiInputPolicy", env, n_steps=8, batch_size=4, seed=0)
    first, second = space.sample(), space.sample()
    actions, _ = model.predict({"a": first, "b": second}, deterministic=True)
    rows = {key: np.stack([first[key], second[key]]) for key in space}
    assert [actions["a"], actions["b"]] == model.predict(rows, deterministic=True)[0].tolist()


def test_images_of_a_team_are_predicted_by_agent_as_the_environment_gives_them():
    image = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    env = CustomSpacesEnv({"a": image, "b": image}, {"a": spaces.Discrete(5), "b": spaces.Discrete(5)})
    model = IPPO("CnnPolicy", env, n_steps=4, batch_size=4, n_epochs=1, seed=0)
    with th.no_grad():
        model.policy.action_net.weight.mul_(1e3)
    shown = {"a": image.sample(), "b": image.sample()}
    actions, _ = model.predict(shown, deterministic=True)
    expected, _ = model.predict(np.stack(list(shown.values())), deterministic=True)
    assert [actions["a"], actions["b"]] == expected.tolist()


def test_rows_that_do_not_fill_teams_are_an_error(mixed_team):
    with pytest.raises(ValueError, match="4 rows, which is not a multiple of the team's 3 agents"):
        mixed_team.predict(np.zeros((4, 3), np.float32))


@pytest.mark.parametrize("shown", [{"z": np.zeros(3)}, {}])
def test_a_dict_with_unknown_agents_or_none_is_an_error(mixed_team, shown):
    with pytest.raises(ValueError, match=r"the team is \['a', 'b', 'c'\]"):
        mixed_team.predict(shown)


def test_an_observation_of_the_wrong_size_is_an_error_that_names_the_agent(mixed_team):
    with pytest.raises(ValueError, match="'b'"):
        mixed_team.predict({"a": np.zeros(2), "b": np.zeros(7), "c": np.zeros(1)})


def test_state_is_handed_back(mixed_team):
    state = (np.zeros(1),)
    assert mixed_team.predict(np.zeros((3, 3), np.float32), state=state)[1] is state


def test_the_layout_knows_which_actions_are_padding():
    env = ParallelVecEnv(CustomSpacesEnv({"a": vector(2), "b": vector(2)}, {"a": spaces.Discrete(2), "b": spaces.Discrete(4)}))
    layout = team_layout(env)
    assert layout.action_mask(env.action_space).tolist() == [[True, True, False, False], [True] * 4]
    same = CustomSpacesEnv({"a": vector(2), "b": vector(2)}, {"a": spaces.Discrete(2), "b": spaces.Discrete(2)})
    assert team_layout(ParallelVecEnv(same)).action_mask(spaces.Discrete(2)) is None
