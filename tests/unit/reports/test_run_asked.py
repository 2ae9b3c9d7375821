"""The page says what was asked: the command and its continuations, data and models, what differs from the default."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from nemotron.reports.asked import FEW, asked_of
from nemotron.reports.audit_report import render_audit
from nemotron.reports.report import render
from tests.compiled_jobs import compiled
from tests.unit.runs.run_records import MakeRun, fill

ASKED: dict[str, Any] = {
    "command": ["steps", "run", "rlhf", "-c", "tiny", "policy.optimizer={name: x}"],
    "inputs": [
        ["policy model", "policy.model_name", "some/hub-name", "Hugging Face hub"],
        ["train data", "data.train.data_path", "own.jsonl", "200 rows"],
    ],
    "differences": [
        ["grpo.seed", "42", "7", "command line, argument 6"],
        ["policy.precision", "bfloat16", "<b>float32</b>", "tiny.yaml:9"],
    ],
    "resumed": [
        {"at": "2026-01-01T10:00:00.000+00:00", "state": "killed", "checkpoint": None, "command": ["runs", "resume"]},
        {
            "at": "2026-01-02T10:00:00.000+00:00",
            "state": "finished",
            "checkpoint": "checkpoints/step_6",
            "command": ["runs", "resume", "last", "--max-steps", "9"],
            "key": "grpo.max_num_steps",
            "was": 6,
            "now": 9,
        },
    ],
}
INPUTS = [
    {
        "key": "data.train.data_path",
        "type": "training_jsonl",
        "path": "/data/own.jsonl",
        "fingerprint": f"sha256:{'ab' * 32}",
    }
]


def section(page: str) -> str:
    found = re.search(r'<section id="asked">.*?</section>', page, re.DOTALL)
    assert found, "no such section"
    return found[0]


def test_the_page_shows_it(make_run: MakeRun) -> None:
    page = render(fill(make_run(asked=ASKED, inputs=INPUTS)))
    part = section(page)
    text = unescape(re.sub(r"<[^>]*>", "", part))
    assert "nemotron steps run rlhf -c tiny 'policy.optimizer={name: x}'" in text
    assert "2026-01-01 10:00 UTC, was killed, from the start" in text
    assert "was finished, from checkpoints/step_6, grpo.max_num_steps 6 → 9" in text
    assert "some/hub-name" in text
    assert "200 rows" in text
    assert f">{'ab' * 6}<" in part
    assert "<b>float32" not in part, "values are text"
    assert part.index("grpo.seed") < part.index("policy.precision")
    assert "grpo.max_num_steps 6 → 9" in page[page.index("<h2>Lineage</h2>") :]
    assert "/data/own.jsonl" not in page, "inputs are listed once"


def test_many_values_of_files_are_folded_away(make_run: MakeRun) -> None:
    rows = [[f"key_{i}", "1", "2", f"tiny.yaml:{i}"] for i in range(FEW + 1)]
    few = section(render(fill(make_run(asked={**ASKED, "differences": rows[:-1]}))))
    many = section(render(fill(make_run(asked={**ASKED, "differences": rows}))))
    assert ("<details open>" in few, "<details>" in many) == (True, True)


def test_a_run_that_changes_nothing_says_so(make_run: MakeRun) -> None:
    assert "Every value is the default." in section(render(fill(make_run(asked={**ASKED, "differences": []}))))


def test_a_judge_elsewhere_is_named(make_run: MakeRun) -> None:
    model = {"model": "big-judge", "base_url": "http://host:8000/v1"}
    config = {"env": {"nemo_gym": {"genrm_model": {"responses_api_models": {"vllm_model": model}}}}}
    found = asked_of(compiled(config=config, asked=ASKED))
    assert (found.inputs[-1].role, found.inputs[-1].name) == ("judge", "big-judge at http://host:8000/v1")


def test_an_older_run_has_no_such_section(make_run: MakeRun) -> None:
    page = render(fill(make_run(inputs=INPUTS)))
    assert 'id="asked"' not in page
    assert "/data/own.jsonl" in page


def test_an_audit_has_it_too(make_run: MakeRun) -> None:
    run = make_run(asked=ASKED, view="audit", config={"output_dir": "nowhere"})
    assert "nemotron steps run rlhf" in unescape(section(render_audit(run)))
