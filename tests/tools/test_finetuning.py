"""What the console says of a conversation's memory."""

from __future__ import annotations

from finetune.chat import Chat
from tests.support.fitted import fitted
from tools.finetuning import describe_memory


def test_the_console_says_how_much_of_a_conversation_only_memory_holds() -> None:
    chat = Chat(fitted())
    assert describe_memory(chat) == (
        "0 turns, 0 of them outside the context window of 24 tokens; 4 slots, norms 0.00 to 0.00"
    )
    for text in ("hello, i am anna.", "do you like tea?", "what is my name?"):
        chat.say(text)
    out = chat.window().turns.count("none")
    assert out > 0
    assert describe_memory(chat).startswith(f"6 turns, {out} of them outside the context window of 24 tokens")
    assert describe_memory(Chat(fitted(data__memory="reset"))) == "no memory is carried (data.memory=reset)"
