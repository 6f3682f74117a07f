"""What is imported when, and what the wheel holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "terratorch", "timm", "torchvision", "sam2", "xarray", "dask", "rasterio", "matplotlib", "sklearn")


def imported(code: str, cwd: Path) -> set[str]:
    """Top-level modules loaded by a fresh interpreter after running ``code``."""
    script = f"{code}\nimport sys; print('\\n'.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=cwd, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_this_check_can_fail(tmp_path: Path) -> None:
    assert "torch" in imported("import torch", tmp_path)


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import embedcache_cli.app", (*HEAVY, "numpy", "zarr", "h5py", "rich", "embedcache_stores")),
        ("import embedcache_stores", (*HEAVY, "typer", "h5py")),
        ("import embedcache", (*HEAVY, "numpy", "zarr", "typer")),
        ("from embedcache.backbones._registry import list_backbones; list_backbones()", (*HEAVY, "typer", "h5py")),
        ("from embedcache.datasets._registry import list_kinds; list_kinds()", (*HEAVY, "typer", "h5py", "PIL")),
        ("import embedcache.ensemble", (*HEAVY, "typer")),
        ("from pathlib import Path; from embedcache_cli.inspect import backbones; backbones(json=False)", HEAVY),
    ],
)
def test_nothing_heavy_is_imported(code: str, forbidden: tuple[str, ...], tmp_path: Path) -> None:
    assert not imported(code, tmp_path) & set(forbidden)


def test_ls_imports_nothing_heavy(demo_folder: Path) -> None:
    code = "from pathlib import Path; from embedcache_cli.inspect import ls; ls(Path('embedcache-demo/cache'))"
    assert not imported(code, demo_folder) & set(HEAVY)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, REPOSITORY],
        capture_output=True,
        check=True,
        timeout=300,
    )
    return next(out.glob("*.whl"))


def test_the_wheel_holds_three_typed_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split("/")[0] for n in names if ".dist-info/" not in n}
    assert tops == {"embedcache", "embedcache_cli", "embedcache_stores"}
    assert {f"{top}/py.typed" for top in tops} <= set(names)


def test_the_wheel_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, check=True, timeout=120)
    empty = tmp_path / "empty"
    empty.mkdir()
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r}); sys.argv = ['embedcache', 'backbones']\n"
        "import embedcache_cli, embedcache, embedcache_stores\n"
        f"assert all(m.__file__.startswith({str(site)!r}) for m in (embedcache_cli, embedcache, embedcache_stores))\n"
        "from embedcache_cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prithvi_eo_v2_600_tl" in done.stdout
