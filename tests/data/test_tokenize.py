"""What clipkit.data.tokenize promises, through its public functions and transformers' own."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

from clipkit.data.tokenize import clean_caption, load_tokenizer, tokenize, train_tokenizer
from clipkit.errors import CheckpointError, ConfigError

CAPTIONS = [
    "a photo of a small red car parked near the house",
    "a photo of two dogs running on the beach",
    "woman astronaut: medium skin tone",
    "the cat sat on the mat, wasn't it?",
    "一只猫坐在垫子上",
    "两只狗在海滩上奔跑",
] * 20


def train(captions: list[str] = CAPTIONS, vocab_size: int = 700, length: int = 32):
    return train_tokenizer(captions, vocab_size=vocab_size, context_length=length)


def test_vocabulary_is_bytes_then_merges_then_start_and_end():
    tokenizer = train(vocab_size=600)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    assert len(tokenizer) == 600
    assert set(tokens[:256]) == letters
    assert set(tokens[256:512]) == {letter + "</w>" for letter in letters}
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert "photo</w>" in tokens


def test_vocabulary_stays_small_where_the_captions_are_few():
    assert len(train(["a cat"], vocab_size=8192)) == 256 + 256 + 2


@pytest.mark.slow
def test_training_is_a_function_of_the_captions_not_of_process_or_order():
    # Captions full of ties: every pair is as frequent as many others.
    script = """
import hashlib, itertools, sys
from clipkit.data.tokenize import train_tokenizer
words = ["".join(w) for w in itertools.product("abcdefgh", repeat=3)]
captions = [" ".join(words[i : i + 4]) for i in range(0, len(words), 2)]
if sys.argv[1] == "reversed":
    captions.reverse()
tokenizer = train_tokenizer(captions, vocab_size=700, context_length=16)
print(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest())
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", script, order], capture_output=True, text=True, check=True
        ).stdout
        for order in ("forward", "forward", "reversed")
    ]
    assert len(set(runs)) == 1


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ConfigError, match=r"preprocess\.vocab_size: 500 .* 514"):
        train(vocab_size=500)


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_reloaded_by_autotokenizer_it_gives_the_same_ids(tmp_path: Path, beside_a_model: bool):
    tokenizer = train()
    tokenizer.save_pretrained(tmp_path)
    if beside_a_model:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    texts = [*CAPTIONS[:6], "unseen ŵörds 👩🏽‍🚀", "مرحبا", "<|endoftext|> x", "long " * 50]
    ids, cut = tokenize(tokenizer, texts, context_length=32)
    for reloaded in (
        AutoTokenizer.from_pretrained(tmp_path),
        load_tokenizer(str(tmp_path), context_length=32),
    ):
        assert isinstance(reloaded, CLIPTokenizer)
        assert tokenize(reloaded, texts, context_length=32)[0].equal(ids)
        # As others call it, with what the folder alone says about length and special tokens.
        plain = reloaded(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
        assert plain.equal(ids)
    assert cut == 1


def test_pickled_for_a_spawned_worker_it_gives_the_same_ids():
    tokenizer = train()
    other = pickle.loads(pickle.dumps(tokenizer))
    texts = [*CAPTIONS[:6], "<|endoftext|>"]
    ids = tokenize(tokenizer, texts, context_length=9)[0]
    assert tokenize(other, texts, context_length=9)[0].equal(ids)


@pytest.mark.parametrize("text", ["<|endoftext|>", "a <|startoftext|> b <|EndOfText|>"])
def test_special_tokens_written_in_a_caption_stay_text(text: str):
    tokenizer = train()
    ids = tokenize(tokenizer, [text], context_length=64)[0][0].tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids[1:-1])


def test_end_token_survives_truncation_and_cuts_are_counted():
    tokenizer = train()
    ids, cut = tokenize(tokenizer, ["dogs " * 100, "dogs", "cat " * 6], context_length=8)
    assert ids.shape == (3, 8)
    assert ids.dtype == torch.int64
    assert cut == 1  # six words, start and end fit exactly
    assert ids[0, 0] == tokenizer.bos_token_id
    assert ids[0, -1] == tokenizer.eos_token_id
    assert ids[2, -1] == tokenizer.eos_token_id


def test_a_batch_is_padded_on_the_right_to_its_longest_text():
    tokenizer = train()
    ids, cut = tokenize(tokenizer, ["dogs", "", "two dogs"], context_length=32)
    end = tokenizer.eos_token_id
    assert ids.shape == (3, 4)
    assert ids[0, 2:].tolist() == [end, end]
    assert ids[1].tolist() == [tokenizer.bos_token_id, end, end, end]
    assert cut == 0
    assert tokenize(tokenizer, [], context_length=32)[0].shape[0] == 0


def test_too_long_texts_warn_nobody(caplog: pytest.LogCaptureFixture, recwarn):
    tokenizer = train(length=8)
    tokenize(tokenizer, ["dogs " * 500], context_length=8)
    assert not caplog.records
    assert not recwarn.list


@pytest.mark.parametrize(
    "text",
    [
        "two dogs",
        "zebra quartz",
        "一只猫",
        "未曾见过的漢字",
        "مرحبا بالعالم",
        "привет мир",
        "안녕하세요",
        "👩🏽‍🚀",
        "🏴󠁧󠁢󠁷󠁬󠁳󠁿 ❤️‍🔥",
        "naïve café",
    ],
)
def test_texts_of_seen_and_unseen_scripts_come_back(text: str):
    tokenizer = train()
    ids = tokenize(tokenizer, [text], context_length=128)[0][0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_different_captions_get_different_ids():
    tokenizer = train()
    texts = sorted(
        {"".join(chr(0x3041 + (i * 7 + j * j) % 80) for j in range(5)) for i in range(500)}
    )
    ids = tokenize(tokenizer, texts, context_length=32)[0]
    assert len({tuple(row) for row in ids.tolist()}) == len(texts)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (None, None),
        ("", None),
        (" \n\t\u3000\x00\ufeff ", None),
        ("  two \r\n dogs\u00a0\u2003run ", "two dogs run"),
        ("cafe\u0301", "café"),
        ("a\x00b", "ab"),
        ("\ud83d\ude00 smile", "😀 smile"),
        ("\ud83d broken", "\ufffd broken"),
        ("x" * 20_001, "x" * 10_000),
        ("nan", "nan"),
        ("<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_clean_caption(text: str | None, clean: str | None):
    assert clean_caption(text) == clean
    assert clean_caption(clean) == clean


def test_every_clean_caption_can_be_tokenized():
    tokenizer = train()
    texts = [clean_caption(chr(code) + "a") for code in range(0, 0x11000, 97)]
    tokenize(tokenizer, [text for text in texts if text], context_length=16)


def test_a_missing_folder_is_named_at_once(tmp_path: Path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "x"), "./x", "runs/x", "a/b/c"):
        with pytest.raises(CheckpointError, match="no such folder; name one that holds a token"):
            load_tokenizer(name, context_length=8)


@pytest.mark.parametrize("content", ["", "{}", "[1, 2", '{"model": {"type": "BPE"}}'])
def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, content: str):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    if content:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded") as error:
        load_tokenizer(str(folder), context_length=8)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_code_beside_a_tokenizer_never_runs(tmp_path: Path):
    train().save_pretrained(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    settings["tokenizer_class"] = "Evil"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError):
        load_tokenizer(str(tmp_path), context_length=8)
    assert not canary.exists()


def test_any_tokenizer_is_padded_on_the_right_whatever_its_folder_says(tmp_path: Path):
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"])
    backend.train_from_iterator(CAPTIONS, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", padding_side="left"
    ).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), context_length=4)
    ids, cut = tokenize(tokenizer, ["two dogs", "dogs", "a photo of two dogs"], context_length=4)
    dogs = tokenizer.convert_tokens_to_ids("dogs")
    assert ids[1].tolist() == [dogs, 1, 1, 1]
    assert cut == 1
