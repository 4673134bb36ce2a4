"""Saving and loading of a policy by itself, without pickles."""

from typing import Any, Self

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device

from otbaselines.common.saving.archive import SavePath, describe, naming_damage, read_zip, versions, write_zip
from otbaselines.common.saving.contents import FORMAT, check_manifest
from otbaselines.common.saving.description import check_arguments, check_device, check_sizes
from otbaselines.common.saving.tensors import MemoryBudget, building_budget, restore
from otbaselines.common.saving.values import decode_value, encode_value
from otbaselines.common.vec_env.layout import TeamLayout


class JsonPolicyMixin(BasePolicy):
    """
    ``save`` and ``load`` of SB3's policies over JSON and tensors. SB3's own are a pickle, which ``load`` executes.

    Put it before a policy: ``class OwnPolicy(JsonPolicyMixin, ActorCriticPolicy)``. Constructor parameters are those of
    ``_get_constructor_parameters``; they have to be plain values, spaces, or classes of torch, SB3 and this package.
    """

    def save(self, path: SavePath) -> None:
        """
        Save the policy. A path is written as it is, whole or not at all.

        :param path: where to save
        :raises TypeError: if a constructor parameter is something that JSON cannot hold
        """
        parameters = self._get_constructor_parameters()
        parameters.pop("lr_schedule", None)
        layout = parameters.pop("layout", None)
        missing: list[str] = []
        data = {name: encode_value(value, name=name, missing=missing) for name, value in parameters.items()}
        if missing:
            raise TypeError(
                f"{type(self).__name__}.save: JSON cannot hold {', '.join(missing)}; keep the tensors alone, with "
                "`torch.save(policy.state_dict(), path)`, and build the policy by its constructor"
            )
        if layout is not None:
            data["layout"] = encode_value(layout.to_data(), name="layout")
        lineage = [base.__name__ for base in type(self).__mro__ if issubclass(base, JsonPolicyMixin)]
        manifest = {"format": FORMAT, "lineage": lineage, "versions": versions()}
        write_zip(path, data=data, tensors={"policy": self.state_dict()}, manifest=manifest, suffix="")

    @classmethod
    def load(cls, path: SavePath, device: th.device | str = "auto") -> Self:
        """
        Load a policy. Nothing in the file is executed, so it may come from anywhere.

        :param path: what :meth:`save` has written
        :param device: where to put the policy
        :return: the policy
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the file is damaged, was tampered with, or belongs to another class
        """
        check_device(device)
        saved, label = read_zip(path), repr(describe(path))
        check_manifest(saved.manifest, cls, label)
        with naming_damage(label, (), "the parameters, from which no policy can be built"):
            if set(saved.tensors) != {"policy"}:
                raise ValueError("it holds other tensors than a policy's")
            check_sizes(saved.data, {"n_envs": 1})
            values = {name: decode_value(value, name=name) for name, value in saved.data.items()}
            layout = values.pop("layout", None)
            for name in ("observation_space", "action_space"):
                if not isinstance(values.get(name), spaces.Space):
                    raise ValueError(f"`{name}` must be a Gymnasium space, got {str(values.get(name))[:100]!r}")
            # SB3 stores None for some flags that are not in use.
            check_arguments({name: value for name, value in values.items() if value is not None}, cls)
            arguments: dict[str, Any] = {"lr_schedule": cls._dummy_schedule, **values}
            if layout is not None:
                arguments["layout"] = TeamLayout.from_data(layout, 1, values["action_space"])
            with MemoryBudget(building_budget(saved.tensors.values())):
                policy = cls(**arguments)
            restore(saved.tensors, {"policy": policy})
            if getattr(policy, "use_sde", False):
                policy.reset_noise()  # type: ignore[operator]
        return policy.to(get_device(device))
