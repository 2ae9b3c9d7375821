"""What is read from a model's output layer, forward and backward, without all logits existing at once.

Legend: R hidden states, R' tokens asked about (a prompt's last state is followed by several), D hidden size, V
vocabulary.

Log-probabilities of whole distributions (``Logprobs``) go through the vocabulary block by block. Forward, a block
leaves its log-sum-exp and the logits of the tokens that were asked: log p = z_token - log sum exp z. Backward, a block
is computed anew and turned in place into its gradient: d log p / dz = [token] - softmax(z), where softmax(z) =
exp(z - log sum exp z) needs nothing of the other blocks. So a block of a few megabytes, which stays in the processor's
cache, takes the place of several tables [R,V]: beside 49,152 words the layer's time falls by a third on a CPU, most of
which was page faults.

Everything else (top-k, top-p, scalars) reads whole rows of logits, of so many tokens at once as ``pieces.py`` allows,
and leaves its derivative to autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from nemotron.contracts.samples import cuts
from nemotron.rl.llama_arithmetic import accumulate, capped
from nemotron.rl.logprobs import token_logprobs
from nemotron.rl.pieces import pieces

_BLOCK = {"cpu": 2**21, "cuda": 2**25}
"""Logits of a block: 8 MB of float32 on a CPU, 128 MB."""
_NARROWEST = 256
"""A product of fewer columns is slower than one of many."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of R hidden states."""

    tokens: Tensor
    """[R'] the tokens asked about"""
    source: Tensor | None
    """[R'] the state that each of them follows, not falling; None: one each"""

    @property
    def rows(self) -> Tensor:
        """[R'] the same where ``source`` is None, too."""
        return torch.arange(len(self.tokens), device=self.tokens.device) if self.source is None else self.source


class Reading(Protocol):
    """How the output layer becomes results."""

    def forward(self, head: Tensor, states: Tensor, question: Question) -> tuple[Tensor, Tensor | None]:
        """Results [R'] float32 of ``states`` [R,D] under ``head`` [V,D], and what ``backward`` wants to be given."""
        ...

    def backward(
        self,
        head: Tensor,
        states: Tensor,
        question: Question,
        grad: Tensor,
        kept: Tensor | None,
        head_grad: Tensor | None,
    ) -> Tensor:
        """Gradient [R,D] of ``states`` from that of the results [R']; adds that of the head, where it is wanted."""
        ...


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities at a temperature, in nats, under the whole distribution."""

    temperature: float
    cap: float | None
    """logits go through ``cap * tanh(logits / cap)`` first"""

    def forward(self, head: Tensor, states: Tensor, question: Question) -> tuple[Tensor, Tensor | None]:
        """See Reading; what is kept are the log-sum-exps [R]."""
        found = torch.zeros(len(question.tokens), device=states.device)
        rows, sums = question.rows, []
        for words, block in _blocks(head, states):
            scores = self._scores(block)[0]
            columns, inside = _within(question, words)
            found = torch.where(inside, scores[rows, columns], found)
            sums.append(torch.logsumexp(scores, -1))
        kept = torch.logsumexp(torch.stack(sums, 1), 1)
        return found.sub_(kept if question.source is None else kept[question.source]), kept

    def backward(
        self,
        head: Tensor,
        states: Tensor,
        question: Question,
        grad: Tensor,
        kept: Tensor | None,
        head_grad: Tensor | None,
    ) -> Tensor:
        """See Reading."""
        assert kept is not None
        # A row's probabilities are taken from it once for every token that follows it.
        of_rows = grad
        if question.source is not None:
            of_rows = torch.zeros(len(states), device=grad.device).index_add_(0, question.source, grad)
        scale, share = of_rows[:, None] / -self.temperature, grad / self.temperature
        rows = question.rows
        states_grad = torch.zeros(states.shape, device=states.device)
        for words, block in _blocks(head, states):
            scores, slope = self._scores(block)
            scores.sub_(kept[:, None]).exp_().mul_(scale)
            columns, inside = _within(question, words)
            # Through the flat view, in which `index_add_` goes from token to token: two that follow the same row may be
            # the same word, and sums of several threads have no order.
            wanted = torch.where(inside, share, 0.0)
            scores.view(-1).index_add_(0, rows * scores.shape[1] + columns, wanted)
            if slope is not None:
                scores.mul_(slope)
            logits_grad = scores.to(states.dtype)
            if head_grad is not None:
                accumulate(head_grad[words], logits_grad, states)
            accumulate(states_grad, logits_grad.t(), head[words])
        return states_grad.to(states.dtype)

    def recall(self, head: Tensor, states: Tensor, question: Question, found: Tensor) -> Tensor:
        """What ``forward`` keeps, from the log-probabilities [R'] that it found: log sum exp z = z_token - log p."""
        rows = question.rows
        logits = (states[rows] * head[question.tokens]).sum(-1)
        sums: Tensor = self._scores(logits)[0].sub_(found)
        if question.source is None:
            return sums
        # Every token that follows a state says the same but for rounding.
        both = torch.zeros(len(states), 2, device=states.device)
        both.index_add_(0, rows, torch.stack([sums, torch.ones_like(sums)], 1))
        return both[:, 0] / both[:, 1].clamp(min=1)

    def _scores(self, block: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits -> what the softmax is taken of, float32, in the block's own memory where that is float32; and the
        derivative of the cap."""
        scores, slope = block.float(), None
        if self.cap is not None:
            bent = scores.div_(self.cap).tanh_()
            slope = 1 - bent.square()
            scores = bent.mul_(self.cap)
        return scores if self.temperature == 1.0 else scores.div_(self.temperature), slope


def _blocks(head: Tensor, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Words and their logits [R,words]; the next block overwrites them."""
    vocabulary, rows = len(head), len(states)
    width = max(_NARROWEST, _BLOCK.get(states.device.type, _BLOCK["cuda"]) // max(rows, 1))
    width = min(vocabulary, width // _NARROWEST * _NARROWEST)
    memory = states.new_empty(rows * width)
    for start in range(0, vocabulary, width):
        words = slice(start, min(start + width, vocabulary))
        logits = memory[: rows * (words.stop - start)].view(rows, -1)
        yield words, torch.mm(states, head[words].t(), out=logits)


def _within(question: Question, words: slice) -> tuple[Tensor, Tensor]:
    """The column of every token in a block of words, any where it is not in it, and whether it is."""
    columns = question.tokens - words.start
    inside = (columns >= 0) & (columns < words.stop - words.start)
    return columns.clamp(0, words.stop - words.start - 1), inside


@dataclass(frozen=True, slots=True)
class Rows:
    """Whatever a function makes of whole rows of logits."""

    read: Callable[[Tensor, Tensor], Tensor]
    """logits [R,V] and the tokens [R] that follow -> [R], differentiable"""
    cap: float | None
    """see ``Logprobs``"""

    def forward(self, head: Tensor, states: Tensor, question: Question) -> tuple[Tensor, Tensor | None]:
        """See Reading; nothing is kept."""
        found = torch.zeros(len(question.tokens), device=states.device)
        for asked, rows, source in _pieces(len(head), question):
            logits = capped(states[rows] @ head.t(), self.cap)
            found[asked] = self.read(logits if source is None else logits[source], question.tokens[asked])
        return found, None

    def backward(
        self,
        head: Tensor,
        states: Tensor,
        question: Question,
        grad: Tensor,
        kept: Tensor | None,
        head_grad: Tensor | None,
    ) -> Tensor:
        """See Reading. The logits are computed anew: keeping them costs more memory than everything else together."""
        states_grad = torch.zeros_like(states)
        for asked, rows, source in _pieces(len(head), question):
            # The filters are left to autograd: a formula of its own would have to follow every change of theirs.
            with torch.enable_grad():
                leaf = (states[rows] @ head.t()).detach().requires_grad_()
                # The backward pass of `leaf[source]` adds to a row from several threads, in whatever order they come.
                chosen = leaf if source is None else leaf.index_select(0, source)
                read = self.read(capped(chosen, self.cap), question.tokens[asked])
                (logits_grad,) = torch.autograd.grad(read, leaf, grad[asked])
            if head_grad is not None:
                accumulate(head_grad, logits_grad, states[rows])
            states_grad[rows] += logits_grad @ head
        return states_grad


def _pieces(vocabulary: int, question: Question) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Of the tokens asked about, so many as may have logits at once: their places in R', the rows of R that their
    logits are, and which of these rows each token follows (None: one each)."""
    for asked in pieces(len(question.tokens), vocabulary, question.tokens.device):
        whole = asked == slice(0, len(question.tokens))
        if question.source is None or whole:
            yield asked, slice(None) if whole else asked, question.source
        else:  # increasing, so a piece follows neighbouring rows
            source = question.source[asked]
            yield asked, slice(int(source[0]), int(source[-1]) + 1), source - source[0]


def reading(temperature: float, top_k: int | None, top_p: float, cap: float | None) -> Logprobs | Rows:
    """Log-probabilities as ``nemotron.rl.logprobs.token_logprobs`` has them."""
    if not cuts(top_k, top_p):
        return Logprobs(temperature or 1.0, cap)
    return Rows(partial(token_logprobs, temperature=temperature or 1.0, top_k=top_k, top_p=top_p), cap)
