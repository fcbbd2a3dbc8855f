"""Test files of class names as editors write them, and names that several classes have."""

import pytest
import tfiseg
from tfiseg.export.onnx_import.class_lists import read_class_names, things_of

NAMES = ("background", "sign", "person", "sign")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n\n"])
def test_files_of_class_names(tmp_path, encoding, end):
    # the mark of a file from Windows was a part of the first name, which was no background then
    path = tmp_path / "names.txt"
    path.write_bytes("".join(name + end for name in NAMES).encode(encoding))
    assert read_class_names(str(path)) == NAMES


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "names.txt").write_bytes("\n".join(NAMES).encode("utf-16"))
    with pytest.raises(tfiseg.InputError, match=r"names\.txt is no text in UTF-8 .*: save it as UTF-8"):
        read_class_names(str(tmp_path / "names.txt"))


def test_all_classes_of_a_name_are_countable():
    assert things_of(NAMES, "sign") == (1, 3)
    assert things_of(NAMES, "sign,2") == (1, 2, 3)
