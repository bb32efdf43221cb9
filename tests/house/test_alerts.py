"""Alert rules, the dashboard and the page that says what to do: they name what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any, get_args

import pytest
import yaml  # type: ignore[import-untyped]
from tests.house.tree import ROOT

from pinstripe.gateway.syncs import Activity
from pinstripe.store.status import TableState

RULES = ROOT / "deploy/prometheus/pinstripe.rules.yml"
SAMPLES = ROOT / "deploy/prometheus/pinstripe.test.yml"
DASHBOARD = ROOT / "deploy/grafana/pinstripe.json"
PAGE = ROOT / "docs/how-to/what-to-do-when.md"
METRICS = set(
    re.findall(r"^# HELP (\S+)", (ROOT / "tests/data/surface/metrics.txt").read_text(), re.M)
)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def named(text: str) -> set[str]:
    """The metrics in an expression; a histogram by its own name."""
    found = re.findall(r"pinstripe_[a-z_0-9]+", text)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def anchors() -> set[str]:
    titles = re.findall(r"^#{2,3} (.*)$", PAGE.read_text(), re.M)
    return {title.lower().replace(" ", "-") for title in titles}


def test_every_metric_of_an_alert_or_a_panel_exists() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    shown = [target["expr"] for panel in panels for target in panel["targets"]]
    used = named(" ".join([*(rule["expr"] for rule in rules()), *shown]))
    assert len(used) > 15
    assert used <= METRICS, used - METRICS


def test_the_page_on_monitoring_explains_every_metric() -> None:
    page = (ROOT / "docs/how-to/monitoring.md").read_text()
    explained = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.M))))
    assert explained == {name.removeprefix("pinstripe_") for name in METRICS}


def test_every_alert_leads_to_an_entry_of_the_page() -> None:
    for rule in rules():
        page, _, anchor = rule["annotations"]["runbook"].partition("/#")
        assert page == "how-to/what-to-do-when"
        assert anchor in anchors(), rule["alert"]


def test_every_state_that_status_can_show_has_an_entry() -> None:
    missing = {*get_args(TableState), *get_args(Activity)} - anchors()
    assert missing == set()
    both = set(get_args(TableState)) & set(get_args(Activity))
    assert {f"a-{state}-table" for state in both} <= anchors(), "it means something else there"
    # The lines that `pinstripe status` writes in capitals, and its other findings.
    for line in (
        "quarantine",
        "failed-requests",
        "the-copy-is-behind",
        "over-quota",
        "differences",
    ):
        assert line in anchors()


def test_every_alert_is_raised_by_a_recorded_sample() -> None:
    text = SAMPLES.read_text()
    assert [rule["alert"] for rule in rules() if f'"{rule["alert"]}"' not in text] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_rules_say_so_to_promtool() -> None:
    for words in (["check", "rules", str(RULES)], ["test", "rules", str(SAMPLES)]):
        done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
