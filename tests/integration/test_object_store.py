"""Stores in a bucket of a real S3-speaking server on loopback: all or nothing, resume, locks, copies, commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import xarray as xr
from moto.server import ThreadedMotoServer

from embedcache.datasets._registry import open_dataset
from embedcache.ensemble import open_ensemble
from embedcache.extraction import Progress, extract
from embedcache.extraction_plan import ExtractionPlan, ExtractOptions, plan_extraction
from embedcache.feature_loader import FeatureLoader
from embedcache_stores import (
    FeatureStore,
    FeatureWriter,
    IncompleteStoreError,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
    StoreUnreachableError,
    find_stores,
    open_place,
)
from embedcache_stores.copying import copy_store
from embedcache_stores.object_place import ObjectPlace
from embedcache_stores.ownership import discard
from embedcache_stores.verify import verify_store

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start moto's S3 on a free port and return its address."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty bucket; credentials are in the environment, as a user would have them."""
    for key, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(key, value)
    name = f"b{abs(hash(request.node.name)) % 10**9}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/some/cache"


def keys(bucket: str) -> list[str]:
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    pages = boto3.client("s3").list_objects_v2(Bucket=name, Prefix=prefix)
    return [str(o["Key"]).removeprefix(prefix + "/") for o in pages.get("Contents", [])]


def plan(chips: Path, cache: str, **changes: Any) -> ExtractionPlan:
    options = ExtractOptions(weights="random", input_size=64, what="both", batch_size=8, device="cpu", **changes)
    return plan_extraction(open_dataset(f"folder:{chips}"), "sam2_hiera_tiny", cache, options)


def test_extraction_into_a_bucket_stops_continues_and_equals_the_one_on_a_disk(
    chips: Path, tmp_path: Path, bucket: str, hiera: Any
) -> None:
    def stop(progress: Progress) -> None:
        if progress.rows >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(plan(chips, bucket), extractor=hiera(), on_progress=stop)
    place = plan(chips, bucket).place
    with pytest.raises(IncompleteStoreError, match="1 of 2"):
        FeatureStore(place)
    assert not any(k.endswith("sam2_hiera_tiny.zarr/zarr.json") for k in keys(bucket))
    assert [m.state for m in find_stores(bucket)] == ["partial"]
    extract(plan(chips, bucket), extractor=hiera())
    there, here = FeatureStore(place), FeatureStore(extract(plan(chips, str(tmp_path / "c")), extractor=hiera()))
    assert there.manifest.fingerprint == here.manifest.fingerprint
    rows = np.random.default_rng(0).permutation(40)
    for name in ("pooled_mean", "level_0", "level_3", "label", "split"):
        np.testing.assert_array_equal(there.read(name, rows), here.read(name, rows))
    np.testing.assert_array_equal(there.to_xarray().level_2.values, here.to_xarray().level_2.values)
    left = [k for k in keys(bucket) if "progress" in k or "lock" in k]
    assert left == []
    assert plan(chips, bucket).complete
    assert verify_store(place).faults == []


def test_a_shard_holds_many_chunks_and_opening_reads_one_object(chips: Path, bucket: str, hiera: Any) -> None:
    place = extract(plan(chips, bucket), extractor=hiera())
    assert len([k for k in keys(bucket) if "/level_0/c." in k]) == 2  # 40 rows in row groups of 32
    requests: list[str] = []
    read = type(place).read
    try:
        type(place).read = lambda self, key: (requests.append(key), read(self, key))[1]  # type: ignore[method-assign,func-returns-value]
        FeatureStore(place)
    finally:
        type(place).read = read  # type: ignore[method-assign]
    assert requests == ["zarr.json"]


def test_ensembles_and_loaders_read_buckets_and_disks_together(
    chips: Path, tmp_path: Path, bucket: str, hiera: Any
) -> None:
    extract(plan(chips, bucket), extractor=hiera())
    extract(plan(chips, str(tmp_path / "c"), tag="local"), extractor=hiera())
    copy_store(
        FeatureStore(tmp_path / "c" / "chips" / "sam2_hiera_tiny@local.zarr"),
        f"{bucket}/chips/sam2_hiera_tiny@local.zarr",
    )
    view = open_ensemble(bucket, "chips", "sam2_hiera_tiny+sam2_hiera_tiny@local")
    whole = view.level(1).compute(scheduler="synchronous")
    for batch in FeatureLoader(view, ["level_1"], np.arange(40), batch_size=9, mode="streaming").epoch(0):
        np.testing.assert_array_equal(batch.x["level_1"].numpy(), whole[batch.rows])


def test_a_second_writer_is_refused_and_a_dead_owner_s_lock_is_taken(chips: Path, bucket: str, hiera: Any) -> None:
    made = plan(chips, bucket)
    with (
        FeatureWriter(made.place, made.spec),
        pytest.raises(StoreLockedError, match=rf"process {os.getpid()} on .* since 20"),
    ):
        extract(plan(chips, bucket), extractor=hiera())
    script = (
        "import os, sys; from embedcache_stores.ownership import acquire; from embedcache_stores import open_place\n"
        "acquire(open_place(sys.argv[1])); print(os.getpid(), flush=True); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, made.place.url], check=True, capture_output=True)
    assert any(k.endswith("writer.lock") for k in keys(bucket))
    assert not made.place.is_locked()
    extract(plan(chips, bucket), extractor=hiera())  # its owner was on this host and is dead
    assert not any(k.endswith("writer.lock") for k in keys(bucket))


def test_a_lock_of_another_host_is_kept_until_it_is_broken(chips: Path, bucket: str, hiera: Any) -> None:
    made = plan(chips, bucket)
    claim = {"owner": "process 7 on elsewhere since 2026-01-01", "host": "elsewhere", "pid": 7, "token": "x"}
    made.place.write("writer.lock", json.dumps(claim).encode())
    with pytest.raises(StoreLockedError, match=r"process 7 on elsewhere.*gc --break-locks"):
        extract(made, extractor=hiera())
    command = [sys.executable, "-m", "embedcache_cli", "gc", "--cache", bucket, "--break-locks"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "process 7 on elsewhere" in done.stdout
    extract(plan(chips, bucket), extractor=hiera())


def test_copy_there_and_back_and_remove(chips: Path, tmp_path: Path, bucket: str, hiera: Any) -> None:
    local = FeatureStore(extract(plan(chips, str(tmp_path / "a")), extractor=hiera()))

    def embedcache(*arguments: str) -> str:
        command = [sys.executable, "-m", "embedcache_cli", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    assert "would copy" in embedcache("cp", "chips/sam2_hiera_tiny", "--cache", "a", "--to", bucket, "--dry-run")
    assert keys(bucket) == []
    embedcache("cp", "chips/sam2_hiera_tiny", "--cache", "a", "--to", bucket)
    assert "complete" in embedcache("ls", "--cache", bucket)
    assert "sound" in embedcache("verify", "--cache", bucket)
    facts = json.loads(embedcache("info", "chips/sam2_hiera_tiny", "--cache", bucket, "--json"))
    assert facts["fingerprint"] == local.manifest.fingerprint
    embedcache("cp", "chips/sam2_hiera_tiny", "--cache", bucket, "--to", "b")
    back = FeatureStore(tmp_path / "b" / "chips" / "sam2_hiera_tiny.zarr")
    np.testing.assert_array_equal(back.read("level_0", np.arange(40)), local.read("level_0", np.arange(40)))
    embedcache("rm", "chips/sam2_hiera_tiny", "--cache", bucket)
    assert keys(bucket) == []


def test_a_removed_store_is_gone_for_readers_first(chips: Path, bucket: str, hiera: Any) -> None:
    place = extract(plan(chips, bucket), extractor=hiera())
    discard(place)
    with pytest.raises(StoreNotFoundError):
        FeatureStore(place)
    assert keys(bucket) == []


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://", "names no place for stores"),
        ("ftp://host/x", "names no place for stores"),
        ("az:///prefix", "names no place for stores"),
        ("az://container/prefix", "AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_a_place_that_is_none_is_refused(url: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StoreError, match=sentence):
        open_place(url)


def test_addresses_of_every_kind_name_bucket_and_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        **ENVIRONMENT,
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": "a2V5",
    }.items():
        monkeypatch.setenv(key, value)
    for scheme in ("s3", "gs", "az"):
        place = open_place(f"{scheme}://bucket/some/cache/").child("m-x").child("a.zarr")
        assert isinstance(place, ObjectPlace)
        assert place.url == f"{scheme}://bucket/some/cache/m-x/a.zarr"
        assert (place.name, place.parent_name) == ("a.zarr", "m-x")
        store, path = place.zarr_store()
        assert path == "some/cache/m-x/a.zarr"
        assert "bucket" in store.store.config.values()
        assert store.store.prefix is None


def test_a_bucket_that_refuses_is_said(server: str, chips: Path, bucket: str, hiera: Any) -> None:
    with pytest.raises(StoreUnreachableError, match=r"object store (answered|refused).*credentials"):
        extract(plan(chips, "s3://no-such-bucket-anywhere/x"), extractor=hiera())


def test_plain_xarray_opens_a_store_in_a_bucket(chips: Path, bucket: str, hiera: Any, server: str) -> None:
    place = extract(plan(chips, bucket), extractor=hiera())
    import obstore
    from zarr.storage import ObjectStore

    store = obstore.store.from_url(place.url, client_options={"allow_http": True})
    plain = xr.open_zarr(ObjectStore(store, read_only=True))
    np.testing.assert_array_equal(plain.pooled_mean, FeatureStore(place).read("pooled_mean", np.arange(40)))
