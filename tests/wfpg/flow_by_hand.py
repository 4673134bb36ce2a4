"""One update of WassersteinFlowPG as its equations say: plain float64 tensors, row by row, without the package's code."""

import dataclasses
import math

import torch as th


class Adam:
    """Kingma and Ba 2015, algorithm 1, one state a tensor; tensors without a gradient are left alone."""

    def __init__(self, rate):
        self.rate, self.moments = rate, {}

    def step(self, tensors, gradients):
        for name, gradient in gradients.items():
            first, second, t = self.moments.get(name, (0.0, 0.0, 0))
            t, first, second = t + 1, 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            self.moments[name] = first, second, t
            corrected = (second / (1.0 - 0.999**t)).sqrt() + 1e-8
            tensors[name] = (tensors[name] - self.rate * first / (1.0 - 0.9**t) / corrected).detach()


def first_of(batch, n):
    """The first rows of a minibatch, whose noise has two draws a row."""
    return dataclasses.replace(
        batch, seen=batch.seen[:n], rewards=batch.rewards[:n], noise=batch.noise[:, :n], kicks=batch.kicks[:, :n]
    )


class FlowByHand:
    """
    The state of a model with two actions and two critics, networks of one hidden layer of tanh, and Adam.

    :param model: whose state is copied, before its first update
    :param settings: of the update, by the names of the algorithm's parameters
    """

    def __init__(self, model, **settings):
        policy = model.policy
        self.settings = settings
        copied = lambda module: {name: p.detach().double().clone() for name, p in module.named_parameters()}  # noqa: E731
        self.actor, self.critic, self.slow = map(copied, (policy.actor, policy.critic, policy.critic_target))
        self.log_temperature = {"": policy.log_ent_coef.detach().double().clone()}
        self.average = self.scale = self.kick = th.zeros((), dtype=th.float64)
        n = sum(p.numel() for p in self.actor.values())
        self.diagonal, self.direction = None, th.zeros(n, dtype=th.float64)
        self.optimizers = [Adam(settings["learning_rate"]) for _ in range(3)]
        self.told = {}

    # -------------------------------------------------------------- the networks, one row at a time
    def image(self, actor, state, noise):
        hidden = th.tanh(state @ actor["trunk.layers.0.weight"][0] + actor["trunk.layers.0.bias"][0, 0])
        heads = actor["heads.weight"] @ hidden + actor["heads.bias"]
        u = heads[:2] + heads[2:4].exp() * noise
        if self.settings["policy_form"] == "pushforward":
            u = u + actor["bend_out.weight"] @ th.tanh(heads[4:] + actor["bend_noise.weight"] @ noise)
        return u

    def image_and_stretch(self, actor, state, noise):
        """The image, and log |det dT/dz| by two backward passes and the determinant of a matrix of four."""
        noise = noise.clone().requires_grad_()
        u = self.image(actor, state, noise)
        (a, b), (c, d) = (th.autograd.grad(u[j], noise, create_graph=True)[0] for j in range(2))
        return u, (a * d - b * c).abs().log()

    def value(self, critic, k, state, action):
        joint = th.cat([state, action])
        hidden = th.tanh(joint @ critic["head.body.layers.0.weight"][k] + critic["head.body.layers.0.bias"][k, 0])
        return (hidden @ critic["head.head.weight"][k])[0] + critic["head.head.bias"][k, 0, 0]

    def entropy_of(self, u, stretch):
        """The entropy of a standard normal plane, and what the map and the squashing add to it."""
        return math.log(2.0 * math.pi * math.e) + stretch + sum((1.0 - th.tanh(x) ** 2).log() for x in u)

    # -------------------------------------------------------------- the update
    def update(self, batch):
        s, n = self.settings, len(batch.rewards)
        self.has_bonus = s["entropy"] == "bonus" and s["ent_coef"] != 0.0
        self.learns = s["ent_coef"] == "auto"
        self.temperature = float(self.log_temperature[""].exp()) if self.learns else s["ent_coef"]
        targets = [self.target(batch, i) for i in range(n)]
        if s["objective"] == "average":
            # The average reward goes towards what the next states' values exceed it by, and the targets go with it.
            gap = sum(target - float(reward) for target, reward in zip(targets, batch.rewards, strict=True)) / n
            step = min(1.0, 4.0 * s["tau"]) * gap
            self.average, targets = self.average + step, [target - step for target in targets]
        self.step_critics(batch, targets)
        self.move(first_of(batch, s.get("policy_batch_size") or -(-n // 2)))
        if self.learns:
            gap = self.told["entropy"] - s["target_entropy"]
            self.optimizers[2].step(self.log_temperature, {"": th.as_tensor(gap, dtype=th.float64)})
        for name, value in self.critic.items():
            self.slow[name] = self.slow[name] + s["tau"] * (value - self.slow[name])

    def target(self, batch, i):
        s = self.settings
        u, stretch = self.image_and_stretch(self.actor, batch.next_seen[i], batch.noise[1, i])
        u = u.detach()
        if s["entropy"] == "langevin":
            u = u + self.kick * batch.kicks[1, i]
        value = min(float(self.value(self.slow, k, batch.next_seen[i], th.tanh(u))) for k in range(2))
        if self.has_bonus:
            value += self.temperature * float(self.entropy_of(u, stretch.detach()))
        value *= float(batch.continues[i])
        if s["objective"] == "average":
            return float(batch.rewards[i]) - float(self.average) + value
        return float(batch.rewards[i]) + float(batch.discounts[i]) * value

    def step_critics(self, batch, targets):
        own = {name: p.clone().requires_grad_() for name, p in self.critic.items()}
        loss, values, n = 0.0, [], len(targets)
        for i, target in enumerate(targets):
            both = [self.value(own, k, batch.seen[i], batch.actions[i]) for k in range(2)]
            loss = loss + sum(0.5 * (value - target) ** 2 for value in both) / n
            values.append(sum(float(value.detach()) for value in both) / 2.0)
        self.told["critic_loss"], self.told["q"] = float(loss.detach()), sum(values) / n
        self.optimizers[1].step(self.critic, dict(zip(own, th.autograd.grad(loss, list(own.values())), strict=True)))

    def move(self, batch):
        s, n = self.settings, len(batch.rewards)
        images, slopes = [], []
        for i in range(n):
            u = self.image(self.actor, batch.seen[i], batch.noise[0, i]).detach().requires_grad_()
            climbed = [0, 1] if i == n // 2 * 2 else [0] if i < n // 2 else [1]
            gain = sum(self.value(self.critic, k, batch.seen[i], th.tanh(u)) for k in climbed) / len(climbed)
            if self.has_bonus:
                gain = gain + self.temperature * sum((1.0 - th.tanh(x) ** 2).log() for x in u)
            slopes.append(th.autograd.grad(gain, u)[0])
            images.append(u.detach())
        speed = math.sqrt(sum(float(v @ v) for v in slopes) / n)
        self.scale = speed if float(self.scale) == 0.0 else 0.99 * float(self.scale) + 0.01 * speed
        rate = s["step_size"] / self.scale
        self.kick = math.sqrt(2.0 * rate * self.temperature) if s["entropy"] == "langevin" else 0.0
        self.told |= {"speed": speed, "displacement": rate * speed, "entropy": self.mean_entropy(batch)}
        steps = {"regression": self.regress, "first_order": self.ascend, "cg": self.natural_step}
        steps[s["solver"]](batch, images, slopes, rate)

    def mean_entropy(self, batch):
        rows = [self.image_and_stretch(self.actor, s, z) for s, z in zip(batch.seen, batch.noise[0], strict=True)]
        return float(sum(self.entropy_of(u, stretch).detach() for u, stretch in rows)) / len(rows)

    def gradient(self, batch, loss_of_row, names=None):
        """Of the mean over rows of ``loss_of_row(i, u, stretch)``, by the parameters of those names."""
        own = {name: p.clone().requires_grad_() for name, p in self.actor.items()}
        loss = 0.0
        for i, (state, noise) in enumerate(zip(batch.seen, batch.noise[0], strict=True)):
            loss = loss + loss_of_row(i, *self.image_and_stretch(own, state, noise)) / len(batch.rewards)
        wanted = {name: p for name, p in own.items() if names is None or name in names}
        found = th.autograd.grad(loss, list(wanted.values()), materialize_grads=True, allow_unused=True)
        return dict(zip(wanted, found, strict=True))

    def regress(self, batch, images, slopes, rate):
        heat = rate * self.temperature if self.has_bonus else 0.0
        goals = [u + rate * v for u, v in zip(images, slopes, strict=True)]
        behind_the_trunk = [name for name in self.actor if not name.startswith("trunk")]
        for left in reversed(range(self.settings["n_inner_steps"])):
            gradients = self.gradient(
                batch,
                lambda i, u, stretch: 0.5 * ((u - goals[i]) ** 2).sum() - heat * stretch,
                behind_the_trunk if left else None,
            )
            self.optimizers[0].step(self.actor, gradients)

    def ascent(self, batch, slopes):
        worth = self.temperature if self.has_bonus else 0.0
        return self.gradient(batch, lambda i, u, stretch: -(slopes[i] @ u) - worth * stretch)

    def ascend(self, batch, images, slopes, rate):
        self.optimizers[0].step(self.actor, {name: g / self.scale for name, g in self.ascent(batch, slopes).items()})

    def natural_step(self, batch, images, slopes, rate):
        n = len(images)
        uphill = -th.cat([g.flatten() for g in self.ascent(batch, slopes).values()])
        jacobians = []
        for i in range(n):
            own = {name: p.clone().requires_grad_() for name, p in self.actor.items()}
            u = self.image(own, batch.seen[i], batch.noise[0, i])
            rows = [th.autograd.grad(u[j], list(own.values()), retain_graph=True, materialize_grads=True) for j in range(2)]
            jacobians.append(th.stack([th.cat([part.flatten() for part in row]) for row in rows]))
        metric = sum(j.mT @ j for j in jacobians) / n
        signs = batch.kicks[0].sign()
        sample = sum(j.mT @ e for j, e in zip(jacobians, signs, strict=True)) ** 2 / n
        self.diagonal = sample if self.diagonal is None else 0.99 * self.diagonal + 0.01 * sample
        damping = self.settings["cg_damping"] * self.diagonal.mean()
        damped = metric + damping * th.eye(len(metric), dtype=th.float64)
        before = 1.0 / (self.diagonal + damping + 1e-3 * self.diagonal.mean())
        # Preconditioned conjugate gradients, as in Golub and Van Loan, from nine tenths of the last direction.
        x = 0.9 * self.direction
        left = uphill - damped @ x
        scaled = before * left
        towards = scaled
        for _ in range(self.settings["cg_max_steps"]):
            length = (left @ scaled) / (towards @ damped @ towards)
            x, rest = x + length * towards, left - length * (damped @ towards)
            after = before * rest
            towards = after + (rest @ after) / (left @ scaled) * towards
            left, scaled = rest, after
        self.direction = x
        self.told["solver_residual"] = float(left.norm() / uphill.norm())
        moved = math.sqrt(sum(float((j @ x) @ (j @ x)) for j in jacobians) / n)
        x = x * min(rate, self.settings["step_size"] / moved)
        parts = x.split([p.numel() for p in self.actor.values()])
        self.actor = {name: p + part.view_as(p) for (name, p), part in zip(self.actor.items(), parts, strict=True)}
