"""open_source: what a path means, and the one line where it means nothing."""

from __future__ import annotations

import pickle

import pytest
from sample_files import encoded, pair_members, photo, write_shards, write_tar

from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.data.files import expand
from clipkit.errors import DataError


def open_path(path, **options):
    return open_source(SourceConfig(path=str(path), **options), progress=False)


def write_images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        format = "PNG" if name.lower().endswith("png") else "JPEG"
        (folder / name).write_bytes(encoded(photo(), format))
    return folder


def test_brace_ranges_and_globs_name_shards_in_order(tmp_path):
    write_shards(tmp_path, [1] * 12)
    by_glob = open_path(tmp_path / "train-*.tar")
    by_braces = open_path(tmp_path / "train-{000..011}.tar")
    assert [by_glob[i].key for i in range(12)] == [f"{i:04d}" for i in range(12)]
    assert by_braces.fingerprint == by_glob.fingerprint
    assert open_path(tmp_path).fingerprint == by_glob.fingerprint
    assert open_path(tmp_path / "train-{003,001}.tar")[0].key == "0001"
    with pytest.raises(DataError, match=r"train-012\.tar: no such file"):
        open_path(tmp_path / "train-{010..012}.tar")


def test_braces_expand_with_their_leading_zeros():
    assert expand("memory://a{08..11}{x,y}")[:3] == [
        "memory://a08x",
        "memory://a08y",
        "memory://a09x",
    ]
    with pytest.raises(DataError, match="ten million"):
        expand("x{0..99999999}.tar")


def test_a_folder_of_shards_means_the_shards(tmp_path):
    write_shards(tmp_path / "deep", [2, 2])
    write_images(tmp_path, "preview.jpg")
    (tmp_path / "stats.json").write_text("{}")
    assert len(open_path(tmp_path)) == 4


def test_a_folder_with_several_splits_is_refused(tmp_path):
    for name in ("train-000", "validation-000", "held-out-000"):
        write_tar(tmp_path / f"{name}.tar", pair_members(1))
    with pytest.raises(
        DataError, match=r"several splits \(held-out, train, validation\)"
    ) as caught:
        open_path(tmp_path)
    assert f"{tmp_path}/train*.tar" in str(caught.value)
    assert len(open_path(tmp_path / "train*.tar")) == 1
    assert len(open_path(tmp_path / "*.tar")) == 3
    names = [f"{split}/{kind}/1.jpg" for split in ("train", "test") for kind in ("cat", "dog")]
    images = write_images(tmp_path / "images", *names)
    with pytest.raises(DataError, match="several splits"):
        open_path(images)
    assert len(open_path(images / "train")) == 2


def test_captions_beside_the_images_come_first(tmp_path):
    write_images(tmp_path, "b.jpg", "a.PNG", "deep/c.jpeg", "lonely.jpg", ".hidden.jpg")
    for name in ("a", "b", "deep/c"):
        (tmp_path / f"{name}.txt").write_text(f"caption {name}\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not an image")
    reader = open_path(tmp_path)
    assert [reader[i].key for i in range(3)] == ["a.PNG", "b.jpg", "deep/c.jpeg"]
    assert [reader[i].caption for i in range(3)] == [
        "caption a\n",
        "caption b\n",
        "caption deep/c\n",
    ]
    assert reader.dropped == {"no caption": 1}
    assert reader.locate(1) == f"{tmp_path}/b.jpg"
    assert pickle.loads(pickle.dumps(reader))[0] == reader[0]
    by_glob = open_path(tmp_path / "*.jpg")
    assert list(by_glob.captions()) == ["caption b\n"]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_files_give_captions(tmp_path, name):
    write_images(tmp_path, "a.jpg", "deep/b.jpg", "c.jpg")
    deep = tmp_path / "deep" / name
    if name.endswith("csv"):
        (tmp_path / name).write_text("file_name,text,id\na.jpg,NA,7\n")
        deep.write_text("file_name,text\nb.jpg,of b\n")
    else:
        (tmp_path / name).write_text('{"file_name": "a.jpg", "text": "NA", "id": "7"}\n')
        deep.write_text('{"file_name": "b.jpg", "text": "of b"}\n')
    reader = open_path(tmp_path)
    assert list(reader.captions()) == ["NA", "of b"]
    assert reader[0].metadata["id"] == "7"
    assert reader.dropped == {"no caption": 1}


def test_class_folders_give_captions(tmp_path):
    write_images(tmp_path, "golden_retriever/1.jpg", "cat/1.jpg", "cat/more/2.jpg")
    reader = open_path(tmp_path)
    assert list(reader.captions()) == [
        "a photo of a cat",
        "a photo of a more",
        "a photo of a golden retriever",
    ]


def test_class_names_and_templates_are_the_config_s(tmp_path):
    write_images(tmp_path, "pictures/n01/1.jpg", "pictures/n02/1.jpg")
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    options = {"class_names": str(names), "templates": ["a {}.", "my {}."]}
    reader = open_path(tmp_path / "pictures", **options)
    assert list(reader.captions()) == ["a cat.", "a dog."]
    assert reader[1].others == ["my dog."]
    names.write_text("cat\n")
    with pytest.raises(DataError, match=r"names\.txt: names 1 classes, and .* 2 folders"):
        open_path(tmp_path / "pictures", **options)


def test_plain_images_need_captions_only_where_they_are_wanted(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(DataError, match=r"2 images and no captions; looked for NAME\.txt"):
        open_path(tmp_path)
    reader = open_path(tmp_path, caption="none")
    assert [reader[i].caption for i in range(2)] == [None, None]
    assert len(open_path(tmp_path / "a.jpg", caption="none")) == 1


def test_a_table_beside_images_is_read_whatever_it_is_called(tmp_path):
    write_images(tmp_path, "a.jpg")
    (tmp_path / "pairs.csv").write_text("image,caption\na.jpg,x\n")
    assert list(open_path(tmp_path).captions()) == ["x"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p / "absent", "no such file or folder"),
        (lambda p: p / "absent-*.tar", "no file matches"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "the folder is empty"),
        (lambda p: (p / "a.mp4").write_bytes(b"x") and p, r"found 1 file\(s\) \(1 \.mp4\)"),
        (lambda p: (p / "b.tar.gz").write_bytes(b"x") and p / "b.tar.gz", "compressed tars"),
        (lambda p: (p / "c.xyz").write_bytes(b"x") and p / "c.xyz", r"understood are WebDataset"),
        (lambda p: "", "a source has no path"),
        (lambda p: "nothing://x/y.tar", "nothing"),
    ],
)
def test_what_is_not_there_is_one_line_with_exit_code_3(tmp_path, make, said):
    with pytest.raises(DataError, match=said) as caught:
        open_path(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_image_folders_are_read_through_fsspec(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/pets/cat/1.jpg", encoded())
    memory.pipe_file("/pets/dog/1.jpg", encoded())
    try:
        reader = open_path("memory://pets")
        assert [(reader[i].key, reader[i].caption) for i in range(2)] == [
            ("cat/1.jpg", "a photo of a cat"),
            ("dog/1.jpg", "a photo of a dog"),
        ]
        assert reader[0].image == encoded()
    finally:
        memory.rm("/pets", recursive=True)


def test_a_store_of_embeddings_inside_a_folder_is_no_part_of_it(tmp_path):
    write_images(tmp_path, "cat/1.jpg", "dog/2.jpg")
    before = open_path(tmp_path).fingerprint
    (tmp_path / "store").mkdir()
    (tmp_path / "store/manifest.json").write_text('{\n "format": "clipkit-embeddings"\n}')
    (tmp_path / "store/items.parquet").write_bytes(b"PAR1")
    assert open_path(tmp_path).fingerprint == before


def test_of_images_and_stray_shards_what_there_is_most_of_is_meant(tmp_path):
    write_images(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/3.jpg")
    write_tar(tmp_path / "backup.tar", pair_members(1))
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    assert open_path(tmp_path)[2].key == "dog/3.jpg"
