"""The critic server and its client: values and updates, retries, refusals, and the death of either side."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from nemotron.contracts.samples import Completion, Group
from nemotron.errors import EngineError, OutputError
from nemotron.rl.critic.client import CriticClient
from nemotron.rl.critic.local import Address, RemoteCritic
from nemotron.rl.critic.models import CriticModels
from nemotron.rl.critic.wire import CONTENT_TYPE, INFER, WireError, check_tokens, grouped, pack, padded, unpack
from nemotron.rl.scalar_model import ScalarModel
from tests.unit.rl.critic_world import CONFIG, TOKEN, Served, critic_config, critic_models, serving, write_reward_model

GROUPS = [
    Group([3, 4, 5], [Completion([6, 7, 0], [], False), Completion([8], [], False)]),
    Group([9], [Completion([10, 11], [], True)]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reward_model(tmp_path_factory.mktemp("models") / "reward_model")


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(critic_models(folder, tmp_path)) as server:
        yield server


def update_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A request for an update on every response token."""
    columns = torch.arange(tensors["tokens"].shape[1])
    mask = (columns >= tensors["prompt_lengths"][:, None]) & (columns < tensors["lengths"][:, None])
    ones = torch.ones(mask.shape)
    return {"tokens": tensors["tokens"], "returns": ones, "prev_values": 0 * ones, "mask": mask.float()}


def post(served: Served, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """A bare request as somebody else would send it."""
    given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": CONTENT_TYPE, **headers}
    request = urllib.request.Request(served.url + path, data=body, headers=given, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, {}
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_values_stand_before_their_token_and_rewards_are_standardised(folder: Path, served: Served) -> None:
    with CriticClient(served.critic, critic_config()) as client:
        client.begin(0, CONFIG)
        answer = client.infer(padded(GROUPS)).result(20)
    model = ScalarModel.load(folder, device="cpu")
    with torch.no_grad():
        scores, values = model.sequence_scores(GROUPS), model.token_values(GROUPS)
    torch.testing.assert_close(answer["rewards"], (scores - 0.5) / 2)
    expected = torch.zeros(3, 6)
    expected[0, 3:6], expected[1, 3:4] = (values[0] - 0.5) / 2, (values[1, :1] - 0.5) / 2
    expected[2, 1:3] = (values[2, :2] - 0.5) / 2
    torch.testing.assert_close(answer["values"], expected)
    assert served.ended.wait(60)
    assert served.end is None


def test_updates_move_the_values_and_a_retry_is_not_applied_twice(folder: Path) -> None:
    models = critic_models(folder)
    models.begin(0)
    request = {**update_of(padded(GROUPS)), "number": torch.tensor([0])}
    first = models.train(request)
    after = models.infer(padded(GROUPS))["values"]
    assert models.train(request) == first
    assert torch.equal(models.infer(padded(GROUPS))["values"], after)
    second = models.train({**request, "number": torch.tensor([1])})
    assert second["loss"] < first["loss"]
    assert set(first) >= {"loss", "explained_var", "grad_norm", "lr", "values_mean", "returns_mean", "vf_clipfrac"}


def test_rows_without_a_valid_token_and_micro_batches_change_nothing(folder: Path) -> None:
    """The same update whatever the micro-batch, with a masked row or without it."""
    results = []
    for change, keep in (({}, 3), ({"train_micro_batch_size": 1}, 3), ({}, 2)):
        models = critic_models(folder, value=change)
        models.begin(0)
        request = update_of(padded(GROUPS))
        request["mask"][2] = 0
        request = {name: tensor[:keep] for name, tensor in request.items()}
        models.train({**request, "number": torch.tensor([0])})
        results.append(models.infer(padded(GROUPS))["values"])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


@pytest.mark.parametrize(
    ("masked", "steps"), [([], [2, 2]), ([1], [1, 2]), ([1, 2], [1, 1]), ([0, 1], [2]), ([0, 1, 2], [1])], ids=str
)
def test_masked_rows_keep_their_place_in_the_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch, masked: list[int], steps: list[int]
) -> None:
    """As the policy's do: four rows are two steps of two, and nobody moves up into another's batch."""
    models = critic_models(folder, value={"train_global_batch_size": 2})
    models.begin(0)
    seen, accumulate = [], CriticModels._accumulate
    monkeypatch.setattr(
        CriticModels, "_accumulate", lambda self, rows: seen.append(len(rows["mask"])) or accumulate(self, rows)
    )
    group = Group([3, 4], [Completion([5 + k, 6, 0], [], False) for k in range(4)])
    request = update_of(padded([group]))
    request["mask"][masked] = 0
    models.train({**request, "number": torch.tensor([0])})
    assert seen == steps


def test_a_saved_critic_goes_on_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    update = update_of(padded(GROUPS))

    def trained(models: CriticModels, numbers: range) -> None:
        for number in numbers:
            models.train({**update, "number": torch.tensor([number])})

    whole = critic_models(folder, tmp_path)
    whole.begin(0)
    trained(whole, range(2))
    (tmp_path / "tmp_step_2").mkdir()
    whole.save(2)
    whole.save(2)  # a retry
    (tmp_path / "tmp_step_2").rename(tmp_path / "step_2")
    trained(whole, range(2, 4))
    resumed = critic_models(folder, tmp_path)
    resumed.begin(2)
    trained(resumed, range(2))
    assert torch.equal(resumed.infer(padded(GROUPS))["values"], whole.infer(padded(GROUPS))["values"])
    assert ScalarModel.load(tmp_path / "step_2" / "value" / "weights").reward_std == 2.0


def test_a_folder_that_only_the_actor_sees_is_an_error(folder: Path, tmp_path: Path) -> None:
    models = critic_models(folder, tmp_path / "elsewhere")
    models.begin(0)
    with pytest.raises(OutputError, match="does not see"):
        models.save(1)


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        ("/infer", {"tokens": torch.zeros(2, 3)}, "`tokens` is float32, it must be int64"),
        ("/infer", {"tokens": torch.tensor([[1, 2, 99]] * 2)}, "outside of the vocabulary"),
        ("/infer", {"tokens": torch.tensor([[1, 2, -1]] * 2)}, "outside of the vocabulary"),
        ("/infer", {"lengths": torch.tensor([3])}, "`lengths` has 1 where other tensors have 2"),
        ("/infer", {"lengths": torch.tensor([4, 3])}, "inside of the row"),
        ("/infer", {"lengths": torch.tensor([2**62, 3])}, "inside of the row"),
        ("/infer", {"prompt_lengths": torch.tensor([0, 1])}, "a prompt of at least one token"),
        ("/infer", {"tokens": torch.ones(2, 65, dtype=torch.int64)}, "reads at most 64"),
        ("/infer", {"tokens": torch.ones(2, 0, dtype=torch.int64)}, "has shape [2, 0]"),
        ("/infer", {"other": torch.ones(1)}, "unknown tensor `other`"),
        ("/train", {}, "no tensor `mask`"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    served: Served, path: str, change: dict[str, Tensor], says: str
) -> None:
    whole = {"tokens": torch.tensor([[1, 2, 3]] * 2), "lengths": torch.tensor([3, 3])}
    with CriticClient(served.critic, critic_config()) as client:
        client.begin(0, CONFIG)
        status, body = post(served, path, pack({**whole, **change}))
        assert client.infer(padded(GROUPS)).result(20)["rewards"].shape == (3,)  # it goes on serving
    assert status == 400
    assert says in body["error"]


def test_garbage_oversize_wrong_token_and_strangers_are_refused(served: Served) -> None:
    good = pack(padded(GROUPS))
    assert post(served, "/infer", good)[0] == 409  # nobody is attached
    with CriticClient(served.critic, critic_config()) as client:
        client.begin(0, CONFIG)
        with pytest.raises(EngineError, match="different configs"):
            client.begin(0, "another hash")
        assert post(served, "/infer", b"\x00" * 100)[0] == 400
        assert post(served, "/infer", b"\xff" * 8 + b"{}")[0] == 400
        assert post(served, "/infer", good[:-3])[0] == 400
        assert post(served, "/infer", b"x" * (2 * 1024 * 1024))[0] == 413
        assert post(served, "/infer", good, **{"Content-Type": "application/json"})[0] == 415
        assert post(served, "/infer", good, Authorization="Bearer wrong")[0] == 401
        assert post(served, "/nothing", good)[0] == 404
        for body in (b"", b"[]", b'{"step": "1"}', b'{"step": -1}', b'{"step": true}', b'{"step": 1, "path": "/"}'):
            assert post(served, "/save", body)[0] == 400
        nan = {**update_of(padded(GROUPS)), "number": torch.tensor([0])}
        nan["returns"] = nan["returns"] * float("nan")
        assert post(served, "/train", pack(nan))[0] == 400
        nan["returns"], nan["number"] = torch.ones(nan["mask"].shape), torch.tensor([7])
        assert "update 7 where update 0 is next" in post(served, "/train", pack(nan))[1]["error"]
        with pytest.raises(EngineError, match="serves another actor"), CriticClient(served.critic, critic_config()):
            pass
        stranger = RemoteCritic(Address(served.url, "wrong"))
        with pytest.raises(EngineError, match="refuses the token"), CriticClient(stranger, critic_config()):
            pass
        assert client.infer(padded(GROUPS)).result(20)["rewards"].shape == (3,)


def test_no_damaged_payload_gets_past_the_checks() -> None:
    """Flipped bytes, cut ends and noise are refused or, where they still make sense, taken; nothing else happens."""
    good, random = pack(padded(GROUPS)), Random(1)
    seen = {"taken": 0, "refused": 0}
    for _ in range(600):
        body = bytearray(good)
        for _ in range(random.randrange(1, 6)):
            body[random.randrange(len(body))] = random.randrange(256)
        cut = bytes(body[: random.randrange(len(body))]) if random.random() < 0.3 else bytes(body)
        try:
            tensors = unpack(cut, INFER)
            check_tokens(tensors["tokens"], 29, 64)
            grouped(tensors["tokens"], tensors["prompt_lengths"], tensors["lengths"])
            seen["taken"] += 1
        except WireError:
            seen["refused"] += 1
    assert seen["refused"] > 100


def test_models_that_stay_on_the_host_give_the_same_numbers(folder: Path) -> None:
    """Without a GPU there is nowhere to go; what counts is that nothing changes."""
    answers = []
    for offload in ("none", "both"):
        models = critic_models(folder, offload=offload)
        models.begin(0)
        models.train({**update_of(padded(GROUPS)), "number": torch.tensor([0])})
        answers.append(models.infer(padded(GROUPS)))
    assert all(torch.equal(answers[0][name], answers[1][name]) for name in ("values", "rewards"))


def test_nobody_there_is_an_error_in_finite_time() -> None:
    nobody = RemoteCritic(Address("http://127.0.0.1:9", TOKEN))
    with pytest.raises(EngineError, match="is not ready"), CriticClient(nobody, critic_config(ready_timeout_s=0.3)):
        pass


class Slow:
    """Models that answer when they are told to; the first update fails for a reason that passes."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.updates: list[int] = []

    def begin(self, step: int) -> None:
        return None

    def infer(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self.go.wait(20)
        return {"values": torch.zeros(tensors["tokens"].shape), "rewards": torch.zeros(len(tensors["tokens"]))}

    def train(self, tensors: dict[str, Tensor]) -> dict[str, float]:
        self.updates.append(int(tensors["number"]))
        if len(self.updates) == 1:
            raise KeyError("a fault that passes")
        return {"loss": 1.0}

    def save(self, step: int) -> None:
        return None


def test_a_slow_server_is_given_up_after_the_retries() -> None:
    models = Slow()
    with (
        serving(models) as served,
        pytest.raises(EngineError, match="does not answer `infer`: nothing within"),
        CriticClient(served.critic, critic_config(request_timeout_s=0.2, max_retries=1)) as client,
    ):
        client.infer(padded(GROUPS)).result(20)
    models.go.set()


def test_a_failed_request_is_sent_again_with_its_number() -> None:
    models = Slow()
    with serving(models) as served, CriticClient(served.critic, critic_config()) as client:
        answers = [client.train(update_of(padded(GROUPS))) for _ in range(4)]
        assert [answer.result(20) for answer in answers] == [{"loss": 1.0}] * 4
    assert models.updates == [0, 0, 1, 2, 3]


def work(client: CriticClient, served: Served, busy: str) -> None:
    """What the actor does when the critic dies."""
    timer = threading.Timer(0.2, served.vanish)
    timer.start()
    if busy == "computing":
        while True:
            time.sleep(0.01)
    client.infer(padded(GROUPS)).result(20)


@pytest.mark.parametrize("busy", ["waiting for an answer", "computing"])
def test_the_end_of_the_critic_interrupts_the_actor(busy: str) -> None:
    models = Slow()
    with (
        serving(models) as served,
        pytest.raises(EngineError, match="is gone"),
        CriticClient(served.critic, critic_config(max_retries=100)) as client,
        client.interrupting(),
    ):
        work(client, served, busy)
    models.go.set()


def test_an_actor_that_vanishes_ends_the_server() -> None:
    with serving(Slow()) as served:
        client = CriticClient(served.critic, critic_config()).__enter__()
        client.close()
        assert served.ended.wait(60)
        assert served.end is not None
        assert "the actor is gone" in served.end.message
