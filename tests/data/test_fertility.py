"""Tokens a word and a character, by script: against counting by hand."""

from __future__ import annotations

import pytest

from clipkit.data.fertility import measure_fertility, script_of
from clipkit.data.tokenize import tokenize, train_tokenizer


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a red house", "Latin"),
        ("ﬁne ＦＵＬＬ 𝐛𝐨𝐥𝐝", "Latin"),  # ligature, full-width, mathematical
        ("Ångström, ça", "Latin"),
        ("красный дом", "Cyrillic"),
        ("κόκκινο σπίτι", "Greek"),
        ("بيت أحمر", "Arabic"),
        ("בית אדום", "Hebrew"),
        ("लाल घर", "Devanagari"),
        ("บ้านสีแดง", "Thai"),
        ("빨간 집", "Hangul"),
        ("红色的房子", "Chinese"),
        ("赤い家", "Japanese"),
        ("ｶﾀｶﾅ", "Japanese"),
        ("ᐃᓄᒃᑎᑐᑦ", "Canadian"),
        ("红色的房子 by me", "Chinese"),
        ("a very large red 房", "Latin"),
        ("🎈 42!", "no letters"),
        ("", "no letters"),
    ],
)
def test_a_texts_script_is_that_of_most_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_counts_are_those_of_the_ids() -> None:
    latin = ["a red house by the sea", "  two   dogs ", "", "one word more than the others"] * 300
    chinese = ["一只猫坐在垫子上", "两只狗"] * 200
    tokenizer = train_tokenizer(latin + chinese, vocab_size=560, context_length=8)
    texts = [(None, text) for text in latin + chinese]
    found = measure_fertility(tokenizer, texts, context_length=8)
    assert list(found) == ["Latin", "Chinese"]
    for name, group in (("Latin", [" ".join(t.split()) for t in latin if t]), ("Chinese", chinese)):
        lengths = []
        for text in set(group):
            ids, _ = tokenize(tokenizer, [text], context_length=10_000)
            lengths += [ids.shape[1] - 2] * group.count(text)
        sums = found[name]
        assert sums.texts == len(group)
        assert sums.tokens == sum(lengths)
        assert sums.tokens_per_text == pytest.approx(sum(lengths) / len(group))
        assert sums.tokens_per_character == sum(lengths) / sum(map(len, group))
        assert sums.cut == sum(length > 6 for length in lengths)
        if name == "Latin":
            words = sum(len(text.split()) for text in group)
            assert sums.tokens_per_word == sum(lengths) / words
        else:
            assert sums.tokens_per_word is None


def test_groups_may_be_given() -> None:
    tokenizer = train_tokenizer(["le chat", "the cat"] * 9, vocab_size=560, context_length=8)
    texts = [("fr", "le chat"), ("en", "the cat"), ("en", "the cats"), ("en", " \n"), ("zh", "猫")]
    found = measure_fertility(tokenizer, texts, context_length=8)
    assert {name: sums.texts for name, sums in found.items()} == {"en": 2, "fr": 1, "zh": 1}
    assert found["zh"].tokens_per_word is None
    assert measure_fertility(tokenizer, [], context_length=8) == {}
