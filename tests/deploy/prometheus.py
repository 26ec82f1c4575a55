"""A real Prometheus on the loopback interface that scrapes one exporter every three seconds."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from producer.local.servers import LOOPBACK, free_port
from tests.support.lacking import program
from tests.support.waiting import PATIENCE_S, eventually

_CONFIGURATION = """
global: {{scrape_interval: 3s, scrape_timeout: 3s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: label-migrator
    static_configs: [{{targets: ["{target}"]}}]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    """One that runs; `address` is `http://HOST:PORT`."""

    address: str

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API answers: `data` of the document. Raises `HTTPError` for a query it cannot read."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.address}/api/v1/{path}?{query}", timeout=PATIENCE_S) as answer:  # noqa: S310
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def values(self, expression: str) -> dict[str, float]:
        """A query's value now, by the labels of each series as they are written in a query."""
        return {
            ",".join(
                f"{name}={value}" for name, value in sorted(one["metric"].items()) if name != "__name__"
            ): float(one["value"][1])
            for one in self.ask("query", query=expression)["result"]
        }


@contextmanager
def prometheus(target: str, rules: Path, folder: Path) -> Iterator[Prometheus]:
    """Let one scrape `HOST:PORT`, with these rules, until the block ends; its data is in the folder."""
    server = program("prometheus")
    configuration = folder / "prometheus.yml"
    configuration.write_text(_CONFIGURATION.format(rules=rules, target=target))
    found = Prometheus(address=f"http://{LOOPBACK}:{free_port()}")
    log = folder / "prometheus.log"
    command = [
        server,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={found.address.removeprefix('http://')}",
    ]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            eventually(lambda: process.poll() is not None or _answers(found), "Prometheus answers")
            assert process.poll() is None, log.read_text()
            yield found
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _answers(one: Prometheus) -> bool:
    with suppress(OSError):
        one.ask("status/buildinfo")
        return True
    return False
