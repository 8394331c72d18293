"""WebDataset shards by row: what is read, dropped, named and kept."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
from sample_files import encoded, pair_members, photo, write_shards, write_tar

from clipkit.config.schema import SourceConfig
from clipkit.data import SampleError, open_source
from clipkit.data.index import index_beside
from clipkit.errors import DataError


def open_tar(path: object, **options):
    return open_source(SourceConfig(path=str(path), **options), progress=False)


def test_rows_are_the_samples_of_all_shards_in_order(tmp_path):
    reader = open_tar(write_shards(tmp_path, [4, 1, 3]))
    assert reader.shard_sizes == [4, 1, 3]
    assert len(reader) == 8
    expected = dict(pair_members(8))
    for row in range(8):
        pair = reader[row]
        assert pair.key == f"{row:04d}"
        assert pair.image == expected[f"{row:04d}.jpg"]
        assert pair.caption == f"caption number {row}"
    assert reader.locate(5) == f"{tmp_path}/train-002.tar, sample 0005" == reader[5].origin
    assert list(reader.captions()) == [f"caption number {i}" for i in range(8)]
    with pytest.raises(IndexError):
        reader[8]


def test_members_of_a_key_are_grouped_wherever_they_stand(tmp_path):
    image = encoded()
    # As ``tar cf x.tar *.jpg *.txt`` writes them; other folders are other samples.
    names = ["a.jpg", "b.jpg", "one/a.jpg", "a.txt", "b.txt", "one/a.txt"]
    members = [(n, image if n.endswith("jpg") else f"of {n}".encode()) for n in names]
    reader = open_tar(write_tar(tmp_path / "x.tar", members))
    assert [(reader[i].key, reader[i].caption) for i in range(3)] == [
        ("a", "of a.txt"),
        ("b", "of b.txt"),
        ("one/a", "of one/a.txt"),
    ]


def test_a_key_that_comes_again_is_another_sample(tmp_path):
    members = [
        ("a.jpg", encoded()),
        ("a.txt", b"first"),
        ("a.jpg", encoded()),
        ("a.txt", b"second"),
    ]
    reader = open_tar(write_tar(tmp_path / "x.tar", members))
    assert [reader[i].caption for i in range(2)] == ["first", "second"]


def test_samples_without_image_or_caption_are_dropped_and_counted(tmp_path):
    members = [
        *pair_members(3),
        ("lonely.jpg", encoded()),
        ("words.txt", b"no image"),
        ("more.txt", b"no image"),
        ("evil.pkl", b"never read"),
        (".hidden.jpg", encoded()),
        ("no-extension", b"?"),
    ]
    path = write_tar(tmp_path / "x.tar", members)
    reader = open_tar(path)
    assert len(reader) == 3
    assert reader.dropped == {"no image": 3, "no caption": 1}
    images = open_tar(path, caption="none")
    assert [images[i].caption for i in range(4)] == [None] * 4
    assert images.dropped == {"no image": 3}


def test_further_images_and_captions_of_a_sample_are_counted(tmp_path):
    jpg, png = encoded(photo(24, 24)), encoded(photo(25, 24), "PNG")
    members = [("0.jpg", jpg), ("0.png", png), ("0.txt", b"a cat"), ("0.caption", b"a dog")]
    write_tar(tmp_path / "a.tar", [*members, ("1.png", png), ("1.caption", b"an owl")])
    reader = open_tar(tmp_path / "a.tar")
    assert [reader[row].caption for row in range(2)] == ["a cat", "an owl"]
    assert reader.understood.unused == {
        "further image of a sample": 1,
        "further caption of a sample": 1,
    }


def test_named_members_and_json_fields_are_the_caption(tmp_path):
    fields = {"title": "from json", "tags": ["red", "round"], "deep": {"name": "inside"}, "n": 5}
    members = [
        ("a.jpg", encoded()),
        ("a.left.PNG", encoded(photo(), "PNG")),
        ("a.txt", b"\xef\xbb\xbfplain \xff text"),
        ("a.json", json.dumps(fields).encode()),
    ]
    path = write_tar(tmp_path / "x.tar", members)
    assert open_tar(path)[0].caption == "plain � text"
    assert open_tar(path)[0].metadata == fields
    assert open_tar(path, caption="json.title")[0].caption == "from json"
    assert open_tar(path, caption="json.tags")[0].caption == "red"
    assert open_tar(path, caption="json.tags")[0].others == ["round"]
    joined = open_tar(path, caption="json.tags", captions="join")
    assert joined[0].caption == "red, round"
    assert open_tar(path, caption="json.deep.name")[0].caption == "inside"
    assert open_tar(path, caption="json.absent")[0].caption is None
    assert list(joined.captions()) == ["red, round"]
    assert open_tar(path, image="left.png")[0].image == members[1][1]


def test_without_text_members_the_usual_json_fields_are_tried(tmp_path):
    members = [("a.jpg", encoded()), ("a.json", b'{"caption": "found"}')]
    assert open_tar(write_tar(tmp_path / "x.tar", members))[0].caption == "found"


def test_broken_json_costs_a_sample_its_fields_only(tmp_path):
    members = [*pair_members(1), ("0000.json", b'{"a": ')]
    pair = open_tar(write_tar(tmp_path / "x.tar", members))[0]
    assert pair.metadata == {}
    assert pair.caption == "caption number 0"


def test_hostile_names_stay_opaque_keys(tmp_path):
    names = ["../../escape", "/absolute", "a\x1b[31m", "ünï/图片"]
    members = [m for n in names for m in [(n + ".jpg", encoded()), (n + ".txt", n.encode())]]
    reader = open_tar(write_tar(tmp_path / "in" / "x.tar", members))
    assert [reader[i].caption for i in range(4)] == names
    made = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert made == {"in/x.tar", "in/.x.tar.clipkit-index.npz"}


def test_a_truncated_shard_keeps_its_first_samples_and_is_named(tmp_path):
    write_shards(tmp_path, [5, 5])
    shard = tmp_path / "train-000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    reader = open_tar(tmp_path / "train-*.tar")
    assert 1 <= reader.shard_sizes[0] <= 3
    assert reader.shard_sizes[1] == 5
    assert len(reader.damage) == 1
    assert str(shard) in reader.damage[0]
    assert "cut short" in reader.damage[0]
    again = open_tar(tmp_path / "train-*.tar")  # from the kept index
    assert again.damage == reader.damage
    assert again.fingerprint == reader.fingerprint


def test_the_index_is_kept_and_made_anew_when_the_shard_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", pair_members(3))
    assert len(open_tar(path)) == 3
    index = Path(index_beside(str(path)))
    kept = index.read_bytes()
    monkeypatch.setattr("clipkit.data.tar_index.list_tar", None)  # reading must not scan again
    assert len(open_tar(path)) == 3
    monkeypatch.undo()
    write_tar(path, pair_members(4))
    assert len(open_tar(path)) == 4
    assert index.read_bytes() != kept
    index.write_bytes(index.read_bytes()[:100])  # half-written, or a bad disk
    reader = open_tar(path)
    assert reader[3].caption == "caption number 3"


def test_an_index_is_never_unpickled(tmp_path):
    path = write_tar(tmp_path / "x.tar", pair_members(1))
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(canary),))

    np.savez(index_beside(str(path)), fits=np.array([Evil()], dtype=object))
    assert len(open_tar(path)) == 1
    assert not canary.exists()


def test_beside_a_read_only_shard_the_index_goes_to_the_cache(tmp_path, caches_in_tmp, monkeypatch):
    path = write_tar(tmp_path / "x.tar", pair_members(2))
    write = Path.write_bytes

    def refuse(self, data):
        if tmp_path in self.parents:
            raise PermissionError(13, "Permission denied")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert len(open_tar(path)) == 2
    assert not Path(index_beside(str(path))).exists()
    assert len(list((caches_in_tmp / "clipkit" / "index").glob("*.npz"))) == 1
    monkeypatch.setattr("clipkit.data.tar_index.list_tar", None)
    assert len(open_tar(path)) == 2


def test_where_no_index_can_be_kept_it_says_so_and_goes_on(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", pair_members(2))

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        reader = open_tar(path)
    assert pickle.loads(pickle.dumps(reader))[1].caption == "caption number 1"


def test_readers_pickle_and_read_after_a_fork(tmp_path):
    reader = open_tar(write_shards(tmp_path, [3, 3]))
    assert reader[4].key == "0004"
    assert pickle.loads(pickle.dumps(reader))[4] == reader[4]
    if hasattr(os, "fork"):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if reader[4].key == "0004" and reader[1].key == "0001" else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert reader[4].key == "0004"


def test_a_shard_that_vanishes_or_shrinks_is_named(tmp_path):
    write_shards(tmp_path, [3, 3])
    reader = open_tar(tmp_path / "train-*.tar")
    with open(tmp_path / "train-000.tar", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(SampleError, match="shard cut short"):
        reader[2]
    reader = open_tar(tmp_path / "train-*.tar")
    (tmp_path / "train-001.tar").unlink()
    with pytest.raises(DataError, match=r"train-001\.tar: cannot be read \(No such file"):
        reader[len(reader) - 1]


def test_a_replaced_shard_is_opened_anew(tmp_path):
    path = write_tar(tmp_path / "x.tar", pair_members(2))
    assert open_tar(path)[1].key == "0001"
    write_tar(tmp_path / "new.tar", pair_members(2, begin=70)).rename(path)
    assert open_tar(path)[1].caption == "caption number 71"


def test_shards_are_read_through_fsspec(tmp_path):
    memory = fsspec.filesystem("memory")
    write_shards(tmp_path, [3, 2])
    for shard in tmp_path.glob("*.tar"):
        memory.pipe_file(f"/shards/{shard.name}", shard.read_bytes())
    try:
        local, remote = open_tar(tmp_path), open_tar("memory://shards/train-{000..001}.tar")
        assert [remote[i].image for i in range(5)] == [local[i].image for i in range(5)]
        assert remote.shard_sizes == [3, 2]
        assert open_tar("memory://shards/train-*.tar").shard_sizes == [3, 2]
        assert open_tar("memory://shards").shard_sizes == [3, 2]
        with pytest.raises(DataError, match=r"memory://shards/train-002\.tar: no such file"):
            open_tar("memory://shards/train-{000..002}.tar")
    finally:
        memory.rm("/shards", recursive=True)


def test_the_fingerprint_follows_the_data_and_not_the_place(tmp_path):
    one, two = write_shards(tmp_path / "a", [3, 2]), write_shards(tmp_path / "b", [3, 2])
    assert open_tar(one).fingerprint == open_tar(two).fingerprint
    assert open_tar(write_shards(tmp_path / "c", [2, 3])).fingerprint != open_tar(one).fingerprint


def test_a_set_with_nothing_usable_says_what_was_found(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", encoded()), ("a.npy", b"3")])
    with pytest.raises(DataError) as caught:
        open_tar(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "1 with no caption" in message
    assert ".jpg (1), .npy (1)" in message
    assert ".txt, .caption, .text" in message
    empty = tmp_path / "empty.tar"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match="no usable sample"):
        open_tar(empty)


def test_indexing_shows_a_bar_and_a_kept_index_none(tmp_path, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, **_):
            self.total, self.done = total, 0
            bars.append(self)

        def update(self, count):
            self.done += count

        def close(self):
            pass

    monkeypatch.setattr("clipkit.data.index.tqdm", Bar)
    pattern = write_shards(tmp_path, [3, 3])
    open_source(SourceConfig(path=pattern), progress=False)
    assert not bars
    Path(index_beside(str(tmp_path / "train-000.tar"))).unlink()
    open_source(SourceConfig(path=pattern), progress=True)
    assert [bar.done == bar.total > 10_000 for bar in bars] == [True]
    open_source(SourceConfig(path=pattern), progress=True)
    assert len(bars) == 1


def test_bytes_that_changed_since_indexing_are_not_used(tmp_path):
    path = Path(write_shards(tmp_path, [3]).replace("*", "000"))
    reader = open_tar(path)
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[data.index(reader[1].image) + 700] ^= 1  # a bit that rots leaves size and time alone
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = open_tar(path)
    with pytest.raises(SampleError, match="bytes changed since the shard was indexed"):
        again[1]
    assert (again[0].key, again[2].key) == ("0000", "0002")


@pytest.mark.parametrize("told", [{"train-001.tar": 4}, {"train-001.tar": {"samples": 4}}])
def test_fewer_samples_than_sizes_json_says_are_damage(tmp_path, told):
    (tmp_path / "sizes.json").write_text(json.dumps({"train-000.tar": 3, **told}))
    reader = open_tar(write_shards(tmp_path, [3, 3]))
    assert reader.lost == 1
    assert reader.damage == [f"{tmp_path}/train-001.tar: holds 3 samples; sizes.json says 4."]


def test_the_share_that_is_lost_to_garbage_is_estimated(tmp_path):
    path = Path(write_shards(tmp_path, [40]).replace("*", "000"))
    assert open_tar(path).lost == 0
    data = bytearray(path.read_bytes())
    quarter = len(data) // 4
    data[quarter : 2 * quarter] = bytes(quarter)
    path.write_bytes(data)
    reader = open_tar(path)
    assert 28 <= len(reader) <= 30
    assert 8 <= reader.lost <= 12
    assert "the next member is at byte" in reader.damage[0]


def test_several_captions_come_from_several_members(tmp_path):
    members = [
        *(("a.jpg", encoded()), ("a.txt", b"first"), ("a.json", b'{"alt": ["second", "third"]}')),
        *(("b.jpg", encoded()), ("b.json", b'{"alt": "only"}')),
        ("c.jpg", encoded()),
    ]
    path = write_tar(tmp_path / "x.tar", members)
    reader = open_tar(path, caption="txt, json.alt")
    assert (reader[0].caption, reader[0].others) == ("first", ["second", "third"])
    assert (reader[1].caption, reader[1].others) == ("only", [])
    assert reader.dropped == {"no caption": 1}
    joined = open_tar(path, caption="txt,json.alt", captions="join")
    assert list(joined.captions()) == ["first, second, third", "only"]


def test_class_members_become_captions(tmp_path):
    members = [
        (f"{key}.{extension}", data)
        for key, name in (("a", b"1\n"), ("b", b"0"), ("c", b"7"))
        for extension, data in (("jpg", encoded()), ("cls", name))
    ]
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"x\.tar: its \.cls members hold numbers .*class_names"):
        open_tar(path)
    names = tmp_path / "names.txt"
    names.write_text("tabby cat\nguide_dog\n")
    reader = open_tar(path, class_names=str(names), templates=["a {}", "one {}."])
    assert (reader[0].caption, reader[0].others) == ("a guide dog", ["one guide dog."])
    assert list(reader.captions()) == ["a guide dog", "a tabby cat", ""]
    bare = write_tar(tmp_path / "y.tar", [("a.jpg", encoded()), ("a.cls", b"guide_dog\n")])
    assert open_tar(bare)[0].caption == "a photo of a guide dog"
    keyed = tmp_path / "keyed.txt"
    keyed.write_text("".join(f"{n}: {name}\n" for n, name in enumerate(["tabby cat", "guide_dog"])))
    same = open_tar(path, class_names=str(keyed), templates=["a {}", "one {}."])
    assert list(same.texts()) == list(reader.texts())
    with pytest.raises(DataError, match=r"none\.txt: class_names cannot be read"):
        open_tar(path, class_names=str(tmp_path / "none.txt"))
