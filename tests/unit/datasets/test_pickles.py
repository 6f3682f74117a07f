"""Attacks on the reader of pickles: nothing that a file names may be imported, called or changed."""

from __future__ import annotations

import collections
import copyreg
import datetime
import pickle
import pickletools
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import assume, given
from hypothesis import strategies as st
from rasterio.crs import CRS

from embedcache.datasets import _pickles
from embedcache.datasets._pickles import Stub, load_attribute, load_pickle

Attack = Callable[[Path], bytes]


# pickles written by hand, opcode by opcode


def text(content: str) -> bytes:
    raw = content.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def name(module: str, attribute: str) -> bytes:
    """Ask for ``module.attribute`` as protocol 4 does, where dots are followed (STACK_GLOBAL)."""
    return text(module) + text(attribute) + b"\x93"


def old_name(module: str, attribute: str) -> bytes:
    """Ask for ``module.attribute`` as protocol 0 does (GLOBAL)."""
    return f"c{module}\n{attribute}\n".encode()


def value(content: Any) -> bytes:
    """Push a plain value."""
    return b"".join(_opcodes(pickle.dumps(content, protocol=3)))


def _opcodes(raw: bytes) -> Iterator[bytes]:
    found = [(op.name, start) for op, _, start in pickletools.genops(raw)]
    for (opcode, start), (_, end) in zip(found, [*found[1:], ("", len(raw))], strict=True):
        if opcode not in {"PROTO", "STOP", "BINPUT"}:
            yield raw[start:end]


def call(function: bytes, *arguments: bytes) -> bytes:
    """Call what was pushed (REDUCE)."""
    return function + b"(" + b"".join(arguments) + b"tR"


def program(body: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def command(marker: Path) -> str:
    return f"touch {shlex.quote(str(marker))}"


def source(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def touch(marker: Path) -> bytes:
    return text(command(marker))


def opens(marker: Path) -> bytes:
    return text(source(marker))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Return the file that every attack tries to make."""
    return tmp_path / "it-ran"


LIVE: dict[str, Attack] = {
    "os.system": lambda m: call(name("os", "system"), touch(m)),
    "posix.system": lambda m: call(name("posix", "system"), touch(m)),
    "os.system by GLOBAL": lambda m: call(old_name("os", "system"), touch(m)),
    "os.system by INST": lambda m: b"(" + touch(m) + b"ios\nsystem\n",
    "os.system by OBJ": lambda m: b"(" + name("os", "system") + touch(m) + b"o",
    "os.system deep inside a sample": lambda m: (
        b"}" + text("label") + b"]" + call(name("os", "system"), touch(m)) + b"as"
    ),
    "os.system before an honest answer": lambda m: call(name("os", "system"), touch(m)) + b"0" + value({"label": 1}),
    "subprocess.call": lambda m: call(name("subprocess", "call"), value(["touch", str(m)])),
    "builtins.eval": lambda m: call(name("builtins", "eval"), opens(m)),
    "builtins.exec": lambda m: call(name("builtins", "exec"), opens(m)),
    "builtins.open": lambda m: call(name("builtins", "open"), text(str(m)), text("w")),
    "Python 2's eval": lambda m: b"\x80\x02" + call(old_name("__builtin__", "eval"), opens(m)),
    "builtins.getattr": lambda m: call(
        call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("system")), touch(m)
    ),
    "functools.partial": lambda m: call(call(name("functools", "partial"), name("os", "system"), touch(m))),
    "operator.methodcaller": lambda m: call(
        call(name("operator", "methodcaller"), text("touch")), call(name("pathlib", "Path"), text(str(m)))
    ),
    "a pickle in the pickle": lambda m: call(
        name("pickle", "loads"), value(program(call(name("os", "system"), touch(m))))
    ),
    "pathlib.Path.touch": lambda m: call(name("pathlib", "Path.touch"), call(name("pathlib", "Path"), text(str(m)))),
    "numpy.savetxt": lambda m: call(name("numpy", "savetxt"), text(str(m)), value([1.0])),
    "a map over a list": lambda m: call(
        name("builtins", "list"), call(name("builtins", "map"), name("os", "system"), b"]" + touch(m) + b"a")
    ),
    "this package's own os": lambda m: call(
        name("embedcache.datasets._pickles", "pickle.io.open"), text(str(m)), text("w")
    ),
}


@pytest.mark.parametrize("attack", LIVE.values(), ids=LIVE)
def test_attack_would_run_if_unpickled_plainly(marker: Path, attack: Attack) -> None:
    pickle.loads(program(attack(marker)))
    assert marker.exists(), "an attack that does nothing proves nothing below"


@pytest.mark.parametrize("attack", LIVE.values(), ids=LIVE)
def test_attack_is_refused_and_does_not_run(marker: Path, attack: Attack) -> None:
    with pytest.raises(ValueError, match=r"^its pickle is refused: it asks for .*, which is not allowed$"):
        load_pickle(program(attack(marker)))
    assert not marker.exists()


@pytest.mark.parametrize("attack", LIVE.values(), ids=LIVE)
def test_attack_in_an_attribute_is_refused_and_does_not_run(marker: Path, attack: Attack) -> None:
    with pytest.raises(ValueError, match="its pickle is refused"):
        load_attribute(str(program(attack(marker))))
    assert not marker.exists()


FORBIDDEN = [
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy", "memmap"),
    ("numpy", "f2py"),
    ("numpy", "ndarray.tofile"),
    ("numpy", "ndarray.__class__"),
    ("numpy", "dtype.__class__.__subclasses__"),
    *((f"numpy.{core}.multiarray", a) for core in ("core", "_core") for a in ("fromfile", "array", "frombuffer", "os")),
    *(
        (f"numpy.{core}.multiarray", a)
        for core in ("core", "_core")
        for a in ("scalar.__self__", "_reconstruct.__class__")
    ),
    ("numpy._core.multiarray.scalar", "__self__"),
    ("numpy.testing._private.utils", "runstring"),
    ("datetime", "sys"),
    ("datetime", "sys.modules"),
    ("datetime", "date.__class__"),
    ("datetime", "datetime.__reduce_ex__"),
    ("datetime", "timezone"),
    ("datetime", ""),
    ("", "date"),
    ("collections", "namedtuple"),
    ("collections", "_sys"),
    ("collections", "OrderedDict.__init__"),
    ("collections", "OrderedDict.__subclasses__"),
    ("collections.abc", "sys"),
    ("codecs", "open"),
    ("_codecs", "encode"),
    ("copyreg", "_reconstructor"),
    ("copyreg", "add_extension"),
    ("builtins", "object"),
    ("builtins", "type"),
    ("builtins", "dict"),
    ("importlib", "import_module"),
    ("pty", "spawn"),
    ("webbrowser", "open"),
    ("ctypes", "CDLL"),
    ("torch", "load"),
    ("h5py", "File"),
    ("embedcache.datasets._pickles", "Stub"),
    ("embedcache.datasets._pickles", "_Unpickler.find_class"),
    ("__main__", "x"),
    ("Affine", "Affine"),
    ("geobenchmark", "x"),
    ("notgeobench.dataset", "x"),
    ("rasterio", "open"),
    ("ccb", "x"),
    (" geobench.dataset", "x"),
    ("\ngeobench.", "x"),
    ("datetime\0", "date"),
]


@pytest.mark.parametrize(("module", "attribute"), FORBIDDEN)
@pytest.mark.parametrize("ask", [name, old_name], ids=["STACK_GLOBAL", "GLOBAL"])
def test_any_other_name_is_refused(ask: Callable[[str, str], bytes], module: str, attribute: str) -> None:
    reason = "which is not allowed$" if ask is name else "its pickle is refused"
    with pytest.raises(ValueError, match=reason):
        load_pickle(program(ask(module, attribute)))


@given(st.text(max_size=12), st.text(max_size=12))
def test_name_that_nobody_thought_of_is_refused(module: str, attribute: str) -> None:
    assume(not module.startswith(("geobench.", "ccb.", "affine", "rasterio.")) and module != "geobench")
    with pytest.raises(ValueError, match="its pickle is refused"):
        load_pickle(program(name(module, attribute)))


# stubs: inert, and nothing imported for them


@pytest.mark.parametrize(
    "module", ["geobench.evil", "ccb.evil", "affine_evil", "affine.evil", "rasterio.evil", "geobench"]
)
@pytest.mark.parametrize("attribute", ["Thing", "sub.Thing", "__class__", "system", ""])
def test_module_that_is_stubbed_is_never_imported(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, module: str, attribute: str
) -> None:
    for package in ("geobench", "ccb"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(source(marker))
        (tmp_path / package / "evil.py").write_text(source(marker))
    (tmp_path / "affine_evil.py").write_text(source(marker))
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    made = load_pickle(program(call(name(module, attribute), text("argument"))))
    assert isinstance(made, Stub)
    assert made.args == ("argument",)
    assert set(sys.modules) == before
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "attribute"), [("affine", "Affine"), ("rasterio.crs", "CRS"), ("rasterio.io", "DatasetReader")]
)
def test_real_class_of_a_stubbed_module_is_not_handed_out(module: str, attribute: str) -> None:
    made = load_pickle(program(name(module, attribute)))
    assert issubclass(made, Stub)
    assert made.__module__ == _pickles.__name__
    assert made is not Affine
    assert made is not CRS


def test_stub_that_is_given_a_dangerous_function_is_refused_before_it_gets_it(marker: Path) -> None:
    with pytest.raises(ValueError, match=r"it asks for os\.system"):
        load_pickle(program(call(name("geobench.dataset", "Run"), name("os", "system"), touch(marker))))
    assert not marker.exists()


@pytest.mark.parametrize(
    "body",
    [
        lambda m: call(name("geobench.os", "system"), touch(m)),
        lambda m: name("geobench.os", "system") + b"(" + touch(m) + b"t\x81",  # NEWOBJ
        lambda m: name("geobench.os", "system") + b"(" + touch(m) + b"t}" + text("shell") + b"\x88s\x92",  # NEWOBJ_EX
        lambda m: b"(" + touch(m) + b"igeobench.os\nsystem\n",  # INST
        lambda m: b"(" + name("geobench.os", "system") + touch(m) + b"o",  # OBJ
    ],
    ids=["REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"],
)
def test_stub_called_with_a_shell_command_only_keeps_it(marker: Path, body: Attack) -> None:
    made = load_pickle(program(body(marker)))
    assert isinstance(made, Stub)
    assert made.args == (command(marker),)
    assert not marker.exists()


def test_object_of_a_class_named_after_geobench_whose_reduce_is_an_attack_is_refused(marker: Path) -> None:
    class Sentinel2:
        def __reduce__(self) -> Any:
            import os

            return os.system, (command(marker),)

    Sentinel2.__module__, Sentinel2.__qualname__ = "geobench.dataset", "Sentinel2"
    with pytest.raises(ValueError, match=r"it asks for posix\.system|it asks for os\.system"):
        load_pickle(pickle.dumps({"label": 1, "02 - Blue": {"band_info": Sentinel2()}}))
    assert not marker.exists()


def test_result_of_a_stub_cannot_be_called(marker: Path) -> None:
    with pytest.raises(ValueError, match="not callable"):
        load_pickle(program(call(call(name("geobench.x", "make")), touch(marker))))


@pytest.mark.parametrize(
    "state", [b"}" + text("args") + b"K\x01s", b"N}" + text("args") + b"K\x01s\x86"], ids=["state", "slot state"]
)
def test_state_of_a_stub_is_kept_and_not_applied(state: bytes) -> None:
    made = load_pickle(program(call(name("geobench.x", "Thing"), text("a")) + state + b"b"))
    assert made.args == ("a",)
    assert set(vars(made)) == {"args", "state"}


def test_stub_tells_the_attributes_of_its_state_and_nothing_else() -> None:
    made = load_pickle(program(call(name("geobench.x", "Thing")) + value({"name": "x"}) + b"b"))
    assert (made.get("name"), made.get("__class__"), made.get("get")) == ("x", None, None)
    assert load_pickle(program(call(name("geobench.x", "Thing")) + text("wkt") + b"b")).get("name") is None


# nothing that is allowed can be changed for the rest of the program

ALLOWED = [
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "timedelta"),
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", a) for core in ("core", "_core") for a in ("_reconstruct", "scalar")),
    ("affine", "Affine"),
]


@pytest.mark.parametrize(("module", "attribute"), ALLOWED)
@pytest.mark.parametrize("slots", [False, True])
def test_allowed_function_or_class_cannot_be_given_an_attribute(module: str, attribute: str, slots: bool) -> None:
    state = b"}" + text("planted") + b"K\x01s"
    with pytest.raises(ValueError, match="its pickle is refused"):
        load_pickle(program(name(module, attribute) + (b"N" + state + b"\x86" if slots else state) + b"b"))
    everything = (
        Stub,
        datetime.date,
        datetime.datetime,
        datetime.timedelta,
        collections.OrderedDict,
        np.ndarray,
        np.dtype,
    )
    assert not any(hasattr(thing, "planted") for thing in everything)
    assert not hasattr(np._core.multiarray.scalar, "planted")
    assert not hasattr(np._core.multiarray._reconstruct, "planted")


def test_array_cannot_reach_beyond_the_bytes_of_the_pickle() -> None:
    dtype = call(name("numpy", "dtype"), text("u1"))
    for shape, strides in (((1000,), (1,)), ((8,), (1000,)), ((8,), (-1,))):
        arguments = (value(shape), dtype, value(b"12345678"), value(0), value(strides))
        with pytest.raises(ValueError, match="its pickle is refused"):
            load_pickle(program(call(name("numpy", "ndarray"), *arguments)))


def test_object_array_does_not_take_bytes_for_addresses() -> None:
    dtype = call(name("numpy", "dtype"), text("O"))
    for core in ("core", "_core"):
        with pytest.raises(ValueError, match="its pickle is refused"):
            load_pickle(program(call(name(f"numpy.{core}.multiarray", "scalar"), dtype, value(b"AAAAAAAA"))))
        blank = call(
            name(f"numpy.{core}.multiarray", "_reconstruct"), name("numpy", "ndarray"), value((0,)), value(b"b")
        )
        state = b"(" + value(1) + value((1,)) + dtype + b"\x89" + value(b"AAAAAAAA") + b"t"
        with pytest.raises(ValueError, match="its pickle is refused"):
            load_pickle(program(blank + state + b"b"))


def test_array_of_absurd_size_is_refused() -> None:
    with pytest.raises(ValueError, match="its pickle is refused"):
        load_pickle(program(call(name("numpy", "ndarray"), value((10**15,)))))


def test_dtype_string_is_not_evaluated(marker: Path) -> None:
    for code in (f"(2,)i4,{source(marker)}i4", source(marker), f"({source(marker)},)i4"):
        with pytest.raises(ValueError, match="its pickle is refused"):
            load_pickle(program(call(name("numpy", "dtype"), text(code))))
    assert not marker.exists()


# other ways in


def test_registered_extension_is_checked_like_any_other_name(marker: Path) -> None:
    copyreg.add_extension("os", "system", 0xF3)
    try:
        with pytest.raises(ValueError, match=r"it asks for os\.system"):
            load_pickle(program(call(b"\x82\xf3", touch(marker))))
    finally:
        copyreg.remove_extension("os", "system", 0xF3)
    assert not marker.exists()


@pytest.mark.parametrize(
    "raw", [b"Pid\n.", b"\x80\x02U\x02idQ.", b"\x80\x05\x97."], ids=["PERSID", "BINPERSID", "NEXT_BUFFER"]
)
def test_objects_from_outside_the_pickle_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="its pickle is refused"):
        load_pickle(raw)


def test_name_that_is_no_text_is_refused() -> None:
    for module, attribute in ((value(1), text("date")), (text("datetime"), value(["date"])), (b"N", b"N")):
        with pytest.raises(ValueError, match="its pickle is refused"):
            load_pickle(program(module + attribute + b"\x93"))


# damage


def honest() -> dict[str, Any]:
    band = {
        "date": datetime.date(2020, 2, 29),
        "transform": Affine(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        "crs": CRS.from_epsg(32633),
    }
    return {"label": np.arange(5), "share": np.float32(0.25), "bands_order": ["a", "b"], "a": band, "none": None}


def test_pickle_cut_anywhere_is_refused() -> None:
    raw = pickle.dumps(honest(), protocol=4)
    for length in range(len(raw)):
        with pytest.raises(ValueError, match="its pickle is refused"):
            load_pickle(raw[:length])


@pytest.mark.parametrize(
    "attribute",
    ["", "b'", "None", "['a']", "'text'", "b'x' + b'y'", "1" * 5000, "x\0y", b"", b"\x80", b"not a pickle"],
)
def test_damaged_attribute_is_refused(attribute: str | bytes) -> None:
    with pytest.raises(ValueError, match="its pickle"):
        load_attribute(attribute)


def test_attribute_is_never_evaluated(marker: Path) -> None:
    for code in (source(marker), f"__import__('os').system({command(marker)!r})", f"[{source(marker)}]"):
        with pytest.raises(ValueError, match="its pickle attribute is damaged"):
            load_attribute(code)
    assert not marker.exists()


# what honest files hold


@pytest.mark.parametrize("protocol", [3, 4])
def test_honest_content_comes_back(protocol: int) -> None:
    content = load_attribute(str(pickle.dumps(honest(), protocol=protocol)))
    np.testing.assert_array_equal(content["label"], np.arange(5))
    assert content["share"] == np.float32(0.25)
    assert content["bands_order"] == ["a", "b"]
    assert content["none"] is None
    band = content["a"]
    assert band["date"] == datetime.date(2020, 2, 29)
    assert isinstance(band["transform"], Stub)
    assert band["transform"].args[:6] == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert isinstance(band["crs"], Stub)
    assert "UTM zone 33N" in band["crs"].state


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_array_of_any_plain_dtype_and_shape_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    again = np.asarray(load_pickle(pickle.dumps(array, protocol=4)))
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


def test_pickle_of_an_older_numpy_is_read() -> None:
    raw = pickle.dumps(np.arange(4), protocol=4)
    older = raw.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    older = older.replace(older[3:11], (len(older) - 12).to_bytes(8, "little"), 1)
    assert b"numpy.core.multiarray" in older
    np.testing.assert_array_equal(load_pickle(older), np.arange(4))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=10,
    )
)
def test_any_plain_content_survives_being_stored_as_text(content: Any) -> None:
    assert load_attribute(str(pickle.dumps(content))) == content
