"""Folders as people have them: where their captions are, and what is refused."""

from __future__ import annotations

import json
import pickle
import unicodedata

import pytest
from sample_files import encoded, photo

from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.display.source_line import describe
from clipkit.errors import DataError

FIVE = [f"caption {k}, of the dog" for k in range(5)]


def open_path(path, **options):
    reader = open_source(SourceConfig(path=str(path), **options), progress=False)
    assert pickle.loads(pickle.dumps(reader))[len(reader) - 1] == reader[len(reader) - 1]
    return reader


def write_images(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(photo(24, 24, seed=number)))
    return folder


def captions_of(reader):
    """Image → its captions."""
    pairs = [reader[row] for row in range(len(reader))]
    return {pair.key: [pair.caption, *pair.others] for pair in pairs}


def rows_of(*images):
    return [(image, number, text) for image in images for number, text in enumerate(FIVE)]


def coco(*images):
    return {
        "info": {"year": 2017},
        "images": [{"id": n, "file_name": name} for n, name in enumerate(images)],
        "annotations": [
            {"image_id": n, "id": 9 * n, "caption": f"{name} {text}"}
            for n, name in enumerate(images)
            for text in FIVE
        ],
    }


def karpathy(images):
    return {
        "images": [
            {
                "filepath": "val2014",
                "filename": name,
                "split": split,
                "sentences": [{"raw": f"{name} {text}", "tokens": []} for text in FIVE],
            }
            for name, split in images.items()
        ],
        "dataset": "coco",
    }


def csv_text(header, separator, quote='"'):
    lines = [separator.join(header)] if header else []
    for image, number, text in rows_of("1_a.jpg", "2_b.jpg"):
        values = {"image": image, "number": str(number), "caption": f"{quote}{text}{quote}"}
        lines.append(separator.join(values[each] for each in ("image", "number", "caption")))
    return "\n".join(lines)


TABLES = {
    "captions.txt": csv_text(("image", "number", "caption"), ","),
    "results.csv": csv_text(("image_name", "comment_number", "comment"), "| ", quote=""),
    "captions.tsv": csv_text(("image", "n", "caption"), "\t", quote=""),
    "annotations.csv": csv_text(("filename", "n", "description"), ";"),
    "own.csv": csv_text(("Bild", "n", "Beschreibung"), ","),
    "Flickr8k.token.txt": "\n".join(
        f"{image}#{number}\t{text}" for image, number, text in rows_of("1_a.jpg", "2_b.jpg")
    ),
    "results_20130124.token": "\n".join(
        f"{image}#{number}\t{text}" for image, number, text in rows_of("1_a.jpg", "2_b.jpg")
    ),
    "labels.jsonl": "\n".join(
        json.dumps({"img": f"./Images/{image}", "text": text})
        for image, _, text in rows_of("1_a.jpg", "2_b.jpg")
    ),
    "data.json": json.dumps({"1_a.jpg": FIVE, "2_b.jpg": FIVE}),
    "elsewhere.csv": csv_text(("image", "n", "caption"), ",").replace("1_a", "/home/x/1_a"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_among_the_images_gives_five_captions_an_image(tmp_path, name):
    write_images(tmp_path, "Images/1_a.jpg", "Images/2_b.jpg", "Images/lonely.jpg")
    (tmp_path / name).write_text(TABLES[name])
    (tmp_path / "readme.txt").write_text("Photographs, and five captions of each.\n")
    reader = open_path(tmp_path)
    assert captions_of(reader) == {"Images/1_a.jpg": FIVE, "Images/2_b.jpg": FIVE}
    assert reader.dropped == {"no caption": 1}
    assert reader.understood.unused == {"table or text (.txt)": 1}
    assert (reader.understood.an_image, reader.understood.classes) == ("5", False)
    assert name in describe(reader)


@pytest.mark.parametrize("name", ["captions.txt", "results.csv", "Flickr8k.token.txt", "own.jsonl"])
def test_a_table_given_as_the_path_finds_its_images(tmp_path, name):
    write_images(tmp_path, "Images/1_a.jpg", "Images/2_b.jpg")
    table = '{"image": "1_a.jpg", "caption": "caption 0, of the dog"}'
    (tmp_path / name).write_text(TABLES.get(name, table))
    reader = open_path(tmp_path / name)
    assert (reader[0].caption, reader[0].image) == (
        FIVE[0],
        (tmp_path / "Images/1_a.jpg").read_bytes(),
    )
    assert any(str(tmp_path / "Images") in note for note in reader.understood.notes)
    alone = open_path(tmp_path / name, image="none")
    assert (alone[0].caption, alone[0].image) == (FIVE[0], None)


def test_images_of_another_data_set_beside_a_table_are_never_taken(tmp_path):
    write_images(tmp_path / "other", "1.jpg", "2.jpg")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/captions.csv").write_text("image,caption\n1.jpg,a dog\n2.jpg,a cat\n")
    reader = open_path_unpickled(tmp_path / "mine/captions.csv")
    with pytest.raises(ValueError, match="missing image file"):
        reader[0]


def open_path_unpickled(path):
    return open_source(str(path), progress=False)


def test_coco_as_it_is_downloaded(tmp_path):
    write_images(tmp_path, "train2017/001.jpg", "train2017/002.jpg", "train2017/003.jpg")
    (tmp_path / "annotations").mkdir()
    for split, names in {"train": ["001.jpg", "002.jpg", "404.jpg"], "val": ["009.jpg"]}.items():
        path = tmp_path / f"annotations/captions_{split}2017.json"
        path.write_text(json.dumps(coco(*names)))
    boxes = {**coco(), "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1], "id": 1}]}
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(boxes))
    expected = {f"train2017/00{n}.jpg": [f"00{n}.jpg {text}" for text in FIVE] for n in (1, 2)}
    reader = open_path(tmp_path)
    assert captions_of(reader) == expected
    assert reader.dropped == {"no caption": 1, "missing image file": 1}
    assert reader.understood.unused == {"table or text (.json)": 2}
    alone = open_path(tmp_path / "annotations/captions_train2017.json")
    assert list(captions_of(alone).values()) == list(expected.values())
    # With the images of both splits, the one that is meant must be named.
    write_images(tmp_path, "val2017/009.jpg")
    with pytest.raises(DataError, match=r"several splits.*captions_train2017\.json or .*val2017"):
        open_path(tmp_path)
    assert len(open_path(tmp_path / "annotations/captions_val2017.json")) == 1
    with pytest.raises(DataError, match="no captions"):
        open_path(tmp_path / "val2017")


def test_karpathys_splits_are_read_by_split(tmp_path):
    splits = {"1.jpg": "train", "2.jpg": "test", "3.jpg": "restval", "4.jpg": "val"}
    write_images(tmp_path, *(f"val2014/{name}" for name in splits))
    (tmp_path / "dataset_coco.json").write_text(json.dumps(karpathy(splits)))
    for path in (tmp_path, tmp_path / "dataset_coco.json"):
        reader = open_path(path)
        assert captions_of(reader) == {"val2014/1.jpg": [f"1.jpg {text}" for text in FIVE]}
        assert "not read are images 1 of test" in describe(reader)
        assert list(captions_of(open_path(path, split="test"))) == ["val2014/2.jpg"]
        both = open_path(path, split="train,restval")
        assert list(captions_of(both)) == ["val2014/1.jpg", "val2014/3.jpg"]
        with pytest.raises(DataError, match="no image is of the split 'dev'; there are restval"):
            open_path(path, split="dev")


def test_conversations_are_named_with_the_field_that_reads_them(tmp_path):
    write_images(tmp_path, "a/1.jpg", "b/2.jpg")
    records = [
        {
            "image": f"{name}.jpg",
            "conversations": [
                {"from": "human", "value": "<image> Describe this."},
                {"from": "gpt", "value": f"a dog by {name}"},
            ],
        }
        for name in ("a/1", "b/2")
    ]
    (tmp_path / "chat.json").write_text(json.dumps(records))
    with pytest.raises(
        DataError, match=r"caption: conversations\.1\.value with data\.train=.*chat"
    ):
        open_path(tmp_path)
    for path in (tmp_path, tmp_path / "chat.json"):
        reader = open_path(path, caption="conversations.1.value")
        assert list(reader.captions()) == ["a dog by a/1", "a dog by b/2"]


@pytest.mark.parametrize("extension", ["txt", "TXT", "caption", "text", "Caption", "json", "JSON"])
@pytest.mark.parametrize("whole", [False, True])
def test_caption_files_beside_images(tmp_path, extension, whole):
    write_images(tmp_path, "x/1.jpg", "x/2.JPG", "y/3.jpeg")
    for name in ("x/1.jpg", "x/2.JPG", "y/3.jpeg"):
        text = f"a dog {name}"
        if extension.lower() == "json":
            text = json.dumps({"url": "http://x", "caption": text, "title": "a b"})
        stem = name if whole else name.rsplit(".", 1)[0]
        (tmp_path / f"{stem}.{extension}").write_text(text)
    reader = open_path(tmp_path)
    assert list(reader.captions()) == ["a dog x/1.jpg", "a dog x/2.JPG", "a dog y/3.jpeg"]
    assert not reader.understood.classes
    if extension.lower() == "json":
        assert reader.understood.also == ["title"]
        titles = open_path(tmp_path, caption="json.title,json.caption")
        assert (titles[0].caption, titles[0].others) == ("a b", ["a dog x/1.jpg"])


def test_caption_files_in_a_folder_of_their_own(tmp_path):
    write_images(tmp_path, "images/1.jpg", "images/2.jpg")
    for name in ("1", "2"):
        (tmp_path / f"captions/{name}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"captions/{name}.txt").write_text(f"a dog {name}")
    assert list(open_path(tmp_path).captions()) == ["a dog 1", "a dog 2"]


def test_files_of_numbers_beside_images_are_no_captions(tmp_path):
    write_images(tmp_path, "cat/1.jpg", "dog/2.jpg")
    for name in ("cat/1", "dog/2"):
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.125\n")
    reader = open_path(tmp_path)
    assert list(reader.captions()) == ["a photo of a cat", "a photo of a dog"]
    assert reader.understood.unused == {"beside an image (.txt)": 2}


def test_a_caption_a_line_is_read_by_option_and_told_without(tmp_path):
    write_images(tmp_path, "1.jpg", "2.jpg")
    for name in ("1", "2"):
        (tmp_path / f"{name}.txt").write_text("\n".join(FIVE) + "\n")
    assert "5 lines" in describe(open_path(tmp_path))
    reader = open_path(tmp_path, captions="lines")
    assert captions_of(reader) == {"1.jpg": FIVE, "2.jpg": FIVE}


def test_a_stray_caption_file_does_not_switch_metadata_off(tmp_path):
    names = [f"{n}.jpg" for n in range(6)]
    write_images(tmp_path, *names[:5])
    rows = "".join(f"{name},of {name}\n" for name in names)
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\n{rows}")
    (tmp_path / "0.txt").write_text("stray")
    reader = open_path(tmp_path)
    assert list(reader.captions()) == [f"of {name}" for name in names[:5]]
    assert reader.dropped == {"missing image file": 1}
    assert reader.understood.unused == {"beside an image (.txt)": 1}
    assert "NAME.txt beside each image (1 images)" in reader.understood.also


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_with_another_image_column(tmp_path, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_images(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    records = [{"image": f"./{n}.jpg", "text": f"of {n}", "id": n} for n in (1, 2, 3)]
    path = tmp_path / "a" / name
    if name.endswith("csv"):
        rows = [",".join(map(str, record.values())) for record in records]
        path.write_text("\n".join(["image,text,id", *rows]))
    elif name.endswith("jsonl"):
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    reader = open_path(tmp_path)
    # Names are relative to the table, so that b/1.jpg is not meant.
    assert captions_of(reader) == {"a/1.jpg": ["of 1"], "a/2.jpg": ["of 2"]}
    assert str(reader[1].metadata["id"]) == "2"
    assert reader.dropped == {"no caption": 1, "missing image file": 1}


def test_metadata_that_names_no_image_is_refused_with_its_columns(tmp_path):
    write_images(tmp_path, "1.jpg")
    (tmp_path / "metadata.csv").write_text("key,text\nx,a dog\n")
    with pytest.raises(DataError, match=r"metadata\.csv \(no column names images.*key, text"):
        open_path(tmp_path)


def test_tables_of_the_same_images_are_refused_and_of_others_joined(tmp_path):
    write_images(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    for part, names in {"a": "12", "b": "34"}.items():
        rows = [f"{n}.jpg,{part} {n} there" for n in names]
        (tmp_path / f"part_{part}.csv").write_text("\n".join(["image,caption", *rows]))
    assert list(open_path(tmp_path).captions())[1:3] == ["a 2 there", "b 3 there"]
    (tmp_path / "part_c.csv").write_text("image,caption\n1.jpg,else\n2.jpg,other\n")
    with pytest.raises(DataError, match=r"part_a\.csv and part_c\.csv both have captions"):
        open_path(tmp_path)
    for name in ("part_a.csv", "part_b.csv", "part_c.csv"):
        (tmp_path / name).unlink()
    for split, names in {"train": "12", "test": "34"}.items():
        rows = [f"{n}.jpg,{n} there" for n in names]
        (tmp_path / f"captions_{split}.csv").write_text("\n".join(["image,caption", *rows]))
    with pytest.raises(DataError, match=r"several splits.*captions_test\.csv or .*captions_train"):
        open_path(tmp_path)


@pytest.mark.parametrize(
    ("images", "others", "said"),
    [
        (["Images/1.jpg", "Images/2.jpg"], {}, r"all are in Images.*caption of the source to fold"),
        (["images/1.jpg", "masks/1.jpg"], {}, "images is no class"),
        (["cat/1.jpg", "dog/1.jpg", "2.jpg"], {}, "1 of them are in no folder"),
        (["a/1.jpg", "b/1.jpg"], {"captions.txt": "a dog\na cat\n"}, r"captions\.txt"),
        (
            ["a/1.jpg", "b/2.jpg"],
            {"a/1.json": '{"de": "ein Hund dort"}', "b/2.json": '{"de": "eine Katze da"}'},
            r"2 NAME\.json beside images \(caption: json\.de reads them\)",
        ),
        (
            ["a/1.jpg", "b/2.jpg"],
            {"own.csv": "image,x,y\n1.jpg,a dog,ein Hund\n2.jpg,a cat,eine Katze\n"},
            r"caption: x or caption: y with data\.train=.*own\.csv",
        ),
        (
            ["a/1.jpg", "b/2.jpg"],
            {"all.csv": "image,caption\nhttp://x/9.jpg,a dog\n"},
            r"all\.csv \(the images of its column image are not here\)",
        ),
    ],
)
def test_folders_are_no_classes_where_something_else_may_be_meant(tmp_path, images, others, said):
    write_images(tmp_path, *images)
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        open_path(tmp_path)
    assert "\n" not in str(caught.value)
    reader = open_path(tmp_path, caption="folder")
    assert reader.understood.classes
    assert reader[0].class_name == images[0].split("/")[0]


def test_what_is_not_read_is_counted_by_kind(tmp_path):
    write_images(tmp_path, "1.jpg", "2.jpg")
    for name in ("1.txt", "2.txt", "3.txt", "3.heic", "notes.pdf", "LICENSE", "list.csv"):
        (tmp_path / name).write_text("a text")
    assert open_path(tmp_path).understood.unused == {
        "not read without pillow-heif (.heic)": 1,
        "beside an image (.txt)": 1,
        "not an image file (.pdf)": 1,
        "not an image file": 1,
        "table or text (.csv)": 1,
    }


NUMBERED = {
    "from 0": (range(12), 12, lambda n: n),
    "from 1": (range(1, 13), 12, lambda n: n - 1),
    "some of them": ((0, 3, 10), 12, lambda n: n),
    "years": ((2, 10, 2019), 3, lambda n: (2, 10, 2019).index(n)),
}


@pytest.mark.parametrize("form", ["{}", "{:02d}", "class_{}", "{}_thing"])
@pytest.mark.parametrize("case", NUMBERED)
def test_numbered_class_folders_are_by_number(tmp_path, case, form):
    numbers, count, expected = NUMBERED[case]
    write_images(tmp_path / "data", *(f"{form.format(n)}/a.jpg" for n in numbers))
    names = [f"name{chr(97 + n)}" for n in range(count)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    reader = open_path(tmp_path / "data", class_names=str(tmp_path / "names.txt"))
    assert captions_of(reader) == {
        f"{form.format(n)}/a.jpg": [f"a photo of a {names[expected(n)]}"] for n in numbers
    }
    assert reader.understood.notes  # which says how they were counted


def test_class_folders_are_by_name_where_the_names_are_in_the_list(tmp_path):
    write_images(tmp_path / "data", "cat/1.jpg", "Golden_Retriever/1.jpg")
    (tmp_path / "names.txt").write_text("zebra\ngolden retriever\ncat\n")
    reader = open_path(tmp_path / "data", class_names=str(tmp_path / "names.txt"))
    assert captions_of(reader) == {
        "Golden_Retriever/1.jpg": ["a photo of a golden retriever"],
        "cat/1.jpg": ["a photo of a cat"],
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("LOC_synset_mapping.txt", "n02119789 hen, bird\nn01440764 cat, house cat\n"),
        ("class_index.json", '{"1": ["n02119789", "hen"], "0": ["n01440764", "cat"]}'),
        ("names.json", '[\n  "cat",\n  "hen"\n]'),
        ("names.csv", "label,name\nn02119789,hen\nn01440764,cat\n"),
    ],
)
def test_files_of_class_names_are_read_in_training_as_in_evaluation(tmp_path, name, content):
    write_images(tmp_path / "data", "n01440764/a.jpg", "n02119789/b.jpg")
    (tmp_path / name).write_text(content)
    reader = open_path(tmp_path / "data", class_names=str(tmp_path / name))
    assert captions_of(reader) == {"n01440764/a.jpg": ["a photo of a cat"],
                                   "n02119789/b.jpg": ["a photo of a hen"]}  # fmt: skip


def test_folders_called_by_numbers_alone_need_names(tmp_path):
    write_images(tmp_path, "0/1.jpg", "1/1.jpg")
    with pytest.raises(DataError, match=r"called by numbers.*Set class_names"):
        open_path(tmp_path)
    assert open_path(tmp_path, caption="folder")[1].caption == "a photo of a 1"


def test_the_command_line_says_how_it_read_a_folder(clipkit, tmp_path):
    write_images(tmp_path / "flickr", "Images/1_a.jpg", "Images/2_b.jpg")
    (tmp_path / "flickr/captions.txt").write_text(TABLES["captions.txt"])
    done = clipkit("data", "check", tmp_path / "flickr", "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert "2 rows, images: image files, captions: column caption of captions.txt, 5 an image" in (
        done.stderr + done.stdout
    )
    write_images(tmp_path / "plain", "Images/1.jpg", "Images/2.jpg")
    done = clipkit("train", "configs/folder.yaml", "--dry-run", f"data.train={tmp_path / 'plain'}")
    assert done.returncode == 3
    assert "all are in Images" in done.stderr


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_with_accents_are_found_however_these_are_written(tmp_path, on_disk, in_table):
    disk, table = (unicodedata.normalize(form, "caf\u00e9") for form in (on_disk, in_table))
    write_images(tmp_path, f"{disk} 1.jpg", f"{disk} 2.jpg")
    (tmp_path / f"{table} 1.txt").write_text("one")
    (tmp_path / f"{table} 2.txt").write_text("two")
    assert [pair.caption for pair in open_path(tmp_path)] == ["one", "two"]
    for number in "12":
        (tmp_path / f"{table} {number}.txt").unlink()
    (tmp_path / "t.csv").write_text(f"image,caption\n{table} 1.jpg,one\n{table} 2.jpg,two\n")
    assert [pair.caption for pair in open_path(tmp_path)] == ["one", "two"]
    assert all(pair.image for pair in open_path(tmp_path / "t.csv"))


def test_a_broken_table_that_names_the_images_is_told(tmp_path):
    write_images(tmp_path, *(f"images/{n}.jpg" for n in range(4)))
    rows = "".join(f"{n},Men,Navy Blue Shirt{', wide' * (n == 3)}\n" for n in range(4))
    (tmp_path / "styles.csv").write_text(f"id,gender,productDisplayName\n{rows}")
    with pytest.raises(DataError, match=r"styles\.csv, line 5: not a valid record"):
        open_path(tmp_path, caption="productDisplayName")
