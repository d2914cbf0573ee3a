import json

import numpy as np
import pytest
from PIL import Image

from edgedl import data
from edgedl.errors import InputError
from edgedl.readers import decode, read_labels
from edgedl.types import TensorSpec

IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 4, 4, 1))
KIND = TensorSpec(name="kind", dtype="float32", shape=(1, 3))


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return str(path)


@pytest.fixture
def small(tmp_path):
    return npz(tmp_path / "a.npz", x=np.zeros((6, 4, 4, 1), np.uint8), y=np.array([0, 1, 2, 0, 1, 2]), note=np.array(3))


def test_load_npz_maps_arrays_and_ignores_scalars(small):
    found = data.load(small)
    assert set(found.arrays) == {"x", "y"}
    assert (found.count, len(found.sha256)) == (6, 64)
    assert isinstance(found.open("x"), np.memmap)


def test_load_ignores_keys_that_are_no_samples(tmp_path):
    found = data.load(npz(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.zeros(4), names=np.array(["a", "b"]), k=[1, 2]))
    assert (set(found.arrays), found.count, set(found.ignored)) == ({"x", "y"}, 4, {"names", "k"})
    with pytest.raises(InputError, match=r"no array for the model's input k; it has x, y \(not samples: k, names\)"):
        data.bind(found, [TensorSpec(name=n, dtype="float32", shape=(None, 2)) for n in ("x", "k")], [])


def test_load_keeps_slice_and_group_apart(tmp_path):
    found = data.load(npz(tmp_path / "a.npz", x=np.zeros((2, 3)), y=[0, 1], group=["a", "b"], slice=["day", "night"]))
    assert set(found.arrays) == {"x", "y"}
    assert list(found.open("slice")) == ["day", "night"]


def test_load_turns_text_labels_into_sorted_indices(tmp_path):
    found = data.load(npz(tmp_path / "a.npz", x=np.zeros((3, 2)), y=["yes", "no", "yes"]))
    assert found.labels == ("no", "yes")
    assert found.open("y").tolist() == [1, 0, 1]


def test_groups_of_more_digits_than_a_number_has_stay_apart(tmp_path):
    (tmp_path / "a.csv").write_text("a,y,group\n1,0,12345678901234567890\n3,1,12345678901234567891\n")
    assert data.load(str(tmp_path / "a.csv")).open("group").tolist() == ["12345678901234567890", "12345678901234567891"]


def test_load_csv_takes_numeric_columns_and_the_target(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,y\n1,2,up\n3,4,down\n")
    found = data.load(str(tmp_path / "a.csv"))
    assert found.open("x").tolist() == [[1, 2], [3, 4]]
    assert (found.labels, found.open("y").tolist()) == (("down", "up"), [1, 0])


def test_load_toml_names_data_target_shape_and_labels(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,c,d,kind\n1,2,3,4,1\n5,6,7,8,0\n")
    (tmp_path / "names.txt").write_text("off\non\n")
    (tmp_path / "a.toml").write_text(
        'data = "a.csv"\ntarget = "kind"\nshape = [2, 2]\nlabels = "names.txt"\n'
        '[[preprocess]]\nop = "scale"\nfactor = 0.5\n'
    )
    found = data.load(str(tmp_path / "a.toml"))
    assert found.open("x").shape == (2, 2, 2)
    assert found.labels == ("off", "on")
    prepared = data.prepare(found, found.ops, ["x"])
    assert prepared.open("x").ravel().tolist() == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]


def test_a_csv_under_another_target_or_shape_is_other_data(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,c\n1,2,0\n3,4,1\n")
    found = set()
    for told in ("", 'target = "c"', 'target = "a"', 'target = "c"\nshape = [2, 1]', 'target = "c"\nshape = [1, 2]'):
        (tmp_path / "a.toml").write_text(f'data = "a.csv"\n{told}\n')
        found.add(data.load(str(tmp_path / "a.toml")).sha256)
    assert len(found) == 5


def test_images_of_16_bits_keep_their_high_bytes(tmp_path):
    values = np.array([[0, 255, 256], [1000, 20000, 65535]], np.uint16)
    (tmp_path / "d" / "a").mkdir(parents=True)
    Image.fromarray(values).save(tmp_path / "d" / "a" / "1.png")
    assert data.load(str(tmp_path / "d")).open("x")[0, ..., 0].tolist() == (values >> 8).tolist()
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "d" / "a" / "1.tiff")
    with pytest.raises(InputError, match=r"1\.tiff: cannot be read: an image of 32-bit numbers has no range"):
        decode(tmp_path / "d" / "a" / "1.tiff")


def test_a_file_of_labels_has_one_on_each_line(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfcat\r\nox\r\n\r\n")
    assert read_labels(tmp_path / "l.txt") == ("cat", "ox")
    (tmp_path / "l.txt").write_text("cat\n\nox\n")
    with pytest.raises(InputError, match=r"l\.txt: line 2 is empty; one name a line is needed"):
        read_labels(tmp_path / "l.txt")


def write_classes(folder, *names):
    """One .npy a class folder, of its name's length."""
    for name in names:
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "1.npy", np.full(2, len(name), np.float32))


@pytest.mark.parametrize(
    ("labels", "y", "found"),
    [
        (["ox", "cat", "mouse"], [1, 2, 0], ("ox", "cat", "mouse")),  # by name
        (["ox", "mouse", "hen", "cat"], [3, 1, 0], ("ox", "mouse", "hen", "cat")),  # more than there are
        (["Katze", "Maus", "Ochse"], [0, 1, 2], ("Katze", "Maus", "Ochse")),  # other names for the same
    ],
)
def test_labels_of_a_toml_number_the_class_folders(tmp_path, labels, y, found):
    write_classes(tmp_path / "d", "cat", "mouse", "ox")
    (tmp_path / "a.toml").write_text(f'data = "d"\nlabels = {json.dumps(labels)}\n')
    loaded = data.load(str(tmp_path / "a.toml"))
    assert loaded.open("y").tolist() == y
    assert loaded.open("x")[:, 0].tolist() == [3, 5, 2]
    assert loaded.labels == found


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "ox"], "labels: 'mouse' is not among them; the data has the classes cat, mouse, ox"),
        (["Katze", "Maus"], "2 labels, and the data has 3 classes; name each"),
    ],
)
def test_labels_that_do_not_name_every_class_are_refused(tmp_path, labels, message):
    write_classes(tmp_path / "d", "cat", "mouse", "ox")
    np.savez(tmp_path / "n.npz", x=np.zeros((3, 2)), y=[0, 2, 1])
    (tmp_path / "a.toml").write_text(f'data = "d"\nlabels = {json.dumps(labels)}\n')
    with pytest.raises(InputError, match=f"a.toml: {message}"):
        data.load(str(tmp_path / "a.toml"))
    (tmp_path / "a.toml").write_text(f'data = "n.npz"\nlabels = {json.dumps(labels)}\n')
    with pytest.raises(InputError, match="2 labels, and the data has 3 classes"):
        data.load(str(tmp_path / "a.toml"))


def test_in_order_of_other_labels(tmp_path):
    write_classes(tmp_path, "mouse", "ox")
    found = data.load(str(tmp_path))
    assert data.in_order_of(found, ("cat", "mouse", "ox")).open("y").tolist() == [1, 2]
    for labels in ((), ("cat", "dog", "cow"), ("mouse", "cow", "dog"), ("mouse", "ox")):
        assert data.in_order_of(found, labels) is found
    message = "class 'mouse' is none of the model's: cat, dog, ox; leave its samples out, or name the classes"
    with pytest.raises(InputError, match=message):
        data.in_order_of(found, ("cat", "dog", "ox"))


def test_load_folder_of_images_by_class(tmp_path):
    from PIL import Image

    for label, value in (("cat", 10), ("dog", 200)):
        (tmp_path / label).mkdir()
        Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(tmp_path / label / "a.png")
    found = data.load(str(tmp_path))
    assert (found.labels, found.open("y").tolist()) == (("cat", "dog"), [0, 1])
    assert found.open("x").shape == (2, 4, 5, 3)
    assert found.open("x")[1, 0, 0].tolist() == [200, 200, 200]


def test_a_class_whose_files_are_not_read_is_refused(tmp_path):
    write_classes(tmp_path, "cat")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.tiff").write_bytes(b"")
    with pytest.raises(InputError, match=r"dog: no samples: it has \.tiff files; \.png, "):
        data.load(str(tmp_path))


def test_images_of_several_sizes_are_resized_one_by_one(tmp_path):
    from PIL import Image

    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    for name, size in (("a", (4, 4)), ("b", (6, 8))):
        Image.fromarray(np.full((*size, 3), 7, np.uint8)).save(tmp_path / "pictures" / "cat" / f"{name}.png")
    with pytest.raises(InputError, match=r"b.png: shape \(6, 8, 3\), the first sample has \(4, 4, 3\)"):
        data.load(str(tmp_path / "pictures"))
    (tmp_path / "a.toml").write_text('data = "pictures"\n[[preprocess]]\nop = "resize"\nheight = 4\nwidth = 4\n')
    assert data.load(str(tmp_path / "a.toml")).open("x").shape == (2, 4, 4, 3)


def test_a_step_that_does_not_fit_names_the_data(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 6), np.float32))
    (tmp_path / "a.toml").write_text('data = "a.npz"\n[[preprocess]]\nop = "crop"\nheight = 9\nwidth = 9\n')
    found = data.load(str(tmp_path / "a.toml"))
    with pytest.raises(InputError, match=r"a\.toml: preprocess step 1 \(crop\): "):
        data.prepare(found, found.ops, ["x"])


def test_windows_repeat_their_target(tmp_path):
    npz(tmp_path / "a.npz", x=np.arange(12, dtype=np.float32).reshape(2, 6), y=[0, 1])
    (tmp_path / "a.toml").write_text('data = "a.npz"\n[[preprocess]]\nop = "window"\nlength = 3\nstep = 3\n')
    found = data.load(str(tmp_path / "a.toml"))
    cut = data.prepare(found, found.ops, ["x"])
    assert cut.count == 4
    assert cut.open("x").tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert cut.open("y").tolist() == [0, 0, 1, 1]


FUNCTIONS = """
import numpy as np
X, Y = np.arange(12, dtype=np.float32).reshape(3, 4), np.array([2, 0, 1])
NAMES = ["cat", "mouse", "ox"]
def batches():
    yield X[:2], Y[:2]
    yield X[2:], Y[2:]
def samples(): return [(X[i], Y[i]) for i in range(3)]
def named(): return ({"x": X[i], "y": NAMES[i]} for i in range(3))
def pair(): return X, Y
def lists(): return X.tolist(), Y.tolist()
def alone(): return X
def keras_dicts(): return {"x": X}, {"y": Y}
def dict_batches(): return [({"x": X[:2]}, Y[:2]), ({"x": X[2:]}, Y[2:])]
def one_hot(): return [(X[i], np.eye(3)[Y[i]]) for i in range(3)]
class Endless(list):
    def cardinality(self): return -1
def endless(): return Endless()
def twice(): return [({"x": X}, {"x": Y})]
def parts(): return iter([X[:2], X[2:]])
def broken(): raise RuntimeError("no database")
def late():
    yield X, Y
    raise KeyError("no more")
def leaves(): raise SystemExit(3)
def nothing(): return None
def three(): return [(X, Y, Y)]
def ragged(): return [(X, Y), (X[:, :2], Y)]
def coarser(): return [(X, Y), (X, Y + 0.5)]
def objects(): return {"x": X, "y": [None, 1, 2]}
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name", ["batches", "samples", "named", "pair", "lists", "alone", "parts", "keras_dicts", "dict_batches"]
)
def test_load_function_takes_arrays_batches_and_samples(functions, name):
    found = data.load(f"my_data:{name}")
    assert found.open("x").tolist() == np.arange(12).reshape(3, 4).tolist()
    y = found.open("y").tolist() if "y" in found.arrays else None
    assert y == {"alone": None, "parts": None, "named": [0, 1, 2]}.get(name, [2, 0, 1])
    assert found.labels == (("cat", "mouse", "ox") if name == "named" else ())


def test_samples_whose_parts_differ_in_length_are_no_batches(functions):
    found = data.load("my_data:one_hot")
    assert found.open("x").shape == (3, 4)
    assert found.open("y").tolist() == np.eye(3)[[2, 0, 1]].tolist()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "my_data:broken raised RuntimeError: no database"),
        ("late", "my_data:late raised KeyError: 'no more'"),
        ("leaves", "my_data:leaves raised SystemExit: 3"),
        ("missing", "my_data:missing: my_data has no function 'missing'; it has batches, samples"),
        ("nothing", "my_data:nothing: gave NoneType; a dict of arrays, "),
        ("three", "my_data:three: a batch of 3 parts; "),
        ("ragged", r"my_data:ragged: x: sample 3 is float32 of shape \(2,\), the ones before are float32"),
        ("coarser", "my_data:coarser: y: sample 3 is float64 of shape .*, the ones before are int64"),
        ("endless", "my_data:endless: gives batches without end; leave out .repeat()"),
        ("twice", "my_data:twice: 'x' is an input and a target; give them different names"),
        ("objects", "my_data:objects: y: list is no array of numbers or texts"),
    ],
)
def test_load_function_says_what_is_wrong(functions, name, message):
    with pytest.raises(InputError, match=f"^{message}"):
        data.load(f"my_data:{name}")


def test_files_of_several_types_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "1.npy", np.zeros(3, np.uint8))
    np.save(tmp_path / "a" / "2.npy", np.full(3, 0.5, np.float32))
    with pytest.raises(InputError, match=r"2\.npy: type float32, the first sample has uint8; name .* \(cast\)"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([[1.0, np.nan], [0, 0]])}, "x: sample 0 holds NaN"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, "differ in their number of samples: x 3, y 2"),
        ({"x": np.zeros((0, 2))}, "no samples"),
        ({"x": np.zeros((2, 2), complex)}, "x: numbers are needed, got dtype complex128"),
        ({"x": np.array([None, 1], object)}, "'x' holds Python objects"),
    ],
)
def test_load_refuses_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        data.load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"not a zip", "a.npz: not a readable .npz"),
        ("a.csv", b"a,b,y\n1,2\n", "line 2 has 2 columns, the header 3"),
        ("a.csv", b"a,b,y\n1,x,0\n", "line 2, column 'b': 'x' is no number"),
        ("a.csv", b"", "no header line"),
        ("a.csv", b"a,b,y\n\n\n1,2,0\n1,x,0\n", "a.csv: line 5, column 'b': 'x' is no number"),
        ("a.csv", b",a,y\n0,1,2\n", "a.csv: column 1 has no name; name it, or leave out an index"),
        ("a.csv", b"a,y,y\n0,1,2\n", "a.csv: two columns are called 'y'; name them apart"),
        ("a.csv", b"\xff\xfe\x00", "a.csv: not a text file: "),
        ("a.csv", b"a,b,y\n1,2,0\n1,2,\n", "a.csv: line 3, column 'y': no value"),
        ("a.toml", b'data = "b.npz"\n', "a.toml: data: no such file or folder: b.npz"),
        ("a.toml", b'date = "b.npz"\n', "date"),
        ("a.json", b"{}", "data is a .npz, .csv, .toml"),
    ],
)
def test_load_refuses_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        data.load(str(tmp_path / name))


def test_load_refuses_a_missing_column_and_an_empty_folder(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a.toml").write_text('data = "a.csv"\ntarget = "kind"\n')
    with pytest.raises(InputError, match="no column 'kind'; it has a, b"):
        data.load(str(tmp_path / "a.toml"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no samples: a folder of class folders"):
        data.load(str(tmp_path / "empty"))


def test_bind_names_single_arrays_x_and_y(small):
    bound = data.bind(data.load(small), [IMAGE], [KIND])
    assert (set(bound.inputs), set(bound.targets), bound.count) == ({"image"}, {"kind"}, 6)


def test_bind_takes_several_inputs_by_name_and_says_what_is_missing(tmp_path):
    found = data.load(npz(tmp_path / "a.npz", a=np.zeros((2, 3)), b=np.zeros((2, 4)), left=np.zeros(2)))
    inputs = [TensorSpec(name=n, dtype="float32", shape=(None, s)) for n, s in (("a", 3), ("b", 4))]
    outputs = [TensorSpec(name=n, dtype="float32", shape=(None, 1)) for n in ("left", "right")]
    bound = data.bind(found, inputs, outputs)
    assert (list(bound.inputs), list(bound.targets)) == (["a", "b"], ["left"])
    with pytest.raises(InputError, match="no array for the model's input c; it has a, b, left"):
        data.bind(found, [inputs[0], TensorSpec(name="c", dtype="float32", shape=(None, 4))], outputs)


def test_bind_refuses_another_shape(small):
    wider = TensorSpec(name="image", dtype="float32", shape=(1, 8, 8, 1))
    with pytest.raises(InputError, match=r"input 'image' takes samples of shape \(8, 8, 1\), the data has \(4, 4, 1\)"):
        data.bind(data.load(small), [wider], [KIND])


def test_draw_is_stratified_in_proportion_and_seeded(tmp_path):
    y = np.repeat([0, 1, 2], [60, 30, 10])
    found = data.load(npz(tmp_path / "a.npz", x=np.zeros((100, 2)), y=y))
    ids = data.draw(found, 20, seed=0)
    assert np.bincount(y[ids]).tolist() == [12, 6, 2]
    assert ids.tolist() == data.draw(found, 20, seed=0).tolist() != data.draw(found, 20, seed=1).tolist()
    assert data.draw(found, 500, seed=0).tolist() == list(range(100))


def test_sample_hashes_find_the_same_sample_in_another_file(tmp_path):
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    first = data.load(npz(tmp_path / "a.npz", x=x))
    second = data.load(npz(tmp_path / "b.npz", x=x[::-1]))
    assert data.sample_hashes([first.arrays["x"]])[1] == data.sample_hashes([second.arrays["x"]])[3]
    assert len(set(data.sample_hashes([first.arrays["x"]]))) == 5
