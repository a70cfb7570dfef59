"""Keys of a host: from a file or the environment, found when they come, never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leeward.core.errors import InvalidRequest, KeyMissing, LeewardError
from leeward.object_store.file import create_file_store
from leeward.replica.envelope import KIND_RECORD, open_envelope, seal_envelope
from leeward.replica.host_keys import KEY_FILE, KEYS, add_new_key, host_key_ids, open_keyed
from leeward.replica.sealing import Key

SECRET = "5e" * 32


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(KEYS, raising=False)
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "keys"))
    return tmp_path / "keys"


def test_new_keys_are_added_and_found_at_once(key_file: Path, tmp_path: Path) -> None:
    old = add_new_key(key_file, "first")
    assert host_key_ids() == (old,)
    create_file_store(tmp_path / "store")
    store = open_keyed(f"file://{tmp_path}/store", "0" * 16)
    with pytest.raises(KeyMissing, match="the key 0000000000000000 is not on this host"):
        assert store.keys.writing
    new = add_new_key(key_file, "second")
    os.utime(key_file, ns=(1, 1))  # whatever the file system's clock does
    assert host_key_ids() == tuple(sorted((old, new)))
    sealed = open_keyed(f"file://{tmp_path}/store", new)
    assert sealed.keys.writing
    envelope = seal_envelope(KIND_RECORD, 1, {}, sealed.keys.writing)
    assert open_envelope(envelope, KIND_RECORD, store.keys).key_id == new
    assert key_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("comment", ["", "  # ours"])
def test_a_key_is_added_to_a_file_whose_last_line_does_not_end(
    key_file: Path, comment: str
) -> None:
    """As `printf` or an editor leaves it: the new key is none of that line's."""
    key_file.write_text(SECRET + comment)
    key_file.chmod(0o600)
    new = add_new_key(key_file, "second")
    assert host_key_ids() == tuple(sorted((Key(bytes.fromhex(SECRET)).id, new)))


def test_another_file_in_its_place_is_read_though_it_is_as_old(key_file: Path) -> None:
    old = add_new_key(key_file, "first")
    os.utime(key_file, ns=(1, 1))
    assert host_key_ids() == (old,)
    other = key_file.with_name("other")
    new = add_new_key(other, "second")
    os.utime(other, ns=(1, 1))
    other.replace(key_file)
    assert host_key_ids() == (new,)


def test_the_environment_gives_keys_too(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_FILE)
    monkeypatch.setenv(KEYS, f"{SECRET},{'ab' * 32}")
    assert Key(bytes.fromhex(SECRET)).id in host_key_ids()
    assert len(host_key_ids()) == 2


def test_what_is_wrong_with_a_key_file_is_said_without_its_keys(key_file: Path) -> None:
    def complaint() -> str:
        with pytest.raises(LeewardError) as caught:
            host_key_ids()
        assert isinstance(caught.value, InvalidRequest)
        assert SECRET[:6] not in str(caught.value)
        return str(caught.value)

    assert "No such file" in complaint()
    key_file.write_text(f"# ours\n\n{SECRET}\n{SECRET}00\n")
    key_file.chmod(0o600)
    assert f"line 4 of {key_file} is not a key" in complaint()
    key_file.write_text(SECRET)
    key_file.chmod(0o640)
    assert f"chmod 600 {key_file}" in complaint()
    key_file.write_bytes(b"\xff\xfe")
    key_file.chmod(0o600)
    assert "is not a key file" in complaint()
