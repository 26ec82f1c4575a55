"""How places are mounted, judged by what the kernel shows of NFS mounts (lines of Linux 6.1), and whose names
are alike.
"""

import dataclasses

import pytest

from producer.doctor.same_checks import hosts_check
from worker.doctor import mount_options
from worker.doctor.protocol import Evidence, Machine
from worker.findings import Verdict
from worker.legacy import mount_table

NFS = (
    "rw,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,{options},proto=tcp,timeo=600,retrans=2,sec=sys,"
    "clientaddr=10.0.0.2,local_lock=none,addr=10.0.0.1"
)
ROOT = "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw"
GOOD = "hard,lookupcache=pos"


def line(point: str, options: str, *, how: str = "rw,noatime") -> str:
    """A line of mountinfo for an NFS mount."""
    return f"57 22 0:52 / {point} {how} shared:29 - nfs4 files:/x {NFS.format(options=options)}"


def judge(*lines: str, legacy: str = "/srv/legacy") -> tuple[Verdict, str]:
    places = ["/srv/label", "/srv/label/dataset_store"]
    check = mount_options.mounts_check(
        mount_table.mounts("\n".join([ROOT, *lines])),
        places,
        [legacy],
        {one: one for one in (*places, legacy)},
    )
    return check.verdict, check.finding


@pytest.mark.parametrize(
    ("lines", "verdict", "finding"),
    [
        ([], Verdict.PASS, "nothing lies on NFS"),
        ([line("/srv/label", GOOD)], Verdict.PASS, "/srv/label: as it should be"),
        ([line("/srv", GOOD), line("/srv/label", GOOD)], Verdict.WARN, "/srv is writable and caches"),
        ([line("/srv/label", "hard,lookupcache=none")], Verdict.PASS, "/srv/label"),
        ([line("/srv/label", "hard")], Verdict.FAIL, "/srv/label is mounted without lookupcache=positive"),
        ([line("/srv/label", "soft,lookupcache=pos")], Verdict.FAIL, "/srv/label is mounted soft"),
        ([line("/srv/label", "softerr,lookupcache=pos")], Verdict.FAIL, "mounted softerr"),
        ([line("/srv/legacy", "soft", how="ro")], Verdict.FAIL, "/srv/legacy is mounted soft"),
        ([line("/srv/legacy", "hard", how="ro,noatime")], Verdict.PASS, "/srv/legacy"),
        ([line("/srv/legacy", "hard")], Verdict.WARN, "/srv/legacy is writable and caches attributes"),
        ([line("/srv/legacy", "noac,hard")], Verdict.PASS, "/srv/legacy"),
        (
            [line("/srv/legacy", "acregmin=0,acregmax=0,acdirmin=0,acdirmax=0,hard")],
            Verdict.PASS,
            "/srv/legacy",
        ),
        # The store has a mount of its own in it, and the latest mount at a point is the one that is seen.
        (
            [line("/srv/label", GOOD), line("/srv/label/dataset_store", "hard")],
            Verdict.FAIL,
            "/srv/label/dataset_store is mounted without",
        ),
        ([line("/srv/label", "soft"), line("/srv/label", GOOD)], Verdict.PASS, "/srv/label"),
        # Not below it, only named like it.
        ([line("/srv/lab", "soft")], Verdict.PASS, "nothing lies on NFS"),
    ],
)
def test_mount_options_are_judged_by_what_they_cost(lines: list[str], verdict: Verdict, finding: str):
    found, words = judge(*lines)

    assert (found, finding in words) == (verdict, True), words


def test_a_mount_point_may_have_spaces():
    assert judge(line("/srv/our\\040data", "hard"), legacy="/srv/our data/legacy")[0] is Verdict.WARN


def said(host: str, boot_id: str) -> Evidence:
    machine = Machine(checks={}, host=host, boot_id=boot_id)
    return Evidence(
        edition="1", settings={}, processes=1, checks={}, database=None, sampled=0, machine=machine
    )


def test_two_machines_of_one_name_fail_and_two_workers_of_one_machine_pass():
    one, other = said("files1", "a"), said("files2", "b")
    twin = dataclasses.replace(other, machine=Machine(checks={}, host="files1", boot_id="b"))

    well = hosts_check({"a@x": one, "b@x": one, "c@y": other})
    bad = hosts_check({"a@x": one, "c@y": twin})

    assert (well.verdict, well.finding) == (Verdict.PASS, "2 machines")
    assert bad.verdict is Verdict.FAIL
    assert bad.finding == "a@x, c@y are on different machines that are both called files1"


def test_a_machine_is_identified_by_its_name_and_its_boot():
    host, boot_id = mount_options.host_identity()

    assert host
    assert len(boot_id) == 36
