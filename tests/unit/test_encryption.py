"""What is stored encrypted: keys from the settings and from the file, and what is refused."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from pinstripe.encryption import Encryptor
from pinstripe.errors import Misconfigured, Unwritable

ROW = {"sync": "shop", "stripe_url": "https://api.stripe.com"}
WHAT = "the key of the sync shop"


def key() -> str:
    return Fernet.generate_key().decode()


def test_what_is_sealed_opens_again_and_shows_nothing_of_itself(tmp_path: Path) -> None:
    encryptor = Encryptor((), tmp_path / "secret.key")
    sealed = encryptor.seal("sk_test_one", bound=ROW)
    assert b"sk_test" not in sealed
    assert encryptor.open(sealed, bound=ROW, what=WHAT) == "sk_test_one"
    assert encryptor.seal("sk_test_one", bound=ROW) != sealed


def test_the_file_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret.key"
    sealed = Encryptor((), path).seal("a", bound=ROW)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Encryptor((), path).open(sealed, bound=ROW, what=WHAT) == "a"
    assert [p.name for p in path.parent.iterdir()] == ["secret.key"]


def test_two_that_make_the_file_at_once_have_one_key(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with ThreadPoolExecutor(8) as pool:
        sealed = list(pool.map(lambda n: Encryptor((), path).seal(str(n), bound=ROW), range(8)))
    assert [Encryptor((), path).open(s, bound=ROW, what=WHAT) for s in sealed] == list("01234567")


def test_a_file_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    Encryptor((), path).seal("a", bound=ROW)
    path.chmod(0o640)
    with pytest.raises(Misconfigured, match="Others may read") as caught:
        Encryptor((), path).seal("b", bound=ROW)
    assert f"chmod 600 {path}" in caught.value.hint


def test_nothing_makes_a_key_only_to_open_what_was_sealed(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with pytest.raises(Misconfigured, match="is gone"):
        Encryptor((), path).open(b"x", bound=ROW, what=WHAT)
    assert not path.exists()


def test_another_key_is_told_from_a_broken_one_by_what_to_do(tmp_path: Path) -> None:
    sealed = Encryptor((key(),), tmp_path / "a").seal("sk_test_one", bound=ROW)
    with pytest.raises(Misconfigured, match="The key of the sync shop") as caught:
        Encryptor((key(),), tmp_path / "b").open(sealed, bound=ROW, what=WHAT)
    assert "PINSTRIPE_SECRET_KEY" in caught.value.hint


def test_the_first_key_encrypts_and_all_of_them_decrypt(tmp_path: Path) -> None:
    old, new = key(), key()
    sealed = Encryptor((old,), tmp_path / "a").seal("x", bound=ROW)
    both = Encryptor((new, old), tmp_path / "a")
    again = both.bind(sealed, bound=ROW, what=WHAT)
    assert both.open(sealed, bound=ROW, what=WHAT) == both.open(again, bound=ROW, what=WHAT) == "x"
    assert Encryptor((new,), tmp_path / "a").open(again, bound=ROW, what=WHAT) == "x"


def test_a_new_key_in_the_file_is_seen_by_who_has_read_it_before(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    service, shell = Encryptor((), path), Encryptor((), path)
    sealed = service.seal("x", bound=ROW)
    shell.add_to_file()
    again = shell.bind(sealed, bound=ROW, what=WHAT)
    shell.keep_first_in_file()
    assert service.open(again, bound=ROW, what=WHAT) == "x"
    assert len(path.read_text().split()) == 1
    with pytest.raises(Misconfigured):
        Encryptor((), path).open(sealed, bound=ROW, what=WHAT)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Unwritable, match=r"secret\.key"):
        Encryptor((), tmp_path / "secret.key").seal("a", bound=ROW)


def test_a_file_that_holds_something_else_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    path.write_text("not-a-key-at-all")
    path.chmod(0o600)
    with pytest.raises(Misconfigured) as caught:
        Encryptor((), path).seal("a", bound=ROW)
    assert "not-a-key" not in str(caught.value)
    assert str(path) in caught.value.message


def test_either_alphabet_of_base64_will_do(tmp_path: Path) -> None:
    from pinstripe.config.config import secret_key

    raw = bytes(range(224, 256))
    plain = base64.b64encode(raw).decode()
    assert "+" in plain or "/" in plain
    assert secret_key(plain, "x") == base64.urlsafe_b64encode(raw).decode()


def test_a_ciphertext_opens_in_its_own_row_only(tmp_path: Path) -> None:
    encryptor = Encryptor((), tmp_path / "secret.key")
    sealed = encryptor.seal("sk_test_one", bound=ROW)
    for other in (ROW | {"sync": "mine"}, ROW | {"stripe_url": "https://evil.example"}, {}):
        with pytest.raises(Misconfigured, match="does not open"):
            encryptor.open(sealed, bound=other, what=WHAT)


def test_a_token_that_is_bound_to_no_row_opens_in_none(tmp_path: Path) -> None:
    own = key()
    encryptor = Encryptor((own,), tmp_path / "secret.key")
    older = Fernet(own).encrypt(b"sk_test_one")
    with pytest.raises(Misconfigured, match="does not open"):
        encryptor.open(older, bound=ROW, what=WHAT)
    bound = encryptor.bind(older, bound=ROW, what=WHAT)
    assert encryptor.open(bound, bound=ROW, what=WHAT) == "sk_test_one"
