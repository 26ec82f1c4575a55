"""What is going on while the power may fail: two jobs at once, of which one may rely on what the other has
just made.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from tests.estate import Project, make_project, record_session, snapshot_tree
from tests.powercut.jobs import Task
from tests.support.runs import open_run, run, run_one
from tests.support.sites import Site
from tests.support.studies import damage, folder_of, make_big, study
from worker.jobs.tools import Tools
from worker.messages import Verb
from worker.store.store import remove_tree

RECORDING = "day 1/accelerometer_data.csv"
SPOILED = "The disk does not take this."

Content = dict[bytes, tuple[str, bytes]]
"""What a tree holds: of each entry its kind, and of a file the digest of its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Jobs to do at once, and what their projects must hold."""

    tasks: list[Task]
    contents: dict[int, Content]
    refused: str | None = None
    """Writes with this text fail until another program has heard of it."""
    fails_with: Path | None = None
    """When something comes to this path the next write fails, after which jobs may fail for good."""


def migration(site: Site, tools: Tools) -> Story:
    """Two projects that share a recording, one of them with a file that is stored in the pass that hashes
    it.
    """
    del tools
    first, second = study(site, "first", 1, 2), study(site, "second", 1, 3)
    make_big(first, 2)
    return Story(tasks=_tasks(site, Verb.MIGRATE, first, second), contents=_contents(first, second))


def restore_outer_first(site: Site, tools: Tools) -> Story:
    """A project's directory comes back with the one around it, and its own job begins at this moment."""
    return _restore_nested(site, tools, inner_first=False)


def restore_inner_first(site: Site, tools: Tools) -> Story:
    """The inner project's job rebuilds the directory around it, too, and the outer one's finds it."""
    return _restore_nested(site, tools, inner_first=True)


def restore_on_a_bad_disk(site: Site, tools: Tools) -> Story:
    """The first files that are rebuilt are lost on their way to the disk, and only another program hears of
    it.
    """
    project = study(site, "project", 1)
    for number in range(40):
        text = SPOILED if number < 8 else "This it does."
        path = folder_of(project) / "day 1" / f"notes {number:02}"
        path.write_text(f"{number}: {text}\n" * (16384 // len(text)))
    run(tools, Verb.MIGRATE)
    contents = _contents(project)
    shutil.rmtree(folder_of(project))
    # Slow enough for the other program to hear of it long before the job asks.
    tasks = _tasks(site, Verb.ROLLBACK, project, bytes_per_second=1 << 20)
    return Story(tasks=tasks, contents=contents, refused=SPOILED)


def restore_on_a_failing_disk(site: Site, tools: Tools) -> Story:
    """The directory has its name, and the write that would have made it durable fails: ext4 gives its journal
    up, and says so once.
    """
    story = _restore_nested(site, tools, inner_first=False)
    return replace(story, fails_with=Path(str(story.tasks[1].begins_with)))


def mending(site: Site, tools: Tools) -> Story:
    """A blob has gone bad; one project brings a good copy, and another reuses the dataset as soon as it is
    mended.
    """
    first = study(site, "first", 1, 2)
    recording = Path(str(run_one(tools, Verb.MIGRATE, first.project_id).dataset_path), RECORDING)
    damage(recording)
    (blob,) = (one for one in (site.settings.store_dir / "blobs").glob("*/*") if one.samefile(recording))
    mender, reuser = study(site, "mender", 1, 3), study(site, "reuser", 1, 2)
    return Story(
        tasks=_tasks(site, Verb.MIGRATE, mender, reuser, begins_with=blob), contents=_contents(mender, reuser)
    )


def rebuilt_tree(site: Site, tools: Tools) -> Story:
    """A stored tree has lost a directory; one project rebuilds it, and another reuses it as soon as it is
    there.
    """
    tree = Path(str(run_one(tools, Verb.MIGRATE, study(site, "first", 1, 2).project_id).dataset_path))
    tree.chmod(0o755)
    remove_tree(str(tree / "day 1"))
    builder, reuser = study(site, "builder", 1, 2), study(site, "reuser", 1, 2)
    return Story(
        tasks=_tasks(site, Verb.MIGRATE, builder, reuser, begins_with=tree),
        contents=_contents(builder, reuser),
    )


STORIES = {
    story.__name__: story
    for story in (
        migration,
        restore_outer_first,
        restore_inner_first,
        restore_on_a_bad_disk,
        restore_on_a_failing_disk,
        mending,
        rebuilt_tree,
    )
}


def content_of(tree: Path) -> Content:
    """What a tree holds now."""
    return {name: (entry.kind, entry.content) for name, entry in snapshot_tree(tree).items()}


def _contents(*projects: Project) -> dict[int, Content]:
    return {project.project_id: content_of(folder_of(project)) for project in projects}


def _restore_nested(site: Site, tools: Tools, *, inner_first: bool) -> Story:
    """Two migrated projects whose directories, one inside the other, are gone; the second job begins when
    they are back.
    """
    outer = study(site, "outer", 1)
    with site.engine.begin() as conn:
        inner = make_project(conn, folder_of(outer), "inner")
        record_session(conn, inner, "day 2", rows=20, seed=2)
    run(tools, Verb.MIGRATE)
    contents = _contents(outer, inner)
    shutil.rmtree(folder_of(outer))
    projects = (inner, outer) if inner_first else (outer, inner)
    return Story(
        tasks=_tasks(site, Verb.ROLLBACK, *projects, begins_with=folder_of(outer)), contents=contents
    )


def _tasks(
    site: Site,
    verb: Verb,
    *projects: Project,
    begins_with: Path | None = None,
    bytes_per_second: int | None = None,
) -> list[Task]:
    """A job for each project, in this order; all but the first begin when another thing lies at a path."""
    return [
        Task(
            verb=verb,
            ref=open_run(site.engine, verb, only=[project.project_id], restore_files=True)[0],
            begins_with=str(begins_with) if number and begins_with is not None else None,
            bytes_per_second=bytes_per_second,
        )
        for number, project in enumerate(projects)
    ]
