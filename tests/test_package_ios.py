"""The Swift package: parsed with tree-sitter's grammar of Swift. No Swift compiler is here, so nothing runs it."""

import zipfile

import pytest
from wrappers import models

from edgedl import packaging, pipeline
from edgedl.packaging import wrapping


def errors(text):
    """What tree-sitter cannot parse in Swift, as (line, text)."""
    tree_sitter = pytest.importorskip("tree_sitter", reason="needs: pip install tree-sitter tree-sitter-swift")
    grammar = pytest.importorskip("tree_sitter_swift", reason="needs: pip install tree-sitter tree-sitter-swift")
    root = tree_sitter.Parser(tree_sitter.Language(grammar.language())).parse(text).root_node

    def walk(node):
        if node.type == "ERROR" or node.is_missing:
            yield node.start_point[0] + 1, text[node.start_byte : node.end_byte][:60]
        for child in node.children:
            yield from walk(child)

    return list(walk(root))


def test_the_parser_finds_what_is_no_swift():
    assert errors(b"let a = 1\nfunc (b {\n")


@pytest.mark.parametrize(
    ("inputs", "outputs", "with_data"),
    [(("image",), ("kind",), True), (("image",), ("kind",), False), (("left", "right"), ("angle", "kind"), False)],
)
def test_swift_package_parses(tmp_path, inputs, outputs, with_data):
    artifact = models.write_onnx(tmp_path / "shapes.onnx", inputs, outputs)
    data = models.write_data(tmp_path) if with_data else None
    (made,) = pipeline.package(artifact, platforms=["ios"], out=tmp_path / "out", data=data)
    assert made.name == "shapes-1.0.0-ios.zip"
    with zipfile.ZipFile(made) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    swift = {name: text for name, text in files.items() if name.endswith(".swift")}
    assert {name.rpartition("/")[2] for name in swift} >= {"Package.swift", "Model.swift", "Runner.swift"}
    for name, text in swift.items():
        assert not errors(text), name
        assert not wrapping.WORD.search(text.decode()), name
    content = "Shapes/Sources/Shapes/Content"
    assert files[f"{content}/shapes.onnx"] == artifact.read_bytes()
    assert f"{content}/golden/input_0.npy" in files
    assert b"never compiled or run" in files["Shapes/README.md"]
    model = swift["Shapes/Sources/Shapes/Model.swift"].decode()
    expected = (
        "predict(_ input: Sample) throws -> [Float]" if with_data else "predict(_ input: [Float]) throws -> [Float]"
    )
    if len(inputs) > 1:
        expected = "predict(left: [Float], right: [Float]) throws -> ShapesOutputs"
    assert expected in model
    assert packaging.verify(made)["verdict"] == "pass"


def test_swift_labels_of_two_classes_share_one_value():
    """As those of the other platforms do, which run: the same lines in another language."""
    runner = (wrapping.FOLDER / "ios/Runner.swift").read_text()
    assert "let scores = isBinary ? [1 - values[0], values[0]] : values" in runner
    assert "label: isLabelled ? labels[index] : nil, value: scores[index]" in runner


def test_swift_package_says_that_nothing_compiled_it(cli, tmp_path):
    models.write_onnx(tmp_path / "shapes.onnx")
    answer = cli("package", tmp_path / "shapes.onnx", "--platform", "ios", "-o", tmp_path / "out")
    assert answer.code == 0
    assert "ios: experimental: no Swift compiler has seen this package" in answer.err
    models.write_tflite(tmp_path / "shapes.tflite")
    answer = cli("package", tmp_path / "shapes.tflite", "--platform", "ios", "-o", tmp_path / "out")
    assert answer.code == 3
    assert "platform 'ios' takes onnx, this is tflite; export it with --format onnx" in answer.err
