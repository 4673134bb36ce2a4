"""One gradient step as a CUDA graph: hundreds of kernels that the host launches as one."""

from collections.abc import Callable, Iterable
from typing import Any

import torch as th

# Eager steps first: libraries and optimizers allocate what they need in them.
WARM_UP = 3


def make_capturable(optimizers: Iterable[th.optim.Optimizer], device: th.device) -> None:
    """
    Put what an optimizer reads on the device, so that a captured step sees its changes.

    :param optimizers: torch's own
    :param device: of the parameters
    :raises ValueError: if one cannot be captured
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if "capturable" not in group:
                raise ValueError(
                    f"`cuda_graph` needs an optimizer with the setting 'capturable', which {type(optimizer).__name__} lacks; "
                    "use torch.optim.Adam"
                )
            group["capturable"] = True
            if not isinstance(group["lr"], th.Tensor):
                group["lr"] = th.tensor(float(group["lr"]), device=device)
        for state in optimizer.state.values():
            if "step" in state:
                state["step"] = th.as_tensor(state["step"], dtype=th.float32, device=device)


def set_learning_rate(optimizer: th.optim.Optimizer, rate: float) -> None:
    """
    :param optimizer: captured or not
    :param rate: of all its groups
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], th.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def without_capture(states: dict[str, dict[Any, Any]]) -> dict[str, dict[Any, Any]]:
    """
    :param states: state dicts by name, those of optimizers ending so; changed in place
    :return: the same, in which no optimizer has what only a captured step needs, so that a model loads everywhere
    """
    for name, state in states.items():
        if name.endswith("optimizer"):
            for group in state["param_groups"]:
                if isinstance(group["lr"], th.Tensor):
                    group.update(lr=float(group["lr"]), capturable=False)
    return states


class GraphedStep:
    """
    A step that is recorded once and replayed from then on. All that it reads has to stay where it is.

    :param step: draws nothing, reads nothing back, and returns a tensor
    """

    def __init__(self, step: Callable[[], th.Tensor]) -> None:
        self._step = step
        self._calls = 0
        self._graph: th.cuda.CUDAGraph | None = None
        self._result: th.Tensor | None = None

    def __call__(self) -> th.Tensor:
        """
        :return: what the step returned, as a tensor of its own
        """
        if self._calls < WARM_UP:
            self._calls += 1
            return self._warm_up()
        if self._graph is None:
            self._graph = th.cuda.CUDAGraph()
            # Recording computes nothing, so that the step is taken by the replay.
            with th.cuda.graph(self._graph):
                self._result = self._step()
        self._graph.replay()
        assert self._result is not None
        return self._result.clone()

    def _warm_up(self) -> th.Tensor:
        stream = th.cuda.Stream()
        stream.wait_stream(th.cuda.current_stream())
        with th.cuda.stream(stream):
            result = self._step()
        th.cuda.current_stream().wait_stream(stream)
        return result
