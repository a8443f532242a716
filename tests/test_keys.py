from __future__ import annotations

import pytest

from dataengine.errors import UsageError
from dataengine.keys import KEYS, VLM_PROVIDERS, key, key_name, without_keys

WRONG = "sk-Wr0ng/9f8e7d6c5b4a3"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in KEYS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        (WRONG, f"refuses {WRONG}, sorry", "refuses (hidden) sorry"),
        (WRONG, f"refuses '{WRONG[:9]}…'", "refuses (hidden)"),
        (WRONG, f"bad:{WRONG[-6:]}\nsorry", "(hidden)\nsorry"),
        (WRONG, "key sk-***a3 is wrong", "key (hidden) is wrong"),
        (f"{WRONG} tail-of-it", "b'tail-of-it'", "(hidden)"),
        ("k", "k is a key", "k is a key"),
        ("k3y5", "k3y5 is a key", "(hidden) is a key"),
        ("", "nothing to hide: 2 * 3 ** 4", "nothing to hide: 2 * 3 ** 4"),
    ],
)
def test_words_with_keys_are_hidden(key: str, text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert without_keys(text) == expected


@pytest.mark.parametrize("service", KEYS)
def test_the_first_variable_that_holds_a_key_counts(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (key_name(service), key(service)) == (None, None)
    for i, name in reversed(list(enumerate(KEYS[service]))):
        monkeypatch.setenv(name, f" key-{i}\n")
        assert (key_name(service), key(service)) == (name, f"key-{i}")
    monkeypatch.setenv(KEYS[service][0], " ")
    assert key_name(service) == (KEYS[service][1] if len(KEYS[service]) > 1 else None)


@pytest.mark.parametrize("held", ["schlüssel-zum-haus", "two words", "line\nend"])
def test_a_key_that_cannot_be_sent_is_said_without_it(held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", held)
    with pytest.raises(UsageError, match="OPENAI_API_KEY has a character that no key has") as caught:
        key("openai")
    assert held[:4] not in str(caught.value)


def test_every_provider_has_a_key() -> None:
    assert set(VLM_PROVIDERS) < set(KEYS)
