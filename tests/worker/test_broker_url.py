"""REDIS_URL with sentinels, as kombu has it: what is read of it, and what is refused."""

import pytest

from worker.broker_url import NotUnderstoodError, parse

THREE = "sentinel://:pass;word@a:1;sentinel://b;sentinel://[::1]:3/2?master_name=label"


def test_each_sentinel_gets_the_servers_password_and_database():
    """Kombu goes on with any of them, and then takes what its URL says."""
    url = parse("sentinel://mig:p%3Bw@a:1;sentinel://b;sentinel://[::1]:3/2?master_name=label")

    assert (
        url.url == "sentinel://mig:p%3Bw@a:1/2;sentinel://mig:p%3Bw@b:26379/2;sentinel://mig:p%3Bw@[::1]:3/2"
    )
    assert (url.scheme, url.username, url.password, url.database) == ("sentinel", "mig", "p;w", 2)
    assert url.addresses == (("a", 1), ("b", 26379), ("::1", 3))
    assert url.tls == {}
    assert url.sentinels is not None
    assert (url.sentinels.master_name, url.sentinels.password) == ("label", None)
    assert url.place == "label (sentinels a:1, b:26379, ::1:3)"


def test_the_sentinels_own_password_is_not_the_servers():
    url = parse("sentinel://a/0?master_name=x&sentinel_username=u&sentinel_password=s%26t")

    assert (url.password, url.sentinels and url.sentinels.password) == (None, "s&t")
    assert "s&t" not in repr(url)


def test_an_option_about_certificates_asks_for_tls():
    url = parse("sentinel://a/0?master_name=x&ssl_cert_reqs=CERT_REQUIRED")

    assert url.tls == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sentinel://:s3cret@a:1;sentinel://b/0", "master_name=NAME is missing"),
        ("sentinel://:s3cret@a:1/0?master_name=", "master_name=NAME is missing"),
        (THREE.replace("pass;word", "s3c;ret"), "each address after ; begins with sentinel://"),
        ("sentinel://:s3cret@a;b:2/0?master_name=x", "each address after ; begins with sentinel://"),
        ("sentinel://:s3cret@a;redis://b/0?master_name=x", "each address after ; begins with sentinel://"),
        ("redis://:s3cret@a:1;redis://b:2/0", "several servers are found by their sentinels"),
        ("sentinel://:s3cret@a?master_name=x;sentinel://b/0", "it stands at the end"),
        ("sentinel://:s3cret@a;sentinel://:other@b/0?master_name=x", "are the same in each address"),
        ("sentinel://:s3cret@a/1;sentinel://b/2?master_name=x", "are the same in each address"),
        ("sentinel://:s3cret@/0?master_name=x", "host or port is missing"),
        ("sentinel://:s3cret@a:0/0?master_name=x", "host or port is missing"),
        ("sentinel://:s3cret@a:b/0?master_name=x", "it is no URL"),
        ("sentinel://:s3cret@a/x?master_name=x", "the database is no number"),
        (
            "sentinel://:s3cret@a/0?master_name=x&socket_timeout=1",
            "sentinel_password, sentinel_username, ssl_",
        ),
        (
            "sentinel://:s3cret@a/0?master_name=x&ssl_cert_reqs=maybe",
            "ssl_cert_reqs is required, optional or",
        ),
    ],
)
def test_what_would_lead_elsewhere_is_refused_with_the_reason(text: str, reason: str):
    with pytest.raises(NotUnderstoodError) as raised:
        parse(text)

    assert reason in str(raised.value)
    assert "s3c" not in str(raised.value)
