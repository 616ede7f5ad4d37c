"""Riemannian walk against its equations, a step and a weight at a time."""

from typing import ClassVar

import pytest
import torch
from conftest import live
from test_memory_and_replay import SMALL, Loop

from clrun.strategy import Strategy, cross_entropy


class Recorder(Strategy):
    """Plain training with a given penalty, which records each step's gradient and parameters."""

    log: ClassVar[list] = []

    def gradient(self, theta, state, hp, batch):
        leaf = theta.detach().clone().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(self.net(leaf, batch.x), batch), leaf)
        Recorder.log.append((theta.clone(), g))
        return g, torch.zeros((), dtype=theta.dtype), {}


def written_out(log, last, decay, damping, interval, fisher=0.0):
    """F and s after the steps of one task that started with this F, from (theta, g) of each step and the last theta."""
    path = score = torch.zeros_like(last)
    marked = log[0][0]
    after = [theta for theta, _ in log[1:]] + [last]
    for k, ((theta, g), new) in enumerate(zip(log, after, strict=True), 1):
        fisher = decay * fisher + (1 - decay) * g**2
        path = path + -g * (new - theta)
        if k % interval == 0:
            score = score + path.clamp(min=0) / (0.5 * fisher * (new - marked) ** 2 + damping)
            path, marked = torch.zeros_like(path), new
    return fisher, score


def test_first_task(stack_of):
    """No penalty acts yet, so the steps are those of plain training."""
    typed = ("iterations=23", "optimizer=adam")
    stack = stack_of("strategy=rwalk", "interval=5", "decay=0.8", "damping=0.01", *typed)
    run, _ = stack.learn(stack.initialize(), 0)
    Recorder.log.clear()
    plain, _ = stack_of("strategy=finetune", *typed, strategy=Recorder).learn(stack.initialize()._replace(state=()), 0)
    assert (run.theta - plain.theta).abs().max() < 1e-12
    fisher, score = written_out(Recorder.log, plain.theta, 0.8, 0.01, 5)
    assert torch.allclose(run.state.fisher, fisher, atol=1e-14)
    assert torch.allclose(run.state.past_score, score, atol=1e-10)
    importance = fisher / fisher.max() + score / score.max()
    assert torch.allclose(run.state.importance, importance, atol=1e-10)
    assert torch.equal(run.state.anchor, run.theta)
    assert not run.state.score.any() and run.state.steps == 0


def test_two_tasks_without_a_penalty(stack_of):
    """At lambda=0 the steps are those of plain training: F goes on through both tasks, and scores are averaged."""
    typed = ("iterations=11", "optimizer=adam")
    stack = stack_of("strategy=rwalk", "lambda=0", "interval=3", "decay=0.8", "damping=0.01", *typed)
    recording = stack_of("strategy=finetune", *typed, strategy=Recorder)
    run, plain = stack.initialize(), stack.initialize()._replace(state=())
    fisher, scores = 0.0, []
    for stage in range(2):
        Recorder.log.clear()
        run, _ = stack.learn(run, stage)
        plain, _ = recording.learn(plain, stage)
        fisher, score = written_out(Recorder.log, plain.theta, 0.8, 0.01, 3, fisher)
        scores.append(score)
    assert (run.theta - plain.theta).abs().max() < 1e-12
    past = (scores[0] + scores[1]) / 2
    assert torch.allclose(run.state.fisher, fisher, rtol=1e-9, atol=1e-14)
    assert torch.allclose(run.state.past_score, past, rtol=1e-7, atol=1e-10)
    assert torch.allclose(run.state.importance, fisher / fisher.max() + past / past.max(), rtol=1e-7, atol=1e-10)


def test_the_penalty_enters_neither_f_nor_the_path(stack_of):
    """Three tasks of SGD, a sample a pass: a step follows the loss with the penalty, F and scores the loss alone."""
    stack = stack_of("strategy=rwalk", "lambda=3", "interval=3", "decay=0.8", "damping=0.01", *SMALL)
    run = stack.initialize()
    loop, log = Loop(stack, run.theta), []
    fisher, past, importance, pulled = 0.0, 0.0, torch.zeros_like(run.theta), 0.0

    def step(rows, noise, stage):
        nonlocal pulled
        g = loop.gradient(loop.ce(rows, stage))
        pull = 2 * 3 * importance * (loop.theta - anchor)
        pulled = max(pulled, (pull.norm() / g.norm()).item())
        log.append((loop.theta, g))
        loop.move(g + pull)

    for stage in range(3):
        anchor = loop.theta
        log.clear()
        loop.task(stage, step)
        fisher, score = written_out(log, loop.theta, 0.8, 0.01, 3, fisher)
        past = (past + score) / 2 if stage else score
        importance = fisher / fisher.max() + past / past.max()
        run, _ = stack.learn(run, stage)
        assert (run.theta - loop.theta).abs().max() < 1e-12
        assert torch.allclose(run.state.fisher, fisher, rtol=1e-9, atol=1e-14)
        assert torch.allclose(run.state.past_score, past, rtol=1e-7, atol=1e-10)
        assert torch.allclose(run.state.importance, importance, rtol=1e-7, atol=1e-10)
    assert pulled > 0.1


def test_the_penalty_is_the_written_one(stack_of):
    stack = stack_of("strategy=rwalk", "lambda=3")
    run, _ = stack.learn(stack.initialize(), 0)
    away = torch.randn(len(run.theta), dtype=torch.float64)
    quadratic = stack.strategy.quadratic(run.state, stack.hp)
    leaf = (run.theta + away).requires_grad_()
    penalty = 3 * (run.state.importance * (leaf - run.theta) ** 2).sum()
    (g,) = torch.autograd.grad(penalty, leaf)
    assert quadratic.value(away).item() == pytest.approx(penalty.item())
    assert torch.allclose(quadratic.gradient(away), g)


def test_a_larger_strength_moves_less(stack_of):
    def distance(strength):
        run, _ = live(stack_of("strategy=rwalk", f"lambda={strength}", "tasks=2", "iterations=30"))
        first, _ = stack_of("strategy=rwalk", f"lambda={strength}", "tasks=2", "iterations=30").learn(
            stack_of("strategy=rwalk", "tasks=2").initialize(), 0
        )
        return (run.theta - first.theta).norm()

    assert distance(1000) < distance(0)
