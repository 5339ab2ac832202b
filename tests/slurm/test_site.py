"""What a site's configuration says about arrays and requeues."""

from __future__ import annotations

import dataclasses

import pytest

from hpc_llm.config.schema import RunConfig
from hpc_llm.slurm import client, site
from tests.configs import make_config


def one_of_a_sweep() -> RunConfig:
    config = make_config("cluster=local-slurm")
    return dataclasses.replace(config, run=dataclasses.replace(config.run, sweep="rates"))


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 1001),
        ({"MaxArraySize": "300"}, 300),
        ({"MaxArraySize": "300", "SchedulerParameters": "bf_continue,max_array_tasks=20"}, 20),
        ({"MaxArraySize": "300", "SchedulerParameters": "max_array_tasks=5000"}, 300),
        ({"SchedulerParameters": "(null)"}, 1001),
        ({"MaxArraySize": "0"}, 1),
    ],
)
def test_an_array_is_as_large_as_the_site_allows(
    settings: dict[str, str], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "config", lambda: settings)
    assert site.most_tasks([one_of_a_sweep()]) == most


def test_slurm_is_not_asked_about_arrays_for_a_single_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "config", lambda: pytest.fail("asked"))
    assert site.most_tasks([make_config("cluster=local-slurm")]) == 1


@pytest.mark.parametrize(
    ("setting", "codes"),
    [
        ("(null)", set()),
        ("1", {1}),
        ("1,3-5, 80", {1, 3, 4, 5, 80}),
        ("", set()),
    ],
)
def test_exit_codes_that_slurm_requeues_by_itself(
    setting: str, codes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "config", lambda: {"RequeueExit": setting})
    assert site.requeued_exit_codes() == codes


@pytest.mark.parametrize(
    ("version", "mode", "requeues"),
    [
        ("22.05.8", "REQUEUE", False),
        ("23.11.10", "REQUEUE", False),
        ("24.05.0", "REQUEUE", True),
        ("24.11.5", "GANG,REQUEUE", True),
        ("26.05.5", "CANCEL", False),
        ("", "REQUEUE", False),
        ("26.05.5", "OFF", False),
    ],
)
def test_who_leaves_within_the_grace_is_requeued_from_24_05_on(
    version: str, mode: str, requeues: bool
) -> None:
    settings = {"SLURM_VERSION": version, "PreemptMode": mode}
    assert site.requeues_within_grace(settings) is requeues
