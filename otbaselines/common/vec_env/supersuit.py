"""SuperSuit's vector environments, rebuilt from the PettingZoo environments inside them."""

import contextlib
import sys
import warnings
from typing import Any

import cloudpickle
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from supersuit.multiagent_wrappers.black_death import black_death_par
from supersuit.vector import ConcatVecEnv, MarkovVectorEnv, ProcConcatVec
from supersuit.vector.sb3_vector_wrapper import SB3VecEnvWrapper

from otbaselines.common.vec_env.copies import INNER_NAMES, TeamEnv, inner_envs
from otbaselines.common.vec_env.parallel import ParallelVecEnv

_SUPERSUIT = (SB3VecEnvWrapper, ConcatVecEnv, ProcConcatVec, MarkovVectorEnv)
_REMEDY = "pass the PettingZoo environment itself, or `make_vec_env(env, n_copies)`"


def contains_supersuit(env: Any) -> bool:
    """Tell whether ``env`` is, or wraps, a vector environment of SuperSuit's."""
    return any(isinstance(layer, _SUPERSUIT) for layer in _layers(env))


def replace_supersuit(env: Any) -> VecEnv:
    """
    Put a :class:`ParallelVecEnv` in the place of SuperSuit's vector environment, under whatever wraps it.

    :param env: SuperSuit's vector environment, or a ``VecEnvWrapper`` around it, which is changed in place
    :return: the outermost vector environment
    :raises ValueError: if the environment inside cannot be recovered
    """
    layers = list(_layers(env))
    depth = next(index for index, layer in enumerate(layers) if isinstance(layer, _SUPERSUIT))
    replacement = from_supersuit(layers[depth])
    if depth == 0:
        return replacement
    layers[depth - 1].venv = replacement
    for wrapper in layers[:depth]:
        # These are copied from the wrapped environment by constructors that ran over SuperSuit's, which has none of them.
        wrapper.num_envs = replacement.num_envs
        wrapper.render_mode = replacement.render_mode
        wrapper.metadata = replacement.metadata
        wrapper.reset_infos = [{} for _ in range(replacement.num_envs)]
    outermost: VecEnv = layers[0]
    return outermost


def from_supersuit(venv: Any) -> ParallelVecEnv:
    """
    Rebuild a vector environment of SuperSuit's as a :class:`ParallelVecEnv`.

    As of SuperSuit 3.11 its own one cannot be seeded, marks the end of episodes with integers that break
    ``VecNormalize``, does not tell truncation from termination, and may play identical episodes in several copies. Its
    preprocessing wrappers are kept. Two are special: the agents' own action spaces are read from under
    ``pad_action_space_v0``, so that padded actions can be masked, and ``black_death_v3``, which ends episodes one step
    late, is taken out, because agents that leave are handled here.

    :param venv: what ``concat_vec_envs_v1`` returned; its worker processes, if any, are closed
    :return: as many copies of the environment inside
    :raises ValueError: if the environment inside cannot be recovered
    """
    while isinstance(venv, SB3VecEnvWrapper):
        venv = venv.venv
    envs = [_without_black_death(env) for env in _team_envs(venv)]
    return ParallelVecEnv(envs)


def _layers(env: Any) -> Any:
    while env is not None:
        yield env
        if isinstance(env, _SUPERSUIT) or not isinstance(env, VecEnvWrapper):
            return
        env = env.venv


def _team_envs(venv: Any) -> list[TeamEnv]:
    if isinstance(venv, MarkovVectorEnv):
        return [venv.par_env]
    if isinstance(venv, ConcatVecEnv) and all(isinstance(part, MarkovVectorEnv) for part in venv.vec_envs):
        return [part.par_env for part in venv.vec_envs]
    if isinstance(venv, ProcConcatVec):
        return _fetch_from_workers(venv)
    raise ValueError(f"no PettingZoo environment was found inside {type(venv).__name__}; {_REMEDY}")


def _fetch_from_workers(venv: Any) -> list[TeamEnv]:
    """Have the first of SuperSuit's workers send its environment, then end all workers."""
    # The environments exist in the worker processes only: the parent keeps neither them nor what built them. Without this
    # a script that asks for several of them would have to be refused; with it, it trains 1.9 times as fast per CPU second
    # (IPPO on the rebuilt copies beside SB3's PPO through two workers, 16 copies of simple_spread, four alternating runs).
    payload: Any = None
    try:
        pipe = venv.pipes[0]
        pipe.send(_EnvRequest())
        payload = pipe.recv()
        if isinstance(payload, bytes):
            pipe.recv()
    except (OSError, EOFError, AttributeError) as error:
        raise ValueError(f"SuperSuit's worker processes do not answer ({error!r}); {_REMEDY}") from error
    finally:
        with contextlib.suppress(OSError):
            venv.close()
    if not isinstance(payload, bytes):
        raise ValueError(f"no PettingZoo environment was found inside SuperSuit's worker processes; {_REMEDY}")
    env: TeamEnv = cloudpickle.loads(payload)
    n_copies = venv.num_envs // len(env.possible_agents)
    return [env, *(cloudpickle.loads(payload) for _ in range(n_copies - 1))]


class _EnvRequest:
    """Turns, when a worker of SuperSuit's unpickles it, into an instruction that the worker knows."""

    def __reduce__(self) -> Any:
        return _send_env, ()


def _send_env() -> Any:
    """Send the worker's environment through its pipe; runs inside the worker, while that receives an instruction."""
    frame = sys._getframe()
    while frame.f_code.co_name != "async_loop":
        if frame.f_back is None:
            raise RuntimeError("not called from a worker of SuperSuit's")
        frame = frame.f_back
    worker = frame.f_locals
    worker["pipe"].send(cloudpickle.dumps(worker["vec_env"].vec_envs[0].par_env))
    return "env_is_wrapped", object


def _without_black_death(env: TeamEnv) -> TeamEnv:
    """Take every ``black_death_v3`` out of a chain of wrappers."""
    is_found = False
    while isinstance(env, black_death_par):
        is_found, env = True, env.env
    for layer in list(inner_envs(env)):
        for name in INNER_NAMES:
            held = getattr(layer, "__dict__", {}).get(name)
            while isinstance(held, black_death_par):
                is_found, held = True, held.env
                setattr(layer, name, held)
    if is_found:
        warnings.warn(
            "`black_death_v3` was taken out: it ends episodes one step late, and agents that leave early are handled by "
            "`ParallelVecEnv`, which gives them zero observations and marks them in `agent_active`",
            UserWarning,
            stacklevel=4,
        )
    return env
