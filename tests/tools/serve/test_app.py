"""The addresses behind the page: what they answer, what they refuse, what outlives a failure."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from finetune.chat import Chat
from finetune.fitted import Fitted
from tests.support.fitted import fitted
from tools.serve import talks
from tools.serve.app import MOST_BYTES, PAGE, make_app
from tools.serve.facts import facts
from tools.serve.talks import RefusedError, Talks

HERE = "http://127.0.0.1:8765"
MESSAGES = ["hello, i am anna.", "do you like tea?", "what is my name?"]


@pytest.fixture(scope="module")
def model() -> Fitted:
    return fitted()


@pytest.fixture
def page(model: Fitted) -> TestClient:
    return TestClient(make_app(model), base_url=HERE)


def begin(page: TestClient, *persona: str) -> dict[str, Any]:
    return dict(page.post("/api/talks", json={"persona": persona}).raise_for_status().json())


def say(page: TestClient, name: str, text: str, **more: Any) -> dict[str, Any]:
    answer = page.post(f"/api/talks/{name}/say", json={"text": text, **more})
    return dict(answer.raise_for_status().json())


def test_a_conversation_is_that_of_the_console(page: TestClient, model: Fitted) -> None:
    name = begin(page, "i sing in a band.")["name"]
    chat = Chat(model, ("i sing in a band.",))
    for text in MESSAGES:
        found = say(page, name, f"  {text} ")
        assert [turn["text"] for turn in found["turns"]][-2:] == [text, chat.say(text)[0]]
    assert page.get(f"/api/talks/{name}").json() == found


def test_each_text_says_where_it_is(page: TestClient) -> None:
    name = begin(page, "i sing in a band.")["name"]
    for text in MESSAGES:
        found = say(page, name, text)
    places = [turn["place"] for turn in found["turns"]]
    assert places == ["memory", "memory", "memory", "window", "window", "next"]
    assert found["persona"][0]["place"] == "memory"
    assert found["turns"][0]["note"] == "has left the context window: only memory holds it"


def test_without_memory_the_same_is_lost(model: Fitted) -> None:
    page = TestClient(make_app(fitted(data__memory="reset")), base_url=HERE)
    name = begin(page)["name"]
    for text in MESSAGES:
        found = say(page, name, text, compare=True)
    assert [turn["place"] for turn in found["turns"]] == ["lost", "lost", "lost", "window", "window", "next"]
    assert all(turn["afresh"] is None for turn in found["turns"])
    assert len(found["seen"]["gate"]) == 4


def test_what_no_reply_has_read_is_not_said_to_be_in_memory(page: TestClient) -> None:
    name = begin(page)["name"]
    say(page, name, MESSAGES[0])
    found = say(
        page, name, "nice weather today. how are you? what do you do? i sing in a band. i like coffee."
    )
    assert [turn["place"] for turn in found["turns"]] == ["memory", "unread", "edge", "next"]
    found = say(
        page, name, "nice weather today. how are you? what do you do? i sing in a band. i like coffee."
    )
    assert [turn["place"] for turn in found["turns"]][2] == "memory_part"


def test_side_by_side_the_other_reply_moves_nothing(page: TestClient, model: Fitted) -> None:
    alone, compared = begin(page)["name"], begin(page)["name"]
    chat = Chat(model)
    for text in MESSAGES:
        chat.hear(text)
        afresh = chat.answer_afresh().texts[0][0]
        chat.reply(chat.answer().texts[0][0])
        plain, both = say(page, alone, text), say(page, compared, text, compare=True)
        assert plain["turns"][-1]["text"] == both["turns"][-1]["text"]
        assert both["turns"][-1]["afresh"] == afresh
    assert plain["turns"][-1]["afresh"] is None
    assert plain["seen"] == both["seen"]


def test_reset_forgets_and_takes_a_new_persona(page: TestClient, model: Fitted) -> None:
    name = begin(page)["name"]
    say(page, name, MESSAGES[0])
    found = page.post(f"/api/talks/{name}/reset", json={"persona": [" i like coffee. "]}).json()
    assert (found["turns"], found["seen"]) == ([], None)
    assert [row["text"] for row in found["persona"]] == ["i like coffee."]
    expected = Chat(model, ("i like coffee.",)).say(MESSAGES[2])[0]
    assert say(page, name, MESSAGES[2])["turns"][-1]["text"] == expected


def test_wishes_are_those_of_the_recipe(page: TestClient, model: Fitted) -> None:
    wishes = {"beams": 1, "sample": True, "temperature": 3.0, "top_k": 20, "top_p": 0.9, "seed": 7}
    chat = Chat(model)
    chat.how = chat.how.model_copy(update={**wishes, "max_new_tokens": 5})
    found = say(page, begin(page)["name"], MESSAGES[0], wishes={**wishes, "max_new_tokens": 5})
    assert found["turns"][-1]["text"] == chat.say(MESSAGES[0])[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"text": "   "}, "text: String should have at least 1 character"),
        ({"text": "x" * 4001}, "text: String should have at most 4000 characters"),
        ({"text": 3}, "text: Input should be a valid string"),
        ({}, "text: Field required"),
        ({"text": "x", "txet": "y"}, "txet: Extra inputs are not permitted"),
        ({"text": "x", "wishes": {"beams": 0}}, "wishes.beams: Input should be greater than or equal to 1"),
        ({"text": "x", "wishes": {"top_p": 0}}, "wishes.top_p: Input should be greater than 0"),
        ({"text": "x", "wishes": {"max_new_tokens": 999}}, "max_new_tokens: at most 126"),
    ],
)
def test_wrong_input_is_one_clear_line(page: TestClient, content: Any, said: str) -> None:
    name = begin(page)["name"]
    answer = page.post(f"/api/talks/{name}/say", json=content)
    assert (answer.status_code, answer.json()) == (422, {"error": said})
    assert page.get(f"/api/talks/{name}").json()["turns"] == []


@pytest.mark.parametrize("content", [b"{", b'{"text": "\\ud800"}', b"\xff\xfe", b"[]"])
def test_broken_json_is_refused(page: TestClient, content: bytes) -> None:
    address = f"/api/talks/{begin(page)['name']}/say"
    answer = page.post(address, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"]


def test_an_unknown_conversation_is_not_found(page: TestClient) -> None:
    for answer in (page.get("/api/talks/x"), page.post("/api/talks/x/say", json={"text": "hello"})):
        assert answer.status_code == 404
        assert answer.json() == {"error": "the server does not have this conversation any more"}


def test_a_failing_reply_is_told_and_the_server_goes_on(page: TestClient, model: Fitted) -> None:
    name = begin(page)["name"]
    before = say(page, name, MESSAGES[0])
    weight = model.model.model.shared.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    broken = page.post(f"/api/talks/{name}/say", json={"text": MESSAGES[1], "wishes": {"sample": True}})
    with torch.no_grad():
        weight.copy_(kept)
    assert broken.status_code == 500
    assert re.match("the reply failed .*; nothing was kept of it", broken.json()["error"])
    assert page.get(f"/api/talks/{name}").json() == before
    other = begin(page)["name"]
    say(page, other, MESSAGES[0])
    assert say(page, name, MESSAGES[1]) == {**say(page, other, MESSAGES[1]), "name": name}


def test_conversations_at_the_same_time_do_not_mix(page: TestClient) -> None:
    alone = begin(page)["name"]
    expected = [say(page, alone, text) for text in MESSAGES[:2]][-1]

    def talk(_: int) -> dict[str, Any]:
        name = begin(page)["name"]
        return [say(page, name, text) for text in MESSAGES[:2]][-1]

    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(talk, range(3)):
            assert {**found, "name": alone} == expected


def test_a_message_before_the_last_is_answered_waits_for_nobody(model: Fitted) -> None:
    held = Talks(model)
    name, talk = held.open(())
    with held.alone(talk), pytest.raises(RefusedError, match="still being answered"):
        held.say(name, "hello", model.recipe.generation, False)
    assert held.say(name, "hello", model.recipe.generation, False).state()["turns"]


def test_conversations_and_their_turns_are_bounded(model: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Talks(model, limit=2)
    first, second = held.open(())[0], held.open(())[0]
    held.find(first)
    held.open(())
    assert held.find(first)
    with pytest.raises(RefusedError, match="any more"):
        held.find(second)
    monkeypatch.setattr(talks, "TURNS", 2)
    held.say(first, "hello", model.recipe.generation, False)
    with pytest.raises(RefusedError, match="has its 2 turns: reset it"):
        held.say(first, "hello", model.recipe.generation, False)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8765", "10.0.0.7:8765", ""])
def test_other_names_for_this_machine_are_refused(page: TestClient, host: str) -> None:
    assert page.get("/api/about", headers={"Host": host}).status_code == 400
    assert page.post("/api/talks", json={}, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:8765"])
def test_the_end_of_a_tunnel_is_this_machine(page: TestClient, host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert page.post("/api/talks", json={}, headers=headers).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8766"])
def test_pages_from_elsewhere_are_refused(page: TestClient, origin: str) -> None:
    answer = page.post("/api/talks", json={}, headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.json() == {"error": f"a page at {origin} may not use this server"}


def test_a_request_that_is_too_long_is_not_read(page: TestClient) -> None:
    address = f"/api/talks/{begin(page)['name']}/say"
    assert page.post(address, json={"text": "x" * MOST_BYTES}).status_code == 413
    assert page.post(address, content=iter([b"{}"])).status_code == 413
    form = page.post(address, content=b'{"text": "x"}', headers={"Content-Type": "text/plain"})
    assert form.status_code == 422


def test_the_page_is_whole_and_asks_nobody_else(page: TestClient) -> None:
    answer = page.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    found = re.findall(r'(?:href|src)="([^"]+)"', answer.text)
    assert found == ["icon.svg", "page.css", "page.js"]
    for name in found:
        assert page.get(f"/{name}").status_code == 200
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]|innerHTML|insertAdjacentHTML|document\.write|eval\(", text), (
            file
        )
    assert page.get("/../app.py").status_code == 404


@pytest.mark.parametrize(
    ("family", "changes", "persona", "remark"),
    [
        ("membart", {}, True, None),
        ("membart", {"data__persona": False}, False, None),
        ("membart", {"data__memory": "reset"}, True, "Memory is reset for each reply"),
        ("membart", {"data__memory": "off"}, True, "This membart has no memory slots"),
        ("membart", {"model__config__variant": "memformer"}, True, "has no gate"),
        ("dior_cvae", {}, True, None),
        ("persona_cvae", {}, True, None),
        ("baseline", {}, True, "This baseline has no memory slots"),
    ],
)
def test_what_a_family_cannot_show_is_said(
    family: str, changes: dict[str, Any], persona: bool, remark: str | None
) -> None:
    found = facts(fitted(family, **changes))
    assert found["persona"] is persona
    assert found["family"] == family
    assert found["carries"] is (remark is None or "gate" in remark)
    assert [remark in one for one in found["remarks"]] == ([] if remark is None else [True])
