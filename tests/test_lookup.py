"""lookup.py: files are found in either Unicode form, once, and what systems leave beside them is not looked at."""

import pytest
from releases import NFC, NFD

from infomask_jax.datasets import lookup


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize("there", [NFC, NFD])
@pytest.mark.parametrize("asked", [NFC, NFD])
def test_a_name_finds_its_file_in_either_form(tmp_path, there, asked):
    touch(tmp_path, f"{there}/{there}.png", "plain.png")
    locate = lookup.locator(tmp_path)
    assert locate(f"{asked}/{asked}.png") == tmp_path / there / f"{there}.png"
    assert locate("plain.png") == tmp_path / "plain.png" and not locate(f"{asked}/none.png").exists()
    index = lookup.index_images(tmp_path, "stem", (".png",))
    assert lookup.find_image(NFC, index, str(tmp_path)) == tmp_path / there / f"{there}.png"


def test_two_files_that_look_the_same_are_a_clash_that_tells_them_apart(tmp_path):
    touch(tmp_path, f"{NFC}.png", f"{NFD}.png")
    index = lookup.index_images(tmp_path, "stem", (".png",))
    for find in (lambda: lookup.locator(tmp_path)(f"{NFC}.png"), lambda: lookup.find_image(NFC, index, str(tmp_path))):
        with pytest.raises(ValueError, match="expected one file") as error:
            find()
        assert r"\xe9" in str(error.value) and r"\u0301" in str(error.value)


def test_hidden_files_and_folders_are_not_indexed_wherever_the_folder_lies(tmp_path):
    root = tmp_path / ".cache" / "films"
    touch(root, "a.png", "sub/b.png", "._a.png", "sub/._b.png", "__MACOSX/a.png", ".trash/a.png")
    found = lookup.index_images(root, "name", (".png",))
    assert found == {"a.png": [root / "a.png"], "b.png": [root / "sub" / "b.png"]}
    assert lookup.locator(root)("._a.png") == root / "._a.png"  # one that is asked for by name
