"""What environments make part of their episodes' results beyond reward, length and time."""

from typing import Any

# What SB3 itself writes into an episode's result.
RESERVED = ("r", "l", "t")


def info_keywords(env: Any) -> tuple[str, ...]:
    """
    Names of entries of the infos whose values at an agent's last step belong to its episode's result.

    Named after the argument of SB3's ``Monitor``, but said by the environment, in an attribute ``info_keywords``.

    :param env: an environment
    :return: the names; none where it says nothing
    :raises ValueError: if they are no names, or SB3's own
    """
    names = getattr(env, "info_keywords", ())
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name not in RESERVED for name in names):
        raise ValueError(
            f"`info_keywords` of {env} is {names!r}; make it a tuple of names of entries of the infos, other than "
            f"{', '.join(map(repr, RESERVED))}"
        )
    return tuple(names)
