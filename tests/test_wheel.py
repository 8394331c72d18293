"""What is shipped is what was tested: the wheel, away from the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_wheel_works_away_from_the_tree(root: Path, tmp_path: Path) -> None:
    # A copy, so that no build folder is left in the tree.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "clipkit", source / "clipkit", ignore=ignore)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    wheel = next(tmp_path.glob("clipkit_pretraining-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {"clipkit/py.typed", "clipkit/evaluation/standard/imagenet.yaml"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "scripts", "data"))]

    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)]
    # Of a tree that is on PYTHONPATH pip says that it is installed, and does nothing.
    subprocess.run(install, check=True, capture_output=True, env=env)
    # The dependencies, not clipkit: a folder named in a .pth file is searched, its own .pth
    # files, which is what an editable install is, are not read.
    site = next((environment / "lib").glob("python*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    where = subprocess.run(
        [str(python), "-c", "import clipkit; print(clipkit.__file__)"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(site)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"output: {tmp_path}/run\n"
        f"data: {{train: '{root}/data/emoji/validation-*.tar', workers: 0}}\n"
        "preprocess: {image_size: 32, context_length: 16, vocab_size: 600}\n"
        "model: {embed_dim: 16, vision: {width: 64, layers: 1, patch_size: 16}, "
        "text: {width: 64, layers: 1}}\n"
        "train: {batch_size: 32, steps: 2, precision: fp32}\n"
    )
    command = environment / "bin" / "clipkit"
    for arguments in (["train", str(config)], ["search", "--help"]):
        result = subprocess.run(
            [str(command), *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
