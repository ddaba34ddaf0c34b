"""Steer: the newcomer's path on the lab model, both texts and what differs, plans as files, evidence, lost servers."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lab_site import serve_lab
from looking import axe_violations, parameters, until

from moeworks.compare import compare
from moeworks.plan import load_plan, plan_hash, steer
from moeworks.plan.files import parse_plan
from moeworks.probes import load_probe
from moeworks.prove import evaluate

WRITTEN = """(title) => [...document.querySelectorAll('.text-side')].find((one) => one.ariaLabel === title)
  .querySelector('.text-run').textContent"""
GENERATE = "Generate with and without the plan"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The page on the lab model."""
    with serve_lab(tmp_path_factory.mktemp("lab")) as site:
        yield site


def opened(page, site, query=""):
    page.goto(f"{site.page}#/steer?{query}")
    page.wait_for_selector(".steer-prompt")
    return page


def generated(page, prompt):
    """Type a prompt, write both texts, and return them without it."""
    page.get_by_label("A text to continue").fill(prompt)
    page.get_by_role("button", name=GENERATE).click()
    page.wait_for_selector(".steer-routes", timeout=60_000)
    return [page.evaluate(WRITTEN, f"{side} the plan").removeprefix(prompt) for side in ("Without", "With")]


def posted(url, body):
    """Return the answer to a JSON body."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def plan_of(site, operations):
    """Return the plan that the server makes of picked experts."""
    return posted(f"{site.url}/view/api/plan", {"operations": operations})["plan"]


def asked(site, prompt, tokens, plan=None):
    """Return what the server writes when it is asked without a page."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "moeworks": {"plan": plan} if plan else {}}
    return posted(f"{site.url}/v1/completions", body)["choices"][0]["text"]


def chosen(page):
    """Return the addresses of the chosen experts."""
    return [one.split()[0] for one in page.locator(".steer-chip").all_inner_texts()]


def test_a_newcomer_switches_russian_off(page, lab, screenshots):
    page.goto(lab.page)
    page.get_by_label("Map by").select_option("specialisation")
    page.get_by_label("Value").select_option("ru")
    page.get_by_label("how many of the strongest").fill("10")
    page.get_by_role("button", name="Choose the strongest").last.click()
    page.get_by_role("link", name="Switch off in Steer").click()
    page.wait_for_selector(".steer-chip")
    assert page.locator(".steer-chip").count() == 10
    prompt = page.get_by_label("A text to continue")
    until(page, "/[а-я]/.test(document.querySelector('.steer-prompt textarea').value)")
    before, after = generated(page, prompt.input_value())
    assert before != after
    assert any("а" <= letter <= "я" for letter in before)
    assert page.locator(".text-side").nth(1).locator("mark.differs").count() > 0
    assert "10 experts" in page.locator(".touched").inner_text()
    plan = plan_of(lab, [{"op": "demote", "experts": chosen(page)}])
    typed = prompt.input_value()
    assert (before, after) == (asked(lab, typed, 40), asked(lab, typed, 40, plan))
    if screenshots is not None:
        page.screenshot(path=screenshots / "steer-newcomer.png", full_page=True)


def test_changed_rows_are_those_of_compare(page, lab):
    opened(page, lab, "demote=L0.E0-9,L3.E4&tokens=12")
    generated(page, "The king said to the people")
    words = page.locator(".steer-routes [role=status]").first.inner_text()
    page.get_by_role("button", name="Record both").click()
    page.get_by_role("link", name="Compare the routes").wait_for()
    ids = parameters(page)
    first, second = (lab.sources.trace(ids[name]) for name in "ab")
    found = compare(first, second)
    changed = round(sum(row["first_flips"] for row in found.layers.to_pylist()) * found.rows)
    assert words.startswith(f"{changed} of {found.rows} rows")
    assert changed > 0
    page.get_by_role("link", name="Compare the routes").click()
    page.wait_for_selector(".compare-block mark")
    assert page.locator(".figures dd").first.inner_text() == str(found.rows)


def test_typed_experts_and_errors_in_words(page, site):
    opened(page, site)
    assert "None chosen" in page.locator(".steer-experts").inner_text()
    field = page.get_by_label("Addresses")
    for typed, words in (
        ("L1", "“L1” is not an expert address"),
        ("L0.E5-2", "counts backwards"),
        ("L99.E0", "no expert of"),
        ("", "Type the addresses"),
    ):
        field.fill(typed)
        page.get_by_role("button", name="Add", exact=True).click()
        assert words in page.locator(".steer-experts .failure").inner_text()
    field.fill("l0.e1, L2.E0-2")
    field.press("Enter")
    until(page, "document.querySelectorAll('.steer-chip').length === 4")
    assert parameters(page)["demote"] == "L0.E1,L2.E0-2"
    page.get_by_label("Operation").select_option("scale")
    field.fill("L2.E1")
    field.press("Enter")
    page.get_by_label("Factor").fill("0.5")
    page.get_by_label("Factor").press("Tab")
    until(page, "document.querySelector('.explanation')?.innerText.includes('multiplied by 0.5')")
    assert parameters(page) == {"demote": "L0.E1,L2.E0,L2.E2", "scale": "L2.E1", "factor": "0.5"}
    assert page.locator(".touched").inner_text() == "Touches 4 experts in 2 of 4 layers."
    page.get_by_role("button", name="Take out L2.E0").click()
    until(page, "document.querySelector('.touched').innerText.includes('3 experts')")
    page.reload()
    until(page, "document.querySelectorAll('.steer-chip').length === 3")


def test_too_many_demoted_experts_are_refused_in_words(page, site):
    experts = site.sources.engine.identity.layers[0].experts
    opened(page, site, f"demote=L0.E0-{experts - 1}&prompt=abc")
    page.locator(".steer-plan .failure").wait_for()
    assert "speaks against this plan" in page.locator(".steer-plan .failure").inner_text()
    assert (
        page.get_by_role("button", name=GENERATE).is_disabled()
        or page.get_by_role("button", name="Generate").is_disabled()
    )


def test_nothing_is_lost_on_reload(page, site):
    opened(page, site, "demote=L0.E1&tokens=8")
    before, after = generated(page, "The cat")
    assert axe_violations(page) == []  # the view as full as it gets: texts, routes, experts
    page.get_by_label("A text to continue").fill("The cat and a dog")
    page.reload()
    page.wait_for_selector(".text-run")
    assert page.get_by_label("A text to continue").input_value() == "The cat and a dog"
    assert page.evaluate(WRITTEN, "Without the plan") == f"The cat{before}"
    assert page.evaluate(WRITTEN, "With the plan") == f"The cat{after}"
    assert page.locator(".older").count() == 0


def test_a_plan_is_saved_and_loaded_again(page, site, tmp_path):
    opened(page, site, "demote=L0.E1&add=L2.E3&strength=-2")
    page.wait_for_selector(".explanation li")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download plan.json").click()
    path = tmp_path / "plan.json"
    download.value.save_as(path)
    plan = load_plan(path)
    assert [one.op for one in plan.operations] == ["demote", "add"]
    assert plan.operations[1].strength == -2
    page.get_by_role("button", name="Clear").click()
    until(page, "!document.querySelector('.steer-chip')")
    page.get_by_label("Plan file").set_input_files(path)
    until(page, "document.querySelector('.touched').innerText.includes('2 experts')")
    assert plan_hash(plan) in page.locator(".explanation").inner_text()
    page.reload()
    until(page, "document.querySelector('.touched')?.innerText.includes('2 experts')")
    page.get_by_role("button", name="Change its experts").click()
    page.wait_for_selector(".steer-chip")
    found = parameters(page)
    assert (found["demote"], found["add"], found["strength"]) == ("L0.E1", "L2.E3", "-2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "is not JSON"),
        ('{"a": 1}', "no list of operations"),
        ("[" + " " * 2_100_000 + "]", "2.1 MB"),
    ],
)
def test_files_that_are_no_plans_are_refused_in_words(page, site, tmp_path, text, words):
    opened(page, site)
    path = tmp_path / "wrong.json"
    path.write_text(text)
    page.get_by_label("Plan file").set_input_files(path)
    page.locator(".steer-plan .failure").wait_for()
    assert words in page.locator(".steer-plan .failure").inner_text()
    assert "plan" not in parameters(page)


def test_a_plan_of_another_model_is_refused_in_words(page, site, lab, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(plan_of(lab, [{"op": "demote", "experts": ["L5.E31"]}])))
    opened(page, site)
    page.get_by_label("Plan file").set_input_files(path)
    page.locator(".steer-plan .failure").wait_for()
    assert "speak" in page.locator(".steer-plan .failure").inner_text()
    assert page.get_by_role("button", name="Download plan.json").is_disabled()


def test_a_lost_connection_recovers(page, site):
    lost = []
    begun = 'data: {"choices": [{"index": 0, "text": "begun and never ended"}]}\n\n'

    def drop_first(route):
        lost.append(route)
        if len(lost) == 1:  # no answer at all
            route.abort()
        elif len(lost) == 2:  # an answer that breaks off
            route.fulfill(body=begun, content_type="text/event-stream")
        else:
            route.continue_()

    page.expected.append("net::ERR_FAILED")
    page.route("**/v1/completions", drop_first)
    opened(page, site, "demote=L0.E1&tokens=8")
    before, _ = generated(page, "The cat")
    assert len(lost) == 4
    assert before == asked(site, "The cat", 8)
    assert "begun" not in page.inner_text(".steer-texts")


def test_a_chat_is_written_under_the_models_own_template(page, lab):
    opened(page, lab, "demote=L0.E3,L1.E2-3&tokens=10&chat=1")
    page.get_by_label("What a user says").fill("Where is the king?")
    page.get_by_role("button", name=GENERATE).click()
    page.wait_for_selector(".steer-routes", timeout=60_000)
    body = {"messages": [{"role": "user", "content": "Where is the king?"}], "max_tokens": 10, "temperature": 0}
    answer = posted(f"{lab.url}/v1/chat/completions", body)["choices"][0]["message"]["content"]
    assert page.evaluate(WRITTEN, "Without the plan").removeprefix("Where is the king?") == answer
    assert "--chat" in page.locator(".steer-main > .command code").inner_text()


def test_stopping_says_so(page, lab):
    opened(page, lab, "demote=L0.E1&tokens=160")
    page.get_by_label("A text to continue").fill("The king")
    page.get_by_role("button", name=GENERATE).click()
    until(page, "document.querySelector('.text-run span + span')")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").first.wait_for()
    assert page.get_by_role("button", name=GENERATE).is_enabled()


def test_evidence_runs_with_progress_can_be_stopped_and_is_kept(page, lab):
    opened(page, lab, "demote=L0.E3,L1.E2-3,L4.E26&limit=12&controls=1&probe=language/ru")
    page.wait_for_selector(".explanation li")
    measure = page.get_by_role("button", name="Measure")
    measure.click()
    until(page, "document.querySelector('.steer-evidence progress')?.value > 0", seconds=60)
    page.get_by_role("button", name="Stop").click()
    measure.wait_for()
    assert page.locator(".steer-evidence .verdict").count() == 0
    measure.click()
    page.wait_for_selector(".steer-evidence .verdict", timeout=120_000)
    plan = parse_plan(json.dumps(plan_of(lab, [{"op": "demote", "experts": chosen(page)}])), "the plan")
    evidence = evaluate(lab.sources.engine, plan, load_probe("language/ru"), controls=1, limit=12)
    shown = page.locator(".steer-evidence").inner_text()
    assert page.locator(".steer-evidence .verdict").inner_text() == evidence.verdict
    assert f"Effect {evidence.effect.value:.3g}, 95 % interval {evidence.effect.low:.3g}" in shown
    assert f"random experts: {evidence.controls[0].effect:.3g}." in shown
    assert "moeworks evaluate lab --plan plan.json --probe language/ru --controls 1 --limit 12" in shown
    assert page.locator(".interval-picture circle.random").count() == 1
    page.reload()
    page.wait_for_selector(".steer-evidence .verdict")
    assert page.locator(".steer-evidence .older").count() == 0


def test_the_first_of_a_scores_file_are_those_of_steer(page, lab):
    opened(page, lab)
    page.get_by_label("The first").fill("5")
    page.get_by_label("The first").press("Tab")
    page.get_by_role("button", name="Take them").click()
    until(page, "document.querySelectorAll('.steer-chip').length === 5")
    plan = steer(lab.sources.scores("language-ru"), demote=5)
    expected = {str(address) for address in plan.operations[0].experts}
    assert set(chosen(page)) == expected


def test_without_a_model_the_view_says_what_to_do(page, site):
    def without(route):
        answer = route.fetch().json()
        route.fulfill(json={**answer, "model": None, "can": {"generate": False, "record": False, "evaluate": False}})

    page.route("**/api/sources", without)
    page.goto(f"{site.page}#/steer")
    assert "moeworks view lab" in page.locator(".empty").inner_text()


def test_differences_are_the_longest_common_sequence(page, site):
    page.goto(site.page)
    found = page.evaluate(
        "import('moeworks/steer-diff').then((m) => m.diffPieces(['a','b','c','d','e'], ['a','x','c','e','y']))"
    )
    assert found["before"] == [True, False, True, False, True]
    assert found["after"] == [True, False, True, True, False]
    assert (found["common"], found["first"]) == (3, 1)


def test_keys_alone_are_enough(page, site):
    opened(page, site, "tokens=6")
    page.get_by_label("Addresses").focus()
    page.keyboard.type("L0.E1")
    page.keyboard.press("Enter")
    page.wait_for_selector(".explanation li")
    page.get_by_label("A text to continue").focus()
    page.keyboard.type("The cat")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".steer-routes")
